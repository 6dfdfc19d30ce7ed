"""The parts of a virtual server between a machine and the world: its serial hub, and its way to the boot server."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import http.server
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from labctl.machine.serialline import by_pipes
from labctl.virtualserver import hub as hub_module
from labctl.virtualserver import pace as pace_module
from labctl.virtualserver import settings
from labctl.virtualserver.faults import FAULTS, argument_of
from labctl.virtualserver.hub import Hub
from labctl.virtualserver.pace import WINDOW, Pace
from labctl.virtualserver.web import Wire, relay

FLOOD = b"".join(b"%07d of a flood that a machine says on its serial port\n" % i for i in range(18_000))  # 1 MB
_OF_SOL = bytes([6, 0, 0xFF, 7, 6, 1])
"""A packet's beginning: IPMI 2.0, 13.6."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_servers_of_one_lab_share_no_port_even_while_they_are_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "_PORTS", range(20000, 20400, 10))
    given: list[int] = []
    for number in range(15):
        files = settings.Files.of(tmp_path, f"rack{number}")
        files.make()
        made = settings.create(files, f"rack{number}", cpus=1, memory=1 << 26, disk=1 << 26, redfish=False)
        given += [value for key, value in vars(made).items() if key.endswith("_port")]
    assert len(given) == len(set(given)) == 15 * 10


@contextmanager
def flooded(hub: Hub) -> Iterator[tuple[int, threading.Thread]]:
    """A hub in a loop of its own, and the port of its listeners; the thread, once started, is a machine that floods it."""
    port, ready, end = free_port(), threading.Event(), threading.Event()
    line = by_pipes()
    assert line.stdin is not None
    assert line.stdout is not None
    says, hears = os.fdopen(line.stdout, "wb", buffering=0), line.stdin

    async def run() -> None:
        async with await hub.listen("127.0.0.1", port):
            await hub.attach(line)
            ready.set()
            while not end.is_set():
                await asyncio.sleep(0.01)
            await hub.detach()

    def say() -> None:
        rest = memoryview(FLOOD)
        while rest:
            rest = rest[says.write(rest) :]
        says.close()

    serving = threading.Thread(target=asyncio.run, args=(run(),))
    serving.start()
    assert ready.wait(10)
    machine = threading.Thread(target=say)
    try:
        yield port, machine
    finally:
        end.set()
        serving.join(30)
        machine.join(30)
        os.close(hears)


def listener(port: int, *, buffer: int) -> socket.socket:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    connection.settimeout(30)
    connection.connect(("127.0.0.1", port))
    return connection


def read(connection: socket.socket, size: int, pause: float = 0) -> bytes:
    said = b""
    while len(said) < size:
        data = connection.recv(16384)
        if not data:
            break
        said += data
        time.sleep(pause)
    return said


@pytest.mark.parametrize("backlog", [hub_module.BACKLOG, 65536])
def test_a_slow_listener_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backlog: int) -> None:
    """Nor does the machine wait for it, unless more is kept for it than may be."""
    monkeypatch.setattr(hub_module, "BACKLOG", backlog)
    hub = Hub(tmp_path / "serial.log")
    with flooded(hub) as (port, machine), listener(port, buffer=4096) as slow, listener(port, buffer=65536) as fast:
        heard: list[bytes] = []
        other = threading.Thread(target=lambda: heard.append(read(fast, len(FLOOD))))
        while hub.listeners < 2:
            time.sleep(0.01)
        other.start()
        machine.start()
        if backlog > len(FLOOD):
            machine.join(30)
            assert not machine.is_alive()
        assert read(slow, len(FLOOD), pause=0.001) == FLOOD
        other.join(30)
    assert heard == [FLOOD]
    assert (tmp_path / "serial.log").read_bytes() == FLOOD
    assert hub.missed == 0


def test_a_listener_that_takes_nothing_stops_nobody_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "STALLED", 0.3)
    monkeypatch.setattr(hub_module, "BACKLOG", 65536)
    hub = Hub(tmp_path / "serial.log")
    with flooded(hub) as (port, machine), listener(port, buffer=4096), listener(port, buffer=65536) as fast:
        while hub.listeners < 2:
            time.sleep(0.01)
        machine.start()
        assert read(fast, len(FLOOD)) == FLOOD
    assert hub.missed > 0
    assert (tmp_path / "serial.log").read_bytes() == FLOOD


