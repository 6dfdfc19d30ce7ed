"""A machine on this host with a screen, a keyboard and a VNC display, and nothing else: it boots in a second and needs no kernel."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from socket import socketpair

from labctl.deadline import Deadline
from labctl.display.canvas import Box, Canvas
from labctl.display.vnc import Vnc
from labctl.errors import DisplayFailed
from labctl.machine.qmp import Qmp

SOURCE = Path(__file__).parent / "data" / "desktop" / "screen.S"
REDRAW = "F"
"""Typed: it begins or ends to redraw a line of its screen without a pause."""


@dataclass
class Shown:
    """Where its display is."""

    vnc: tuple[str, int]
    websocket: tuple[str, int]
    qmp: Qmp


@contextmanager
def screen(folder: Path, *extra: str) -> Iterator[Shown]:
    """The machine, up: R stands at the bottom of its screen."""
    made = folder / "screen"
    subprocess.run(["as", "--32", "-o", made.with_suffix(".o"), SOURCE], check=True)
    subprocess.run(
        ["ld", "-m", "elf_i386", "-Ttext", "0x7c00", "--oformat", "binary", "-o", made, made.with_suffix(".o")],
        check=True,
        stderr=subprocess.DEVNULL,
    )
    made.write_bytes(made.read_bytes().ljust(1 << 20, b"\0"))
    ours, its = socketpair()
    with (
        ours,
        its,
        subprocess.Popen(
            [
                *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-machine", "pc", "-accel", "tcg", "-m", "32", "-vga", "std"),
                *("-display", "none", "-vnc", "127.0.0.1:30,to=900,websocket=on"),
                *("-drive", f"file={made},format=raw,if=ide,snapshot=on"),
                *("-chardev", f"socket,id=qmp,fd={its.fileno()}", "-mon", "chardev=qmp,mode=control"),
                *extra,
            ],
            pass_fds=[its.fileno()],
        ) as qemu,
    ):
        try:
            monitor = Qmp(ours)
            monitor.handshake(Deadline.after(30))
            (servers,) = monitor.command("query-vnc-servers", Deadline.after(30))
            found = {each["websocket"]: ("127.0.0.1", int(each["service"])) for each in servers["server"]}
            shown = Shown(found[False], found[True], monitor)
            _wait_until_up(shown)
            yield shown
        finally:
            qemu.kill()


def cell(canvas: Canvas, column: int, row: int) -> bytes:
    """The pixels of a character of the text screen: nine wide in QEMU's VGA, the ninth mostly empty, and sixteen high."""
    return canvas.crop(Box(9 * column, 16 * row, 9, 16))


def lit(canvas: Canvas, column: int, row: int) -> bool:
    """Whether a character is there."""
    return any(cell(canvas, column, row))


def _wait_until_up(shown: Shown) -> None:
    """Its firmware talks before it: what is awaited is a screen of 720 x 400 whose last lines are not empty, and whose first are."""
    deadline = Deadline.after(60)
    while not deadline.expired:
        with suppress(DisplayFailed), Vnc(*shown.vnc, deadline) as vnc:
            vnc.settle(0.5, deadline)
            if vnc.canvas.height == 400 and lit(vnc.canvas, 0, 24) and not lit(vnc.canvas, 0, 0):
                return
        time.sleep(0.1)
    raise AssertionError("the machine with the screen did not come up")
