"""What the machines said of themselves beside the tests: what they proved to have booted, new entries of their event logs, temperature and
draw during benchmarks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

from labctl.judge.summary import Summary
from labctl.report.printable import one_line
from labctl.report.quantity import natural
from labctl.result import Attempt, CellResult, MachineEvent, RunResult

READINGS: Mapping[str, tuple[str, str]] = {"machine_degc": ("temperature", "°C"), "machine_watts": ("power", "W")}
"""Conditions of a sample that are the machine's, not the host's: how each is called, and its unit."""


def events(run: RunResult) -> Iterator[tuple[CellResult, Attempt, MachineEvent]]:
    """All that the machines' own logs gained during the run, in the run's order."""
    for result in run.cells:
        for attempt in result.attempts:
            for event in attempt.machine_events:
                yield result, attempt, event


def event_rows(run: RunResult) -> Iterator[dict[str, str]]:
    for result, attempt, event in events(run):
        number = f"{attempt.number}" if len(result.attempts) > 1 else ""
        yield {"cell": result.cell.id, "attempt": number, "at": _clock(event.at), "text": one_line(event.text, 200)}


def arrival_rows(run: RunResult) -> Iterator[dict[str, str]]:
    """A row for each digest that the boots of an attempt had; only of machines to which a build travels."""
    for result in run.cells:
        for attempt in result.attempts:
            number = f"{attempt.number}" if len(result.attempts) > 1 else ""
            for digest, boots in Counter(attempt.arrived).items():
                yield {"cell": result.cell.id, "attempt": number, "boots": f"{boots}", "digest": one_line(digest, 80)}


def reading_rows(summary: Summary) -> list[dict[str, str]]:
    """A row for each series of samples beside which the machine was asked."""
    rows = []
    for summed in sorted(summary.groups, key=lambda s: (natural(s.group.target), natural(s.group.build), natural(s.group.metric))):
        found = {name: summed.conditions[name] for name in READINGS if name in summed.conditions}
        if found:
            group = summed.group
            words = " ".join([group.metric, *(f"{name}={value}" for name, value in group.params)])
            told = {READINGS[name][0]: f"{_range(*limits)} {READINGS[name][1]}" for name, limits in found.items()}
            rows.append(
                {"target": group.target, "build": group.build, "metric": one_line(words, 120), "temperature": "–", "power": "–", **told}
            )
    return rows


def _range(low: float, high: float) -> str:
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _clock(at: float) -> str:
    """By the machine's own clock, which may be wrong."""
    try:
        return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S") if at else ""
    except (ValueError, OverflowError, OSError):
        return ""
