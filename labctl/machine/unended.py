"""What is told of a command in the machine that did not end in its time: what it was, what it said last, what its processes were at."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from labctl.parsers.text import last_lines, visible

_LINE = re.compile(r"([0-9]{1,10}) ([A-Za-z]) (-|[A-Za-z_][\w.]{0,63}) (.+)")
_STATES = {"R": "runs", "S": "sleeps", "D": "waits for what cannot be interrupted", "T": "is stopped", "t": "is traced", "Z": "has ended"}
_WAITS_FOR_OTHERS = ("do_wait", "pipe_read", "pipe_wait", "anon_pipe_read")
"""Where a shell is that has started something, and what reads what another one says."""
SAID_NOTHING = "it said nothing"
_MOST_PROCESSES = 16
_COMMAND_WIDTH = 200
_WORDS_WIDTH = 80
_SAID_WIDTH = 120
_LINES = 10


@dataclass(frozen=True, slots=True)
class Process:
    """One of the command's; ``state`` is the letter of ``/proc/PID/stat``, ``where`` the kernel function that it waits in, or ``-``."""

    pid: int
    state: str
    where: str
    words: str

    def __str__(self) -> str:
        place = "" if self.where == "-" or self.state == "R" else f" in {self.where}"
        return f"{_cut(self.words, _WORDS_WIDTH)} (process {self.pid}) {_STATES.get(self.state, f'is in state {self.state}')}{place}"

    @property
    def rank(self) -> int:
        """Smaller is nearer to what everybody waits for."""
        others = self.state in "SZ" and (self.where in _WAITS_FOR_OTHERS or self.state == "Z")
        return 3 if others else {"D": 0, "R": 1}.get(self.state, 2)


def processes(text: str) -> tuple[Process, ...]:
    """From lines ``PID STATE WHERE WORDS``; what is none is passed over."""
    found = (_LINE.fullmatch(visible(line)) for line in text.splitlines()[:_MOST_PROCESSES])
    return tuple(Process(int(each[1]), each[2], each[3], each[4]) for each in found if each)


@dataclass(frozen=True, slots=True)
class Unended:
    """A command whose time was over. ``err`` is empty where it is mixed with ``out``."""

    command: str
    seconds: float
    out: bytes
    err: bytes = b""
    running: Sequence[Process] = ()
    flooded: int = 0
    """It said more than that many bytes, of which the last are not known."""

    @property
    def title(self) -> str:
        """In one line."""
        named = self.command if len(self.command) <= _COMMAND_WIDTH else f"{self.command[: _COMMAND_WIDTH - 1]}…"
        text = f"the command {named!r} did not end within {self.seconds:g} s: {self._said()}"
        if self.running:
            text += f"; {min(self.running, key=lambda each: (each.rank, -each.pid))}"
        return text

    @property
    def details(self) -> str:
        """Its last lines, and all of its processes."""
        parts = [("stdout" if self.err else "it said", last_lines(self.out, _LINES)), ("stderr", last_lines(self.err, _LINES))]
        parts.append(("its processes", "\n".join(map(str, self.running))))
        return "\n".join(f"--- {name}\n{text}" for name, text in parts if text)

    def _said(self) -> str:
        if self.flooded:
            size = f"{self.flooded >> 20} MiB" if self.flooded >= 1 << 20 else f"{self.flooded >> 10} KiB"
            return f"it said more than {size}: have it write a file, and get that"
        last = [(_cut(last_lines(each, 1), _SAID_WIDTH), where) for each, where in ((self.out, ""), (self.err, " on stderr"))]
        told = [f"{text!r}{where}" for text, where in last if text]
        return f"it last said {' and '.join(told)}" if told else SAID_NOTHING


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
