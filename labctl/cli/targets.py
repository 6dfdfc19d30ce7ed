"""labctl targets: list, show and check the machines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from labctl.cli.verb import Json, complete_build, complete_target, new_app, print_json, print_table, printable, this_lab
from labctl.errors import ConfigError, HostToolMissing, InfraError, LabctlError, Problem

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
    from labctl.machine import standing
    from labctl.size import format_size

    lab = this_lab()
    targets, problems = _read(lab)
    if as_json:
        print_json(targets=[{**_content(target), "standing": _standing(lab, target.name)} for target in targets])
    else:
        print_table(
            ("TARGET", "ARCH", "CPUS", "MEMORY", "DISK", "DRIVERS OR MACHINES", "STANDING", "DESCRIPTION"),
            [
                (
                    target.name,
                    target.config.arch,
                    target.config.cpus,
                    format_size(target.config.memory),
                    "-" if target.config.disk is None else format_size(target.config.disk),
                    ",".join(target.config.drivers) or " + ".join(part.name for part in target.parts),
                    standing.in_a_word(lab.root, target.name) or "-",
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
    if content.pop("machines", None):
        content["machines"] = content.pop("of")
        content["links"] = [" to ".join(link["between"]) for link in content["links"]]
    for key, value in content.items():
        if value not in (None, "", [], {}):
            print(f"{key:12} {printable(_plain(value))}")
    print(f"{'file':12} {lab.target_files[name]}")
    for driver, options in drivers.items():
        print(f"{'driver':12} {printable(driver)} ({', '.join(roles[driver]) or 'no role'}){_after(options)}")


@app.command("check")
def check_targets(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", autocompletion=complete_target, help="Only this one.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Only what can be known without asking a machine.")] = False,
    boot: Annotated[
        str | None,
        typer.Option(
            autocompletion=complete_build, help="Boot this known-good build on it too: passes or fails, the target is healthy or not."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check targets: the file, its drivers and their options, the programs that the host needs; of a real server also that its BMC answers,
    that the credentials work, that the console can be had and echoes, that the boot server answers; with sensors, event log and inventory.
    Nothing is switched without --boot.

    \b
    $ labctl targets check
    $ labctl targets check qemu-1c-512m
    $ labctl targets check qemu-1c-512m --boot debian-cloud
    """
    lab = this_lab()
    results: list[dict[str, Any]] = []
    problems: list[Problem] = []
    missing: dict[str, list[HostToolMissing]] = {}
    for known in [name] if name is not None else lab.target_files:
        found = _check(lab, known, problems, missing)
        results.append({"target": known, "ok": not found, "problems": found})
    problems += _shared(lab, results)
    failed = [] if offline else _ask(lab, results)
    if boot is not None:
        failed += _boot(lab, [r["target"] for r in results if r["ok"]], boot)
    for result in results:
        result["standing"] = _standing(lab, result["target"])
        result["ok"] = result["ok"] and not any(error.target == result["target"] for error in failed)
    if as_json:
        print_json(targets=results)
    else:
        print_table(
            ("TARGET", "STATE", "POWER", "CONSOLE", "BOOT SERVER", "SENSORS", "STANDING"),
            [
                (
                    r["target"],
                    "ok" if r["ok"] else "wrong",
                    *(r.get(key) or "-" for key in ("power", "console", "boot_server")),
                    _sensors(r),
                    r["standing"] or "-",
                )
                for r in results
            ],
            "this lab has no targets",
        )
    if problems:
        raise ConfigError(problems)
    if missing:
        words = [f"{', '.join(dict.fromkeys(error.target for error in errors))}: {message}" for message, errors in missing.items()]
        raise HostToolMissing("; ".join(words), remedy=" && ".join(dict.fromkeys(errors[0].remedy for errors in missing.values())))
    if failed:
        raise _together(failed)


@app.command()
def reserve(
    name: TargetName,
    note: Annotated[str, typer.Option(help="What for, and until when: whoever wants it reads this.")] = "",
    as_json: Json = False,
) -> None:
    """Keep a target for yourself: nobody else's run takes it until you release it.

    \b
    $ labctl targets reserve qemu-1c-512m --note 'until Friday: looking for the leak'
    $ labctl targets release qemu-1c-512m
    """
    from labctl.machine import standing

    lab = this_lab()
    lab.target(name)
    made = standing.reserve(lab.root, name, note)
    if as_json:
        print_json(target=name, user=made.user, since=made.since, note=made.note)
    else:
        print(f"{name}: reserved by {printable(str(made))}")


