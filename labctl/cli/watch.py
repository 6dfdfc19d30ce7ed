"""labctl watch: run a matrix again whenever something that it is made from changes, and show the difference."""

from __future__ import annotations

import json
import signal
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from labctl.cli.verb import complete_build, complete_matrix, complete_suite, complete_target, new_app, printable, this_lab
from labctl.errors import LabctlError

if TYPE_CHECKING:
    from labctl.config import Lab
    from labctl.result import RunResult
    from labctl.run.watch import Watcher

app = new_app()

ENDING = 60.0
"""Seconds that a run may take to power everything off when it is interrupted."""
_MOST_NAMES = 5


@app.command()
def watch(
    matrix: Annotated[str, typer.Argument(autocompletion=complete_matrix, help="A file of matrix/, without .toml.")] = "quick",
    build: Annotated[
        list[str] | None, typer.Option(autocompletion=complete_build, help="Builds by name or glob, or a kernel file.")
    ] = None,
    target: Annotated[list[str] | None, typer.Option(autocompletion=complete_target, help="Targets by name or glob.")] = None,
    suite: Annotated[list[str] | None, typer.Option(autocompletion=complete_suite, help="Suites by name or glob.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line for each run; all else goes to stderr.")] = False,
) -> None:
    """Build and run a matrix, and again at each change of its sources; show the difference from the run before. Ctrl-C ends it.

    \b
    $ labctl watch
    $ labctl watch quick --target 'microvm*'

    What is watched: the lab's files, and the sources that the recipes name. A change during a run ends that run and begins the next.
    Where a build does not compile, the compiler's words are shown, and the next change is waited for.
    """
    from labctl.run.prepare import Request, plan
    from labctl.run.watch import Watcher, sources

    lab = this_lab()
    planned = plan(lab, Request(matrix, tuple(build or ()), tuple(target or ()), tuple(suite or ())))
    builds = tuple(dict.fromkeys(cell.build for cell in planned.cells))
    given = [f"--{axis}={name}" for axis, names in (("build", build), ("target", target), ("suite", suite)) for name in names or ()]
    before = _last(lab, matrix)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a supervisor ends it as Ctrl-C does
    try:
        watcher = Watcher.of(sources(lab, builds))
        changed: tuple[str, ...] = ()
        while True:
            run, interrupted = _run(["run", "matrix", matrix, "--json", *given], watcher)
            if run is not None:
                _show(before, run, changed, as_json)
                before = run
            elif not interrupted:
                _tell("nothing was run")
                if as_json:
                    _print({"run": None, "changed": changed})
            if not interrupted:
                _tell(f"watching {len(watcher.taken)} files; Ctrl-C ends")
            changed = interrupted or watcher.wait()
            names = [_short(lab, name) for name in changed]
            _tell(
                "changed: " + ", ".join(names[:_MOST_NAMES]) + (f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else "")
            )
            watcher.take(_sources_now(lab.root, builds))
    except KeyboardInterrupt:
        _tell("ended")


def _run(arguments: list[str], watcher: Watcher) -> tuple[RunResult | None, tuple[str, ...]]:
    """One run in a process of its own, so that suites are read anew. The run if there was one, and what changed while it ran."""
    from labctl import process
    from labctl.deadline import Deadline
    from labctl.store.reader import read_run

    labctl = [sys.executable, "-m", "labctl"]
    with tempfile.TemporaryFile() as out, process.start([*labctl, *arguments], stdout=out, stderr=2) as child:
        try:
            changed = watcher.wait(lambda pause: child.wait(Deadline.after(pause)) is not None)
        finally:
            if child.status is None:
                child.interrupt()
                child.wait(Deadline.after(ENDING))
        if changed:
            return None, changed
        out.seek(0)
        said = out.read()
    try:
        return read_run(Path(json.loads(said)["results"])), ()
    except (ValueError, KeyError, TypeError, LabctlError):
        return None, ()  # it has said why, on standard error


def _last(lab: Lab, matrix: str) -> RunResult | None:
    """The newest run of the matrix that came to its end."""
    from labctl.store.reader import list_runs, read_run

    found = next((run for run in list_runs(lab.results) if run.matrix == matrix and run.finished and not run.interrupted), None)
    return read_run(found.folder) if found is not None else None


def _sources_now(root: Path, builds: tuple[str, ...]) -> tuple[Path, ...] | None:
    """What is to be watched by the lab's files as they are now; None while they are wrong, which the run says."""
    from labctl.config import Lab
    from labctl.run.watch import sources

    try:
        return sources(Lab.find(root), builds)
    except LabctlError:
        return None


def _show(before: RunResult | None, run: RunResult, changed: tuple[str, ...], as_json: bool) -> None:
    from labctl.judge.difference import difference

    cells = difference(before, run)
    if as_json:
        _print(
            {"run": run.id, "before": before and before.id, "outcome": run.outcome, "changed": changed, "cells": [asdict(c) for c in cells]}
        )
        return
    from labctl.report.difference import show

    show(run, cells)


def _print(content: dict[str, Any]) -> None:
    print(json.dumps({"schema": 1, **content}, ensure_ascii=False, default=str), flush=True)


def _tell(line: str) -> None:
    print(printable(f"labctl watch: {line}"), file=sys.stderr, flush=True)


def _short(lab: Lab, name: str) -> str:
    path = Path(name)
    return str(path.relative_to(lab.root)) if path.is_relative_to(lab.root) else name
