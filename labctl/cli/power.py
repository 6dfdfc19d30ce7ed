"""labctl power: switch a target on and off, cycle and reset it."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from labctl.cli.verb import Json, complete_build, complete_target, new_app, print_json, printable, this_lab

if TYPE_CHECKING:
    from labctl.config import Lab
    from labctl.errors import InfraError
    from labctl.model import Build, Target

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
    """Power on, and keep it on until `labctl power off`. A real server boots what its firmware and its disk say.

    \b
    $ labctl power on qemu-1c-512m --build debian-cloud
    $ labctl power off qemu-1c-512m
    """
    from labctl.errors import ConfigError
    from labctl.machine import keeper, registry

    lab = this_lab()
    require_alone(lab, target)
    if registry.stays_on(lab.machine(target)):
        if build is not None:
            raise ConfigError("--build is for an emulated machine", remedy="labctl run puts a build on a server, and boots it")
        _say(target, _switch(lab.machine(target), "on"), as_json)
        return
    answer = keeper.ask(target, lab.root, "on")
    if answer is None or answer["state"] != "on":
        answer = keeper.keep(lab.machine(target), to_boot(target, build), lab.root, why="labctl power on")
    _say(target, answer, as_json)


def require_alone(lab: Lab, name: str) -> None:
    """ConfigError if another target of the lab names the same BMC or outlet: two names for one machine are two owners of it."""
    from labctl.machine import registry

    registry.check_together([lab.machine(name)], others(lab))


def others(lab: Lab) -> list[Target]:
    """Every target that can be read, and whose drivers are known."""
    from labctl.errors import ConfigError
    from labctl.machine import registry

    known, found = set(registry.names()), []
    for name in lab.target_files:
        with suppress(ConfigError):  # a mistake in a file that is not used is told when it is
            if set((target := lab.target(name)).config.drivers) <= known:
                found.append(target)
    return found


def to_boot(target: str, name: str | None) -> Build:
    """The build of that name, or of the lab's first recipe for this target's architecture. ConfigError, BuildError."""
    from labctl.build.obtain import obtain
    from labctl.errors import ConfigError
    from labctl.machine import registry
    from labctl.run.equip import equipped

    lab = this_lab()
    found = lab.machine(target)
    registry.check(found)
    name = name or next((n for n in lab.recipe_files if lab.recipe(n).arch == found.config.arch), None)
    if name is None:
        raise ConfigError(f"this lab has no build for {found.config.arch}")
    build = obtain(lab, name, progress=lambda line: print(line, file=sys.stderr))
    return equipped(build, found, lambda line: print(line, file=sys.stderr))


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
    from labctl.errors import ManagementError, TargetBusy
    from labctl.machine import keeper, lease, registry

    lab = this_lab()
    if verb != "status":
        require_alone(lab, target)
    if registry.stays_on(lab.machine(target)):
        _say(target, _switch(lab.machine(target), verb), as_json)
        return
    answer = keeper.ask(target, lab.root, verb)
    if answer is None and (holders := lease.holders(lab.machine(target), lab.root)):
        # Somebody's machine, which only they can reach: a run's, for example.
        if verb != "status":
            raise TargetBusy(f"{holders[0].why} holds it, and its machine", target=target, remedy=f"end pid {holders[0].pid}")
        answer = {"state": "unknown"}
    answer = answer or {"state": "off"}
    if answer["state"] == "off" and verb not in ("off", "status"):
        raise ManagementError("it is off", target=target, remedy=f"labctl power on {target}")
    _say(target, answer, as_json)


def _switch(target: Target, verb: str) -> dict[str, Any]:
    """A machine that needs no keeper: its BMC is asked at once, by whoever holds the target. Asking for its state needs no lease."""
    import tempfile
    from contextlib import ExitStack
    from pathlib import Path

    from labctl.deadline import Deadline
    from labctl.errors import InfraError
    from labctl.machine import lease
    from labctl.machine.power import power_cycle
    from labctl.machine.protocols import DriverContext
    from labctl.machine.registry import assemble
    from labctl.machine.session import POWER_DEADLINE
    from labctl.machine.transcript import Transcript

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="labctl-power-")))
        power = assemble(DriverContext(target, folder), stack.enter_context(Transcript(folder))).power
        if verb != "status":
            stack.enter_context(lease.hold(target, this_lab().root, why=f"labctl power {verb}", deadline=Deadline.after(0.5)))
        deadline = Deadline.after(POWER_DEADLINE)
        try:
            match verb:
                case "on":
                    power.on(deadline)
                case "off":
                    power.off(deadline)
                case "cycle":
                    power_cycle(power, deadline)
                case "reset":
                    power.reset(deadline)
        except InfraError as error:
            _let_virtual_server_explain(error, target.name)
            raise
        return {"state": power.state(deadline)}


def _let_virtual_server_explain(error: InfraError, target: str) -> None:
    """IPMI has a number for why a BMC refuses; whoever keeps a virtual server has words."""
    from labctl.errors import LabctlError
    from labctl.virtualserver import settings
    from labctl.virtualserver.client import VirtualServer

    lab = this_lab()
    if target not in settings.names(lab.root):
        return
    server = VirtualServer(lab.root, target)
    with suppress(LabctlError):  # the error itself is what matters
        if refused := (server.status() or {}).get("refused"):
            if refused not in error.message:
                error.message += f"; the virtual server refused {refused}"
            error.remedy = error.remedy or f"see its log: {server.files.log}"


def _say(target: str, answer: dict[str, Any], as_json: bool) -> None:
    from labctl.machine import lease, standing

    lab = this_lab()
    stands = [str(found) for found in (standing.unhealthy(lab.root, target),) if found]
    stands += [f"reserved by {found}" for found in (standing.reservation(lab.root, target),) if found]
    holders = [{"user": h.user, "pid": h.pid, "since": h.since, "why": h.why} for h in lease.holders(lab.machine(target), lab.root)]
    if as_json:
        print_json(target=target, **answer, holders=holders, standing="; ".join(stands))
        return
    build = f", running {answer['build']}" if answer.get("build") and answer["state"] == "on" else ""
    state = "only its holder knows whether it is on" if answer["state"] == "unknown" and holders else answer["state"]
    print(f"{target}: {state}{build}")
    for holder in holders:
        print(f"  held by {holder['user']} (pid {holder['pid']}): {holder['why']}")
    for line in stands:
        print(f"  {printable(line)}")
