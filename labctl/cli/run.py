"""labctl run: run a matrix."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from labctl.cli.verb import Json, complete_build, complete_matrix, complete_suite, complete_target, new_app, print_json, print_table
from labctl.errors import ConfigError
from labctl.model import Channel, Outcome

if TYPE_CHECKING:
    from labctl.model import Cell
    from labctl.result import RunResult
    from labctl.run.forecast import Outlook
    from labctl.run.prepare import Planned

_MOST_FOR_SERVERS = 32

app = new_app(
    """Run builds on targets through suites.

    \b
    $ labctl run matrix --dry-run
    """
)


@app.command()
def matrix(
    name: Annotated[str, typer.Argument(autocompletion=complete_matrix, help="A file of matrix/, without .toml.")] = "default",
    build: Annotated[
        list[str] | None, typer.Option(autocompletion=complete_build, help="Builds by name or glob, or a kernel file.")
    ] = None,
    target: Annotated[list[str] | None, typer.Option(autocompletion=complete_target, help="Targets by name or glob.")] = None,
    suite: Annotated[list[str] | None, typer.Option(autocompletion=complete_suite, help="Suites by name or glob.")] = None,
    channel: Annotated[list[Channel] | None, typer.Option(help="wall: real time; icount: counted instructions. Repeatable.")] = None,
    repeat: Annotated[int | None, typer.Option(min=1, help="Run each cell this many times.")] = None,
    workers: Annotated[
        int | None, typer.Option("-n", "--workers", min=1, help="Cells at a time (default: the host's CPUs, and one for each server).")
    ] = None,
    story: Annotated[list[str] | None, typer.Option(metavar="US-N", help="Only tests that prove this story. Repeatable.")] = None,
    soak: Annotated[str | None, typer.Option(help="How long the suite soak goes on: 90s, 30m, 8h (default: 20s).")] = None,
    results: Annotated[Path | None, typer.Option(help="Folder of the runs (default: the lab's).")] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Run every cell, also those of which nothing has changed since they passed.")
    ] = False,
    cold: Annotated[bool, typer.Option("--cold", help="Boot every machine: none is a copy of one that was booted before.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the cells, what would become of each and why, and what is left out.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Boot every build on every target of a matrix, run the suites there, and write a report.

    \b
    $ labctl run matrix --dry-run
    $ labctl run matrix default --target 'qemu-1c*'
    $ labctl run matrix --build ./bzImage --suite boot --repeat 5 -n 2
    $ labctl run matrix --target 'qemu-1c*' --channel icount
    $ labctl run matrix functional --suite soak --soak 8h

    A cell that passed and of which nothing has changed is not run again, unless it measures (@pytest.mark.benchmark) or is repeated.

    Exit status: 0 pass, 1 fail, 2 bad configuration, 3 the lab's own fault, 130 interrupted.
    """
    from labctl.cli.verb import this_lab
    from labctl.run import soaking
    from labctl.run.prepare import Request, plan

    soaking.choose(soak)
    lab = this_lab()
    planned = plan(
        lab,
        Request(
            name,
            tuple(build or ()),
            tuple(target or ()),
            tuple(suite or ()),
            repeat,
            results.absolute() if results else None,
            tuple(channel or ()),
            whole=not story,
            stories=tuple(story or ()),
            fresh=fresh,
            cold=cold,
        ),
    )
    if dry_run:
        _show_plan(_outlook(planned), as_json)
        return
    raise typer.Exit(_run(planned, workers, as_json))


def _outlook(planned: Planned) -> Outlook:
    """ConfigError, also for a suite that the run could not read."""
    from labctl.run.forecast import look_ahead
    from labctl.run.plugin import read_suites, unreadable

    outlook = look_ahead(planned)
    mistakes, measuring = read_suites(outlook.reading(), outlook.suites())
    if mistakes:
        raise unreadable(mistakes)
    return outlook.knowing(measuring)


