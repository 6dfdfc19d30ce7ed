"""labctl targets: list, show and check the machines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from labctl.cli.verb import Json, complete_target, new_app, print_json, print_table, printable, this_lab
from labctl.errors import ConfigError, HostToolMissing, Problem

if TYPE_CHECKING:
    from labctl.config import Lab
    from labctl.model import Target

app = new_app(
    """List, show and check the machines that a build can be put on.

    \b
    $ labctl targets list
    $ labctl targets check
    """
)

TargetName = Annotated[str, typer.Argument(metavar="NAME", autocompletion=complete_target, help="A file of targets/, without .toml.")]


@app.command("list")
def list_targets(as_json: Json = False) -> None:
    """List the targets. A file with mistakes is named on stderr, and the exit status is 2.

    \b
    $ labctl targets list
    $ labctl targets list --json
    """
    from labctl.model import format_size

    targets, problems = _read(this_lab())
    if as_json:
        print_json(targets=[_content(target) for target in targets])
    else:
        print_table(
            ("TARGET", "ARCH", "CPUS", "MEMORY", "DISK", "DRIVERS", "DESCRIPTION"),
            [
                (
                    target.name,
                    target.config.arch,
                    target.config.cpus,
                    format_size(target.config.memory),
                    "-" if target.config.disk is None else format_size(target.config.disk),
                    ",".join(target.config.drivers),
                    target.config.description,
                )
                for target in targets
            ],
            empty="this lab has no targets: add targets/NAME.toml",
        )
    if problems:
        raise ConfigError(problems)


@app.command("show")
def show_target(name: TargetName, as_json: Json = False) -> None:
    """Show one target: all that its file says, and what its drivers do.

    \b
    $ labctl targets show qemu-1c-512m
    """
    from labctl.machine import registry

    lab = this_lab()
    target = lab.target(name)
    roles = {driver: [role.__name__ for role in registry.roles_of(registry.load(driver))] for driver in target.config.drivers}
    if as_json:
        print_json(target=_content(target), roles=roles, file=str(lab.target_files[name]))
        return
    content = _content(target)
    drivers = content.pop("drivers")
    for key, value in content.items():
        if value not in (None, "", []):
            print(f"{key:12} {printable(_plain(value))}")
    print(f"{'file':12} {lab.target_files[name]}")
    for driver, options in drivers.items():
        print(f"{'driver':12} {printable(driver)} ({', '.join(roles[driver]) or 'no role'}){_after(options)}")


@app.command("check")
def check_targets(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", autocompletion=complete_target, help="Only this one.")] = None,
    as_json: Json = False,
) -> None:
    """Check targets without touching a machine: the file, its drivers and their options, the programs that the host needs.

    \b
    $ labctl targets check
    $ labctl targets check qemu-1c-512m
    """
    lab = this_lab()
    results = []
    problems: list[Problem] = []
    missing: dict[str, str] = {}
    for known in [name] if name is not None else lab.target_files:
        found = _check(lab, known, problems, missing)
        results.append({"target": known, "ok": not found, "problems": found})
    problems += _shared(lab)
    if as_json:
        print_json(targets=results)
    else:
        print_table(("TARGET", "STATE"), [(r["target"], "ok" if r["ok"] else "wrong") for r in results], "this lab has no targets")
    if problems:
        raise ConfigError(problems)
    if missing:
        raise HostToolMissing("; ".join(missing), remedy=" && ".join(dict.fromkeys(missing.values())))


def _read(lab: Lab) -> tuple[list[Target], list[Problem]]:
    """Every target that can be read, and the mistakes of the others."""
    targets: list[Target] = []
    problems: list[Problem] = []
    for name in lab.target_files:
        try:
            targets.append(lab.target(name))
        except ConfigError as error:
            problems += error.problems
    return targets, problems


def _check(lab: Lab, name: str, problems: list[Problem], missing: dict[str, str]) -> list[str]:
    from labctl.machine import registry

    try:
        target = lab.target(name)
        registry.check(target)
    except ConfigError as error:
        problems += error.problems
        return [str(problem) for problem in error.problems]
    found = []
    for program in registry.host_programs(target):
        try:
            _find(program)
        except HostToolMissing as error:
            missing[error.message] = error.remedy
            found.append(error.message)
    return found


def _shared(lab: Lab) -> list[Problem]:
    """Targets that name one BMC or one outlet, of all that can be read."""
    from labctl.machine import registry

    try:
        registry.check_together([target for target in _read(lab)[0] if _is_known(target)])
    except ConfigError as error:
        return list(error.problems)
    return []


def _is_known(target: Target) -> bool:
    from labctl.machine import registry

    return set(target.config.drivers) <= set(registry.names())


def _find(program: str) -> str:
    from labctl import process

    return process.find(program)


def _content(target: Target) -> dict[str, Any]:
    return {"name": target.name, **target.config.model_dump(mode="json", by_alias=True, exclude={"schema_"})}


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _after(options: dict[str, Any]) -> str:
    return printable(": " + _plain({key: repr(value) for key, value in options.items()})) if options else ""
