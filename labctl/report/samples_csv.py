"""Every sample, and every histogram, of every attempt as one row: for spreadsheets and scripts."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from labctl.parsers.text import visible
from labctl.report.output import replacing
from labctl.result import Attempt, RunResult

COLUMNS = (
    "run", "cell", "build", "target", "suite", "repeat", "channel", "attempt", "attempt_outcome",
    "test", "metric", "value", "unit", "direction", "params", "index", "at", "conditions",
)  # fmt: skip

_QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "p99.99": 0.9999}
HISTOGRAM_COLUMNS = (
    *COLUMNS[:11], "count", "min", "mean", *_QUANTILES, "max", *COLUMNS[12:], "bins",
)  # fmt: skip
"""In place of a value those of the whole; ``bins`` is JSON, a list of [from, to below, count]."""

_ENCODE = json.JSONEncoder(separators=(",", ":")).encode


def write_csv(run: RunResult, out: Path) -> None:
    """``at`` is seconds since the epoch; ``params`` and ``conditions`` are JSON objects, empty if there are none. StorageError."""
    with replacing(out) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(_sample_rows(run))


def write_histograms_csv(run: RunResult, out: Path) -> None:
    """As `write_csv`. StorageError."""
    with replacing(out) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(HISTOGRAM_COLUMNS)
        writer.writerows(_histogram_rows(run))


def _attempts(run: RunResult) -> Iterator[tuple[Sequence[object], Attempt]]:
    run_id = _text(run.id)
    for result in run.cells:
        cell = result.cell
        head = (run_id, _text(cell.id), _text(cell.build), _text(cell.target), _text(cell.suite), cell.repeat)
        for attempt in result.attempts:
            yield head, attempt


def _sample_rows(run: RunResult) -> Iterator[tuple[object, ...]]:
    for head, attempt in _attempts(run):
        for s in attempt.samples:
            yield (
                *head, s.channel.value, attempt.number, attempt.outcome.value, _text(s.test), _text(s.metric), s.value,
                _text(s.unit), s.direction.value, _json(s.params), s.index, s.at, _json(s.conditions),
            )  # fmt: skip


def _histogram_rows(run: RunResult) -> Iterator[tuple[object, ...]]:
    for head, attempt in _attempts(run):
        for d in attempt.distributions:
            h = d.histogram
            quantiles = (_short(h.quantile(part)) for part in _QUANTILES.values())
            bins = [[_short(low), _short(high), count] for low, high, count in h.intervals()]
            yield (
                *head, d.channel.value, attempt.number, attempt.outcome.value, _text(d.test), _text(d.metric),
                h.count, _short(h.low), _short(h.mean), *quantiles, _short(h.high),
                _text(d.unit), d.direction.value, _json(d.params), d.index, d.at, _json(d.conditions), _ENCODE(bins),
            )  # fmt: skip


def _short(value: float) -> float:
    """Without the digits that come of counting in nanoseconds and telling in seconds."""
    return float(f"{value:.12g}")


def _text(value: str) -> str:
    """A spreadsheet runs what begins like a formula: an apostrophe makes it text."""
    shown = value if value.isascii() and value.isprintable() else visible(value)
    return f"'{shown}" if shown.startswith(("=", "+", "-", "@", "\t", "\n")) else shown


def _json(values: Mapping[str, object]) -> str:
    return _ENCODE(values) if values else ""
