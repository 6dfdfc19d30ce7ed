"""labctl tools: programs for the machine, by recipe."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from labctl.cli.verb import Json, complete_tool, new_app, print_json, print_table, printable, this_lab
from labctl.errors import ConfigError, LabctlError, Problem

if TYPE_CHECKING:
    from labctl.build.tools.obtain import Tool

app = new_app(
    """Programs that suites need in the machine: see what there is, and build it before a run does.

    \b
    $ labctl tools list
    $ labctl tools build e2fsprogs
    """
)

Arch = Annotated[Literal["x86_64", "aarch64", "riscv64"], typer.Option("--arch", help="For machines of this architecture.")]


@app.command("list")
def list_tools(arch: Arch = "x86_64", as_json: Json = False) -> None:
    """List the recipes of tools: builder, what each is made from, and whether the cache holds it. Nothing is built.

    \b
    $ labctl tools list
    $ labctl tools list --json
    """
    from labctl.build.tools.obtain import tool

    lab = this_lab()
    known: list[dict[str, object]] = []
    problems: list[Problem] = []
    for name in lab.tool_files:
        row: dict[str, object] = {"name": name, "builder": "", "source": "", "size": None, "cached": "", "problem": ""}
        known.append(row)
        try:
            found = tool(lab, name, arch, _tell)
            row["builder"] = found.recipe.builder
            plan = found.plan()
            row["source"] = plan.source
            if (artefact := found.context.cache.find(plan.identity)) is not None:
                row |= {"size": artefact.size, "cached": artefact.made_at}
        except ConfigError as error:
            problems += error.problems
            row["problem"] = str(error.problems[0])
        except LabctlError as error:
            # What one lacks must not hide the others.
            row["problem"] = error.message
    if as_json:
        print_json(tools=known)
    else:
        print_table(
            ("TOOL", "BUILDER", "SIZE", "CACHED", "SOURCE"),
            [
                (
                    row["name"],
                    row["builder"] or "-",
                    f"{int(str(row['size'])) / (1 << 20):.1f} MiB" if row["size"] else "-",
                    row["cached"] or "no",
                    row["problem"] or row["source"],
                )
                for row in known
            ],
            empty="there are no tools: add guest/tools/NAME.toml",
        )
    if problems:
        raise ConfigError(problems)


@app.command()
def build(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", autocompletion=complete_tool, help="Recipes of guest/tools.")],
    arch: Arch = "x86_64",
    as_json: Json = False,
) -> None:
    """Build tools, or fetch them, into the cache. A run does it by itself; this makes it ready before.

    \b
    $ labctl tools build e2fsprogs
    $ labctl tools build udpping --json
    """
    from labctl.build.tools.obtain import tool

    lab = this_lab()
    wanted: list[Tool] = []
    mistakes: list[ConfigError] = []
    for name in dict.fromkeys(names):
        try:
            wanted.append(tool(lab, name, arch, _tell))
        except ConfigError as error:
            mistakes.append(error)
    if mistakes:
        raise mistakes[0] if len(mistakes) == 1 else ConfigError([problem for each in mistakes for problem in each.problems])
    made = [(each.name, each.obtain()) for each in wanted]
    if as_json:
        print_json(
            tools=[
                {"name": name, "version": artefact.version, "size": artefact.size, "files": dict(artefact.digests)}
                for name, artefact in made
            ]
        )
    else:
        print_table(
            ("TOOL", "VERSION", "SIZE", "PROGRAMS"),
            [
                (
                    name,
                    artefact.version or "-",
                    f"{artefact.size / (1 << 20):.1f} MiB",
                    " ".join(sorted(path.removeprefix("usr/bin/") for path in artefact.files if path.startswith("usr/bin/"))),
                )
                for name, artefact in made
            ],
        )


def _tell(line: str) -> None:
    print(printable(line), file=sys.stderr, flush=True)
