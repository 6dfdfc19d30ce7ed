"""From what the user asked for to a run that can start: cells, builds in the cache, targets checked, the run's folder made.

Everything that can be wrong in the lab's files is found here, before any power is applied.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from labctl import __version__
from labctl.build import suite
from labctl.build.obtain import by_multiboot, check, obtain, recipes
from labctl.config import Lab, nearest
from labctl.errors import BuildFailed, ConfigError, Problem
from labctl.hypervisor import registry as hypervisors
from labctl.judge.promise import promises_of
from labctl.machine import budget, registry, standing
from labctl.model import Build, Cell, Channel, MatrixConfig, Recipe, Target
from labctl.result import LeftOut, Reused
from labctl.run import reuse
from labctl.run.equip import equipped
from labctl.run.matrix import expand
from labctl.run.stories import behind_stories, check_form, stories_of
from labctl.run.work import suited_key
from labctl.store import host
from labctl.store.history import expected, expected_durations, expected_from
from labctl.store.proven import proven
from labctl.store.writer import RunWriter

_HV = "a target with SVM or VMX that boots it, as hv-2c-2g"


@dataclass(frozen=True)
class Request:
    """What was asked for on the command line. ``matrix`` None: just the builds × targets × suites named."""

    matrix: str | None = None
    builds: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    suites: tuple[str, ...] = ()
    repeat: int | None = None
    results: Path | None = None
    channels: tuple[Channel, ...] = ()
    whole: bool = False
    """Every test of each suite is run: what passes may stand for later runs."""
    fresh: bool = False
    """Results of earlier runs do not stand for this one."""
    cold: bool = False
    """Every machine is booted, none is a copy of one that was."""
    stories: tuple[str, ...] = ()
    """Only tests that prove one of these stories of the plan; empty: all tests."""


@dataclass(frozen=True)
class Planned:
    """The cells, longest first, and what each is expected to take by history (seconds, None where there is none)."""

    lab: Lab
    request: Request
    cells: tuple[Cell, ...]
    left_out: tuple[LeftOut, ...]
    targets: Mapping[str, Target]
    costs: Mapping[str, float | None]
    costs_from: Mapping[str, Literal["history", "similar"] | None]
    """Whether the cell itself was run before, or only cells like it."""

    @property
    def results(self) -> Path:
        return self.request.results or self.lab.results


def plan(lab: Lab, request: Request) -> Planned:
    """Expand the matrix and check every file it touches. ConfigError; nothing is built or powered."""
    matrix = (
        lab.matrix(request.matrix)
        if request.matrix
        else MatrixConfig(schema=1, builds=request.builds or ("*",), targets=request.targets or ("*",), suites=request.suites or ("*",))
    )
    files = [name for name in request.builds if is_file(lab, name)]
    known = recipes(lab)
    arch_of_build = {name: recipe.arch for name, recipe in known.items()}
    targets = _read_all(lab)

    def uncountable(build: str, target: str) -> str:
        most = known[build].icount_cpus if build in known else None
        if most is not None and targets[target].config.cpus > most:
            return f"counted, {build} comes up on {most} CPU{'s' if most > 1 else ''} at most"
        return registry.why_not_counted(targets[target])

    expanded = expand(
        matrix,
        where=f"matrix/{request.matrix}.toml" if request.matrix else "command line",
        builds=tuple(lab.recipe_files),
        targets=tuple(lab.target_files),
        suites=tuple(lab.suites),
        arch_of_build=arch_of_build,
        arch_of_target={name: target.config.arch for name, target in targets.items()},
        extra_builds=tuple(files),
        only_builds=request.builds,
        only_targets=request.targets,
        only_suites=request.suites,
        repeat=request.repeat,
        channels=request.channels,
        channel_of_target={name: target.config.channel for name, target in targets.items()},
        uncountable=uncountable,
    )
    if request.stories:
        expanded = replace(expanded, cells=_proving(lab, expanded.cells, request.stories))
    used = {cell.target for cell in expanded.cells}
    problems: list[Problem] = []
    try:
        lab.stories  # noqa: B018 - read now, so that its mistakes are told before any power
    except ConfigError as error:
        problems += error.problems
    for name in sorted(used):
        try:
            registry.check(targets[name])
        except ConfigError as error:
            problems += error.problems
    if not problems:
        try:
            registry.check_together([targets[name] for name in sorted(used)], beside=[targets[name] for name in sorted(targets)])
        except ConfigError as error:
            problems += error.problems
    for name in sorted({cell.build for cell in expanded.cells}):
        try:
            check(lab, name)
        except ConfigError as error:
            problems += error.problems
    for name in sorted({cell.suite for cell in expanded.cells}):
        try:
            suite.check(lab, name)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    out = {n: why for n in used if (why := _why_left_out(lab, targets[n]))}
    cells = [cell for cell in expanded.cells if cell.target not in out]
    left_out = [*expanded.left_out, *(LeftOut(c, out[c.target]) for c in expanded.cells if c.target in out)]
    if not cells:
        raise ConfigError([Problem(f"targets/{n}.toml", "", why, "a target that is free and healthy") for n, why in sorted(out.items())])
    too_large = {n: why for n in used if (why := budget.fits(*registry.host_share(targets[n])))}
    left_out += [LeftOut(c, too_large[c.target]) for c in cells if c.target in too_large]
    cells = [cell for cell in cells if cell.target not in too_large]
    if not cells:
        raise ConfigError([Problem(f"targets/{n}.toml", "memory", why, "a target that this host can hold") for n, why in too_large.items()])
    no_disk = {cell.id: why for cell in cells if (why := _why_no_image(lab, cell.suite, targets[cell.target]))}
    left_out += [LeftOut(cell, no_disk[cell.id]) for cell in cells if cell.id in no_disk]
    cells = [cell for cell in cells if cell.id not in no_disk]
    if not cells:
        raise ConfigError("no cell can be run: " + "; ".join(dict.fromkeys(no_disk.values())))
    cannot = _why_no_hypervisor(lab, cells, known, targets)
    left_out += [LeftOut(cell, cannot[cell.build, cell.target]) for cell in cells if (cell.build, cell.target) in cannot]
    cells = [cell for cell in cells if (cell.build, cell.target) not in cannot]
    if not cells:
        raise ConfigError([Problem(f"targets/{t}.toml", "drivers", f"{b} cannot run there: {w}", _HV) for (b, t), w in cannot.items()])
    history = expected_durations(request.results or lab.results)
    costs = {cell.id: expected(history, cell) for cell in cells}
    costs_from = {cell.id: expected_from(history, cell) for cell in cells}
    cells.sort(key=lambda cell: -(costs[cell.id] if costs[cell.id] is not None else 1e9))  # type: ignore[operator]
    return Planned(lab, request, tuple(cells), tuple(left_out), {n: targets[n] for n in used}, costs, costs_from)


def _proving(lab: Lab, cells: Sequence[Cell], wanted: Sequence[str]) -> tuple[Cell, ...]:
    """The cells of suites that have tests with one of these stories. ConfigError for one that no suite of these cells has."""
    check_form(wanted, "command line", "--story")
    proven = {suite: stories_of(lab.suite(suite)) for suite in {cell.suite for cell in cells}}
    if missing := [story for story in wanted if not any(story in found for found in proven.values())]:
        every = {suite: stories_of(folder) for suite, folder in lab.suites.items()}
        problems = []
        for story in missing:
            others = [suite for suite, found in every.items() if story in found]
            hint = f"--suite {others[0]} has one" if others else nearest(story, {known for found in every.values() for known in found})
            problems.append(Problem("command line", "--story", f"no test of {', '.join(sorted(proven))} proves {story}", hint))
        raise ConfigError(problems)
    return tuple(cell for cell in cells if not proven[cell.suite].isdisjoint(wanted))


def _read_all(lab: Lab) -> dict[str, Target]:
    """Every target of the lab; the mistakes of all of their files at once."""
    targets: dict[str, Target] = {}
    problems: list[Problem] = []
    for name in lab.target_files:
        try:
            targets[name] = lab.target(name)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return targets


def _why_left_out(lab: Lab, target: Target) -> str:
    """Why no run may have a target now, or one of its machines."""
    names = dict.fromkeys((target.name, *(part.name for part in target.parts)))
    whys = {name: standing.why_left_out(lab.root, name) for name in names}
    return "; ".join(why if name == target.name else f"{name}: {why}" for name, why in whys.items() if why)


def _why_no_image(lab: Lab, suite: str, target: Target) -> str:
    """Why a target can't be given the disk that the suite's root is on; empty if it can, or the suite has none."""
    image = lab.suite_config(suite).image
    if image is None or all(registry.takes_image(part) for part in target.parts):
        return ""
    return f"the suite {suite} has its root on a disk (image {image!r}), which the machine {target.name} can't be given"


def _why_no_hypervisor(
    lab: Lab, cells: Sequence[Cell], known: Mapping[str, Recipe], targets: Mapping[str, Target]
) -> dict[tuple[str, str], str]:
    """Of each build that is a hypervisor, and each target that cannot run it, why."""
    found: dict[tuple[str, str], str] = {}
    for build, target in dict.fromkeys((cell.build, cell.target) for cell in cells):
        recipe = known.get(build)
        if recipe is None or not (recipe.hypervisor or by_multiboot(recipe)):
            continue
        if recipe.hypervisor:
            hypervisors.require(recipe.hypervisor, str(lab.recipe_files[build].relative_to(lab.root)))
        if why := registry.why_not_hypervisor(targets[target], multiboot=by_multiboot(recipe)):
            found[build, target] = why
    return found


def is_file(lab: Lab, name: str) -> bool:
    """Whether a ``--build`` means a file just built, not a recipe."""
    return name not in lab.recipe_files and ("/" in name or Path(name).is_file())


def described(lab: Lab, build: Build) -> dict[str, Any]:
    """A build for run.json, with what its recipe promises. That is no part of the build: the same digest may be held to more tomorrow."""
    table: dict[str, Any] = json.loads(json.dumps(asdict(build), default=str))
    promises = lab.recipe(build.name).model_dump(mode="json")["promises"] if build.name in lab.recipe_files else {}
    return {**table, "promises": promises} if promises else table


def proves_nothing(planned: Planned, cells: Sequence[Cell], tables: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Cell id → why it is run whatever was before, and why its pass stands for no later run. ``tables``: the builds as `described`."""
    # A gate decides by figures, and a cell that is not run has none.
    gated = {name for name, table in tables.items() if any(promise.gate for promise in promises_of(table))}
    repeated = {cell.key for cell in cells if cell.repeat > 1}
    rules: list[tuple[Callable[[Cell], bool], str]] = [
        (lambda _: not planned.request.whole, "a part of a suite is always run"),
        (lambda cell: not planned.lab.suite_config(cell.suite).reuse, "its suite says reuse = false"),
        (lambda cell: cell.key in repeated, "who repeats a cell wants to see it run"),
        (lambda cell: cell.build in gated, "a gate of its build decides by figures"),
    ]
    return {cell.id: why for cell in cells if (why := next((why for rule, why in rules if rule(cell)), ""))}


