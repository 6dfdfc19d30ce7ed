"""A desktop as its user reaches it: by our VNC client, and by noVNC in Chromium, on a QEMU of this host."""

from __future__ import annotations

import itertools
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from labctl.build.novnc import novnc
from labctl.deadline import Deadline
from labctl.display.canvas import Box
from labctl.display.novnc import Desktop, desktop
from labctl.display.vnc import Vnc
from labctl.errors import DisplayFailed, TargetHung
from tests.screens import REDRAW, Shown, cell, lit, screen

pytestmark = pytest.mark.skipif(not shutil.which("as"), reason="the host lacks binutils")
needs_chromium = pytest.mark.skipif(not shutil.which("chromium"), reason="the host lacks chromium")
LINE = Box(0, 0, 720, 16)
"""Where what is typed stands."""


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    clipboard = [
        *("-device", "virtio-serial-pci", "-chardev", "qemu-vdagent,id=clip,name=vdagent,clipboard=on"),
        *("-device", "virtserialport,chardev=clip,name=com.redhat.spice.0"),
    ]
    with screen(tmp_path_factory.mktemp("screen"), *clipboard) as found:
        yield found


@pytest.fixture
def vnc(shown: Shown) -> Iterator[Vnc]:
    with Vnc(*shown.vnc, Deadline.after(30)) as client:
        client.settle(0.5, Deadline.after(60))
        yield client


def test_what_is_typed_is_seen(vnc: Vnc) -> None:
    before = sum(lit(vnc.canvas, column, 0) for column in range(80))
    for key in "aba":
        vnc.press(key)
        vnc.next_change(Deadline.after(30), within=LINE)
        vnc.settle(0.3, Deadline.after(30))
    first, second, third = (cell(vnc.canvas, before + n, 0) for n in range(3))
    assert first == third
    assert first != second
    assert all(map(any, (first, second)))
    assert not lit(vnc.canvas, before + 3, 0)


def test_frames_come_while_the_screen_is_redrawn_and_only_then(vnc: Vnc) -> None:
    assert not vnc.frames(0.5)
    vnc.press(REDRAW)
    try:
        times = vnc.frames(2.0)
    finally:
        vnc.press(REDRAW)
    assert len(times) > 5
    assert all(later > earlier for earlier, later in itertools.pairwise(times))
    vnc.settle(0.5, Deadline.after(30))


def test_two_clients_share_the_clipboard(shown: Shown, vnc: Vnc) -> None:
    vnc.attend(Deadline.after(0.2))
    assert vnc.extended_clipboard
    with Vnc(*shown.vnc, Deadline.after(30)) as other:
        other.attend(Deadline.after(0.5))
        other.offer("Grüße, 世界\nline")
        attending = threading.Thread(target=other.attend, args=(Deadline.after(3),))
        attending.start()
        try:
            assert vnc.await_clipboard(Deadline.after(30)) == "Grüße, 世界\nline"
        finally:
            attending.join()


@contextmanager
def server(says: bytes, stay: float = 0.0) -> Iterator[tuple[str, int]]:
    """Says that to who connects, and hangs up; after ``stay`` seconds."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        ending = threading.Event()

        def serve() -> None:
            client, _ = listening.accept()
            with client:
                client.sendall(says)
                ending.wait(stay)
                client.shutdown(socket.SHUT_RDWR)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listening.getsockname()
        ending.set()
        thread.join()


def test_what_is_no_display_is_told_by_its_cause() -> None:
    with server(b"SSH-2.0-OpenSSH_9.2\r\n") as where, pytest.raises(DisplayFailed, match=r"greets with b'SSH-2\.0-Open"):
        Vnc(*where, Deadline.after(10))
    with server(b"RFB 003.008\n\x01\x02") as where, pytest.raises(DisplayFailed, match="wants a password"):
        Vnc(*where, Deadline.after(10))
    with server(b"RFB 003.008\n") as where, pytest.raises(DisplayFailed, match="is gone"):
        Vnc(*where, Deadline.after(10))
    with server(b"", stay=30) as where, pytest.raises(TargetHung, match=r"does not greet within 0\.3 s"):
        Vnc(*where, Deadline.after(0.3))
    with pytest.raises(DisplayFailed, match="cannot be reached: Connection refused"):
        Vnc(*where, Deadline.after(10))


@needs_chromium
@pytest.mark.slow
def test_in_a_browser(shown: Shown, vnc: Vnc) -> None:
    """A key typed into noVNC is seen in the browser and by the other client; what is redrawn is seen as frames. Then the display goes."""
    with desktop(novnc(Deadline.after(300)), *shown.websocket, Deadline.after(240)) as seen:
        assert seen.size == (720, 400)
        before = sum(lit(vnc.canvas, column, 0) for column in range(80))
        took = [seen.press(key, 30) for key in "x7"]
        assert all(each is not None and 0 <= each < 30 for each in took)
        vnc.settle(0.5, Deadline.after(60))
        assert sum(lit(vnc.canvas, column, 0) for column in range(80)) == before + 2
        assert not seen.frames(0.5).times, "nothing moves yet"
        vnc.press(REDRAW)
        try:
            frames = seen.frames(3.0)
        finally:
            vnc.press(REDRAW)
        assert 0 < len(frames.times) <= frames.repaints, "a busy host repaints seldom"
        assert seen.screenshot().startswith(b"\x89PNG")
        shown.qmp.command("quit", Deadline.after(30))
        with pytest.raises(DisplayFailed, match=r"the connection of noVNC to ws://127\.0\.0\.1:\d+/ is (lost|closed)"):
            press_until_it_is_lost(seen)


def press_until_it_is_lost(seen: Desktop) -> None:
    for _ in range(100):
        seen.press("y", 0.1)
