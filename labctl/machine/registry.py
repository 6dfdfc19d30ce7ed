"""Driver name → class → instance, wired to the other drivers of the same target.

A driver is one file: ``labctl/machine/drivers/NAME.py``, or any module named by the entry-point group ``labctl.drivers``, that says
``DRIVER = TheClass``. The class is a dataclass: its fields are its options, checked like every other key of a target's file. A field
typed as a role (`Power`, `Console`, `Deploy`, `Shell`), `Transcript` or `DriverContext` is no option: it is injected. A role that it may do
without (``console: Console | None``) is None where no driver of the target fills it.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import os
import pkgutil
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any, TypeVar, cast, get_type_hints

from pydantic import BaseModel, ConfigDict, create_model

from labctl import process
from labctl.config import nearest, validate
from labctl.errors import ConfigError, HostToolMissing, Problem
from labctl.machine import drivers
from labctl.machine.protocols import ROLES, Console, Counter, Deploy, DriverContext, Power, Shell
from labctl.machine.transcript import Transcript
from labctl.model import Channel, Target

R = TypeVar("R")


def names() -> tuple[str, ...]:
    """Every driver that can be named: ours and those of installed packages."""
    ours = {module.name for module in pkgutil.iter_modules(drivers.__path__) if not module.name.startswith("_")}
    return tuple(sorted(ours | {entry.name for entry in entry_points(group="labctl.drivers")}))


@cache
def load(name: str) -> type[Any]:
    """The class of a driver, imported now. ConfigError with the nearest name if there is none."""
    if name.isidentifier() and importlib.util.find_spec(f"{drivers.__name__}.{name}"):
        module = importlib.import_module(f"{drivers.__name__}.{name}")
        return cast(type[Any], module.DRIVER)
    for entry in entry_points(group="labctl.drivers"):
        if entry.name == name:
            return cast(type[Any], getattr(entry.load(), "DRIVER", None) or entry.load())
    raise ConfigError([Problem("driver", name, f"unknown driver {name!r}", nearest(name, names()))])


def roles_of(driver: type[Any]) -> tuple[type, ...]:
    """The roles whose every method the class has."""
    return tuple(role for role in ROLES if all(callable(getattr(driver, verb, None)) for verb in _verbs(role)))


def _verbs(role: type) -> list[str]:
    return [name for name in vars(role) if not name.startswith("_")]


def _fields(driver: type[Any]) -> tuple[dict[str, Any], type[BaseModel]]:
    """A driver's injected fields (name → type), and a model of its options."""
    return _fields_of(cast(Hashable, driver))


@cache
def _fields_of(driver: Any) -> tuple[dict[str, Any], type[BaseModel]]:
    hints = get_type_hints(driver, include_extras=True)
    injected: dict[str, Any] = {}
    options: dict[str, Any] = {}
    for field in dataclasses.fields(driver):
        kind = hints[field.name]
        if _role(kind) is not None or kind in (Transcript, DriverContext):
            injected[field.name] = kind
        elif field.init:
            default = field.default if field.default is not dataclasses.MISSING else ...
            if field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            options[field.name] = (kind, default)
    model = create_model(f"{driver.__name__}Options", __config__=ConfigDict(extra="forbid", frozen=True), **options)
    return injected, cast(type[BaseModel], model)


def _role(kind: Any) -> type | None:
    """The role that a field's type asks for, needed or not; None if it is none."""
    return next((role for role in ROLES if kind in (role, role | None)), None)


def _where(target: Target) -> str:
    return f"targets/{target.name}.toml"


def check(target: Target) -> None:
    """Everything about a target's drivers that can be known without touching the machine. ConfigError with every mistake."""
    if target.machines:
        _check_each(target.parts)
        return
    problems: list[Problem] = []
    filled: dict[type, str] = {}
    wanted: list[tuple[str, str, type]] = []
    for name, options in target.config.drivers.items():
        try:
            driver = load(name)
            injected, model = _fields(driver)
        except ConfigError as error:
            problems += [dataclasses.replace(p, where=_where(target), key=f"drivers.{name}") for p in error.problems]
            continue
        try:
            validate(model, options, _where(target), f"drivers.{name}")
        except ConfigError as error:
            problems += error.problems
        else:
            says = getattr(driver, "problems", None)
            problems += says(target, options) if callable(says) else []
        for role in roles_of(driver):
            if role in filled:
                problems.append(
                    Problem(_where(target), f"drivers.{name}", f"is a second {role.__name__} beside {filled[role]}", "one driver a role")
                )
            filled[role] = name
        wanted += [(name, field, kind) for field, kind in injected.items() if kind in ROLES]
    for name, field, kind in wanted:
        if kind not in filled:
            problems.append(
                Problem(_where(target), f"drivers.{name}", f"needs a {kind.__name__} ({field})", "add a driver that fills that role")
            )
    if not problems and target.config.channel is Channel.ICOUNT and (why := why_not_counted(target)):
        problems.append(Problem(_where(target), "channel", f"icount: {why}", "wall, or a machine that QEMU emulates without KVM"))
    if problems:
        raise ConfigError(problems)