@dataclass(frozen=True)
class Prepared:
    """A run that can start. `for_workers` gives what a worker needs to know of it, as JSON."""

    planned: Planned
    cells: tuple[Cell, ...]
    """Those that are to be run."""
    reused: Mapping[str, Reused]
    """Id of a cell that need not be run → the run whose result stands."""
    builds: Mapping[str, Build]
    suited: Mapping[str, Build]
    """``BUILD/SUITE`` → what the suite boots of the build, where that is not the build as it is."""
    writer: RunWriter
    retries: int

    def for_workers(self) -> str:
        return json.dumps(
            {
                "lab": str(self.planned.lab.root),
                "folder": str(self.writer.folder),
                "retries": self.retries,
                "cells": [asdict(cell) for cell in self.cells],
                "costs": dict(self.planned.costs),
                "builds": {name: asdict(build) for name, build in self.builds.items()},
                "suited": {name: asdict(build) for name, build in self.suited.items()},
                "targets": {n: t.config.model_dump(mode="json", by_alias=True) for n, t in self.planned.targets.items()},
                "warm": sorted(n for n in {cell.suite for cell in self.cells} if self.planned.lab.suite_config(n).may_copy),
                "cold": self.planned.request.cold,
                "stories": self.planned.request.stories,
            },
            default=str,
        )


