"""Every sample of every attempt as one row: for spreadsheets and scripts."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from labctl.model import RunResult
from labctl.parsers.text import visible
from labctl.report.output import replacing

COLUMNS = (
    "run", "cell", "build", "target", "suite", "repeat", "channel", "attempt", "attempt_outcome",
    "test", "metric", "value", "unit", "direction", "params", "index", "at", "conditions",
)  # fmt: skip


_ENCODE = json.JSONEncoder(separators=(",", ":")).encode


def write_csv(run: RunResult, out: Path) -> None:
    """``at`` is seconds since the epoch; ``params`` and ``conditions`` are JSON objects, empty if there are none. StorageError."""
    with replacing(out) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(_rows(run))


def _rows(run: RunResult) -> Iterator[tuple[object, ...]]:
    run_id = _text(run.id)
    for result in run.cells:
        cell = result.cell
        head = (run_id, _text(cell.id), _text(cell.build), _text(cell.target), _text(cell.suite), cell.repeat)
        for attempt in result.attempts:
            for s in attempt.samples:
                yield (
                    *head, s.channel.value, attempt.number, attempt.outcome.value, _text(s.test), _text(s.metric), s.value,
                    _text(s.unit), s.direction.value, _json(s.params), s.index, s.at, _json(s.conditions),
                )  # fmt: skip


def _text(value: str) -> str:
    """A spreadsheet runs what begins like a formula: an apostrophe makes it text."""
    shown = value if value.isascii() and value.isprintable() else visible(value)
    return f"'{shown}" if shown.startswith(("=", "+", "-", "@", "\t", "\n")) else shown


def _json(values: Mapping[str, object]) -> str:
    return _ENCODE(values) if values else ""
