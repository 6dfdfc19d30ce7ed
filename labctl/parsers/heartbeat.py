"""What ``guest/tools/heartbeat.c`` says on the console → beats. Pure; the bytes are a guest's."""

from __future__ import annotations

import re
from dataclasses import dataclass

from labctl.parsers.text import LINE_END

_SECONDS = rb"([0-9]{1,9}\.[0-9]{3})"
_BEAT = re.compile(
    rb"heartbeat: (?:([0-9]{1,9})|end) up="
    + _SECONDS
    + rb" gap="
    + _SECONDS
    + rb" missed=([0-9]{1,12})(?: beats=([0-9]{1,12}))?"
    + LINE_END
)


@dataclass(frozen=True, slots=True)
class Beat:
    """One line of it: since the line before, or, at the end, of the whole."""

    up: float
    """Seconds since the first beat."""
    gap: float
    """The longest time between two beats, in seconds."""
    missed: int
    """Beats that were still to come when the next one was due."""
    beats: int | None = None
    """All that were due and came; only of the end, None before it."""
    end: int = 0
    """Offset behind the line."""

    @property
    def first(self) -> bool:
        """Whether it is the first line, which is said at the first beat: there is no pause yet that it could tell of."""
        return self.up == 0 and not self.last

    @property
    def last(self) -> bool:
        """Whether it is of the end."""
        return self.beats is not None


def beats(data: bytes) -> list[Beat]:
    """Those in what a console said, in their order; an unfinished line is none yet."""
    return [
        Beat(float(found[2]), float(found[3]), int(found[4]), int(found[5] or 0) if found[1] is None else None, found.end())
        for found in _BEAT.finditer(data)
    ]
