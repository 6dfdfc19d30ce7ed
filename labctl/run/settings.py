"""What a suite's tests read from the environment. A value that is none is a mistake as one in a file is: all are told at once, when the
suite is read, which is before any machine has power."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from labctl.errors import ConfigError, Problem
from labctl.size import format_size, parse_size

_NUMBER = re.compile(r"[+-]?[0-9]{1,18}(\.[0-9]{1,9})?")


@dataclass(frozen=True, slots=True)
class Number:
    """A number of ``unit``, from ``least`` to ``most``; with ``whole`` one without a fraction."""

    name: str
    default: float
    least: float
    most: float
    unit: str
    whole: bool = False

    @property
    def allowed(self) -> str:
        return f"a {'whole ' if self.whole else ''}number of {self.unit}, from {self.least:g} to {self.most:g}"

    def read(self, text: str) -> float:
        found = _NUMBER.fullmatch(text.strip())
        if found is None or (self.whole and found[1]) or not self.least <= float(found[0]) <= self.most:
            raise ValueError(self.allowed)
        return float(found[0])


@dataclass(frozen=True, slots=True)
class Bytes:
    """A size such as ``512M``, at least ``least`` bytes."""

    name: str
    default: int
    least: int

    @property
    def allowed(self) -> str:
        return f"a size such as 512M or 4G, at least {format_size(self.least)}"

    def read(self, text: str) -> int:
        try:
            size = parse_size(text)
        except ValueError:
            size = -1
        if size < self.least:
            raise ValueError(self.allowed)
        return size


def from_environment(wanted: Sequence[Number | Bytes]) -> list[float]:
    """The value of each variable, or its default where it is unset or empty. ConfigError with every one that is none."""
    problems: list[Problem] = []
    values: list[float] = []
    for each in wanted:
        text = os.environ.get(each.name, "")
        try:
            values.append(each.read(text) if text else each.default)
        except ValueError:
            problems.append(Problem("environment", each.name, f"found {text[:80]!r}", each.allowed))
    if problems:
        raise ConfigError(problems)
    return values
