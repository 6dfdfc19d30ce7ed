"""A run being written: `RunWriter` in the controller and, opened again, in each worker; `AttemptWriter` for one try at a cell.

What a call acknowledged survives a kill of any process at any instant. Importing this costs nothing beyond the model; DuckDB, which
writes the Parquet file at the end, is imported then (or ahead of it by `warm_up`).
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from labctl.errors import MeasurementInvalid, StorageError
from labctl.model import SCHEMA, Cell, Outcome
from labctl.result import Distribution, LeftOut, MachineEvent, Reused, RunResult, Sample, TestResult
from labctl.store import inputs, layout, records
from labctl.store.disk import LineFile, make_folder, storage_error, write_atomically
from labctl.store.reader import document, end_record, read_run


def warm_up() -> None:
    """Import what `RunWriter.finish` needs, while there is time: it takes 0.1 to 0.2 s."""
    from labctl.store import parquet

    parquet.warm_up()


class RunWriter:
    """One run's folder. Made once, by `create`; every other process opens it."""

    def __init__(self, folder: Path, cells: frozenset[Cell]) -> None:
        self.folder = folder
        self.id = folder.name
        self._cells = cells
        self._events = LineFile(folder / layout.EVENTS)

    @classmethod
    def create(
        cls,
        results: Path,
        *,
        matrix: str,
        argv: Sequence[str],
        version: str,
        host: Mapping[str, str],
        builds: Mapping[str, Mapping[str, Any]],
        targets: Mapping[str, Mapping[str, Any]],
        cells: Sequence[Cell],
        left_out: Sequence[LeftOut] = (),
        keys: Mapping[str, str] | None = None,
        tried: Mapping[str, str] | None = None,
        reused: Mapping[str, Reused] | None = None,
        decided_by: inputs.Groups | None = None,
        stories: Mapping[str, str] | None = None,
        story_tests: Mapping[str, Sequence[str]] | None = None,
        run_id: str | None = None,
    ) -> RunWriter:
        """Make ``results/RUN_ID/`` with its run.json. StorageError that names the folder and the cause if it can't be written.

        By cell id: ``keys``, the digests by which results of this run may be reused; ``tried``, those of cells of which a pass proves
        nothing, and a failure that an earlier pass does not stand; ``reused``, the results of earlier runs that stand here.
        ``decided_by``: what the keys are made of.
        ``stories``: the titles of the plan's stories; ``story_tests``: the tests that the lab has for each.
        """
        keys, tried, reused = keys or {}, tried or {}, reused or {}
        results = results.resolve()
        make_folder(results, exist_ok=True)
        folder = _new_folder(results, run_id)
        write_atomically(
            folder / layout.RUN,
            records.document(
                {
                    "schema": SCHEMA,
                    "id": folder.name,
                    "matrix": matrix,
                    "started_at": round(time.time(), 6),
                    "argv": list(argv),
                    "version": version,
                    "host": host,
                    "builds": builds,
                    "targets": targets,
                    "cells": [
                        {
                            **records.cell_record(cell),
                            **({"key": keys[cell.id]} if cell.id in keys else {}),
                            **({"tried": tried[cell.id]} if cell.id in tried else {}),
                            **({"reused": records.reused_record(reused[cell.id])} if cell.id in reused else {}),
                        }
                        for cell in cells
                    ],
                    "left_out": [{**records.cell_record(out.cell), "reason": out.reason} for out in left_out],
                    **({"decided_by": inputs.record(decided_by)} if decided_by else {}),
                    **({"stories": stories} if stories else {}),
                    **({"story_tests": story_tests} if story_tests else {}),
                }
            ),
        )
        make_folder(folder / layout.CELLS)
        run = cls(folder, frozenset(cells))
        run._events.claim()  # who reads the run knows by this that it goes on
        run._events.append(records.event_line("begin", {"cells": len(cells)}, first=True))
        _point_latest(folder)
        return run

    @classmethod
    def open(cls, folder: Path) -> RunWriter:
        """The same run in another process. StorageError if there is none."""
        folder = folder.resolve()
        try:
            asked = document(folder / layout.RUN)
            if asked.get("schema") != SCHEMA:
                raise records.Malformed(f"schema {asked.get('schema')!r}, this labctl knows {SCHEMA}")
            cells = frozenset(records.cell(found) for found in records.items(asked.get("cells")))
        except OSError as error:
            raise storage_error(folder / layout.RUN, "read", error) from error
        except records.Malformed as error:
            raise StorageError(f"{folder / layout.RUN} is not a run's: {error}") from error
        return cls(folder, cells)

    def attempt(self, cell: Cell, *, worker: str, benchmark: bool = False) -> AttemptWriter:
        """Begin the next attempt at a cell of this run, in a folder of its own. StorageError."""
        if cell not in self._cells:
            raise ValueError(f"{cell.id} is not a cell of run {self.id}")
        name = layout.cell_folder(cell)
        home = self.folder / layout.CELLS / name
        make_folder(home, exist_ok=True)
        number = max(layout.attempt_numbers(home), default=0) + 1
        while True:
            try:
                make_folder(home / layout.attempt_folder(number))
                break
            except FileExistsError:
                number += 1
        attempt = AttemptWriter(home / layout.attempt_folder(number), cell, number, worker, benchmark=benchmark)
        # Whoever follows the run learns of new attempts here, and need not look into every cell's folder.
        self.event("attempt", cell=cell.id, folder=name, attempt=number, worker=worker)
        return attempt

    def event(self, kind: str, **fields: Any) -> None:
        """Something about the run as a whole. StorageError."""
        self._events.append(records.event_line(kind, fields))

    def finish(self, outcome: Outcome, *, interrupted: bool = False) -> RunResult:
        """Gather the samples into one file, write end.json last, and return the run as read back. StorageError."""
        self.event("end", outcome=outcome.value, interrupted=interrupted)
        run = read_run(self.folder, ending=(outcome, interrupted))
        attempts = [attempt for cell in run.cells for attempt in cell.attempts]
        if any(attempt.samples for attempt in attempts):
            from labctl.store import parquet

            parquet.write(run, parquet.SAMPLES)
        if any(attempt.distributions for attempt in attempts):
            from labctl.store import parquet

            parquet.write(run, parquet.HISTOGRAMS)
        write_atomically(self.folder / layout.END, records.document(end_record(run)))
        if not (self.folder.parent / layout.LATEST / layout.RUN).exists():
            _point_latest(self.folder)
        self._events.close()
        return run


