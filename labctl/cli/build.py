"""labctl build: recipe → artefact in the cache."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Annotated

import typer

from labctl.cli.verb import Json, complete_build, new_app, print_json, print_table, printable, this_lab
from labctl.errors import ConfigError, LabctlError, Problem

app = new_app()


@app.command()
def build(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", autocompletion=complete_build, help="Recipes of kernel/ or hypervisor/, or kernel files."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every build of the lab.")] = False,
    as_json: Json = False,
) -> None:
    """Obtain builds, several at a time: from the cache, or fetched or built now. A matrix does it by itself; this makes it ready before.

    \b
    $ labctl build debian-cloud
    $ labctl build --all
    """
    from labctl.build.obtain import check, obtain

    lab = this_lab()
    if everything and names:
        raise ConfigError("names and --all exclude each other")
    wanted = list(lab.recipe_files) if everything else list(names or ())
    if not wanted:
        raise ConfigError("no build is named", remedy=f"labctl build NAME or --all; known: {', '.join(lab.recipe_files) or 'none yet'}")
    problems: list[Problem] = []
    for name in wanted:
        try:
            check(lab, name)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    # Threads: what takes long is a compiler or a download, in a process of its own.
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        begun = [pool.submit(obtain, lab, name, progress=_tell) for name in wanted]
        try:
            failed = _each_once([(name, why) for name, each in zip(wanted, begun, strict=True) if (why := each.exception())])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # Ctrl-C: what has not begun is not begun
            raise
    for other in failed[1:]:
        _tell(f"labctl: {other}")
    if failed:
        raise failed[0]
    made = [each.result() for each in begun]
    if as_json:
        print_json(builds=[asdict(each) for each in made])
    else:
        print_table(("BUILD", "VERSION", "DIGEST", "KERNEL"), [(each.name, each.version, each.digest[:19], each.kernel) for each in made])


def _each_once(failed: list[tuple[str, BaseException]]) -> list[LabctlError]:
    """What went wrong, the same words once, with the names of all builds that they are about."""
    about: dict[tuple[type, str], tuple[LabctlError, list[str]]] = {}
    for name, why in failed:
        if isinstance(why, LabctlError):
            words = why.message.removeprefix(f"{name}: ")
            about.setdefault((type(why), words), (why, []))[1].append(name)
    for (_, words), (why, names) in about.items():
        if len(names) > 1:
            why.message = f"{', '.join(names)}: {words}"
    return [why for why, _ in about.values()]


def _tell(line: str) -> None:
    print(printable(line), file=sys.stderr, flush=True)
