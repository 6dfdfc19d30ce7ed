"""Confidence bounds that assume no shape of the distribution. Pure.

Each bound holds by itself with a confidence of 95 %: a limit is held to one side only.
"""

from __future__ import annotations

import math
from collections.abc import Callable

CONFIDENCE = 0.95
"""Of one bound."""
_ALPHA = 1 - CONFIDENCE
_SUMMED = 2_000
"""Expected count up to which a tail is summed; beyond it the normal approximation is within a rank in a thousand."""
_Z = 1.6448536269514722
"""The standard normal's 95th percentile."""


def quantile_ranks(count: int, part: float) -> tuple[int | None, int | None]:
    """Ranks (1 for the smallest) of the observations that a quantile of what they are taken from is not below, and not above.

    None where there are too few to say. Order statistics: how many of ``count`` lie below the true quantile is binomial (Conover,
    Practical Nonparametric Statistics, 3.2; David and Nagaraja, Order Statistics, 7.1). It takes the observations as independent.
    """
    if count < 1 or not 0 < part < 1:
        raise ValueError(f"ranks of {count} observations for a quantile of {part}")
    below = _unlikely(count, part)
    above = _unlikely(count, 1 - part)
    return (None if below < 0 else below + 1, None if above < 0 else count - above)


def _unlikely(count: int, part: float) -> int:
    """The largest k for which a binomial count is k or less in 5 % of cases at most; -1 if none is."""
    mean, variance = count * part, count * part * (1 - part)
    if mean > _SUMMED and variance > _SUMMED / 2:
        return max(-1, math.floor(mean - _Z * math.sqrt(variance) - 0.5))
    chance = count * math.log1p(-part)  # of none, as a logarithm: it may be smaller than a float can be
    odds = math.log(part) - math.log1p(-part)
    total = 0.0
    for k in range(count):
        total += math.exp(chance)
        if total > _ALPHA:
            return k - 1
        chance += math.log(count - k) - math.log(k + 1) + odds
    return count - 1


def poisson_mean(events: int) -> tuple[float, float]:
    """Lower and upper bound of the mean of which so many events came: exact (Garwood 1936, Biometrika 28, 437).

    Of none the upper bound is ``-ln 0.05``, 2.996: the rule of three. Of thousands it is the normal approximation. ValueError for less than
    none.
    """
    if events < 0:
        raise ValueError(f"{events} events")
    if events > _SUMMED:
        return events - _Z * math.sqrt(events), events + 1 + _Z * math.sqrt(events + 1)
    low = _solve(lambda mean: 1 - _poisson(events - 1, mean) > _ALPHA, events) if events else 0.0
    high = _solve(lambda mean: _poisson(events, mean) < _ALPHA, events)
    return low, high


def _poisson(most: int, mean: float) -> float:
    """Chance of ``most`` events or fewer."""
    return math.fsum(math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)) for k in range(most + 1))


def _solve(beyond: Callable[[float], bool], events: int) -> float:
    """The mean from which on a condition holds, by bisection to the last digit."""
    low, high = 1e-12, events + 10 * math.sqrt(events) + 20.0
    for _ in range(200):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        low, high = (low, middle) if beyond(middle) else (middle, high)
    return high