def _check_each(targets: Sequence[Target]) -> None:
    problems: list[Problem] = []
    for target in {target.name: target for target in targets}.values():
        try:
            check(target)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)


def why_not_counted(target: Target) -> str:
    """Why instructions cannot be counted on a target; empty if they can. Its `Counter` says it in ``why_not_counted(options)``."""
    if target.machines:
        return "it has several machines, and each counts its own time"
    for name, options in target.config.drivers.items():
        try:
            driver = load(name)
        except ConfigError:
            return ""  # `check` tells what is wrong with a target that is used
        if Counter in roles_of(driver):
            says = getattr(driver, "why_not_counted", None)
            return str(says(options)) if callable(says) else ""
    return "no driver of the target counts instructions"


def on_channel(target: Target, channel: Channel) -> Target:
    """The target as a cell of that channel has it. A driver may change the machine for it (``counted(config, options)``)."""
    config = target.config
    if channel is Channel.WALL and config.channel is Channel.WALL:
        return target
    config = config.model_copy(update={"channel": channel})
    if channel is Channel.ICOUNT:
        for name, options in config.drivers.items():
            if callable(counted := getattr(load(name), "counted", None)):
                config = counted(config, options)
    return Target(target.name, config)


def occupied(target: Target) -> tuple[str, ...]:
    """What only one owner on the host can use at a time, whatever lab describes it: what the drivers name in ``occupies(options)``, such as
    a BMC, an outlet, a serial port. Empty for an emulated machine."""
    found: set[str] = set()
    for part in target.parts:
        for name, options in part.config.drivers.items():
            says = getattr(load(name), "occupies", None)
            if callable(says):
                found.add(says(options))
    return tuple(sorted(found))


def check_together(targets: Sequence[Target], beside: Sequence[Target] = ()) -> None:
    """What targets must not share, nor any of them with one ``beside`` them: the BMC or the outlet that a driver names in
    ``occupies(options)``. ConfigError with every pair, but those with the same one beside them as one."""
    problems: list[Problem] = []
    taken: dict[str, str] = {}
    told: set[tuple[str, str]] = set()
    # A target of several machines shares with those that its own file names, and with nobody else.
    for part in (part for target in targets for part in target.parts):
        for name, options in part.config.drivers.items():
            says = getattr(load(name), "occupies", None)
            thing = says(options) if callable(says) else None
            if thing is None or taken.setdefault(thing, part.name) == part.name or (thing, part.name) in told:
                continue
            told.add((thing, part.name))  # by two drivers: once is enough
            problems.append(Problem(_where(part), f"drivers.{name}", f"names {thing}, as target {taken[thing]} does", "one target each"))
    own = {part.name for target in targets for part in target.parts}
    others: dict[str, list[Target]] = {}
    for other in (part for target in beside for part in target.parts if part.name not in own):
        with suppress(ConfigError):  # a mistake in a file that is not used is told when it is
            for thing in occupied(other):
                others.setdefault(thing, []).append(other)
    for thing, (first, *more) in others.items():
        if thing in taken:
            also = f", and as {_listed([other.name for other in more])} do" if more else ""
            problems.append(Problem(_where(first), "drivers", f"names {thing}, as target {taken[thing]} does{also}", "one target each"))
    if problems:
        raise ConfigError(problems)


