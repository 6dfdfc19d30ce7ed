"""Is what was asked of a build kept? Pure: runs in, a verdict for each promise, target and series out.

A limit is held against a bound of confidence, not against the figure: *kept* if even the bound on the limit's side is within it, *broken*
if even the other is not, else *undecided*. What nobody measured is *not measured*, never kept.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from labctl.histogram import RELATIVE_ERROR, Histogram
from labctl.judge.availability import Uptime, availability, uptimes
from labctl.judge.bounds import CONFIDENCE, quantile_ranks
from labctl.judge.density import HEALTHY, OF_VMS, VMS, curves
from labctl.judge.distribution import merge
from labctl.judge.summary import percentile
from labctl.model import Channel, Milestone, Outcome
from labctl.promise import AVAILABILITY, Promise, promise
from labctl.result import RunResult, Sample


class Verdict(StrEnum):
    """Of a promise, the worst first."""

    BROKEN = "broken"
    UNDECIDED = "undecided"
    NOT_MEASURED = "not measured"
    KEPT = "kept"


@dataclass(frozen=True)
class Judged:
    """A promise of a build on one target, for one set of parameters."""

    promise: Promise
    build: str
    target: str
    """Empty where no target measured it."""
    params: tuple[tuple[str, str], ...]
    verdict: Verdict
    reason: str
    """Why it is not kept or not broken, in a few words."""
    value: float | None = None
    low: float | None = None
    """Bound of the value, where there is one; each of the two holds with 95 %."""
    high: float | None = None
    count: int = 0
    """Observations; of an availability stretches of time."""
    unit: str = ""
    """In which they were recorded; empty where nothing was."""

    @property
    def margin(self) -> float | None:
        """What is left to the limit, as a part of it; negative: by how much it is exceeded. Of an availability, of what may fail."""
        if self.value is None:
            return None
        allowed, used = self.promise.limit, self.value
        if self.promise.metric == AVAILABILITY:
            allowed, used = 1 - allowed, 1 - used
            return (allowed - used) / allowed
        if not allowed:
            return None
        return (allowed - used) / abs(allowed) * (1 if self.promise.upper else -1)


def promises_of(table: Mapping[str, object]) -> tuple[Promise, ...]:
    """Those of a build as run.json has it; what cannot be read there is passed over: the recipe was checked before the run."""
    found: list[Promise] = []
    asked = table.get("promises")
    for name, one in asked.items() if isinstance(asked, Mapping) else ():
        about = one if isinstance(one, Mapping) else {"limit": one}
        tags = about.get("tags")
        try:
            words = tuple(tag for tag in tags if isinstance(tag, str)) if isinstance(tags, Sequence) else ()
            found.append(promise(str(name), str(about.get("limit")), words, about.get("gate") is True))
        except ValueError:
            continue
    return tuple(found)


def judge(runs: Sequence[RunResult]) -> tuple[Judged, ...]:
    """Every promise of every build that the runs were of, over all of them together; in the order of builds, recipes and targets.

    The promises are those of the last run that has the build. Only real time is judged: counted instructions are no seconds.
    """
    asked = {name: found for run in runs for name, table in run.builds.items() if (found := promises_of(table))}
    if not asked:
        return ()
    tags = {name: _tags(table) for run in runs for name, table in run.targets.items()}
    series = _Series.of(runs)
    ups = uptimes(runs)
    again = frozenset(result.cell.build for run in runs for result in run.cells if result.reused)
    return tuple(
        judged
        for build in sorted(asked)
        for one in asked[build]
        for judged in _judged(one, build, frozenset(t for t, has in tags.items() if has.issuperset(one.tags)), series, ups, build in again)
    )


def broken_gates(runs: Sequence[RunResult]) -> tuple[Judged, ...]:
    """The promises with a gate that are broken: these, and only these, fail a run."""
    return tuple(judged for judged in judge(runs) if judged.promise.gate and judged.verdict is Verdict.BROKEN)


def _tags(table: Mapping[str, object]) -> frozenset[str]:
    found = table.get("tags")
    return frozenset(tag for tag in found if isinstance(tag, str)) if isinstance(found, Sequence) else frozenset()


_Key = tuple[str, str, str, tuple[tuple[str, str], ...], str]
_ALIKE = 0.75
"""Of the names of two metrics, from which on one may be meant for the other (`difflib.SequenceMatcher.ratio`)."""
_MOST_NAMED = 6
_BOOT = "boot."
_TOO_FEW = "too few observations"
_BY_FAILED = "recorded by a test that failed"


@dataclass(frozen=True)
class _Series:
    """Observations by metric, build, target, parameters and unit; suites and runs together."""

    values: Mapping[_Key, Sequence[float]]
    histograms: Mapping[_Key, Sequence[Histogram]]
    keys: frozenset[_Key]
    whys: Mapping[_Key, str]
    """What ended the worst of them, where that is known."""
    booted: frozenset[str]
    """Builds of which a machine came to be ready, whether or not a test recorded when."""
    of_failed: Mapping[_Key, Sequence[float]]
    """What tests recorded that then failed. A pause that fails its test is the worst of its run: a promise of the worst is held to it."""

    @classmethod
    def of(cls, runs: Iterable[RunResult]) -> _Series:
        values: dict[_Key, list[float]] = {}
        of_failed: dict[_Key, list[float]] = {}
        histograms: dict[_Key, list[Histogram]] = {}
        runs = list(runs)
        for run in runs:
            for result in run.cells:
                for samples, into in ((result.samples, values), (result.samples_of_failed, of_failed)):
                    for sample in samples:
                        if sample.channel is Channel.WALL and math.isfinite(sample.value) and sample.metric != HEALTHY:
                            key = (sample.metric, result.cell.build, result.cell.target, _params(sample), sample.unit)
                            into.setdefault(key, []).append(sample.value)
        whys: dict[_Key, str] = {}
        for key, held in _densities(runs).items():
            values[key] = [healthy for healthy, _ in held]
            whys[key] = min(held)[1]
        for merged in merge(runs):
            g = merged.group
            if g.channel is Channel.WALL:
                key = (g.metric, g.build, g.target, g.params, g.unit)
                histograms.setdefault(key, []).extend(part.histogram for part in merged.parts)
        merged_of = {key: found for key, found in histograms.items() if len({h.step for h in found}) == 1}
        attempts = ((result.cell.build, attempt) for run in runs for result in run.cells for attempt in result.attempts)
        booted = frozenset(build for build, attempt in attempts if Milestone.READY in attempt.milestones)
        return cls(values, merged_of, frozenset((*values, *of_failed, *histograms)), whys, booted, of_failed)


def _params(sample: Sample) -> tuple[tuple[str, str], ...]:
    """Those that tell series apart. How many VMs there were does not: all starts of a density run are held to the promise together."""
    return tuple(sorted((name, value) for name, value in sample.params.items() if name != VMS or sample.metric not in OF_VMS))


def _densities(runs: Iterable[RunResult]) -> dict[_Key, list[tuple[float, str]]]:
    """How many VMs were well at the end of each density run, and what ended it: one series a runner.

    A test that failed counts as one that passed does: leaving it out would leave out the machine that did not hold them. One that came to
    no end, since its machine died, has none that are well. Where the lab was at fault, or a measurement invalid, nothing is believed.
    """
    found: dict[_Key, list[tuple[float, str]]] = {}
    for curve in curves(runs):
        if curve.outcome in (Outcome.PASS, Outcome.FAIL):
            params = tuple(sorted((*curve.params, *([("runner", curve.runner)] if curve.runner else []))))
            found.setdefault((HEALTHY, curve.cell.build, curve.cell.target, params, "1"), []).append((float(curve.held), curve.ended))
    return found


def _judged(
    one: Promise, build: str, targets: frozenset[str], series: _Series, ups: Mapping[tuple[str, str], Uptime], again: bool
) -> list[Judged]:
    here: list[_Key] = []
    if one.metric == AVAILABILITY:
        found = [_uptime(one, build, target, up) for (of, target), up in sorted(ups.items()) if of == build and target in targets]
    else:
        here = sorted(key for key in series.keys if key[0] == one.metric and key[1] == build and key[2] in targets)
        asked = [key for key in here if one.params.items() <= dict(key[3]).items()]
        # What is recorded in the promised unit is held to it, whatever else is recorded under the same name.
        right = {key[:4] for key in asked if one.is_in(key[4])}
        found = [_observed(one, key, series) for key in asked if one.is_in(key[4]) or key[:4] not in right]
    if found:
        return found
    where = f" on a target with the tag {', '.join(one.tags)}" if one.tags else ""
    reasons = [
        f"nothing recorded it{' with these parameters' if here else ''}{where}",
        "cells of this build were reused, --fresh runs them" if again else "",
        _instead(one, build, here, series) if targets else "",
    ]
    return [Judged(one, build, "", (), Verdict.NOT_MEASURED, "; ".join(filter(None, reasons)))]


def _instead(one: Promise, build: str, here: Sequence[_Key], series: _Series) -> str:
    """What was recorded that may have been meant; empty if there is nothing like it."""
    for name, value in one.params.items() if here else ():
        values = sorted({dict(key[3])[name] for key in here if name in dict(key[3])})
        if not values:
            names = sorted({name for key in here for name, _ in key[3]})
            return f"what recorded it has no parameter {name}" + (f", but {_few(names)}" if names else "")
        if value not in values:
            return f"recorded with {name}={_few(values)}"
    if here:
        return "no series has all of them"
    if one.metric.startswith(_BOOT) and build in series.booted:
        return "a test does with record_boot, as those of the suite boot do"
    close = difflib.get_close_matches(one.metric, {key[0] for key in series.keys}, n=1, cutoff=_ALIKE)
    return f"did you mean {close[0]!r}?" if close and close[0] != one.metric else ""


def _few(words: Sequence[str]) -> str:
    return ", ".join(words[:_MOST_NAMED]) + (f" and {len(words) - _MOST_NAMED} more" if len(words) > _MOST_NAMED else "")


def _observed(one: Promise, key: _Key, series: _Series) -> Judged:
    build, target, params, unit = key[1:]
    if not one.is_in(unit):
        told = f"recorded in {unit or '1'}, promised in {one.unit}"
        return Judged(one, build, target, params, Verdict.NOT_MEASURED, told, unit=unit)
    parts = series.histograms.get(key, ())
    part = one.part
    # The worst observation, unless the best is asked for.
    largest = one.statistic == "max" or (not one.statistic and one.upper)
    # What a test recorded that failed by it is a break, and never the proof that a promise is kept.
    broke = [value for value in series.of_failed.get(key, ()) if part is None and largest == one.upper and not one.holds(value)]
    observed = Histogram.merged(parts) if parts else _Ordered(sorted(series.values.get(key, ())))
    if broke:
        value = max(broke) if largest else min(broke)
        return Judged(one, build, target, params, Verdict.BROKEN, _BY_FAILED, value, count=observed.count + len(broke), unit=unit)
    count = observed.count
    if not count:
        return Judged(one, build, target, params, Verdict.NOT_MEASURED, "only tests that failed recorded it", unit=unit)
    if part is None:
        value = observed.at_rank(count if largest else 1)
        verdict = Verdict.KEPT if one.holds(value) else Verdict.BROKEN
        return Judged(
            one, build, target, params, verdict, "" if one.holds(value) else series.whys.get(key, ""), value, count=count, unit=unit
        )
    error = RELATIVE_ERROR if parts else 0.0
    value = observed.quantile(part)
    lower, upper = quantile_ranks(count, part)
    low = None if lower is None else observed.at_rank(lower) * (1 - error)
    high = None if upper is None else observed.at_rank(upper) * (1 + error)
    if len(parts) > 1:
        # Observations of one boot are alike: how far boots differ tells more than how many observations there are.
        single = [histogram.quantile(part) for histogram in parts]
        low = None if low is None else min(low, *single)
        high = None if high is None else max(high, *single)
    verdict, reason = _held(one, low, high)
    if reason == _TOO_FEW:
        # As many as it takes for the largest of them (or the smallest) to be beyond the quantile with that confidence.
        needed = math.ceil(math.log(1 - CONFIDENCE) / math.log(part if one.upper else 1 - part))
        reason = f"{_TOO_FEW}: {needed:,} are needed"
    return Judged(one, build, target, params, verdict, reason, value, low, high, count, unit)


def _held(one: Promise, low: float | None, high: float | None) -> tuple[Verdict, str]:
    good, bad = (high, low) if one.upper else (low, high)
    if good is not None and one.holds(good):
        return Verdict.KEPT, ""
    if bad is not None and not one.holds(bad):
        return Verdict.BROKEN, ""
    return Verdict.UNDECIDED, _TOO_FEW if good is None else "the limit is within the bounds"


def _uptime(one: Promise, build: str, target: str, up: Uptime) -> Judged:
    found = availability(up)
    if found is None:
        return Judged(one, build, target, (), Verdict.NOT_MEASURED, "no boot tells what a failure costs" if up.seconds > 0 else "no time")
    verdict, reason = _held(one, found.low, found.high)
    if verdict is Verdict.UNDECIDED:
        reason = f"needs {found.enough(one.limit) / 3600:.3g} h under load without another failure"
    return Judged(one, build, target, (), verdict, reason, found.value, found.low, found.high, up.soaks)


@dataclass(frozen=True)
class _Ordered:
    """Plain values with the questions that a histogram answers."""

    values: Sequence[float]

    @property
    def count(self) -> int:
        return len(self.values)

    def at_rank(self, rank: int) -> float:
        return self.values[rank - 1]

    def quantile(self, part: float) -> float:
        """As a histogram's, but the median of an even number is between the middle two, as everywhere else in a report."""
        if part == 0.5:
            middle = len(self.values) // 2
            return self.values[middle] if len(self.values) % 2 else (self.values[middle - 1] + self.values[middle]) / 2
        return percentile(self.values, part)
