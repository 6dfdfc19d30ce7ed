"""labctl console: talk to a target's console."""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Annotated

import typer

from labctl.cli.verb import complete_build, complete_target, new_app, this_lab

app = new_app()

ESCAPE = 0x1D
"""Ctrl-], as telnet and virsh have it."""

SETTLE = 1.0
"""Seconds of silence after which a prompt is taken for the shell's waiting for us."""
_READY = b"labctl-guest: ready"
_KERNEL_LINE = re.compile(rb"\[ *\d+\.\d{6}\][^\n]*\n")
_PROMPT = re.compile(rb"[#$] (?:\x1b\[[0-9;?]*[A-Za-z])*\Z")

SANE = b"\x1b[?7h\x1b[0m\x1b[?25h\x1b[?1l\x1b>"
"""Long lines go on in the next one, no colour, a cursor, and its keys as the shell knows them."""


@app.command()
def console(
    target: Annotated[str, typer.Argument(metavar="TARGET", autocompletion=complete_target)],
    build: Annotated[str | None, typer.Option(autocompletion=complete_build, help="What to boot if the machine is off.")] = None,
    keep: Annotated[bool, typer.Option(help="Leave the machine on at the end, even if it was off before.")] = False,
    quiet: Annotated[float, typer.Option(min=SETTLE, help="Seconds of silence that end a piped console with no prompt in sight.")] = 30,
) -> None:
    """Talk to a target's console, live. Ctrl-] ends it. A machine that is off is booted, and powered off again at the end.

    Standard input that is no terminal is typed once the guest is ready. The console is shown until the shell's prompt is back after
    the last line of it, or the machine powers off:

    \b
    $ echo 'uname -r' | labctl console qemu-1c-512m
    """
    from labctl.cli.power import require_alone, to_boot
    from labctl.machine import keeper

    lab = this_lab()
    found = lab.machine(target)
    require_alone(lab, target)
    interactive = sys.stdin.isatty()
    with _ended_by_signals():
        connection = keeper.attach(target, lab.root)
        ours = connection is None
        if connection is None:
            connection = keeper.keep_for_console(found, to_boot(target, build), lab.root, "labctl console", outlives=keep)
        if interactive:
            print(f"[{target}: Ctrl-] ends this]", file=sys.stderr)
        went_off = False
        with connection:
            try:
                with suppress(BrokenPipeError), _terminal(interactive) as show:  # `labctl console … | head` has seen enough
                    went_off = _talk(connection, show) if interactive else _type(connection, show, quiet)
            finally:
                print(f"\n[{target}: {'the machine is off' if went_off else 'left the console'}]", file=sys.stderr)
                if ours and not keep and not went_off:
                    connection.shutdown(socket.SHUT_RD)  # the guest may still be talking
                    keeper.ask(target, lab.root, "leave")


def _talk(connection: socket.socket, show: Callable[[bytes], None]) -> bool:
    """Bytes both ways until Ctrl-] (False) or until the machine is off (True)."""
    stdin = sys.stdin.fileno()
    while True:
        readable, _, _ = select.select([connection.fileno(), stdin], [], [])
        if connection.fileno() in readable:
            data = _heard(connection)
            if not data:
                return True
            show(data)
        if stdin in readable:
            keys = os.read(stdin, 4096)
            before, escape, _ = keys.partition(bytes([ESCAPE]))
            with suppress(ConnectionError):  # it has just gone off: what it said last is still to be read
                connection.sendall(before)
            if escape or not keys:
                return False


def _heard(connection: socket.socket) -> bytes:
    """What the machine says next; nothing once it is off."""
    try:
        return connection.recv(65536)
    except ConnectionResetError:  # off, with keys of ours unread; what it said is still there
        return connection.recv(65536)


def _type(connection: socket.socket, show: Callable[[bytes], None], quiet: float) -> bool:
    """Type what is piped in, once the guest is ready for it; True if the machine went off, False if there is nothing more to come."""
    stdin: list[int] = [sys.stdin.fileno()]
    waiting = last = seen = b""
    ready = False
    active = time.monotonic()
    while True:
        if ready and waiting:
            with suppress(ConnectionError):
                connection.sendall(waiting)
            last, waiting, active = waiting, b"", time.monotonic()
        if ready and not stdin and not last:
            return False
        silence: float | None = SETTLE if _PROMPT.search(_KERNEL_LINE.sub(b"", seen)) else quiet
        if ready and stdin:
            silence = None  # whoever types takes their time
        readable, _, _ = select.select([connection.fileno(), *stdin], [], [], silence and max(0.0, active + silence - time.monotonic()))
        if connection.fileno() in readable:
            data = _heard(connection)
            if not data:
                return True
            show(data)
            active = time.monotonic()
            seen += data
            ready = ready or _READY in seen
            seen = seen[-4096:]
        if stdin and stdin[0] in readable:
            data = os.read(stdin[0], 65536)
            waiting += data
            if not data:
                stdin = []
                if (waiting or last) and not (waiting or last).endswith(b"\n"):
                    waiting += b"\n"
        if not readable:
            if ready:
                return False
            ready = True  # it does not say so, or said so long ago


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP unwind this process, so that the terminal is put back."""
    previous = {number: signal.signal(number, lambda number, _: sys.exit(128 + number)) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _terminal(interactive: bool) -> Iterator[Callable[[bytes], None]]:
    """What shows the console's bytes. Every key goes to the guest, Ctrl-C too; the terminal is put back whatever happens."""
    screen = sys.stdout.isatty()
    before = termios.tcgetattr(sys.stdin) if interactive else None
    if before is not None:
        tty.setraw(sys.stdin)
    try:
        if screen:
            _write(SANE)
        yield _Screen(interactive).show if screen else _write
    finally:
        with suppress(OSError, termios.error):  # the terminal may have been closed
            if screen:
                _write(SANE)
            if before is not None:
                termios.tcsetattr(sys.stdin, termios.TCSAFLUSH, before)  # keys typed for a guest that is gone are not the shell's


class _Screen:
    """Keeps from a terminal what would outlast the guest: firmware resets it and switches the wrapping of long lines off."""

    def __init__(self, interactive: bool) -> None:
        # Without its keyboard nobody reads the terminal's answer to "where is the cursor?" but the shell, later.
        self._kept_away = re.compile(rb"\x1bc|\x1b\[\?7l" if interactive else rb"\x1bc|\x1b\[\?7l|\x1b\[6n")
        self._rest = b""

    def show(self, data: bytes) -> None:
        data = self._kept_away.sub(b"", self._rest + data)
        unfinished = re.search(rb"\x1b(?:\[(?:\?7?|6)?)?\Z", data)
        end = unfinished.start() if unfinished else len(data)
        self._rest = data[end:]
        _write(data[:end])


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(sys.stdout.fileno(), data) :]
