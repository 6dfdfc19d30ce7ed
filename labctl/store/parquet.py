"""The samples of a run as one table: its columns, its rows, its Parquet file.

DuckDB writes it because DuckDB reads it too: it imports in two thirds of pyarrow's time, and pyarrow would pull in pandas
to take a list.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import duckdb

from labctl.errors import StorageError
from labctl.model import RunResult
from labctl.store import records
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


def warm_up() -> None:
    """Import DuckDB, start it and let it write a row once: what a process does first is dear."""
    with duckdb.connect() as database:
        load(database, "warm", {"x": "VARCHAR"}, [{"x": ""}])


def sample_rows(run: RunResult) -> Iterator[dict[str, Any]]:
    """A row for each sample of each attempt, whatever became of it, in the order of `COLUMNS`."""
    for result in run.cells:
        cell = result.cell
        of_cell = {
            "run": run.id,
            "started_at": run.started_at,
            "cell": cell.id,
            "build": cell.build,
            "target": cell.target,
            "suite": cell.suite,
        }
        digest = records.text(run.builds.get(cell.build, {}).get("digest"), "")
        for attempt in result.attempts:
            for sample in attempt.samples:
                yield {
                    **of_cell,
                    "channel": sample.channel.value,
                    "repeat": cell.repeat,
                    "attempt": attempt.number,
                    "test": sample.test,
                    "metric": sample.metric,
                    "value": sample.value,
                    "unit": sample.unit,
                    "direction": sample.direction.value,
                    "index": sample.index,
                    "at": sample.at,
                    "params": records.document(sample.params).decode(),
                    "conditions": records.document(sample.conditions).decode(),
                    "build_digest": digest,
                    "outcome": attempt.outcome.value,
                }


def write(run: RunResult, path: Path) -> None:
    """All samples of a run into one Parquet file, put in place when it is whole. StorageError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with duckdb.connect() as database:
            load(database, "samples", COLUMNS, sample_rows(run))
            database.execute(f"COPY samples TO {literal(temporary)} (FORMAT parquet, COMPRESSION zstd)")
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
