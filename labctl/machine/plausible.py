"""Whether a sensor can say that: a number that no machine has is no reading, and stands for nothing."""

from __future__ import annotations

BOUNDS = {"degC": (-273.15, 1000.0), "V": (-1000.0, 1000.0), "A": (-10_000.0, 10_000.0), "W": (0.0, 1e6), "rpm": (0.0, 1e6)}
"""By unit, lowest and highest: far from what is usual, so that what is beyond is nonsense and not a fault."""


def is_plausible(value: object, unit: str) -> bool:
    """Not of what is no number, nor of NaN."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    lowest, highest = BOUNDS[unit]
    return lowest <= value <= highest
