"""pexpect's own API over a transcript: ``console.expect([...])`` and ``sendline`` as every engineer knows them.

Nothing is lost while no one expects, since the transcript keeps it; and each match knows the time at which it was there to be seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import IO, Any

from pexpect.exceptions import EOF, TIMEOUT
from pexpect.spawnbase import SpawnBase

from labctl.deadline import Deadline
from labctl.machine.transcript import ConsoleEnded, Transcript
from labctl.parsers.text import last_lines

_FOREVER = Deadline(math.inf, math.inf)


class ConsoleExpect(SpawnBase):  # type: ignore[misc]  # pexpect has no types
    """A ``pexpect.spawn`` whose child is a machine. Bytes unless ``encoding`` is given. Has no process: no kill, wait or isatty.

    Closing it leaves the console as it is; several may look at one transcript, each with its own place in it.
    """

    def __init__(
        self,
        transcript: Transcript,
        write: Callable[[bytes], None],
        *,
        since: int | None = None,
        timeout: float | None = 30,
        maxread: int = 1 << 16,
        searchwindowsize: int | None = None,
        logfile: IO[Any] | None = None,
        encoding: str | None = None,
        codec_errors: str = "strict",
        in_vain: Callable[[int], Exception | None] = lambda _: None,
    ) -> None:
        """``write`` types on the console. ``since``: offset in the transcript at which to begin, its end if absent. ``in_vain``: what to
        raise instead of TIMEOUT, given the offset from which nothing matched; None: TIMEOUT it is."""
        super().__init__(timeout, maxread, searchwindowsize, logfile, encoding, codec_errors)
        self._transcript = transcript
        self._write = write
        self._in_vain = in_vain
        self._cursor = transcript.size if since is None else since
        # pexpect sleeps before each send and after each read for the sake of ptys; here there is nothing to wait for.
        self.delaybeforesend = None
        self.delayafterread = None
        self.closed = False
        self.terminated = False
        self.name = "<console>"
        self.match_time_ns: int | None = None
        """Monotonic time of the chunk that completed the last match; None if the last expect ended in EOF or TIMEOUT.

        Exact for bytes and for encodings that give back what they were given; with ``codec_errors="replace"`` a chunk nearby."""

    def read_nonblocking(self, size: int = 1, timeout: float | None = -1) -> Any:
        """At most ``size`` bytes that nobody took yet. Raises pexpect's TIMEOUT and EOF, StorageError."""
        if timeout == -1:
            timeout = self.timeout
        try:
            there = self._transcript.wait_beyond(self._cursor, _FOREVER if timeout is None else Deadline.after(timeout))
        except ConsoleEnded as over:
            self.flag_eof = True
            raise EOF(f"End Of File (EOF): {over.reason}") from over
        if not there:
            raise TIMEOUT("Timeout exceeded.")
        self.flag_eof = False
        data = self._transcript.read(self._cursor, self._cursor + size)
        self._cursor += len(data)
        text = self._decoder.decode(data, final=False)
        self._log(text, "read")
        return text

    def expect_list(self, *args: Any, **kw: Any) -> int:
        """As pexpect's; notes `match_time_ns`. ``async_`` is refused: there is no descriptor to wait on."""
        return self._timed(super().expect_list, args, kw)

    def expect_exact(self, *args: Any, **kw: Any) -> int:
        """As pexpect's; notes `match_time_ns`. ``async_`` is refused: there is no descriptor to wait on."""
        return self._timed(super().expect_exact, args, kw)

    def expect_loop(self, *args: Any, **kw: Any) -> int:
        """As pexpect's; notes `match_time_ns`."""
        return self._timed(super().expect_loop, args, kw)

    def _timed(self, search: Callable[..., int], args: tuple[Any, ...], kw: dict[str, Any]) -> int:
        if kw.get("async_") or kw.get("async") or any(args[3:]):
            raise TypeError("a console cannot be expected with async_")
        self.match_time_ns = None
        began = self._cursor
        try:
            index = search(*args, **kw)
        except TIMEOUT:
            if (better := self._in_vain(began)) is not None:
                raise better from None
            raise
        if self.match is not EOF and self.match is not TIMEOUT:
            self.match_time_ns = self._transcript.time_of(max(0, self._match_end() - 1))
        return index

    def _match_end(self) -> int:
        """Offset in the transcript after the last match: what was read, less what pexpect holds back for the next expect."""
        if self.encoding is None:
            return self._cursor - int(self._before.tell())
        undecoded, _ = self._decoder.getstate()
        return self._cursor - len(undecoded) - len(self._before.getvalue().encode(self.encoding, "replace"))

    def send(self, s: str | bytes) -> int:
        """Type ``s``; returns how many bytes it is. Raises what the console's write raises (ConsoleLost)."""
        text = self._coerce_send_string(s)
        self._log(text, "send")
        data: bytes = self._encoder.encode(text, final=False)
        self._write(data)
        return len(data)

    def sendline(self, s: str | bytes = "") -> int:
        """Type ``s`` and a newline; returns how many bytes that is."""
        return self.send(self._coerce_send_string(s) + self.linesep)

    def sendcontrol(self, char: str) -> int:
        """Type a control character: ``sendcontrol("c")`` is Ctrl-C. ValueError if there is none of that name."""
        code = ord(char.upper()) ^ 0x40
        if code >= 0x20 and code != 0x7F:
            raise ValueError(f"there is no Ctrl-{char}")
        return self.send(chr(code))

    def write(self, s: str | bytes) -> None:
        """As `send`, with nothing returned."""
        self.send(s)

    def writelines(self, sequence: Iterable[str | bytes]) -> None:
        """`write` each."""
        for s in sequence:
            self.write(s)

    def isalive(self) -> bool:
        """The console has not ended."""
        return self._transcript.ended is None

    def close(self) -> None:
        """Nothing more is expected here; the console goes on."""
        self.closed = True

    def __str__(self) -> str:
        rest = self._before.getvalue()
        tail = last_lines(rest if isinstance(rest, bytes) else rest.encode("utf-8", "replace"))
        return f"console at offset {self._cursor}; not matched so far:\n{tail}"
