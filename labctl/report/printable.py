"""Lengths of hostile text: a line of 10 kB or a console of a million lines is cut, and what was cut is counted.

`labctl.parsers.text.visible` makes it safe to show; escaping for HTML or XML is done where it is written.
"""

from __future__ import annotations

from labctl.parsers.crash import BEFORE_LINES
from labctl.parsers.text import visible

_SPARE = 24
"""Characters: to cut off no more than these would save no room, since what was cut off must be counted."""


def one_line(text: str, limit: int = 300) -> str:
    """`visible`, on one line of about ``limit`` characters."""
    if len(text) <= limit and text.isascii() and text.isprintable():
        return text.strip()  # nearly every text of a run: worth not going through the rest
    flat = " ⏎ ".join(part.strip() for part in visible(text[: 4 * limit]).split("\n") if part.strip()).replace("\t", " ")
    if len(text) <= 4 * limit and len(flat) <= limit + _SPARE:
        return flat
    return f"{flat[:limit]}… (+{len(text) - min(len(text), limit):,} characters)"


def excerpt(text: str, lines: int, width: int = 400, cause: str = "", *, from_cause: bool = False) -> str:
    """`visible`, ``lines`` lines of it, each of at most ``width`` characters: around the one that tells ``cause``, else the last ones.

    ``from_cause``: beginning `BEFORE_LINES` above that one, else the first ones.
    """
    rows = visible(text).rstrip("\n").split("\n")
    first = max(0, len(rows) - lines)
    if first and (cause or from_cause):
        told = next((i for i, row in enumerate(rows) if _tells(row, cause)), 0 if from_cause else len(rows))
        first = min(first, max(0, told - (BEFORE_LINES if from_cause else lines // 4)))
    shown = rows[first : first + lines]
    kept = [row if len(row) <= width + _SPARE else f"{row[:width]}… (+{len(row) - width:,} characters)" for row in shown]
    below = len(rows) - first - len(shown)
    return "\n".join([*([f"… {first:,} lines above"] if first else []), *kept, *([f"… {below:,} lines below"] if below else [])])


def _tells(row: str, cause: str) -> bool:
    """A kernel message without its time stamp, in the words of the cause; a word or two prove nothing."""
    message = row.rpartition("] ")[2].strip() if row.startswith("[") else row.strip()
    return len(message) >= 12 and (message in cause or cause in message)
