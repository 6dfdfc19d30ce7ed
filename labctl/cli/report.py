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
    $ labctl report promises --last 30
    $ labctl report stories --last 7
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


@app.command("promises")
def report_promises(
    run: Annotated[
        str, typer.Argument(metavar="[RUN]", autocompletion=complete_run, help="An id, its beginning, a folder, or latest.")
    ] = "latest",
    last: Annotated[int | None, typer.Option("--last", metavar="N", min=1, help="The last N runs together, instead of one.")] = None,
    as_json: Json = False,
) -> None:
    """Hold what was measured against what the builds promise: value, limit, margin and verdict of each.

    \b
    $ labctl report promises
    $ labctl report promises --last 30
    """
    from rich.console import Console

    from labctl.judge.promise import judge
    from labctl.report.promises_text import promises_json, promises_table
    from labctl.store.reader import find_run, list_runs, read_run

    results = this_lab().results
    folders = [find_run(results, run)] if last is None else [one.folder for one in reversed(list_runs(results)[:last])]
    judged = judge([read_run(folder) for folder in folders])
    if as_json:
        print_json(runs=[folder.name for folder in folders], promises=promises_json(judged))
        return
    console = Console(highlight=False)
    for line in promises_table(judged, everything=True)[1:]:
        console.print(line, crop=False, soft_wrap=True)
    if not judged:
        print("no build of these runs promises anything: [promises] in its recipe does")


@app.command("stories")
def report_stories(
    run: Annotated[
        str, typer.Argument(metavar="[RUN]", autocompletion=complete_run, help="An id, its beginning, a folder, or latest.")
    ] = "latest",
    last: Annotated[int | None, typer.Option("--last", metavar="N", min=1, help="The last N runs together, instead of one.")] = None,
    tests: Annotated[bool, typer.Option("--tests", help="The tests that stand behind each, and how they ended.")] = False,
    as_json: Json = False,
) -> None:
    """Show which stories of the plan are proven, on which builds, since when, and what the others wait for.

    With --last, each run has its sign, the newest at the right; of each story the newest run that tells whether it holds counts.

    \b
    $ labctl report stories
    $ labctl report stories --tests
    $ labctl report stories --last 7
    """
    from rich.console import Console

    from labctl.judge.stories import proofs
    from labctl.report.stories_text import stories_json, stories_table, stories_tests
    from labctl.store.past import earlier_runs, present
    from labctl.store.reader import find_run, list_runs, read_run

    results = this_lab().results
    folders = [find_run(results, run)] if last is None else [one.folder for one in list_runs(results)[:last]]
    runs = [read_run(folder) for folder in folders]
    titles = {story: title for one in reversed(runs) for story, title in one.stories.items()}
    found = proofs([present(one) for one in runs], earlier_runs(runs[-1]) if runs else (), titles)
    if as_json:
        print_json(runs=[folder.name for folder in folders], stories=stories_json(found, titles))
        return
    console = Console(highlight=False)
    for line in (*stories_table(found, titles)[1:], *(stories_tests(found, titles) if tests else ())):
        console.print(line, crop=False, soft_wrap=True)
    if not found:
        print('no test of these runs names a story: @pytest.mark.story("US-14") does')