def prepare(planned: Planned, argv: Sequence[str], progress: Callable[[str], None]) -> Prepared:
    """Obtain the builds, several at a time, find what need not be run again, and make the run's folder.

    BuildFailed, HostToolMissing, StorageError.
    """
    for name, channel in {(cell.target, cell.channel) for cell in planned.cells}:
        for missing in registry.missing_programs(registry.on_channel(planned.targets[name], channel)):
            raise missing
    wanted = list(dict.fromkeys(cell.build for cell in planned.cells))
    with ThreadPoolExecutor(max_workers=4) as pool:
        identity = pool.submit(host.identity)  # asks QEMU for its version
        made = dict(zip(wanted, pool.map(lambda name: obtain(planned.lab, name, progress=progress), wanted), strict=True))
    for asked, name in dict.fromkeys((cell.build, cell.target) for cell in planned.cells):
        equipped(made[asked], planned.targets[name], progress)  # made now, so that no worker has to, with the machine held
    by_name: dict[str, str] = {}
    for asked, build in made.items():
        if (other := by_name.setdefault(build.name, asked)) != asked:
            raise ConfigError(f"--build {asked} and --build {other} are both named {build.name!r}: give one of the files another name")
    named = {asked: build.name for asked, build in made.items()}
    cells = tuple(replace(cell, build=named[cell.build]) for cell in planned.cells)
    costs = {new.id: planned.costs[old.id] for new, old in zip(cells, planned.cells, strict=True)}
    builds = {build.name: build for build in made.values()}
    suited = _suited(planned.lab, cells, builds, progress)
    deciding = reuse.deciding(planned.lab.root, cells, {**builds, **suited}, planned.targets, identity.result())
    tables = {name: described(planned.lab, build) for name, build in builds.items()}
    unproving = proves_nothing(planned, cells, tables)
    keys = {cell_id: key for cell_id, key in deciding.keys.items() if cell_id not in unproving}
    reused = {} if planned.request.fresh or planned.request.cold else proven(planned.results, keys)
    writer = RunWriter.create(
        planned.results,
        matrix=planned.request.matrix or "",
        argv=argv,
        version=__version__,
        host=identity.result(),
        builds=tables,
        targets={n: t.config.model_dump(mode="json", by_alias=True) for n, t in planned.targets.items()},
        cells=cells,
        left_out=planned.left_out,
        keys=keys,
        tried={cell_id: key for cell_id, key in deciding.keys.items() if cell_id in unproving},
        reused=reused,
        decided_by=deciding.inputs,
        stories=planned.lab.stories,
        story_tests=behind_stories(planned.lab.suites),
    )
    to_run = tuple(cell for cell in cells if cell.id not in reused)
    return Prepared(replace(planned, cells=cells, costs=costs), to_run, reused, builds, suited, writer, planned.lab.config.retries)


def _suited(lab: Lab, cells: Sequence[Cell], builds: Mapping[str, Build], progress: Callable[[str], None]) -> dict[str, Build]:
    """What each suite boots of each build: made now, so that no worker has to with the machine held. ConfigError with the mistakes of
    all, for instance a module that a kernel does not have."""
    suited: dict[str, Build] = {}
    problems: list[Problem] = []
    for cell in {suited_key(cell): cell for cell in cells}.values():
        try:
            build = suite.with_suite(lab, builds[cell.build], cell.suite, progress)
        except ConfigError as error:
            problems += error.problems
            continue
        except BuildFailed as error:  # a tool of the suite's: that says nothing about the build under test
            problems.append(Problem(f"suites/{cell.suite}/suite.toml", "", error.message, error.remedy or "tools that can be made"))
            continue
        if build is not builds[cell.build]:
            suited[suited_key(cell)] = build
    if problems:
        raise ConfigError(problems)
    return suited
