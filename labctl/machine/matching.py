"""Patterns over a byte stream, found the same way however the stream was cut into chunks. Pure: no clock, no I/O, no threads.

Two kinds of pattern:

- A **literal** (bytes, or a regular expression without any special character) is found as soon as its last byte is there; it may
  span lines.
- Any other **regular expression** is searched in one line at a time, newline included, and found once that line is complete:
  before, ``version (\\S+)`` would give whatever part of the word had arrived. A line that stays unfinished (a prompt) is searched
  when the caller says that it counts as it is. A line longer than `PIECE` is searched in pieces that overlap by half.

Matches of one pattern do not overlap; an empty match is none. Order: by the byte that completed the match (for a regular
expression, the end of its line), then by start, then by pattern.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

PIECE = 4096
_STEP = PIECE // 2
_SPECIAL = re.compile(rb"[.^$*+?{}\[\]\\|()]")


@dataclass(frozen=True)
class Pattern:
    """A regular expression, and bytes that each of its matches must contain: only lines that have them are searched, so that many
    patterns cost little."""

    regex: re.Pattern[bytes]
    literal: bytes


PatternLike = bytes | re.Pattern[bytes] | Pattern


@dataclass(frozen=True, slots=True)
class Hit:
    """A match by absolute offsets. ``complete`` is the offset at which it was complete."""

    complete: int
    offset: int
    pattern: int
    text: bytes
    groups: tuple[bytes | None, ...]

    @property
    def end(self) -> int:
        return self.offset + len(self.text)

    @property
    def order(self) -> tuple[int, int, int]:
        return self.complete, self.offset, self.pattern


def plain(regex: re.Pattern[bytes]) -> bytes | None:
    """The literal that ``regex`` is, if it is nothing but a literal."""
    meaningless = not regex.flags & (re.IGNORECASE | re.VERBOSE) and not _SPECIAL.search(regex.pattern)
    return regex.pattern if meaningless else None


class Scanner:
    """Searches a stream for patterns, block by block, keeping nothing of it but offsets."""

    def __init__(self, patterns: Sequence[PatternLike], since: int) -> None:
        self._literals: list[tuple[int, bytes]] = []
        self._regexes: list[tuple[int, re.Pattern[bytes], bytes]] = []
        for number, pattern in enumerate(patterns):
            regex, needle = (pattern.regex, pattern.literal) if isinstance(pattern, Pattern) else (pattern, b"")
            literal = regex if isinstance(regex, bytes) else plain(regex)
            if literal is None and not isinstance(regex, bytes):
                self._regexes.append((number, regex, needle))
            elif literal:
                self._literals.append((number, literal))
            else:
                raise ValueError("an empty pattern matches nothing")
        self._done = [since] * len(patterns)
        """Per pattern, the end of its last match."""
        self._since = since
        self._longest = max((len(literal) for _, literal in self._literals), default=1)
        self._line = since
        """Start of the unfinished line, or of the piece of it that is not searched yet."""
        self._lead = 0
        """1 if ``_line`` is in the middle of a line: the byte before is kept so that ``^`` does not match there."""
        self.searched = since
        """Everything before was searched."""

    @property
    def needs(self) -> int:
        """Where the next block must begin."""
        return max(self._since, min(self._line - self._lead, self.searched - self._longest + 1))

    @property
    def waits_for_line(self) -> bool:
        """There is an unfinished line that a regular expression may be found in."""
        return bool(self._regexes) and self._line < self.searched

    def scan(self, data: bytes, *, as_it_is: bool = False) -> Iterator[Hit]:
        """Hits in ``data``, which begins at `needs` and goes beyond `searched`. ``as_it_is``: the unfinished line counts as a line.

        Lazy, so that memory stays bounded if every byte is a match: take it to its end before the next scan.
        """
        start = self.needs
        first, stop = self._line - start, len(data)
        found: list[Iterator[Hit]] = []
        for number, literal in self._literals:
            begin = max(self._done[number], self.searched - len(literal) + 1, self._since) - start
            if data.find(literal, begin) >= 0:
                found.append(self._literal_hits(number, literal, data, start, begin))
        tail = max(first, data.rfind(b"\n") + 1)
        if as_it_is or tail > first or stop - tail >= PIECE:
            found.extend(
                self._line_hits(number, regex, needle, data, start, as_it_is)
                for number, regex, needle in self._regexes
                if data.find(needle, first) >= 0
            )
        if len(found) == 1:
            yield from found[0]
        elif found:
            yield from heapq.merge(*found, key=lambda hit: hit.order)
        if tail > first:
            self._lead = 0
        while stop - tail >= PIECE:
            tail += _STEP
            self._lead = 1
        self._line = start + tail
        self.searched = start + stop

    def _literal_hits(self, number: int, literal: bytes, data: bytes, start: int, begin: int) -> Iterator[Hit]:
        while (at := data.find(literal, begin)) >= 0:
            begin = at + len(literal)
            self._done[number] = start + begin
            yield Hit(start + begin, start + at, number, literal, ())

    def _line_hits(self, number: int, regex: re.Pattern[bytes], needle: bytes, data: bytes, start: int, as_it_is: bool) -> Iterator[Hit]:
        first = line = self._line - start
        while line < len(data) and (at := data.find(needle, line)) >= 0:
            line = max(line, data.rfind(b"\n", line, at) + 1)
            end = data.find(b"\n", at) + 1
            finished = end > 0
            if not finished:
                end = len(data)
            lead = self._lead if line == first else 0
            # An unfinished line has at least one byte to come: the last piece is the one that would hold it.
            limit = end if finished or as_it_is else end + 1
            while line + PIECE < limit:
                yield from self._piece_hits(number, regex, data, start, line - lead, lead, line + PIECE, _STEP)
                line, lead = line + _STEP, 1
            if finished or as_it_is:
                yield from self._piece_hits(number, regex, data, start, line - lead, lead, end, PIECE)
            line = end

    def _piece_hits(
        self, number: int, regex: re.Pattern[bytes], data: bytes, start: int, begin: int, lead: int, end: int, accept: int
    ) -> Iterator[Hit]:
        """Matches in ``data[begin + lead : end]`` that start in its first ``accept`` bytes; the next piece finds the others."""
        for match in regex.finditer(data[begin:end], max(lead, self._done[number] - start - begin)):
            if match.start() >= lead + accept:
                return
            if match.end() > match.start():
                self._done[number] = start + begin + match.end()
                yield Hit(start + end, start + begin + match.start(), number, match.group(), match.groups())
