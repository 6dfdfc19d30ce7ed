"""A run arranged for the page: what is shown, in which order, and how much of it. Reads, never computes: figures come from `labctl.judge`.

A page of 10,000 cells must open as one of eight does, so every list has a limit, and what is beyond is counted and said.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

from labctl.judge.distribution import merge
from labctl.judge.promise import Verdict, judge
from labctl.judge.summary import (
    BootSummary,
    KernelPhase,
    Summary,
    TestSummary,
    concurrency,
    kernel_phases,
    overall,
    summarise,
    summarise_boots,
    summarise_tests,
)
from labctl.model import Channel, Milestone, Outcome
from labctl.report import machine
from labctl.report.beside import Beside
from labctl.report.figures import milestones_chart
from labctl.report.measurements import between, measurements
from labctl.report.order import BAD, counts, duration, failing_attempt, failures, moment, open_cells, sentence, speaking_test, unended
from labctl.report.past import Past
from labctl.report.printable import excerpt, one_line
from labctl.report.promises import told as told_promises
from labctl.report.quantity import natural, quantity
from labctl.report.some import Some
from labctl.report.stories import told
from labctl.report.suites import suites
from labctl.result import Attempt, CellResult, Reused, RunResult, TestResult
from labctl.size import format_size
from labctl.store.layout import CELLS, KEPT

MOST_TOLD = 40
"""Failures with their console; more are lines in a list."""
MOST_LISTED = 200
MOST_ROWS = 30
MOST_COLUMNS = 20
MOST_TABLES = 12
MOST_PHASES = 6
SLOWEST = 10
EXCERPT_LINES = 60
MOST_ALARMS = 6
"""Cells that are named at the very top."""
RAW = ("console.log", "events.jsonl")
MOST_KEPT = 100
"""Files kept by tests that the page leads to by itself."""
BESIDE = ("samples.csv", "histograms.csv", "junit.xml")

Shown = Mapping[str, Any]


def page(run: RunResult, out: Path, raw_base: str) -> dict[str, Any]:
    """Everything that the template shows, as plain text and numbers; nothing in it is HTML."""
    summary = summarise(run)
    boots = sorted(summarise_boots(run), key=lambda b: b.channel is not Channel.WALL)
    bad = failures(run)
    anchors = {id(result): f"cell-{i}" for i, result in enumerate(bad[:MOST_TOLD], 1)}
    flaky = [result for result in run.cells if result.outcome is Outcome.FLAKY]
    anchors |= {id(result): f"flaky-{i}" for i, result in enumerate(flaky[:MOST_LISTED], 1)}
    judged = judge([run])
    merged = merge([run])
    beside = Beside(judged, [*(one.group for one in summary.groups), *(one.group for one in merged)])
    links = _Links(run.folder, raw_base)
    past = Past.of(run)
    return {
        "run": run,
        "sentence": sentence(run),
        "counts": counts(run),
        "open_counts": {word: len(results) for word, results in open_cells(run).items()},
        "without": Some.of(((word, r) for word, results in open_cells(run).items() for r in results), MOST_LISTED),
        "need_a_look": len(bad),
        "when": f"{moment(run.started_at)} UTC",
        "took": duration(run.duration_s),
        "command": shlex.join(run.argv),
        "gates": told_promises([one for one in judged if one.promise.gate and one.verdict is Verdict.BROKEN])[:MOST_ALARMS],
        "alarms": Some.of((_alarm(result, anchors.get(id(result), ""), past, links) for result in bad), MOST_ALARMS),
        "stories": told(past.proofs, run.stories, links.to_run),
        "failures": [_story(result, anchors[id(result)], links) for result in bad[:MOST_TOLD]],
        "further": Some.of(bad[MOST_TOLD:], MOST_LISTED),
        "flaky": [_story(result, anchors[id(result)], links) for result in flaky[:MOST_LISTED]],
        "flaky_more": max(0, len(flaky) - MOST_LISTED),
        "matrices": Some.of(_matrices(run, anchors), MOST_TABLES),
        **measurements(summary, beside),
        "suites": suites(run, summary, merged, judged, beside),
        "untrusted": summary.untrusted,
        "sharing": _sharing(run, summary),
        "boots": [_boots(channel, list(of)) for channel, of in groupby(boots, key=lambda b: b.channel)],
        "milestones": list(Milestone),
        "phases": Some.of(_phases(kernel_phases(run)), MOST_LISTED),
        "slowest": _slowest(run),
        "tests": Some.of(map(_test, sorted(summarise_tests(run), key=_troubled)), MOST_LISTED),
        "skips": Some.of(_skips(run), MOST_LISTED),
        "machine_events": Some.of(machine.event_rows(run), MOST_LISTED),
        "arrivals": Some.of(machine.arrival_rows(run), MOST_LISTED),
        "machine_readings": Some.of(machine.reading_rows(summary), MOST_LISTED),
        "left_out": Some.of(run.left_out, MOST_LISTED),
        "reused": Some.of((links.of_reused(r.cell.id, r.reused) for r in run.cells if r.reused), MOST_LISTED),
        "host": [(key, _host_value(key, value)) for key, value in run.host.items()],
        "builds": Some.of(((name, _build(table)) for name, table in sorted(run.builds.items())), MOST_LISTED),
        "targets": Some.of(((name, _target(run.targets[name])) for name in sorted(run.targets, key=natural)), MOST_LISTED),
        "raw": [*links.of_run(), *((name, name) for name in BESIDE if (out.parent / name).is_file())],
    }  # fmt: skip


# --- one cell ---------------------------------------------------------------------------------------------------------


def _story(result: CellResult, anchor: str, links: _Links) -> Shown:
    """A cell that somebody must look at: by the attempt that failed last."""
    attempt = failing_attempt(result)
    tests: list[TestResult] = [t for t in (attempt.tests if attempt else ()) if t.outcome in BAD]
    if attempt is not None and (speaks := speaking_test(attempt)) is not None:
        tests.sort(key=lambda test: test is not speaks)  # the one that the headline is about, then the others in their order
    cause = attempt.reason if attempt and attempt.reason else result.reason
    return {
        "anchor": anchor,
        "cell": result.cell,
        "outcome": result.outcome,
        "cause": one_line(cause) or "no reason given",
        "error": attempt.error if attempt else "",
        "attempt": attempt.number if attempt else 0,
        "attempts": len(result.attempts),
        "took": duration(result.duration_s),
        "milestone": _last_milestone(attempt),
        "tests": [(t, excerpt(t.details, 40, 300) if t.details else "") for t in tests[:10]],
        "tests_more": max(0, len(tests) - 10),
        "excerpt": excerpt(attempt.excerpt, EXCERPT_LINES, cause=cause) if attempt and attempt.excerpt.strip() else "",
        "reproduce": attempt.reproduce.strip() if attempt else "",
        "remedy": one_line(attempt.remedy, 300) if attempt and attempt.remedy not in attempt.reproduce else "",
        "links": links.of_attempt(attempt) if attempt else [],
    }  # fmt: skip


def _alarm(result: CellResult, anchor: str, past: Past, links: _Links) -> Shown:
    """What is red, why, and since when: what somebody who was woken by it asks first."""
    attempt = failing_attempt(result)
    since = past.red.get(result.cell.id)
    return {
        "cell": result.cell,
        "outcome": result.outcome,
        "anchor": anchor,
        "cause": one_line(attempt.reason if attempt and attempt.reason else result.reason, 160) or "no reason given",
        "since": past.since(result.cell.id),
        "passed": since.passed if since else "",
        "href": links.to_run(since.passed) if since and since.passed else "",
        "changed": past.otherwise(result.cell.id),
        "stories": sorted({story for test in result.tests if test.outcome in BAD for story in test.stories}, key=natural),
    }


def _last_milestone(attempt: Attempt | None) -> str:
    reached = [m for m in Milestone if attempt and m in attempt.milestones]
    return f"{reached[-1]} at {quantity(attempt.milestones[reached[-1]], 's')}" if attempt and reached else ""


@dataclass(frozen=True)
class _Links:
    """From the page to the raw data, relative, and only to what is there."""

    folder: Path
    base: str

    def of_attempt(self, attempt: Attempt) -> list[tuple[str, str]]:
        try:
            place = attempt.folder.relative_to(self.folder)
        except ValueError:  # not of this run
            return []
        # A target of several machines has a folder for each, with its console in it.
        consoles = sorted(path.relative_to(attempt.folder).as_posix() for path in attempt.folder.glob("*/console.log"))
        kept = sorted(path.relative_to(attempt.folder).as_posix() for path in attempt.folder.glob(f"{KEPT}/[a-z0-9]*"))
        return [(name, self._href(place / name)) for name in (*RAW, *consoles, *kept) if (attempt.folder / name).is_file()]

    def of_reused(self, cell: str, reused: Reused) -> Shown:
        """The report of the run that a result is from, if it is still there."""
        return {
            "cell": cell,
            "run": reused.run,
            "href": self.to_run(reused.run),
            "tests": reused.tests,
            "took": duration(reused.duration_s),
        }

    def of_run(self) -> list[tuple[str, str]]:
        names = ("samples.parquet", "histograms.parquet", "events.jsonl", "run.json", "end.json")
        kept = islice(sorted(self.folder.glob(f"{CELLS}/*/attempt-*/{KEPT}/[a-z0-9]*")), MOST_KEPT)
        places = (*map(Path, names), *(path.relative_to(self.folder) for path in kept))
        return [(place.as_posix(), self._href(place)) for place in places if (self.folder / place).is_file()]

    def to_run(self, run: str) -> str:
        """The report of another run of the same folder, if it is there."""
        name = Path(run).name
        there = name == run and name and (self.folder.parent / name / "report.html").is_file()
        return self._href(Path("..", name, "report.html")) if there else ""

    def _href(self, place: Path) -> str:
        return f"{self.base.rstrip('/')}/{quote(place.as_posix(), errors='replace')}"


# --- all cells --------------------------------------------------------------------------------------------------------


def _matrices(run: RunResult, anchors: Mapping[int, str]) -> Iterator[Shown]:
    """For each suite and channel a table of builds × targets; those with failures first, also inside where not all can be shown."""
    of_suite: dict[tuple[str, Channel], dict[tuple[str, str], list[CellResult]]] = {}
    for result in run.cells:
        cell = result.cell
        of_suite.setdefault((cell.suite, cell.channel), {}).setdefault((cell.build, cell.target), []).append(result)
    for (suite, channel), points in sorted(of_suite.items(), key=lambda item: (-_bad(item[1].values()), natural(item[0][0]), item[0][1])):
        trouble_of: Counter[tuple[str, str]] = Counter()
        for (build, target), results in points.items():
            found = _bad([results])
            trouble_of["build", build] += found
            trouble_of["target", target] += found
        rows = _axis("build", {build for build, _ in points}, trouble_of, MOST_ROWS)
        columns = _axis("target", {target for _, target in points}, trouble_of, MOST_COLUMNS)
        outcomes = Counter(result.outcome for results in points.values() for result in results if not unended(run, result))
        yield {
            "suite": suite,
            "channel": channel,
            "counts": {outcome: outcomes[outcome] for outcome in _WORST_FIRST if outcomes[outcome]},
            "columns": columns,
            "rows": [(build, [_point(run, points.get((build, target)), anchors) for target in columns.items]) for build in rows.items],
            "rows_more": rows.more,
        }


_WORST_FIRST = (*BAD, Outcome.FLAKY, Outcome.SKIP, Outcome.PASS)


def _bad(points: Iterable[Sequence[CellResult]]) -> int:
    return sum(result.outcome in BAD for results in points for result in results)


def _axis(kind: str, names: set[str], trouble: Counter[tuple[str, str]], most: int) -> Some[str]:
    if len(names) <= most:
        return Some(sorted(names, key=natural))
    return Some.of(sorted(names, key=lambda name: (-trouble[kind, name], natural(name))), most)


def _point(run: RunResult, results: Sequence[CellResult] | None, anchors: Mapping[int, str]) -> Shown | None:
    if not results:
        return None
    worst = min(results, key=lambda r: _WORST_FIRST.index(r.outcome))
    same = sum(r.outcome is worst.outcome for r in results)
    return {
        "outcome": worst.outcome,
        "open": unended(run, worst),
        "anchor": anchors.get(id(worst), ""),
        "count": f"{same} of {len(results)}" if len(results) > 1 else "",
        "took": "reused" if all(r.reused for r in results) else duration(max(r.duration_s for r in results)),
        "reason": one_line(worst.reason, 120),
    }


def _slowest(run: RunResult) -> list[Shown]:
    ordered = sorted((r for r in run.cells if not r.reused), key=lambda r: -r.duration_s)[:SLOWEST]
    longest = max((r.duration_s for r in ordered), default=0.0)
    return [{"result": r, "took": duration(r.duration_s), "part": round(100 * r.duration_s / longest) if longest else 0} for r in ordered]


def _troubled(test: TestSummary) -> tuple[object, ...]:
    return (-sum(test.outcomes.get(outcome, 0) for outcome in BAD), natural(test.suite), test.name)


def _test(test: TestSummary) -> Shown:
    return {
        "suite": test.suite,
        "name": test.name,
        "outcomes": {outcome: test.outcomes[outcome] for outcome in _WORST_FIRST if test.outcomes.get(outcome)},
        "median": duration(test.duration_s.median) if test.duration_s else "–",
        "longest": duration(test.duration_s.maximum) if test.duration_s else "–",
    }


def _skips(run: RunResult) -> list[tuple[str, str, int]]:
    """Test, reason and in how many cells, the most frequent first."""
    found = Counter((t.name, t.reason) for r in run.cells for t in r.tests if t.outcome is Outcome.SKIP)
    return [(name, reason, count) for (name, reason), count in found.most_common()]


# --- figures ----------------------------------------------------------------------------------------------------------


def _sharing(run: RunResult, summary: Summary) -> str:
    """How far the figures of real time may be trusted, said beside them."""
    wall = [g for g in summary.groups if g.group.channel is Channel.WALL]
    if not wall:
        return ""
    most = concurrency(run)
    cores = run.host.get("cores", "")
    told = f"Up to {most} cells ran at the same time" if most > 1 else "Cells ran one at a time"
    told += f" on {cores} cores" if cores.isdigit() else ""
    ranges = overall(wall)
    if "load1" in ranges:
        told += f"; host load was {between(*ranges['load1'])}"
    if ranges.get("steal", (0, 0))[1] > 0:
        told += f", up to {ranges['steal'][1]:.1%} of the CPU's time was taken by other virtual machines"
    if "cpu_pressure" in ranges:
        told += f", CPU pressure {between(*ranges['cpu_pressure'])} %"
    told += ". "
    if most > 1:
        told += "Samples taken in parallel slow each other down: compare series of this run with each other, not with another run's."
    return told


def _boots(channel: Channel, boots: list[BootSummary]) -> Shown:
    shown = Some.of(sorted(boots, key=lambda b: (natural(b.target), natural(b.build))), MOST_LISTED)
    return {
        "channel": channel,
        "chart": milestones_chart(boots),
        "rows": Some(
            [
                {
                    "target": b.target,
                    "build": b.build,
                    "boots": b.boots,
                    "ready": b.milestones[Milestone.READY].count if Milestone.READY in b.milestones else 0,
                    "at": [quantity(b.milestones[m].median, "s") if m in b.milestones else "not reached" for m in Milestone],
                }
                for b in shown.items
            ],
            shown.more,
        ),
    }


def _phases(phases: Iterable[KernelPhase]) -> Iterator[Shown]:
    """The longest silences of each build on each target."""
    groups = ((key, list(of)) for key, of in groupby(phases, key=lambda p: (p.channel, p.target, p.build)))
    for (channel, target, build), of in sorted(
        groups, key=lambda item: (item[0][0] is not Channel.WALL, natural(item[0][1]), natural(item[0][2]))
    ):
        longest = of[0].silence.median
        yield {
            "target": target,
            "build": build,
            "channel": channel,
            "rows": [
                {
                    "silence": quantity(p.silence.median, "s"),
                    "part": round(100 * max(0.0, p.silence.median) / longest) if longest > 0 else 0,
                    "message": one_line(p.message, 160),
                    "boots": p.silence.count,
                }
                for p in of[:MOST_PHASES]
            ],
        }


# --- where it comes from ----------------------------------------------------------------------------------------------


def _host_value(key: str, value: str) -> str:
    return quantity(int(value), "B") if key == "memory" and value.isascii() and value.isdigit() and len(value) < 18 else value


def _build(table: Mapping[str, Any]) -> Shown:
    origin = table.get("provenance")
    told = origin if isinstance(origin, Mapping) else {}
    return {
        **{key: _word(table.get(key)) for key in ("version", "digest")},
        "source": _word(told.get("source")),
        "built_at": _word(told.get("built_at")),
        "all": Some.of(_flat(table), 60),
    }


def _target(table: Mapping[str, Any]) -> Shown:
    drivers = table.get("drivers")
    return {
        **{key: _word(table.get(key)) for key in ("arch", "cpus")},
        **{key: format_size(table[key]) if isinstance(table.get(key), int) else _word(table.get(key)) for key in ("memory", "disk")},
        "drivers": one_line(", ".join(map(str, drivers)), 120) if isinstance(drivers, Mapping) else "",
        "all": Some.of(_flat(table), 60),
    }


def _word(value: object) -> str:
    return "" if value is None else one_line(str(value), 200)


def _flat(value: object, key: str = "", depth: int = 6) -> Iterator[tuple[str, str]]:
    """Nested tables as dotted keys; what is empty says nothing and is left out."""
    if isinstance(value, Mapping) and depth:
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}" if key else str(name), depth - 1)
    elif value not in (None, "", [], {}, ()):
        yield one_line(key, 120), one_line(", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value), 400)
