"""Everything a console said, with the time at which each chunk was read: nothing lost while nobody looks, a window of it in memory.

In its folder: ``console.log`` (the raw bytes), ``console.idx`` (`labctl.machine.timeindex`) and ``console.marks.jsonl`` (what the
lab has to say about it). One thread feeds; any number wait. A waiter is woken before the bytes go to disk, and searches in its own
thread; one that lags behind the window reads from the log.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import TracebackType

from labctl.deadline import Deadline, DeadlineExpired
from labctl.errors import StorageError
from labctl.machine.bounded import Bound
from labctl.machine.matching import Hit, Pattern, PatternLike, Scanner
from labctl.machine.timeindex import TimeIndex, nameless, write_all
from labctl.model import SCHEMA
from labctl.parsers.text import last_lines

__all__ = ["ConsoleEnded", "Match", "Pattern", "Transcript", "Watch"]

SETTLE_S = 0.05
"""A line that stays unfinished for this long is taken as it is (a prompt): longer than a UART or a busy host pauses in mid-word."""

GRACE_S = 2.0
"""How long a search that lags behind a flood goes on after its deadline, in what had been read by then."""

LOG_BYTES = 64 << 20
"""Bytes of a log on disk, unless something else is asked for: a thousand boots of a kernel that talks."""

_BLOCK = 1 << 18
_TAIL = 1 << 16
_LONGEST_WAIT_S = 3600.0


@dataclass(frozen=True, slots=True)
class Match:
    """A pattern found. ``t_ns`` is the monotonic time of the chunk that brought its last byte, however late anyone looked."""

    pattern: int
    """Place of the pattern in the list that was asked for."""
    offset: int
    """Of its first byte, from the start of the transcript."""
    end: int
    t_ns: int
    text: bytes
    groups: tuple[bytes | None, ...]


class ConsoleEnded(Exception):
    """The console is over and everything it said was searched; the caller turns it into an error of the taxonomy."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Transcript:
    """See the module. Without a folder nothing is left behind: what exceeds the window goes to a nameless temporary file."""

    def __init__(self, folder: Path | None = None, *, window: int = 1 << 20, most: int = LOG_BYTES) -> None:
        """``window``: bytes kept in memory (twice as many for a moment). A console.log that is there already is continued, offsets
        and all. ``most``: bytes of the log on disk, see `labctl.machine.bounded`. Raises StorageError if the folder cannot be written."""
        self._folder = folder
        self._limit = window
        self._changed = threading.Condition(threading.Lock())
        self._feeding = threading.Lock()
        self._waiting = 0
        self._window = bytearray()
        self._index = TimeIndex()
        self._log: FileIO | None = None
        self._bound = Bound(most)
        self._fed_ns = 0
        self._gaps: list[tuple[int, str]] = []
        self.ended: str | None = None
        """Why the console is over, or None."""
        self._disk_error: OSError | None = None
        self.size = 0
        """Offset after the last byte."""
        self.last_ns = 0
        """Monotonic time of the last byte, 0 if there is none."""
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                self._log = FileIO(folder / "console.log", "a+")
                self.size = os.fstat(self._log.fileno()).st_size
                self.last_ns = self._index.open(folder / "console.idx", self.size)
            except (OSError, StorageError) as error:
                self._close_files()
                raise (self._storage_error(error) if isinstance(error, OSError) else error) from error
        self._start = self.size
        """Offset of the window's first byte."""

    @property
    def failure(self) -> StorageError | None:
        """What went wrong on disk, or None: from then on nothing more is written, and whoever waits gets it."""
        return None if self._disk_error is None else self._storage_error(self._disk_error)

    def _storage_error(self, error: OSError) -> StorageError:
        where = self._folder or tempfile.gettempdir()
        failure = StorageError(f"the console's record in {where} failed: {error.strerror}", remedy=f"df -h {where}; ls -ld {where}")
        failure.__cause__ = error
        return failure

    # --- what the reader does -------------------------------------------------------------------------------------------

    def feed(self, data: bytes, t_ns: int | None = None) -> None:
        """Add a chunk that was read at ``t_ns`` (monotonic; now if absent). Never raises for the disk: see `failure`."""
        if not data:
            return
        now = time.monotonic_ns()
        t_ns = now if t_ns is None else t_ns
        with self._feeding:
            with self._changed:
                self._window += data
                self.size += len(data)
                self._index.add(t_ns, self.size)
                self.last_ns = t_ns
                self._fed_ns = now
                if self._waiting:
                    self._changed.notify_all()
            overflows = len(self._window) > 2 * self._limit or self._index.crowded
            if self._disk_error is None:
                try:
                    self._store(data, t_ns, overflows)
                except OSError as error:
                    self._fail(error)
            if overflows:
                with self._changed:
                    drop = max(0, len(self._window) - self._limit)
                    del self._window[:drop]
                    self._start += drop
                    self._index.forget()

    def _store(self, data: bytes, t_ns: int, overflows: bool) -> None:
        if self._log is not None:
            if not self._log.closed:
                write_all(self._log, data)
                self._index.store(t_ns, self.size)
                self._keep_bound()
        elif overflows:
            self._log = nameless()
            write_all(self._log, bytes(self._window))
            self._index.open_nameless()

    def _keep_bound(self) -> None:
        if self._log is not None and self.size > self._bound.most and self._bound.keep(self._log.fileno(), self.size):
            self.note(f"the log is larger than {self._bound.most} bytes: from here on only its beginning and its end are kept")

    def _fail(self, error: OSError) -> None:
        with self._changed:
            self._disk_error = error
            self._changed.notify_all()

    def end(self, reason: str) -> None:
        """The console is over; whoever waits learns it once everything was searched. Ended already: the first reason stays."""
        with self._changed:
            if self.ended is None:
                self.ended = reason
            self._changed.notify_all()

    def resume(self) -> None:
        """A new connection after `end`; offsets go on."""
        with self._changed:
            self.ended = None

    def flush(self) -> None:
        """Until all that can be read here is in the folder's files too: whoever waits is woken before the bytes go to disk."""
        with self._feeding:
            pass

    def note(self, text: str) -> None:
        """A mark of the lab's own at this point, in a file beside the log; never mixed with what the guest said."""
        if self._folder is None or self._disk_error is not None:
            return
        mark = {"schema": SCHEMA, "t_ns": time.monotonic_ns(), "offset": self.size, "text": text}
        try:
            with FileIO(self._folder / "console.marks.jsonl", "a") as file:
                write_all(file, json.dumps(mark).encode() + b"\n")
        except OSError as error:
            self._fail(error)

    def gap(self, text: str) -> None:
        """A mark where bytes of the guest's may be missing."""
        self._gaps.append((self.size, text))
        self.note(text)

    # --- what everybody else does ---------------------------------------------------------------------------------------

    def read(self, start: int, stop: int | None = None) -> bytes:
        """Bytes from ``start`` up to ``stop`` (absent: the end), or as many as there are. Raises StorageError."""
        with self._changed:
            stop = self.size if stop is None else min(stop, self.size)
            begin = self._start
            with memoryview(self._window) as window:
                recent = bytes(window[max(0, start - begin) : max(0, stop - begin)])
        if start >= begin or start >= stop:
            return recent
        return self._read_log(start, min(stop, begin)) + recent

    def _read_log(self, start: int, stop: int) -> bytes:
        parts: list[bytes] = []
        try:
            if self._log is None:
                raise FileNotFoundError(2, "it was never opened")
            with FileIO(os.dup(self._log.fileno())) if not self._log.closed else FileIO(self._folder_log()) as log:
                while start < stop:
                    part = os.pread(log.fileno(), stop - start, start)
                    if not part:
                        raise self.failure or StorageError("the console's log is shorter than what was written to it")
                    parts.append(part)
                    start += len(part)
        except OSError as error:
            raise self._storage_error(error) from error
        return b"".join(parts)

    def _folder_log(self) -> Path:
        if self._folder is None:
            raise StorageError("a transcript without a folder keeps only its window once it is closed")
        return self._folder / "console.log"

    def tail(self, count: int = 10, since: int = 0) -> str:
        """The last lines said after offset ``since``, made printable. From memory alone, so that it never fails."""
        return last_lines(self.read(max(since, self.size - _TAIL, self._start)), count)

    def time_of(self, offset: int) -> int:
        """Monotonic ns at which the byte at ``offset`` was read. Raises StorageError if only an unreadable index knows."""
        with self._changed:
            try:
                return self._index.find(offset)
            except OSError as error:
                raise self._storage_error(error) from error

    def watch(self, patterns: Sequence[PatternLike], since: int = 0) -> Watch:
        """Every match from ``since`` on, in the order in which they were complete; `labctl.machine.matching` says what matches."""
        return Watch(self, Scanner(patterns, since))

    def wait(self, patterns: Sequence[PatternLike], *, since: int = 0, deadline: Deadline) -> Match:
        """The first match from ``since`` on. Raises DeadlineExpired, ConsoleEnded (after all was searched), StorageError."""
        with self.watch(patterns, since) as watch:
            return watch.next(deadline)

    def wait_beyond(self, offset: int, deadline: Deadline) -> bool:
        """Until there are bytes after ``offset``, or not, if the deadline passes. Raises ConsoleEnded, StorageError."""
        with self._changed:
            self._waiting += 1
            try:
                while True:
                    if self._disk_error is not None:
                        raise self._storage_error(self._disk_error)
                    if self.size > offset:
                        return True
                    if self.ended is not None:
                        raise ConsoleEnded(self.ended)
                    if deadline.expired:
                        return False
                    self._changed.wait(min(deadline.left, _LONGEST_WAIT_S))
            finally:
                self._waiting -= 1

    def wait_end(self, deadline: Deadline) -> str:
        """Until the console is over; returns why. Raises DeadlineExpired."""
        with self._changed:
            while self.ended is None:
                if deadline.expired:
                    raise DeadlineExpired(f"the console is still there after {deadline.seconds:g} s")
                self._changed.wait(min(deadline.left, _LONGEST_WAIT_S))
            return self.ended

    def gap_since(self, offset: int) -> str:
        """Why bytes may be missing after ``offset``; empty if none are."""
        return next((text for at, text in self._gaps if at >= offset), "")

    @property
    def quiet_s(self) -> float:
        """Seconds since the last chunk was fed."""
        return (time.monotonic_ns() - self._fed_ns) / 1e9

    def close(self) -> None:
        """Let go of the files; whoever waits is woken. What is in the folder stays readable."""
        self.end("the transcript was closed")
        with self._feeding:
            self._close_files()

    def _close_files(self) -> None:
        if self._log is not None:
            self._log.close()
        self._index.close()

    def __enter__(self) -> Transcript:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Watch:
    """Matches in order, none lost however late you ask, memory bounded whatever the guest prints. For one thread at a time."""

    def __init__(self, transcript: Transcript, scanner: Scanner) -> None:
        self._transcript = transcript
        self._scanner = scanner
        self._hits: Iterator[Hit] = iter(())
        self._taken = -1
        """Size of the transcript when its unfinished line was last taken as it is."""

    def next(self, deadline: Deadline) -> Match:
        """The next match. Raises ConsoleEnded once all was searched, StorageError, and DeadlineExpired, before which what had been
        read by then was searched, an unfinished line included, unless that took more than `GRACE_S`."""
        limit: int | None = None
        while True:
            ended = self._transcript.ended
            if (failure := self._transcript.failure) is not None:
                raise failure
            for hit in self._hits:
                return self._match(hit)
            if limit is None and deadline.expired:
                limit = self._transcript.size
            late = limit is not None and time.monotonic() > deadline.at + GRACE_S
            if not late and self._scan(limit, as_it_is=ended is not None or limit is not None):
                continue
            if ended is not None and self._scanner.searched >= self._transcript.size:
                raise ConsoleEnded(ended)
            if limit is not None:
                raise DeadlineExpired(f"no match within {deadline.seconds:g} s")
            self._wait(deadline)

    def pending(self) -> list[Match]:
        """All matches in what was read by now, without waiting. A line still being written is left for later unless the console
        ended or paused."""
        found: list[Match] = []
        ended, limit = self._transcript.ended, self._transcript.size
        while True:
            found.extend(map(self._match, self._hits))
            if not self._scan(limit, as_it_is=ended is not None):
                return found

    def _scan(self, limit: int | None, *, as_it_is: bool) -> bool:
        """Search the next block, or the unfinished line if its time has come; False if there is nothing to search."""
        transcript, scanner = self._transcript, self._scanner
        size = transcript.size if limit is None else limit
        if scanner.searched < size:
            data = transcript.read(scanner.needs, min(size, scanner.searched + _BLOCK))
            self._hits = scanner.scan(data)
            return True
        if scanner.waits_for_line and self._taken != scanner.searched and (as_it_is or transcript.quiet_s >= SETTLE_S):
            self._taken = scanner.searched
            self._hits = scanner.scan(transcript.read(scanner.needs, scanner.searched), as_it_is=True)
            return True
        return False

    def _wait(self, deadline: Deadline) -> None:
        scanner, transcript = self._scanner, self._transcript
        if scanner.waits_for_line and self._taken != scanner.searched:
            deadline = deadline.sooner(max(0.0, SETTLE_S - transcript.quiet_s))
        try:
            transcript.wait_beyond(scanner.searched, deadline)
        except ConsoleEnded:
            return  # the caller searches what is left, then says so

    def _match(self, hit: Hit) -> Match:
        return Match(hit.pattern, hit.offset, hit.end, self._transcript.time_of(hit.end - 1), hit.text, hit.groups)

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._hits = iter(())
