"""labctl report: write a run's report again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from labctl.cli.verb import Json, complete_run, new_app, print_json, this_lab

app = new_app(
    """Write reports of what was run.

    \b
    $ labctl report run latest
    """
)


@app.command("run")
def report_run(
    run: Annotated[
        str, typer.Argument(metavar="[RUN]", autocompletion=complete_run, help="An id, its beginning, a folder, or latest.")
    ] = "latest",
    to: Annotated[Path | None, typer.Option("--to", metavar="DIR", help="Another folder than the run's own.", file_okay=False)] = None,
    as_json: Json = False,
) -> None:
    """Write a run's report (HTML, JUnit XML, CSV) and print where the page is. It works on a run that was killed, too.

    \b
    $ labctl report run
    $ labctl report run latest --to reports
    """
    from labctl.report.write import write_reports
    from labctl.store.reader import find_run, read_run

    folder = find_run(this_lab().results, run)
    page = write_reports(read_run(folder), to)
    if as_json:
        print_json(run=folder.name, report=str(page.absolute()))
    else:
        print(page)
