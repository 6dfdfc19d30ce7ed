"""A VNC client: a connection, the screen as the server has told it so far, keys, clipboard.

There is no thread in it: the server is listened to while somebody waits for something, and it sends pixels only when it is asked for them.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from labctl.deadline import Deadline
from labctl.display.canvas import Box, Canvas
from labctl.errors import DisplayFailed, TargetHung
from labctl.parsers import rfb

_BLOCK = 1 << 18
_GAP = 10.0
"""Seconds that a server may pause in the middle of a message."""

ENTER = 0xFF0D
"""Its keysym."""


class Vnc:
    """Use as a ``with`` block. Every call raises DisplayFailed where the server is gone or says what no server says, and TargetHung where
    it falls silent."""

    def __init__(self, host: str, port: int, deadline: Deadline, *, target: str = "") -> None:
        self.where = f"{host}:{port}"
        self.target = target
        self._buffer = bytearray()
        self._asked = False
        """For pixels, and they have not come."""
        self.clipboard = ""
        """What the other end put there last."""
        self.extended_clipboard = False
        self._offer = ""
        """What is on our clipboard."""
        self._socket = self._connect(host, port, deadline)
        try:
            self.name, self.canvas = self._begin(deadline)
        except BaseException:
            self._socket.close()
            raise

    def _connect(self, host: str, port: int, deadline: Deadline) -> socket.socket:
        try:
            connection = socket.create_connection((host, port), timeout=max(deadline.left, 0.001))
        except OSError as error:
            raise self._failed(f"cannot be reached: {error.strerror or error}") from None
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(_GAP)
        return connection

    def _begin(self, deadline: Deadline) -> tuple[str, Canvas]:
        if not self._readable(deadline):
            raise TargetHung(f"the display at {self.where} does not greet within {deadline.seconds:g} s", target=self.target)
        try:
            rfb.version(self._take)
            self._send(rfb.VERSION)
            rfb.security(self._take)
            self._send(rfb.CHOOSE_NO_SECURITY)
            rfb.security_result(self._take)
            self._send(rfb.SHARED)
            screen = rfb.screen(self._take)
        except rfb.Unreadable as error:
            raise self._failed(str(error)) from None
        self._send(rfb.pixel_format() + rfb.encodings())
        canvas = Canvas(screen.width, screen.height)
        self._send(rfb.request(canvas.width, canvas.height, incremental=False))
        self._asked = True
        return screen.name, canvas

    # --- the screen

    def changes(self, deadline: Deadline) -> Iterator[tuple[int, list[Box]]]:
        """Each update that changes a pixel, until the deadline: monotonic ns at which all of it was here, and where it changed one."""
        while True:
            if not self._asked:
                self._send(rfb.request(self.canvas.width, self.canvas.height, incremental=True))
                self._asked = True
            if (message := self._receive(deadline)) is None:
                return
            if isinstance(message, rfb.Update):
                at = time.monotonic_ns()
                self._asked = False
                if changed := self.canvas.apply(message):
                    yield at, changed

    def next_change(self, deadline: Deadline, within: Box | None = None) -> int:
        """Until a pixel changes, in that part of the screen if one is named. Returns monotonic ns. TargetHung if none does."""
        for at, changed in self.changes(deadline):
            if within is None or any(box.touches(within) for box in changed):
                return at
        raise TargetHung(f"nothing has changed on the screen at {self.where} within {deadline.seconds:g} s", target=self.target)

    def settle(self, still: float, deadline: Deadline, within: Box | None = None) -> None:
        """Until nothing has changed for ``still`` seconds, in that part of the screen if one is named. TargetHung if it never rests."""
        while not deadline.expired:
            try:
                self.next_change(deadline.sooner(still), within)
            except TargetHung:
                if not deadline.expired:
                    return
        raise TargetHung(f"the screen at {self.where} has not come to rest within {deadline.seconds:g} s", target=self.target)

    def until(self, true: Callable[[], object], deadline: Deadline) -> None:
        """Until the screen is such that ``true()``. TargetHung if it does not become so."""
        if true():
            return
        for _ in self.changes(deadline):
            if true():
                return
        raise TargetHung(f"the screen at {self.where} does not show what it should within {deadline.seconds:g} s", target=self.target)

    def frames(self, seconds: float, within: Box | None = None) -> list[int]:
        """Monotonic ns of each update that changed a pixel, in that part of the screen if one is named, in that time from now."""
        changes = self.changes(Deadline.after(seconds))
        return [at for at, changed in changes if within is None or any(box.touches(within) for box in changed)]

    # --- keys

    def press(self, key: str | int) -> int:
        """Press a key and let it go: a character of Latin-1, or a keysym. Returns monotonic ns just before it was sent."""
        keysym = ord(key) if isinstance(key, str) else key
        at = time.monotonic_ns()
        self._send(rfb.key(keysym, down=True) + rfb.key(keysym, down=False))
        return at

    # --- clipboard

    def offer(self, text: str) -> None:
        """Put text on the clipboard that the two ends share."""
        self._offer = text
        if self.extended_clipboard:
            self._send(rfb.offer_clipboard())
            return
        try:
            self._send(rfb.cut_text(text))
        except UnicodeEncodeError:
            raise self._failed("takes no clipboard but Latin-1") from None

    def await_clipboard(self, deadline: Deadline) -> str:
        """The text that the other end puts there next. TargetHung if it puts none."""
        for message in self._messages(deadline):
            if isinstance(message, rfb.CutText):
                return message.text
        raise TargetHung(f"no clipboard has come from {self.where} within {deadline.seconds:g} s", target=self.target)

    def attend(self, deadline: Deadline) -> None:
        """Answer what the server asks for, until the deadline."""
        for _ in self._messages(deadline):
            pass

    # --- the connection

    def _messages(self, deadline: Deadline) -> Iterator[rfb.Message]:
        while (message := self._receive(deadline)) is not None:
            if isinstance(message, rfb.Update):
                self._asked = False
                self.canvas.apply(message)
            yield message

    def _receive(self, deadline: Deadline) -> rfb.Message | None:
        """The next message, once its clipboard's part is done; None if none has begun to come when the deadline passes."""
        if not self._buffer and not self._readable(deadline):
            return None
        try:
            message = rfb.message(self._take, self.canvas.width, self.canvas.height)
        except rfb.Unreadable as error:
            raise self._failed(str(error)) from None
        match message:
            case rfb.ClipboardExtended():
                self.extended_clipboard = True
                self._send(rfb.clipboard_caps())
            case rfb.ClipboardOffered(text=True):
                self._send(rfb.ask_clipboard())
            case rfb.ClipboardAsked():
                self._send(rfb.provide_clipboard(self._offer))
            case rfb.CutText(text):
                self.clipboard = text
        return message

    def _readable(self, deadline: Deadline) -> bool:
        return bool(select.select([self._socket], [], [], deadline.left)[0])

    def _take(self, count: int) -> bytes:
        try:
            while len(self._buffer) < count:
                if not (data := self._socket.recv(_BLOCK)):
                    raise self._failed("is gone: the connection has ended")
                self._buffer += data
        except TimeoutError:
            raise TargetHung(f"the display at {self.where} fell silent in the middle of a message", target=self.target) from None
        except OSError as error:
            raise self._failed(f"is gone: {error.strerror or error}") from None
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def _send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except TimeoutError:
            raise TargetHung(f"the display at {self.where} takes nothing", target=self.target) from None
        except OSError as error:
            raise self._failed(f"is gone: {error.strerror or error}") from None

    def _failed(self, how: str) -> DisplayFailed:
        return DisplayFailed(f"the display at {self.where} {how}", target=self.target)

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