def _listed(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def stays_on(target: Target) -> bool:
    """Whether its machine stays on when the process that switched it on ends: its Power driver says ``stays_on``."""
    return any(getattr(load(name), "stays_on", False) for part in target.parts for name in part.config.drivers)


def takes_wires(target: Target) -> bool:
    """Whether the lab itself carries what its network cards say to other machines: a driver says ``takes_wires``."""
    return any(getattr(load(name), "takes_wires", False) for name in target.config.drivers)


def host_programs(target: Target) -> list[str]:
    """Programs of the host that the target's drivers call: what each says in ``host_programs(target, options)``, if it says it."""
    return [program for _, _, program in _called(target)]


def missing_programs(target: Target) -> list[HostToolMissing]:
    """Those of them that the host lacks, each with the driver that calls it."""
    missing = []
    for name, driver, program in _called(target):
        try:
            process.find(program)
        except HostToolMissing as error:
            # What the lab does not call of its own accord is no package's name.
            known = program in process.PACKAGES or os.sep in program
            remedy = error.remedy if known else f"install it, or correct targets/{name}.toml"
            missing.append(HostToolMissing(f"drivers.{driver}: {error.message}", target=name, remedy=remedy))
    return missing


def _called(target: Target) -> Iterator[tuple[str, str, str]]:
    """Those programs, each behind the names of the target and the driver that calls it."""
    for part in target.parts if target.machines else ():
        yield from _called(part)
    for name, options in target.config.drivers.items():
        needs = getattr(load(name), "host_programs", None)
        if callable(needs):
            yield from ((target.name, name, program) for program in needs(target, options))


def in_guest(target: Target) -> str:
    """What the lab's agent in the machine is started with, if a driver speaks to it: what that says in ``in_guest(options)``. Of
    several machines, all of which boot one build, the first one's driver says it."""
    for name, options in (each for part in target.parts for each in part.config.drivers.items()):
        if callable(says := getattr(load(name), "in_guest", None)):
            return str(says(options))
    return ""


def takes_image(target: Target) -> bool:
    """Whether a driver of the target gives the machine a build's root file system as a disk: what it says in ``takes_image(options)``."""
    says = ((getattr(load(name), "takes_image", None), options) for name, options in target.config.drivers.items())
    return any(bool(each(options)) for each, options in says if callable(each))


def why_not_hypervisor(target: Target, *, multiboot: bool) -> str:
    """Why a target cannot run a hypervisor, or one that is booted by ``multiboot``; empty if it can, or nobody knows before it is tried.
    Its Deploy says ``boots_dom0`` if it can do the latter, and more in ``why_not_hypervisor(target, options, multiboot)``."""
    for part in target.parts:
        for name, options in part.config.drivers.items():
            driver = load(name)
            if Deploy not in roles_of(driver):
                continue
            if multiboot and not getattr(driver, "boots_dom0", False):
                return f"the driver {name} boots a Linux kernel alone; Xen is booted by multiboot, with its first machine as modules"
            says = getattr(driver, "why_not_hypervisor", None)
            if callable(says) and (why := str(says(part, options, multiboot))):
                return why
    return ""


def host_share(target: Target) -> tuple[int, int]:
    """CPUs, and bytes of memory, that a cell on the target takes of the lab's host. A server has its own, unless its file says
    ``on_host``; of an emulator's CPUs those that a driver says in ``host_cpus(target, options)``."""
    if target.machines:
        shares = [host_share(part) for part in target.parts]
        return sum(cpus for cpus, _ in shares), sum(memory for _, memory in shares)
    if is_server(target) and not target.config.on_host:
        return 0, 0
    says = ((getattr(load(name), "host_cpus", None), options) for name, options in target.config.drivers.items())
    cpus = next((int(each(target, options)) for each, options in says if callable(each)), target.config.cpus)
    return min(target.config.cpus, cpus), target.config.memory


def is_server(target: Target) -> bool:
    """Whether it is there without its owner: an emulator that fills all roles itself is not."""
    return "qemu" not in target.config.drivers and any(callable(getattr(load(name), "state", None)) for name in target.config.drivers)


@dataclass(frozen=True)
class Machine:
    """A target with its drivers, wired. A role that no driver fills raises ConfigError when it is asked for."""

    target: Target
    transcript: Transcript
    roles: Mapping[type, Any]

    def role(self, kind: type[R]) -> R:
        if kind not in self.roles:
            raise ConfigError(
                [
                    Problem(
                        _where(self.target),
                        "drivers",
                        f"no driver fills the role {kind.__name__}",
                        f"drivers: {', '.join(names())}",
                    )
                ]
            )
        return cast(R, self.roles[kind])

    @property
    def power(self) -> Power:
        return self.role(Power)  # type: ignore[type-abstract]

    @property
    def console(self) -> Console:
        return self.role(Console)  # type: ignore[type-abstract]

    @property
    def deploy(self) -> Deploy:
        return self.role(Deploy)  # type: ignore[type-abstract]

    @property
    def shell(self) -> Shell:
        return self.role(Shell)  # type: ignore[type-abstract]

    def has(self, kind: type) -> bool:
        return kind in self.roles


def assemble(context: DriverContext, transcript: Transcript) -> Machine:
    """Make the drivers of a target, each after those that it needs. ConfigError if the file is wrong or they need each other."""
    target = context.target
    check(target)
    roles: dict[type, Any] = {}
    waiting = {name: load(name) for name in target.config.drivers}
    while waiting:
        coming = {role for driver in waiting.values() for role in roles_of(driver)}
        ready = [n for n, d in waiting.items() if coming.isdisjoint(role for kind in _fields(d)[0].values() if (role := _role(kind)))]
        if not ready:
            raise ConfigError([Problem(_where(target), "drivers", f"{', '.join(waiting)} need each other", "drivers without a circle")])
        for name in ready:
            driver = waiting.pop(name)
            injected, model = _fields(driver)
            given = validate(model, target.config.drivers[name], _where(target), f"drivers.{name}")
            sources: dict[Any, Any] = {**roles, Transcript: transcript, DriverContext: context}
            instance = driver(
                **{field: sources.get(_role(kind) or kind) for field, kind in injected.items()},
                **{field: getattr(given, field) for field in type(given).model_fields},
            )
            roles |= dict.fromkeys(roles_of(driver), instance)
    return Machine(target, transcript, roles)
