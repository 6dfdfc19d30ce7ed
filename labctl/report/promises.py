"""Promises as they are told: the same words on the page and in a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from labctl.judge.promise import Judged, Verdict
from labctl.promise import AVAILABILITY
from labctl.report.printable import one_line
from labctl.report.quantity import natural, percent, quantity

_ORDER = (Verdict.BROKEN, Verdict.UNDECIDED, Verdict.KEPT, Verdict.NOT_MEASURED)
_MANY = 9
"""From ten times the limit on nobody reads a share of it."""
ICONS = {Verdict.BROKEN: "fail", Verdict.UNDECIDED: "invalid", Verdict.KEPT: "pass", Verdict.NOT_MEASURED: "skip"}
"""Each verdict looks like an outcome that people know."""


@dataclass(frozen=True)
class Told:
    """One promise in words."""

    verdict: Verdict
    icon: str
    promise: str
    build: str
    where: str
    """Target and parameters."""
    limit: str
    value: str
    bounds: str
    margin: str
    count: str
    reason: str
    gate: bool


def told(judged: Sequence[Judged]) -> list[Told]:
    """In words, in the order of `ranked`."""
    return [words for _, words in ranked(judged)]


def ranked(judged: Sequence[Judged]) -> list[tuple[Judged, Told]]:
    """First those with a gate that are not kept, then the worst: of a verdict those that have a gate, then those that are farthest beyond
    their limit. A gate that is made for other targets is none here."""

    def rank(one: Judged) -> tuple[object, ...]:
        margin = math.inf if one.margin is None else one.margin
        where = natural(one.build), one.promise.name, natural(one.target), one.params
        elsewhere = one.verdict is Verdict.NOT_MEASURED and bool(one.promise.tags)
        open_gate = one.promise.gate and one.verdict is not Verdict.KEPT and not elsewhere
        return (not open_gate, _ORDER.index(one.verdict), not one.promise.gate, margin, *where)

    return [(one, _told(one)) for one in sorted(judged, key=rank)]


def _told(one: Judged) -> Told:
    def said(value: float | None) -> str:
        if value is None:
            return "not known"
        return percent(value) if one.promise.asked.rstrip().endswith("%") else quantity(value, one.promise.unit)

    bounded = one.low is not None or one.high is not None
    return Told(
        one.verdict,
        ICONS[one.verdict],
        one_line(one.promise.name, 100),
        one_line(one.build, 60),
        one_line(" ".join([one.target, *(f"{name}={value}" for name, value in one.params)]), 100),
        one_line(one.promise.asked, 40),
        "" if one.value is None else said(one.value),
        f"{said(one.low)} – {said(one.high)}" if bounded else "",
        "" if one.margin is None else _margin(one.margin),
        _counted(one),
        one_line(one.reason, 120),
        one.promise.gate,
    )


def _margin(margin: float) -> str:
    """``+72 %`` of the limit is left, ``−40 %`` too much; far beyond it how many times the limit."""
    if not math.isfinite(margin):
        return ""
    if margin <= -_MANY:
        return f"× {1 - margin:,.0f}" if margin > -1e15 else f"× {1 - margin:.3g}"
    return f"{margin + 0.0:+.0%}".replace("-0%", "0%").replace("+0%", "0%").replace("-", "−").replace("%", " %")


def _counted(one: Judged) -> str:
    if not one.count:
        return ""
    noun = "soak" if one.promise.metric == AVAILABILITY else "observation"
    return f"{one.count:,} {noun}{'s' if one.count > 1 else ''}"
