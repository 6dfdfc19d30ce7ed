"""The text of a kernel's config: read, written, and compared with what was asked for. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

SYMBOL = r"^CONFIG_[A-Za-z0-9_]+$"

_SET = re.compile(r"^(CONFIG_[A-Za-z0-9_]+)=(.*?)\s*$")
_UNSET = re.compile(r"^# (CONFIG_[A-Za-z0-9_]+) is not set\s*$")
_PLAIN = re.compile(r"^(y|m|n|-?[0-9]+|0[xX][0-9a-fA-F]+)$")


@dataclass(frozen=True, slots=True)
class Lost:
    """An option that the configure step did not keep."""

    symbol: str
    asked: str
    got: str

    def __str__(self) -> str:
        return f"{self.symbol}: asked {self.asked}, got {self.got}"


def parse(text: str) -> dict[str, str]:
    """A ``.config`` or a fragment → symbol → value as written there; ``is not set`` is ``n``. The last word on a symbol counts.

    Raises ValueError, with the line, for what is neither an option nor a comment.
    """
    values: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if found := _SET.match(line):
            values[found[1]] = found[2]
        elif found := _UNSET.match(line):
            values[found[1]] = "n"
        elif line.strip() and not line.lstrip().startswith("#"):
            raise ValueError(f"line {number}: {line.strip()[:80]!r} is neither CONFIG_X=value nor a comment")
    return values


def value(given: str | int | bool) -> str:
    """A value of a recipe as a config writes it: true is ``y``, a number is itself, other text is quoted."""
    if isinstance(given, bool):
        return "y" if given else "n"
    text = str(given)
    if _PLAIN.match(text) or (len(text) >= 2 and text[0] == text[-1] == '"'):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def merged(base: str, asked: Mapping[str, str]) -> str:
    """A config with the asked options in place of what it said of them."""
    kept = [line for line in base.splitlines() if not ((found := _SET.match(line) or _UNSET.match(line)) and found[1] in asked)]
    added = [f"# {symbol} is not set" if wanted == "n" else f"{symbol}={wanted}" for symbol, wanted in asked.items()]
    return "\n".join((*kept, *added, ""))


def lost(asked: Mapping[str, str], final: Mapping[str, str]) -> list[Lost]:
    """What was asked for and is not in the final config. An option that is absent there is ``n``."""
    return [
        Lost(symbol, wanted, final.get(symbol, "n (not offered by this tree, or a dependency is missing)"))
        for symbol, wanted in asked.items()
        if not _same(wanted, final.get(symbol, "n"))
    ]


def _same(one: str, other: str) -> bool:
    if one == other:
        return True
    try:
        return int(one, 0) == int(other, 0)
    except ValueError:
        return False