def test_a_machines_next_life_is_not_heard_behind_what_nobody_took_of_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever had the SOL was killed in the middle of a boot: what the machine said then is not the next boot's."""
    monkeypatch.setattr(pace_module, "_ABANDONED", 0.3)

    async def run() -> bytes:
        hub, pace = Hub(tmp_path / "serial.log"), Pace()
        heard = b""
        async with await hub.listen("127.0.0.1", port := free_port(), pace):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            while not hub.listeners:
                await asyncio.sleep(0.01)
            pace.heard(_OF_SOL)  # and is never heard again
            for life in (b"old " * 5000, b"new"):
                line = by_pipes()
                assert line.stdin is not None
                assert line.stdout is not None
                await hub.attach(line)
                with os.fdopen(line.stdout, "wb", buffering=0) as says:
                    says.write(life)
                await asyncio.sleep(0.5)
                os.close(line.stdin)
            while not heard.endswith(b"new"):
                heard += await asyncio.wait_for(reader.read(65536), 5)
            writer.close()
            await hub.detach()
        return heard

    heard = asyncio.run(run())
    assert len(heard) == WINDOW + len(b"new")  # what the simulator had room for, which it throws away when somebody comes
    assert (tmp_path / "serial.log").read_bytes() == b"old " * 5000 + b"new"


# --- the way to the boot server


FILE = hashlib.sha256(b"an image").digest() * 8192  # 256 KiB


@contextmanager
def between(wire: Wire) -> Iterator[http.client.HTTPConnection]:
    """A client, and the relay between it and a server that has one file."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(200)
            body = FILE if self.path == "/image" else b"#!ipxe\n"
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    port, ready, end = free_port(), threading.Event(), threading.Event()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

        async def run() -> None:
            async with await relay(wire, port, server.server_address[1]):
                ready.set()
                while not end.is_set():
                    await asyncio.sleep(0.01)

        serving = threading.Thread(target=asyncio.run, args=(run(),))
        serving.start()
        assert ready.wait(10)
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
        try:
            yield client
        finally:
            client.close()
            end.set()
            serving.join(30)
            server.shutdown()


def get(client: http.client.HTTPConnection, path: str) -> bytes:
    client.request("GET", path)
    return client.getresponse().read()


def test_what_passes_is_as_it_was() -> None:
    wire = Wire()
    with between(wire) as client:
        assert [get(client, path) for path in ("/boot.ipxe", "/image", "/image")] == [b"#!ipxe\n", FILE, FILE]
    assert wire.fetched > 2 * len(FILE)


@pytest.mark.parametrize("offset", [0, 100_000, len(FILE) - 1])
def test_one_byte_of_one_file_is_changed(offset: int) -> None:
    """The next file that has that byte, and no other."""
    wire = Wire(corrupt=offset)
    with between(wire) as client:
        script = get(client, "/boot.ipxe")
        images = [get(client, "/image") for _ in range(2)]
    if offset == 0:
        assert script != b"#!ipxe\n"
        assert images == [FILE, FILE]
        return
    assert script == b"#!ipxe\n"
    assert [i for i in range(len(FILE)) if images[0][i] != FILE[i]] == [offset]
    assert images[1] == FILE
    assert wire.corrupted == 1


def test_the_network_is_lost_after_so_many_bytes() -> None:
    lost = threading.Event()
    wire = Wire(on_limit=lost.set, limit=100_000)
    with between(wire) as client:
        assert get(client, "/boot.ipxe") == b"#!ipxe\n"
        client.request("GET", "/image")
        with pytest.raises(TimeoutError):
            client.getresponse().read()
    assert lost.is_set()
    assert wire.fetched == 100_000


def test_every_fault_has_a_number_or_none() -> None:
    for name, fault in FAULTS.items():
        assert argument_of(name, None) == fault.default
        assert fault.default >= fault.minimum


def test_behind_a_cut_nothing_is_taken_that_does_not_arrive() -> None:
    """Whoever sends sees how far it came: the way keeps no megabytes."""
    limit, size = 4_000_000, 32 << 20

    async def run() -> int:
        sent, whole = 0, memoryview(bytes(size))
        with socket.socket() as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 18)
            server.bind(("127.0.0.1", 0))
            server.listen()
            async with await relay(Wire(limit=limit), port := free_port(), server.getsockname()[1]):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                connection, _ = await asyncio.to_thread(server.accept)
                arriving = asyncio.create_task(reader.readexactly(limit))
                with connection:
                    connection.settimeout(1)
                    try:
                        while sent < size:
                            sent += await asyncio.to_thread(connection.send, whole[sent : sent + (1 << 18)])
                    except TimeoutError:
                        pass
                    await asyncio.wait_for(arriving, 10)
                    writer.close()
        return sent

    assert limit <= asyncio.run(run()) < limit + (2 << 20)