MOST_KEPT = 200
"""Files that the tests of an attempt may keep."""
MOST_KEPT_BYTES = 16 << 20
"""Bytes of the largest of them."""


class AttemptWriter:
    """One try at a cell. Without `finish` it reads as interrupted. Safe to use from several threads."""

    def __init__(self, folder: Path, cell: Cell, number: int, worker: str, *, benchmark: bool = False) -> None:
        self.folder = folder
        self.cell = cell
        self.number = number
        self._began = time.monotonic()
        self._keeping = threading.Lock()
        self._kept: dict[str, int] = {}
        """Name → how many files of that name were kept."""
        self._events = LineFile(folder / layout.EVENTS, exclusive=True)
        begin = {"cell": records.cell_record(cell), "attempt": number, "worker": worker, "benchmark": benchmark}
        self._events.append(records.event_line("begin", begin, first=True))

    def event(self, kind: str, **fields: Any) -> None:
        """One JSON line by one write. ValueError for a field that JSON can't hold, StorageError if the disk does not take it."""
        self._events.append(records.event_line(kind, fields))

    def status(self, state: str, **fields: Any) -> None:
        """What the attempt does now (leasing, waiting, deploying, booting, testing, off), for those who watch."""
        self.event("status", state=state, **fields)

    def milestone(self, name: str, seconds: float, boot: int, **fields: Any) -> None:
        """A boot got to ``name``, ``seconds`` after its power-on; ``boot`` counts the boots of this attempt."""
        self.event("milestone", name=name, seconds=round(seconds, 9), boot=boot, **fields)

    def phases(self, stamps: Sequence[tuple[float, str]]) -> None:
        """The kernel's own phases of the first boot: seconds since its entry, message."""
        self.event("phases", stamps=[[at, records.clip(message)] for at, message in stamps])

    def arrived(self, digest: str) -> None:
        """The build was seen to be whole on the machine, before it was booted; only where it travels there."""
        self.event("arrived", digest=digest)

    def test(self, result: TestResult) -> None:
        """A test ended."""
        self.event("test", **records.test_record(result))

    def sample(self, sample: Sample) -> None:
        """A figure was taken. MeasurementInvalid if it is no finite number."""
        if not math.isfinite(sample.value):
            raise MeasurementInvalid(f"{sample.metric} is {sample.value}, which is no figure", cell=self.cell.id)
        self.event("sample", **records.sample_record(sample))

    def distribution(self, found: Distribution) -> None:
        """Many observations were counted."""
        self.event("histogram", **records.distribution_record(found))

    def keep(self, name: str, content: bytes) -> Path:
        """A file that a test leaves beside its record, such as a picture; a second one of that name is numbered. Returns where it is.

        ValueError for a name that is none, or for one too many or too large; StorageError."""
        if len(content) > MOST_KEPT_BYTES:
            raise ValueError(f"{name}: {len(content)} bytes, more than the {MOST_KEPT_BYTES} of a file that is kept")
        with self._keeping:
            number = self._kept.get(name, 0) + 1
            path = self.folder / layout.KEPT / layout.kept_name(name, number)
            if sum(self._kept.values()) >= MOST_KEPT:
                raise ValueError(f"{name}: the attempt has kept {MOST_KEPT} files already")
            self._kept[name] = number
            make_folder(path.parent, exist_ok=True)
            write_atomically(path, content)
        return path

    def machine_event(self, event: MachineEvent) -> None:
        """The machine's own event log has gained an entry."""
        self.event("machine", number=event.number, at=event.at, text=records.clip(event.text))

    def finish(
        self, outcome: Outcome, *, reason: str = "", error: str = "", excerpt: str = "", reproduce: str = "", remedy: str = ""
    ) -> None:
        """The attempt's own outcome, which stands whatever its tests say. ``error`` is the name of the error's class."""
        self.event(
            "end",
            outcome=outcome.value,
            duration_s=round(time.monotonic() - self._began, 6),
            reason=reason,
            error=error,
            excerpt=excerpt,
            reproduce=reproduce,
            **({"remedy": remedy} if remedy else {}),
        )
        self._events.sync()

    def close(self) -> None:
        self._events.close()

    def __enter__(self) -> AttemptWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _new_folder(results: Path, run_id: str | None) -> Path:
    if run_id is not None and (run_id in ("", ".", "..", layout.LATEST) or "/" in run_id):
        raise ValueError(f"{run_id!r} can't be a run's id")
    while True:
        folder = results / (run_id or layout.new_run_id())
        try:
            make_folder(folder)
            return folder
        except FileExistsError as error:
            if run_id is not None:
                raise storage_error(folder, "make the folder", error) from error


def _point_latest(folder: Path) -> None:
    """Let ``results/latest`` lead to this run, the one begun last.

    It is there for people's shells; nothing of ours reads it, so that a filesystem without links does no harm.
    """
    link = folder.parent / layout.LATEST
    with suppress(OSError):
        temporary = link.with_name(f".{layout.LATEST}.{os.getpid()}.tmp")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(folder.name)
        temporary.replace(link)
