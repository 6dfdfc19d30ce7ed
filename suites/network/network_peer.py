"""The host's end of a measurement: what guest/tools/udpping.c and tcprate.c do in a machine, in threads of the process that measures."""

from __future__ import annotations

import socket
import threading
from contextlib import ExitStack, contextmanager, suppress
from time import monotonic

BLOCK = 1 << 16
PATIENCE = 10.0


@contextmanager
def peer(address):
    """Answer pings, and take and give bytes, for this block: gives the ports (UDP, TCP).

    At that address where it is one of this host's; else at the host's own loopback, which is what an emulator's network leads to.
    """
    with ExitStack() as stack:
        pings, rates = (stack.enter_context(socket.socket(socket.AF_INET, kind)) for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM))
        for each in (pings, rates):
            try:
                each.bind((address, 0))
            except OSError:
                each.bind(("127.0.0.1", 0))
        rates.listen(4)
        for work, on in ((_echo, pings), (_serve, rates)):
            thread = threading.Thread(target=work, args=(on,), daemon=True)
            thread.start()
            stack.callback(thread.join)
            stack.callback(_wake, on)
        yield pings.getsockname()[1], rates.getsockname()[1]


def _wake(waiting):
    """Ends what waits for bytes or for somebody to connect."""
    with suppress(OSError):
        waiting.shutdown(socket.SHUT_RDWR)
    if waiting.type == socket.SOCK_DGRAM:  # shutdown does not wake one that never had a peer on every kernel
        with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as knock:
            knock.sendto(b"", waiting.getsockname())


def _echo(pings):
    buffer = bytearray(BLOCK)
    view = memoryview(buffer)
    while True:
        try:
            length, sender = pings.recvfrom_into(buffer)
        except OSError:
            return
        if length == 0:
            return
        with suppress(OSError):
            pings.sendto(view[:length], sender)


def _serve(rates):
    while True:
        try:
            client, _ = rates.accept()
        except OSError:
            return
        with client, suppress(OSError, ValueError):
            client.settimeout(PATIENCE)
            _answer(client)


def _answer(client):
    said = b""
    while not said.endswith(b"\n") and len(said) < 64:
        if not (byte := client.recv(1)):
            return
        said += byte
    word, _, ms = said.decode().strip().partition(" ")
    if word == "send":
        total, buffer = 0, bytearray(BLOCK)
        while got := client.recv_into(buffer):
            total += got
        client.sendall(f"{total}\n".encode())
    elif word == "receive":
        until, block = monotonic() + int(ms) / 1000, bytes(BLOCK)
        while monotonic() < until:
            client.sendall(block)