@app.command()
def release(
    name: TargetName,
    force: Annotated[bool, typer.Option("--force", help="Also if somebody else has it.")] = False,
    as_json: Json = False,
) -> None:
    """Give a reserved target back.

    \b
    $ labctl targets release qemu-1c-512m
    """
    from labctl.machine import standing

    lab = this_lab()
    lab.target(name)
    released = standing.release(lab.root, name, force=force)
    if as_json:
        print_json(target=name, released=released)
    else:
        print(f"{name}: free again" if released else f"{name}: was not reserved")


def _ask(lab: Lab, results: list[dict[str, Any]]) -> list[LabctlError]:
    """Ask every real target whose file is right; what they say is added to their results."""
    from dataclasses import asdict

    from labctl.machine import checkup, registry

    asked = {r["target"]: r for r in results if r["ok"]}
    targets = [target for name in asked if registry.is_server(target := lab.target(name))]
    failed: list[LabctlError] = []
    for found in checkup.check_all(targets, lab.root) if targets else []:
        said = asdict(found)
        wrong = said.pop("wrong")
        asked[found.target] |= {**said, "problems": [error.message for error in wrong]}
        for error in wrong:
            error.target = error.target or found.target
        failed += wrong
    return failed


def _boot(lab: Lab, names: list[str], build: str) -> list[LabctlError]:
    """Boot a known-good build on each, one after another. What fails there, for whatever reason, is the target's."""
    import sys

    from labctl.build.obtain import obtain
    from labctl.machine import knowngood

    good = obtain(lab, build, progress=lambda line: print(line, file=sys.stderr))
    found = {part.name: part for name in names for part in lab.target(name).parts}
    targets = [target for target in found.values() if target.config.arch == good.arch]
    return [error for target in targets if (error := knowngood.boot(target, good, lab.root)) is not None]


def _standing(lab: Lab, name: str) -> str:
    from labctl.machine import standing

    found = [
        f"reserved by {owner}" if (owner := standing.reservation(lab.root, name)) else "",
        str(standing.unhealthy(lab.root, name) or ""),
    ]
    return "; ".join(filter(None, found))


def _sensors(result: dict[str, Any]) -> str:
    """The hottest, and what it draws."""
    readings = result.get("readings", ())
    units = {"degC": "°C", "W": "W"}
    highest = {unit: max((r["value"] for r in readings if r["unit"] == unit), default=None) for unit in units}
    return ", ".join(f"{value:g} {units[unit]}" for unit, value in highest.items() if value is not None) or "-"


def _together(failed: list[LabctlError]) -> LabctlError:
    """One error for all, of the kind of the first; mistakes in files win."""
    failed = list({(error.target, error.message): error for error in failed}.values())  # of its check and of its boot: once is enough
    mistakes = [problem for error in failed if isinstance(error, ConfigError) for problem in error.problems]
    others = [error for error in failed if not isinstance(error, ConfigError)]
    if mistakes and not others:
        return ConfigError(mistakes)
    if len(failed) == 1:
        return failed[0]
    return InfraError("\n".join(f"{error.target}: {error.message}" for error in failed), remedy=others[0].remedy)


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


def _check(lab: Lab, name: str, problems: list[Problem], missing: dict[str, list[HostToolMissing]]) -> list[str]:
    from labctl.machine import registry

    try:
        target = lab.target(name)
        registry.check(target)
    except ConfigError as error:
        problems += error.problems
        return [str(problem) for problem in error.problems]
    found = []
    for lacking in registry.missing_programs(target):
        missing.setdefault(lacking.message, []).append(lacking)
        found.append(lacking.message)
    return found


def _shared(lab: Lab, results: list[dict[str, Any]]) -> list[Problem]:
    """Targets that name one BMC or one outlet with any that can be read: each of them is wrong."""
    from labctl.cli.power import others
    from labctl.machine import registry

    beside, problems = others(lab), list[Problem]()
    known = {target.name: target for target in beside}
    for result in results:
        try:
            registry.check_together([known[name] for name in (result["target"],) if name in known], beside)
        except ConfigError as error:
            result["ok"] = False
            result["problems"] = [*result["problems"], *map(str, error.problems)]
            problems += error.problems
    return problems


def _content(target: Target) -> dict[str, Any]:
    return {"name": target.name, **target.config.model_dump(mode="json", by_alias=True, exclude={"schema_"})}


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items() if inner != "")
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _after(options: dict[str, Any]) -> str:
    return printable(": " + _plain({key: repr(value) for key, value in options.items()})) if options else ""
