"""labctl power: switch a target on and off, cycle and reset it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from labctl.cli.verb import Json, complete_build, complete_target, new_app, print_json, this_lab

if TYPE_CHECKING:
    from labctl.model import Build

app = new_app(
    """Switch a target on and off, power cycle and reset it. Each verb returns when it is true.

    \b
    $ labctl power status qemu-1c-512m
    """
)

TargetName = Annotated[str, typer.Argument(metavar="TARGET", autocompletion=complete_target)]
BuildName = Annotated[
    str | None,
    typer.Option("--build", autocompletion=complete_build, help="What an emulated machine boots (default: the first recipe)."),
]


@app.command()
def on(target: TargetName, build: BuildName = None, as_json: Json = False) -> None:
    """Power on, and keep it on until `labctl power off`.

    \b
    $ labctl power on qemu-1c-512m --build debian-cloud
    $ labctl power off qemu-1c-512m
    """
    from labctl.machine import keeper

    lab = this_lab()
    lab.target(target)
    answer = keeper.ask(target, lab.root, "on")
    if answer is None or answer["state"] != "on":
        answer = keeper.keep(lab.target(target), to_boot(target, build), lab.root, why="labctl power on")
    _say(target, answer, as_json)


def to_boot(target: str, name: str | None) -> Build:
    """The build of that name, or of the lab's first recipe for this target's architecture. ConfigError, BuildError."""
    from labctl.build.obtain import obtain
    from labctl.errors import ConfigError
    from labctl.machine import registry

    lab = this_lab()
    found = lab.target(target)
    registry.check(found)
    name = name or next((n for n in lab.recipe_files if lab.recipe(n).arch == found.config.arch), None)
    if name is None:
        raise ConfigError(f"this lab has no build for {found.config.arch}")
    return obtain(lab, name, progress=lambda line: print(line, file=sys.stderr))


@app.command()
def off(target: TargetName, as_json: Json = False) -> None:
    """Power off, hard. Off already is no error.

    \b
    $ labctl power off qemu-1c-512m
    """
    _verb(target, "off", as_json)


@app.command()
def cycle(target: TargetName, as_json: Json = False) -> None:
    """Off, seen to be off, then on.

    \b
    $ labctl power on qemu-1c-512m
    $ labctl power cycle qemu-1c-512m
    $ labctl power off qemu-1c-512m
    """
    _verb(target, "cycle", as_json)


@app.command()
def reset(target: TargetName, as_json: Json = False) -> None:
    """Reset a machine that is on, without taking its power away.

    \b
    $ labctl power on qemu-1c-512m
    $ labctl power reset qemu-1c-512m
    $ labctl power off qemu-1c-512m
    """
    _verb(target, "reset", as_json)


@app.command()
def status(target: TargetName, as_json: Json = False) -> None:
    """Say whether it is on, and who holds it.

    \b
    $ labctl power status qemu-1c-512m
    """
    _verb(target, "status", as_json)


def _verb(target: str, verb: str, as_json: bool) -> None:
    from labctl.errors import ManagementError
    from labctl.machine import keeper

    lab = this_lab()
    lab.target(target)
    answer = keeper.ask(target, lab.root, verb) or {"state": "off"}
    if answer["state"] == "off" and verb not in ("off", "status"):
        raise ManagementError("it is off", target=target, remedy=f"labctl power on {target}")
    _say(target, answer, as_json)


def _say(target: str, answer: dict[str, Any], as_json: bool) -> None:
    from labctl.machine import lease

    lab = this_lab()
    holders = [{"user": h.user, "pid": h.pid, "since": h.since, "why": h.why} for h in lease.holders(lab.target(target), lab.root)]
    if as_json:
        print_json(target=target, **answer, holders=holders)
        return
    build = f", running {answer['build']}" if answer.get("build") and answer["state"] == "on" else ""
    print(f"{target}: {answer['state']}{build}")
    for holder in holders:
        print(f"  held by {holder['user']} (pid {holder['pid']}): {holder['why']}")
