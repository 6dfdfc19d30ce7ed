"""One always-on reader a console: a daemon thread that takes bytes off a descriptor as soon as they are there."""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable
from types import TracebackType

from labctl.machine.transcript import Transcript

_CHUNK = 1 << 16
_PAUSE_S = 0.00025
"""A UART gives its bytes one by one: in the middle of a burst they are left to gather for this long. Being woken for each costs a boot a
tenth of a second of a CPU, on both sides."""
_BURST_NS = 2_000_000
"""A byte this soon after the last is of the same burst; the first after silence is read at once."""
_DRAIN = 1 << 23
"""Bytes taken at most after `Reader.stop`: more than any buffer of the kernel holds, so that a flood cannot keep it from ending."""


class Reader:
    """Feeds a transcript from a socket, pty or pipe, which stays the caller's to close, after `stop`. Use as a ``with`` block."""

    def __init__(self, fd: int, transcript: Transcript, *, on_end: Callable[[], str] | None = None) -> None:
        """``on_end`` is called in the reader's thread when the other side has gone, and says why."""
        self._fd = fd
        self._transcript = transcript
        self._on_end = on_end
        self._wake = -1
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin reading; an ended transcript is resumed."""
        self._transcript.resume()
        self._wake = os.eventfd(0)
        self._thread = threading.Thread(target=self._run, name=f"console-{self._fd}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Read what is there already, then stop. The transcript ends. Stopped already, or never started, is no error."""
        if self._thread is None:
            return
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        self._thread = None
        os.close(self._wake)

    def _run(self) -> None:
        reason = "reading it was stopped"
        try:
            if (gone := self._read()) is not None:
                reason = gone
                if self._on_end is not None:
                    reason = self._on_end()
        finally:
            self._transcript.end(reason)

    def _read(self) -> str | None:
        """Until the other side is gone (why), or until `stop` (None)."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        left = _DRAIN
        stopping = False
        t_ns = 0
        while left > 0:
            ready = poll.poll(0 if stopping else None)
            if not stopping and any(fd == self._wake for fd, _ in ready):
                stopping = True
                poll.unregister(self._wake)
                continue
            if not ready:
                return None
            if not stopping and time.monotonic_ns() - t_ns < _BURST_NS:
                time.sleep(_PAUSE_S)
            try:
                data = os.read(self._fd, _CHUNK)
            except BlockingIOError:
                continue
            except OSError as error:  # ECONNRESET of a socket, EIO of a pty whose other side was closed
                return f"the console is gone: {error.strerror}"
            t_ns = time.monotonic_ns()
            if not data:
                return "the console was closed by the other side"
            self._transcript.feed(data, t_ns)
            if stopping:
                left -= len(data)
        return None

    def __enter__(self) -> Reader:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
