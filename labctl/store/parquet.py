"""The samples and the histograms of a run as tables: their columns, their rows, their Parquet files.

DuckDB writes it because DuckDB reads it too: it imports in two thirds of pyarrow's time, and pyarrow would pull in pandas
to take a list.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import duckdb

from labctl.errors import StorageError
from labctl.result import Attempt, CellResult, Distribution, RunResult, Sample
from labctl.store import layout, records
from labctl.store.disk import free_space, put_in_place, storage_error

COLUMNS: Mapping[str, str] = {
    "run": "VARCHAR",
    "started_at": "DOUBLE",
    "cell": "VARCHAR",
    "build": "VARCHAR",
    "target": "VARCHAR",
    "suite": "VARCHAR",
    "channel": "VARCHAR",
    "repeat": "INTEGER",
    "attempt": "INTEGER",
    "test": "VARCHAR",
    "metric": "VARCHAR",
    "value": "DOUBLE",
    "unit": "VARCHAR",
    "direction": "VARCHAR",
    "index": "BIGINT",
    "at": "DOUBLE",
    "params": "VARCHAR",
    "conditions": "VARCHAR",
    "build_digest": "VARCHAR",
    "outcome": "VARCHAR",
}
"""Name → DuckDB type. ``params`` and ``conditions`` are JSON objects as text, ``outcome`` the attempt's, ``channel`` the sample's."""

QUANTILES: Mapping[str, float] = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999, "p9999": 0.9999}
"""Columns of a histogram's own quantiles: of those of several nothing can be computed, of their ``bins`` all."""

HISTOGRAM_COLUMNS: Mapping[str, str] = {
    **{name: kind for name, kind in COLUMNS.items() if name != "value"},
    "count": "BIGINT",
    "mean": "DOUBLE",
    "min": "DOUBLE",
    "max": "DOUBLE",
    **dict.fromkeys(QUANTILES, "DOUBLE"),
    "bins": "STRUCT(low DOUBLE, high DOUBLE, count BIGINT)[]",
}
"""As `COLUMNS`; ``bins`` from ``low`` to below ``high``, in the metric's unit."""


def warm_up() -> None:
    """Import DuckDB, start it and let it write a row once: what a process does first is dear."""
    with duckdb.connect() as database:
        load(database, "warm", {"x": "VARCHAR"}, [{"x": ""}])


def sample_rows(run: RunResult) -> Iterator[dict[str, Any]]:
    """A row for each sample of each attempt, whatever became of it, in the order of `COLUMNS`."""
    for result, of_cell, attempt in _attempts(run):
        for sample in attempt.samples:
            yield {**of_cell, **_observed(result, attempt, sample), "value": sample.value}


def histogram_rows(run: RunResult) -> Iterator[dict[str, Any]]:
    """A row for each histogram of each attempt, with the columns of `HISTOGRAM_COLUMNS`."""
    for result, of_cell, attempt in _attempts(run):
        for found in attempt.distributions:
            histogram = found.histogram
            yield {
                **of_cell,
                **_observed(result, attempt, found),
                "count": histogram.count,
                "mean": histogram.mean,
                "min": histogram.low,
                "max": histogram.high,
                **{name: histogram.quantile(part) for name, part in QUANTILES.items()},
                "bins": [{"low": low, "high": high, "count": count} for low, high, count in histogram.intervals()],
            }


def _attempts(run: RunResult) -> Iterator[tuple[CellResult, dict[str, Any], Attempt]]:
    for result in run.cells:
        cell = result.cell
        of_cell = {
            "run": run.id,
            "started_at": run.started_at,
            "cell": cell.id,
            "build": cell.build,
            "target": cell.target,
            "suite": cell.suite,
            "build_digest": records.text(run.builds.get(cell.build, {}).get("digest"), ""),
        }
        for attempt in result.attempts:
            yield result, of_cell, attempt


def _observed(result: CellResult, attempt: Attempt, one: Sample | Distribution) -> dict[str, Any]:
    return {
        "channel": one.channel.value,
        "repeat": result.cell.repeat,
        "attempt": attempt.number,
        "test": one.test,
        "metric": one.metric,
        "unit": one.unit,
        "direction": one.direction.value,
        "index": one.index,
        "at": one.at,
        "params": records.document(one.params).decode(),
        "conditions": records.document(one.conditions).decode(),
        "outcome": attempt.outcome.value,
    }


@dataclass(frozen=True)
class Table:
    """What stands in one kind of Parquet file."""

    name: str
    file: str
    columns: Mapping[str, str]
    rows: Callable[[RunResult], Iterator[dict[str, Any]]]


SAMPLES = Table("samples", layout.SAMPLES, COLUMNS, sample_rows)
HISTOGRAMS = Table("histograms", layout.HISTOGRAMS, HISTOGRAM_COLUMNS, histogram_rows)


def write(run: RunResult, table: Table) -> None:
    """All rows of a run into one Parquet file, put in place when it is whole. StorageError."""
    path = run.folder / table.file
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with duckdb.connect() as database:
            load(database, table.name, table.columns, table.rows(run))
            database.execute(f"COPY {table.name} TO {literal(temporary)} (FORMAT parquet, COMPRESSION zstd)")
        put_in_place(temporary, path)
    except OSError as error:
        raise storage_error(path, "write", error) from error
    except duckdb.Error as error:
        raise StorageError(
            f"cannot write {path}: {str(error).splitlines()[0]} ({free_space(path)} free there)", remedy="free some space there"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def load(database: duckdb.DuckDBPyConnection, table: str, columns: Mapping[str, str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Make a table of rows. They pass through a nameless file in memory as JSON lines, DuckDB's fastest way in without pandas."""
    typed = ", ".join(f'"{name}" {kind}' for name, kind in columns.items())
    database.execute(f"CREATE TABLE {table} ({typed})")
    fd = os.memfd_create("labctl-rows")
    try:
        with os.fdopen(os.dup(fd), "wb") as file:
            for row in rows:
                file.write(records.document(row) + b"\n")
            size = file.tell()
        if size:
            # The file's structure is given, so that nothing is guessed from the first rows.
            structure = ", ".join(f"'{name}': '{kind}'" for name, kind in columns.items())
            source = f"read_json('/proc/self/fd/{fd}', format='newline_delimited', columns={{{structure}}})"
            database.execute(f"INSERT INTO {table} SELECT * FROM {source}")  # noqa: S608 - only names of ours
    finally:
        os.close(fd)


def literal(text: object) -> str:
    """SQL text."""
    return "'" + str(text).replace("'", "''") + "'"
