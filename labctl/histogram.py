"""Many observations of one thing, counted in bins: what is left of a million latencies. Histograms add up; percentiles do not.

The bins are fio's (``plat_val_to_idx`` and ``plat_idx_to_val`` of its stat.c, with ``FIO_IO_U_PLAT_BITS`` 6), so that what fio counted
is taken over without loss. A value is a whole number of steps. Below 128 steps each number has a bin of its own; above, each doubling is
cut into 64 bins of one width. A bin stands for its middle, which is within 1/128 (0.8 %) of all that is in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

STEP = 1e-9
"""Of times, which are in seconds: bins count nanoseconds, as fio's do."""
RELATIVE_ERROR = 1 / 128
"""Of a quantile, at most; half a step where that is more."""
MOST_STEPS = 1 << 53
"""Steps of the largest value: 104 days in nanoseconds. It bounds the bins at 3,136, however many values there are."""
MOST_COUNT = 1 << 53
"""Observations of one histogram: JSON's readers hold no larger whole number exactly."""
_BITS = 6
_SUB_BINS = 1 << _BITS
_EXACT = _SUB_BINS << 1
"""Values below it are their own bins."""


def bin_of(steps: int) -> int:
    """The bin that a value falls into."""
    if steps < _EXACT:
        return steps
    shift = steps.bit_length() - 1 - _BITS
    return ((shift + 1) << _BITS) + ((steps >> shift) & (_SUB_BINS - 1))


def edges(index: int) -> tuple[int, int]:
    """The lowest value of a bin, and the lowest of the next one, in steps."""
    if index < _EXACT:
        return index, index + 1
    shift = (index >> _BITS) - 1
    low = (_SUB_BINS + (index & (_SUB_BINS - 1))) << shift
    return low, low + (1 << shift)


_MOST_BIN = bin_of(MOST_STEPS)


@dataclass(frozen=True, slots=True)
class Histogram:
    """At least one observation. Make one by `of`, `counted` or `merged`; ValueError if the parts contradict each other."""

    bins: tuple[tuple[int, int], ...]
    """Bin and how many observations are in it, which is not 0; ascending."""
    minimum: int
    """The smallest observation, in steps; exact, unlike a bin."""
    maximum: int
    total: int
    """Sum of all observations, in steps."""
    step: float = STEP
    """What one step is, in the unit of the metric."""

    def __post_init__(self) -> None:
        if not self.bins:
            raise ValueError("a histogram of no observations")
        if not 0 < self.step < math.inf:
            raise ValueError(f"a step of {self.step}")
        before = -1
        for index, count in self.bins:
            if not before < index <= _MOST_BIN or count < 1:
                raise ValueError("bins of a histogram ascend, and hold something")
            before = index
        if self.count > MOST_COUNT:
            raise ValueError(f"more than {MOST_COUNT} observations")
        if bin_of(max(0, self.minimum)) != self.bins[0][0] or bin_of(max(0, self.maximum)) != self.bins[-1][0] or self.minimum < 0:
            raise ValueError("the smallest and the largest value are not in the first and the last bin")
        if not self.minimum * self.count <= self.total <= self.maximum * self.count:
            raise ValueError("the sum of a histogram's values is not between what the smallest and the largest allow")

    @classmethod
    def of(cls, values: Iterable[float], *, step: float = STEP) -> Histogram:
        """Of values in the metric's unit. ValueError if there is none, or one that is negative, not finite or too large."""
        counts: dict[int, int] = {}
        for value in values:
            if not 0 <= value / step <= MOST_STEPS:  # NaN is not
                raise ValueError(f"{value} has no bin: from 0 to {MOST_STEPS * step:g}")
            steps = round(value / step)
            counts[steps] = counts.get(steps, 0) + 1
        return cls.counted(counts, step=step)

    @classmethod
    def counted(
        cls,
        counts: Mapping[int, int],
        *,
        step: float = STEP,
        minimum: int | None = None,
        maximum: int | None = None,
        total: int | None = None,
    ) -> Histogram:
        """Of how often each value was seen, in steps. Who counted in bins of this layout already gives the rest if it is known.

        What does not agree with the bins is drawn to them: a mean is rounded where it is written. ValueError.
        """
        bins: dict[int, int] = {}
        for steps, count in counts.items():
            if not 0 <= steps <= MOST_STEPS or count < 0:
                raise ValueError(f"{count} observations of {steps} steps")
            if count:
                bins[bin_of(steps)] = bins.get(bin_of(steps), 0) + count
        if not bins:
            raise ValueError("a histogram of no observations")
        first, last = min(bins), max(bins)
        seen = [steps for steps, count in counts.items() if count]
        low = _within(min(seen) if minimum is None else minimum, first)
        high = max(low, _within(max(seen) if maximum is None else maximum, last))
        observed = sum(bins.values())
        summed = sum(steps * count for steps, count in counts.items()) if total is None else total
        return cls(tuple(sorted(bins.items())), low, high, min(max(summed, low * observed), high * observed), step)

    @classmethod
    def merged(cls, histograms: Iterable[Histogram]) -> Histogram:
        """All observations of several, as if they had been counted together: in any order, in any grouping. ValueError."""
        found = list(histograms)
        if len({histogram.step for histogram in found}) != 1:
            raise ValueError("histograms of one step can be merged, and at least one" if found else "no histogram to merge")
        bins: dict[int, int] = {}
        for histogram in found:
            for index, count in histogram.bins:
                bins[index] = bins.get(index, 0) + count
        return cls(
            tuple(sorted(bins.items())),
            min(histogram.minimum for histogram in found),
            max(histogram.maximum for histogram in found),
            sum(histogram.total for histogram in found),
            found[0].step,
        )

    @property
    def count(self) -> int:
        return sum(count for _, count in self.bins)

    @property
    def low(self) -> float:
        """The smallest observation, in the metric's unit; exact."""
        return self.minimum * self.step

    @property
    def high(self) -> float:
        return self.maximum * self.step

    @property
    def mean(self) -> float:
        return self.total / self.count * self.step

    def quantile(self, part: float) -> float:
        """The value that ``part`` (0 to 1) of the observations do not exceed, as fio has it: that of the observation of this rank."""
        if not 0 <= part <= 1:
            raise ValueError(f"a quantile of {part}")
        # Of 1,000 the 999th is p99.9, though 0.999 is no binary number.
        return self.at_rank(max(1, math.ceil(round(part * self.count, 6))))

    def at_rank(self, rank: int) -> float:
        """The observation of a rank, 1 for the smallest, within `RELATIVE_ERROR`."""
        if not 1 <= rank <= self.count:
            raise ValueError(f"rank {rank} of {self.count}")
        if rank == self.count:
            return self.high
        if rank == 1:
            return self.low
        below = 0
        for index, count in self.bins:
            below += count
            if below >= rank:
                return self._middle(index)
        raise AssertionError("a rank within the count is in some bin")

    def intervals(self) -> Iterator[tuple[float, float, int]]:
        """Lower edge, upper edge (not in it) and count of each bin, in the metric's unit."""
        for index, count in self.bins:
            low, high = edges(index)
            yield low * self.step, high * self.step, count

    def _middle(self, index: int) -> float:
        low, high = edges(index)
        # A bin of one step is that value; no middle lies beyond what was seen.
        return min(max(low + (high - low) // 2, self.minimum), self.maximum) * self.step


def _within(steps: int, index: int) -> int:
    """The value of a bin that is nearest to this one."""
    low, high = edges(index)
    return min(max(steps, low), high - 1)
