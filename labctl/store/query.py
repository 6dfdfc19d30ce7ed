"""Questions over the samples and histograms of many runs, by DuckDB in memory over the files. Nothing is kept: the files are the truth."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb

from labctl.errors import ConfigError, StorageError
from labctl.result import RunResult
from labctl.store import records
from labctl.store.parquet import HISTOGRAMS, SAMPLES, Table, literal, load
from labctl.store.reader import RunSummary, end_of, end_record, list_runs, read_run

if TYPE_CHECKING:
    import pandas as pd

_ORDER = 'started_at, run, cell, attempt, metric, "index"'
_LEAST_PARQUET = 12
"""Bytes: the magic number twice, and the length of what stands between."""
_RUNS = {
    "run": "VARCHAR",
    "started_at": "DOUBLE",
    "duration_s": "DOUBLE",
    "matrix": "VARCHAR",
    "version": "VARCHAR",
    "outcome": "VARCHAR",
    "finished": "BOOLEAN",
    "interrupted": "BOOLEAN",
    "cells": "INTEGER",
    "samples": "BIGINT",
    "folder": "VARCHAR",
}
_CELLS = {
    "run": "VARCHAR",
    "started_at": "DOUBLE",
    "cell": "VARCHAR",
    "build": "VARCHAR",
    "target": "VARCHAR",
    "suite": "VARCHAR",
    "channel": "VARCHAR",
    "repeat": "INTEGER",
    "outcome": "VARCHAR",
    "reason": "VARCHAR",
    "attempts": "INTEGER",
    "duration_s": "DOUBLE",
}


def samples_frame(folder_or_folders: Path | Iterable[Path]) -> pd.DataFrame:
    """All samples of a run, or of several, in a frame with the columns of `COLUMNS`. StorageError if one of them is no run."""
    return _frame(folder_or_folders, SAMPLES)


def histograms_frame(folder_or_folders: Path | Iterable[Path]) -> pd.DataFrame:
    """All histograms of a run, or of several, with the columns of `HISTOGRAM_COLUMNS`. StorageError if one of them is no run."""
    return _frame(folder_or_folders, HISTOGRAMS)


def _frame(folder_or_folders: Path | Iterable[Path], table: Table) -> pd.DataFrame:
    folders = [folder_or_folders] if isinstance(folder_or_folders, Path) else list(folder_or_folders)
    with duckdb.connect() as database:
        _view(database, table, folders)
        return database.execute(f"SELECT * FROM {table.name} ORDER BY {_ORDER}").df()  # noqa: S608 - only names of ours


def sql(results: Path, query: str) -> pd.DataFrame:
    """The answer to a query over the views ``samples``, ``histograms``, ``cells`` and ``runs`` of all runs.

    ConfigError for one that fails.
    """
    with duckdb.connect() as database:
        _runs(database, results)
        try:
            if not database.extract_statements(query):
                raise ConfigError("the query: there is no statement in it")
            return database.execute(query).df()
        except duckdb.Error as error:
            raise ConfigError(f"the query: {error}", remedy="docs/results.md lists the views and their columns") from None


def _runs(database: duckdb.DuckDBPyConnection, results: Path) -> None:
    runs = list_runs(results)
    unended = {run.id: read_run(run.folder) for run in runs if not run.finished}
    load(database, "runs", _RUNS, (_run_row(run, unended.get(run.id)) for run in runs))
    load(database, "cells", _CELLS, (row for run in runs for row in _cell_rows(run, unended.get(run.id))))
    _view(database, SAMPLES, [run.folder for run in runs if run.samples or not run.finished], known=unended)
    _view(database, HISTOGRAMS, [run.folder for run in runs if run.histograms or not run.finished], known=unended)


def _view(database: duckdb.DuckDBPyConnection, table: Table, folders: Iterable[Path], known: dict[str, RunResult] | None = None) -> None:
    """The view of a table's name: Parquet files where they are whole, the events of the others."""
    files: list[Path] = []
    loose: list[RunResult] = []
    for folder in folders:
        file = folder / table.file
        if _is_whole(file) and end_of(folder) is not None:
            files.append(file)
        else:
            loose.append((known or {}).get(folder.name) or read_run(folder))
    load(database, f"loose_{table.name}", table.columns, (row for run in loose for row in table.rows(run)))
    columns = ", ".join(f'"{name}"' for name in table.columns)
    parts = [f"SELECT {columns} FROM loose_{table.name}"]  # noqa: S608 - only names of ours
    if files:
        # A path may hold what DuckDB takes for a pattern.
        listed = ", ".join(literal(glob.escape(str(file))) for file in files)
        parts.append(f"SELECT {columns} FROM read_parquet([{listed}], union_by_name=true)")  # noqa: S608 - quoted by `literal`
    try:
        database.execute(f"CREATE VIEW {table.name} AS {' UNION ALL '.join(parts)}")
    except duckdb.Error as error:
        raise StorageError(f"the {table.name} cannot be read: {str(error).splitlines()[0]}") from error


def _is_whole(file: Path) -> bool:
    """Whether a Parquet file begins and ends as one does."""
    try:
        with file.open("rb") as opened:
            head = opened.read(4)
            opened.seek(-4, os.SEEK_END)
            return head == opened.read(4) == b"PAR1" and opened.tell() >= _LEAST_PARQUET
    except OSError:
        return False


def _run_row(run: RunSummary, read: RunResult | None) -> dict[str, Any]:
    return {
        "run": run.id,
        "started_at": run.started_at,
        "duration_s": read.duration_s if read else run.duration_s,
        "matrix": run.matrix,
        "version": run.version,
        "outcome": run.outcome.value,
        "finished": run.finished,
        "interrupted": run.interrupted,
        "cells": run.cells,
        "samples": sum(len(a.samples) for c in read.cells for a in c.attempts) if read else run.samples,
        "folder": str(run.folder),
    }


def _cell_rows(run: RunSummary, read: RunResult | None) -> Iterator[dict[str, Any]]:
    end = end_record(read) if read else end_of(run.folder)
    for found in records.items((end or {}).get("cells")):
        try:
            cell = records.cell(found)
            yield {
                "run": run.id,
                "started_at": run.started_at,
                "cell": cell.id,
                "build": cell.build,
                "target": cell.target,
                "suite": cell.suite,
                "channel": cell.channel.value,
                "repeat": cell.repeat,
                "outcome": records.text(found.get("outcome")),
                "reason": records.text(found.get("reason"), ""),
                "attempts": records.integer(found.get("attempts"), 0),
                "duration_s": records.seconds(found.get("duration_s"), 0.0),
            }
        except records.Malformed:
            continue
