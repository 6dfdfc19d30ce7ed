"""labctl runs: list and show what was run."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from labctl.cli.verb import Json, complete_run, new_app, print_json, print_table, printable, this_lab
from labctl.errors import ConfigError, Problem

if TYPE_CHECKING:
    from labctl.result import RunResult
    from labctl.store.reader import RunSummary

app = new_app(
    """List and show runs, also those that are still going on and those that were killed in the middle.

    \b
    $ labctl runs list
    $ labctl runs show latest
    """
)

RunName = Annotated[str, typer.Argument(metavar="[RUN]", autocompletion=complete_run, help="An id, its beginning, a folder, or latest.")]
Results = Annotated[Path | None, typer.Option(help="Folder of the runs (default: the lab's).")]


@app.command("list")
def list_all(results: Results = None, as_json: Json = False) -> None:
    """List the runs, the newest first.

    \b
    $ labctl runs list
    $ labctl runs list --json
    """
    from labctl.store.reader import list_runs

    folder = _folder(results)
    runs = list_runs(folder)
    if as_json:
        print_json(runs=[asdict(run) for run in runs])
        return
    print_table(
        ("RUN", "MATRIX", "BEGAN", "TOOK", "CELLS", "SAMPLES", "OUTCOME"),
        [
            (
                run.id,
                run.matrix,
                _moment(run.started_at),
                f"{run.duration_s:.1f} s" if run.finished else "-",
                run.cells,
                run.samples,
                _ending(run),
            )
            for run in runs
        ],
        empty=f"there is no run in {folder} yet: labctl run matrix makes one",
    )


@app.command("show")
def show(run: RunName = "latest", results: Results = None, as_json: Json = False) -> None:
    """Show one run: its cells with their outcomes, and why those that did not pass did not.

    \b
    $ labctl runs show
    $ labctl runs show latest --json
    """
    from labctl.store.reader import find_run, read_run

    found = read_run(find_run(_folder(results), run))
    if as_json:
        print_json(run=asdict(found))
        return
    _print(found)


def _folder(results: Path | None) -> Path:
    """Where the runs are: a folder that was named need not be that of a lab."""
    if results is None:
        return this_lab().results
    if not results.is_dir():
        raise ConfigError([Problem("command line", "--results", f"{results} is not a folder", "a folder of runs")])
    return results.absolute()


def _print(run: RunResult) -> None:
    from labctl.report.text import show

    print(f"run {run.id} of the matrix {printable(run.matrix)}, begun {_moment(run.started_at)}\n")
    page = run.folder / "report.html"
    show(run, page if page.is_file() else None)


def _ending(run: RunSummary) -> str:
    """What a reader wants to know of a run's end: one that never ended has no outcome."""
    from labctl.model import Outcome

    if run.running:
        from labctl.store.reader import read_run

        ended = sum(bool(cell.attempts) and cell.attempts[-1].complete for cell in read_run(run.folder).cells)
        return f"running, {ended} of {run.cells} cells"
    if run.interrupted:
        return "interrupted" if run.outcome is Outcome.ERROR else f"{run.outcome}, interrupted"
    return str(run.outcome) if run.finished else "killed"


def _moment(seconds: float) -> str:
    """The host's own time, since that is what its user reads."""
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")
