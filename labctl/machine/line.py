"""A console whose connection can break while its machine does not: kept up by one always-on reader, with a mark wherever it broke.

Whoever has such a console (`sol`, `serial`) says how to connect, and how to ask whether the connection is still good. What was said while
there was none is lost for ever; that it may have been is noted in the transcript, so that no silence of that time is blamed on a kernel.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from labctl.deadline import Deadline
from labctl.errors import ConsoleLost, LabctlError
from labctl.machine.transcript import Transcript

CHECKED_EVERY = 5.0
"""Seconds between two questions whether the connection is still good."""
PATIENCE = 30.0
"""Seconds for which a connection that broke is tried again; then the console is lost."""
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0
"""Seconds between two tries."""
OFTEN = 5
"""So many breaks in so many seconds are no accident: somebody else wants the console, or nothing is there."""
OFTEN_S = 60.0
WRITE_DEADLINE = 10.0
"""Seconds that typed bytes may wait for a connection, or for the other side to take them."""
_LOOK_S = 0.05
"""Seconds after which a reader with nothing to read looks whether it is still wanted."""
_DRAIN = 1 << 23


class Broken(Exception):
    """The connection is no more; says why."""


class Connection(Protocol):
    """One life of a connection. `read` and `close` are called from one thread, `write` from others."""

    def read(self, seconds: float) -> bytes:
        """Whatever came, as soon as something did; nothing if nothing came for so long. Broken once the other side is gone."""

    def write(self, data: bytes, deadline: Deadline) -> None:
        """All of it. Broken if it is not taken."""

    def close(self) -> None:
        """Closed already is no error."""


@dataclass
class Line:
    """See the module. ``connect`` raises an error of the taxonomy that says why there is no connection."""

    transcript: Transcript
    target: str
    connect: Callable[[Deadline], Connection]
    check: Callable[[], str | None] = lambda: None
    """Why the connection can't be good any more, or None. May take seconds; an InfraError says the same as a reason. Never called while
    there is none."""
    patience: float = PATIENCE

    stage: str = field(default="", init=False)
    """How far `connect` has come, in words for whoever waits in vain."""
    _thread: threading.Thread | None = field(default=None, init=False)
    _checker: threading.Thread | None = field(default=None, init=False)
    _stop: threading.Event = field(default_factory=threading.Event, init=False)
    _changed: threading.Condition = field(default_factory=threading.Condition, init=False)
    _connection: Connection | None = field(default=None, init=False)
    _suspect: str = field(default="", init=False)
    """Why the checker wants the connection made anew."""
    _failed: LabctlError | None = field(default=None, init=False)
    """Why there is no connection and none is tried any more."""

    def attach(self, deadline: Deadline) -> None:
        """Until there is a connection, and a reader on it; what the machine says from now on is in the transcript."""
        if self._thread is not None and not self._thread.is_alive():
            self.detach()
        if self._thread is None:
            self._stop.clear()
            self._failed = None
            self._thread = threading.Thread(target=self._run, args=(deadline,), name=f"console-{self.target}", daemon=True)
            self._checker = threading.Thread(target=self._check, name=f"console-check-{self.target}", daemon=True)
            self._thread.start()
            self._checker.start()
        self._wait_connected(deadline)
        self.transcript.resume()

    def write(self, data: bytes) -> None:
        """ConsoleLost if nobody takes it."""
        deadline = Deadline.after(WRITE_DEADLINE)
        if self._thread is None:
            raise ConsoleLost("the console is not attached: nobody takes what is typed", target=self.target)
        connection = self._wait_connected(deadline)
        try:
            connection.write(data, deadline)
        except Broken as broken:
            raise ConsoleLost(f"what was typed did not all arrive: {broken}", target=self.target) from None

    def prove(self, deadline: Deadline) -> None:
        """Type a NUL, and wait for so long whether the connection breaks of it."""
        connection = self._connection
        if connection is None or self.transcript.ended is not None:
            return
        try:
            connection.write(b"\0", deadline)
        except Broken as broken:
            self._suspect = str(broken)
        with self._changed:
            while self._connection is connection and not self._stop.is_set() and not deadline.expired:
                self._changed.wait(deadline.left)

    def detach(self) -> None:
        """Read what is there already, then let go. The transcript ends."""
        thread, checker = self._thread, self._checker
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        for one in (thread, checker):
            if one is not None:
                one.join()
        self._thread = self._checker = None

    def _wait_connected(self, deadline: Deadline) -> Connection:
        with self._changed:
            while self._connection is None:
                if self._failed is not None:
                    raise self._failed
                if self._stop.is_set() or deadline.expired:
                    stage = f": {self.stage}" if self.stage else ""
                    raise ConsoleLost(f"the console has no connection within {deadline.seconds:g} s{stage}", target=self.target)
                self._changed.wait(deadline.left)
            return self._connection

    # --- the reader's thread

    def _run(self, deadline: Deadline) -> None:
        reason = "reading it was stopped"
        breaks: deque[float] = deque(maxlen=OFTEN)
        try:
            connection = self.connect(deadline)
            while True:
                self._set(connection)
                try:
                    self._read(connection)
                    return
                except Broken as broken:
                    reason = str(broken)
                    self.transcript.gap(f"the console's connection broke ({reason}): bytes may be missing here")
                    self._set(None)
                finally:
                    connection.close()
                breaks.append(time.monotonic())
                if len(breaks) == OFTEN and breaks[-1] - breaks[0] < OFTEN_S:
                    raise ConsoleLost(f"the console broke {OFTEN} times in {OFTEN_S:g} s: {reason}", target=self.target)
                connection = self._reconnect(reason)
                self.transcript.note("the console is connected again")
        except LabctlError as error:
            reason = error.message
            with self._changed:
                self._failed = error
        finally:
            self._set(None)
            self.transcript.end(reason)

    def _reconnect(self, reason: str) -> Connection:
        limit, pause = Deadline.after(self.patience), FIRST_PAUSE
        while True:
            try:
                return self.connect(limit)
            except LabctlError as error:
                if self._stop.wait(min(pause, limit.left)) or limit.expired:
                    raise ConsoleLost(
                        f"the console was lost ({reason}) and did not come back within {self.patience:g} s: {error.message}",
                        target=self.target,
                        remedy=error.remedy,
                    ) from None
            pause = min(2 * pause, LONGEST_PAUSE)

    def _read(self, connection: Connection) -> None:
        while not self._stop.is_set():
            data = connection.read(_LOOK_S)
            self.transcript.feed(data, time.monotonic_ns())
            if self._suspect:
                raise Broken(self._suspect)
        left = _DRAIN
        try:
            while left > 0 and (data := connection.read(0)):
                self.transcript.feed(data, time.monotonic_ns())
                left -= len(data)
        except Broken:
            pass  # it was the end anyway

    def _set(self, connection: Connection | None) -> None:
        with self._changed:
            self._connection = connection
            self._suspect = ""
            self._changed.notify_all()

    # --- the checker's thread

    def _check(self) -> None:
        while not self._stop.wait(CHECKED_EVERY):
            connection = self._connection
            if connection is None:
                continue
            try:
                reason = self.check()
            except LabctlError as error:
                reason = error.message
            with self._changed:
                if reason and self._connection is connection:
                    self._suspect = reason