def _show_plan(outlook: Outlook, as_json: bool) -> None:
    planned = outlook.planned
    if as_json:
        print_json(
            cells=[
                {
                    "id": c.id,
                    "build": c.build,
                    "target": c.target,
                    "suite": c.suite,
                    "expected_s": planned.costs[c.id],
                    "expected_from": planned.costs_from[c.id],
                    "will": outlook.cells[c.id].will,
                    "why": outlook.cells[c.id].why,
                    "changed": list(outlook.cells[c.id].changed),
                    "reused_from": outlook.cells[c.id].reused_from or None,
                }
                for c in planned.cells
            ],
            left_out=[{"id": out.cell.id, "reason": out.reason} for out in planned.left_out],
        )
        return
    print_table(
        ("CELL", "CPUS", "MEMORY", "EXPECTED", "WILL", "WHY"),
        [
            (
                cell.id,
                (config := planned.targets[cell.target].config).cpus,
                f"{config.memory >> 20} MiB",
                "–" if outlook.cells[cell.id].will == "reuse" else _expected(planned, cell),
                " ".join(filter(None, ((told := outlook.cells[cell.id]).will, told.reused_from))),
                told.why,
            )
            for cell in planned.cells
        ],
    )
    if planned.left_out:
        print()
        print_table(("LEFT OUT", "WHY"), [(out.cell.id, out.reason) for out in planned.left_out])


def _expected(planned: Planned, cell: Cell) -> str:
    """Seconds as they were, or as they may be: a cell like it tells what this one may take, not what it took."""
    cost = planned.costs[cell.id]
    if cost is None:
        return "? (never run)"
    return f"{cost:.1f} s" if planned.costs_from[cell.id] == "history" else f"~{cost:.1f} s (guess)"


def _run(planned: Planned, workers: int | None, as_json: bool) -> int:
    from labctl.process import interrupt_once
    from labctl.run.plugin import execute, unreadable
    from labctl.run.prepare import prepare
    from labctl.run.workers import ForkedWorkers

    count = min(workers or _usual_workers(planned), len(planned.cells))
    forked = ForkedWorkers(count)  # with all that was imported by now, and before there is a second thread
    prepared = prepare(planned, sys.argv, lambda line: print(line, file=sys.stderr))
    if prepared.reused:
        print(_reused_line(len(prepared.reused), len(prepared.planned.cells)), file=sys.stderr)
    if not prepared.cells:
        from labctl.report.write import write_reports

        proven = prepared.writer.finish(Outcome.PASS)
        return _tell(proven, write_reports(proven), as_json)
    suites = sorted({planned.lab.suite(cell.suite) for cell in prepared.cells})
    with ExitStack() as shown:

        def meanwhile() -> None:
            # What shows the run and what ends it is imported while the workers start: each second of a short run counts.
            from labctl.run.progress import Progress

            shown.enter_context(Progress(prepared, count, meanwhile=_warm_up))

        # A supervisor's SIGTERM and a terminal that goes away end a run as Ctrl-C does: machines off, what was measured kept.
        interrupt_once()
        controller = execute(prepared, count, suites, forked, meanwhile)
    if controller.collection_errors:
        raise unreadable(controller.collection_errors)
    run = controller.result
    if run is None and controller.unstored is not None:
        raise controller.unstored
    if run is None:
        raise ConfigError("pytest ended before the run began; run it as `pytest suites --matrix NAME` to see why")
    status = _tell(run, controller.report, as_json)
    if controller.unstored is not None:
        raise controller.unstored  # what could be kept has been shown
    return status


def _usual_workers(planned: Planned) -> int:
    """One for each CPU of the host, and one for each server beside them: it waits more than it works."""
    from labctl.machine import budget, registry

    used = {cell.target for cell in planned.cells}
    servers = sum(planned.targets[name].config.instances for name in used if not registry.host_share(planned.targets[name])[1])
    return len(budget.capacity().cpus) + min(servers, _MOST_FOR_SERVERS)


def _reused_line(reused: int, cells: int) -> str:
    which = "the cell" if cells == 1 else f"all {cells} cells" if reused == cells else f"{reused} of {cells} cells"
    return f"{which} passed before, and nothing that decides it has changed: not run again (--fresh runs everything)"


def _tell(run: RunResult, report: Path | None, as_json: bool) -> int:
    """Show a run that has ended. Its exit status."""
    from labctl.report.text import as_json as result_as_json
    from labctl.report.text import show, show_failures

    if as_json:
        show_failures(run, file=sys.stderr)
        print_json(**{key: value for key, value in result_as_json(run, report).items() if key != "schema"})
    else:
        show(run, report)
    if run.interrupted:
        return 130
    return {"pass": 0, "fail": 1}.get(run.outcome, 3)


def _warm_up() -> None:
    """Import and compile what the end of a run needs."""
    from importlib import import_module

    from labctl.report import html
    from labctl.store import writer

    writer.warm_up()
    html.warm_up()
    import_module("labctl.report.text")
