"""Counted figures: whether runs agree. Pure.

Two boots that agree to the last digit give an integer, and nothing else needs to be known about them: no spread, no confidence. Two that
differ are *nondeterministic*; they are never averaged, for a mean of two different programs' runs is a figure of neither.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from labctl.model import Channel, Milestone
from labctl.result import CellResult, Sample

INSTRUCTIONS = "boot.instructions"
"""Metric of a suite that counts a boot's instructions, with the parameter ``milestone``."""


class Agreement(StrEnum):
    EXACT = "exact"
    """Counted twice or more, each time the same."""
    ONCE = "counted once"
    """Nothing to agree with."""
    NONDETERMINISTIC = "nondeterministic"


@dataclass(frozen=True, slots=True)
class Reading:
    """What counted samples of one thing say together."""

    agreement: Agreement
    low: float
    high: float
    count: int

    @property
    def value(self) -> float | None:
        """The figure; None where there is none."""
        return None if self.agreement is Agreement.NONDETERMINISTIC else self.low


def reading(values: Iterable[float]) -> Reading:
    """Raises ValueError if there is no value, or one that is not finite."""
    found = list(values)
    if not found or not all(map(math.isfinite, found)):
        raise ValueError("a reading needs finite values")
    low, high = min(found), max(found)
    agreement = Agreement.NONDETERMINISTIC if low != high else Agreement.EXACT if len(found) > 1 else Agreement.ONCE
    return Reading(agreement, low, high, len(found))


def readings(result: CellResult) -> Mapping[tuple[str, tuple[tuple[str, str], ...]], Reading]:
    """Of a cell's counted samples, by metric and parameters, in the order in which they were first taken."""
    found: dict[tuple[str, tuple[tuple[str, str], ...]], list[Sample]] = {}
    for sample in result.samples:
        if sample.channel is Channel.ICOUNT and math.isfinite(sample.value):
            found.setdefault((sample.metric, tuple(sorted(sample.params.items()))), []).append(sample)
    return {key: reading(sample.value for sample in samples) for key, samples in found.items()}


def to_ready(result: CellResult) -> Reading | None:
    """Instructions from power-on to ``ready``, if the cell counted them."""
    return readings(result).get((INSTRUCTIONS, (("milestone", Milestone.READY.value),)))
