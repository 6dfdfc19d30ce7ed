"""What a run would do with each of its cells: run it, start its machine as a copy, or have its result from an earlier run. Nothing is
built, downloaded or powered; the suites are read."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from labctl.build import suite
from labctl.build.cache import Cache, NotMade, Shelf
from labctl.build.obtain import held
from labctl.errors import ConfigError, LabctlError, Problem, StorageError
from labctl.machine import registry
from labctl.machine.warm import Unusable, foreseen
from labctl.model import Build, Cell, Channel
from labctl.run import reuse
from labctl.run.equip import equipped
from labctl.run.prepare import Planned, described, proves_nothing
from labctl.run.work import Work, suited_key
from labctl.store import host
from labctl.store.inputs import Groups, changed, listed, of_build, record
from labctl.store.past import conditions_of
from labctl.store.proven import Past, past

_NOT_MADE = "not made"
"""Key of a cell of which it is not known what it boots: no earlier result has it."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What becomes of a cell if the run begins now."""

    will: Literal["run", "copy", "reuse"]
    """Be run on a machine that is booted for it, or on a copy of one that was; or be had from an earlier run."""
    why: str = ""
    reused_from: str = ""
    """Id of that run."""
    changed: tuple[str, ...] = ()
    """Names of its inputs that are otherwise than in the run in which it passed last, as far as they are known."""


@dataclass(frozen=True)
class Outlook:
    """Of all cells, by their ids."""

    planned: Planned
    cells: Mapping[str, Forecast]

    def suites(self) -> list[Path]:
        """Those that the run would read: of a cell that is not run nothing is."""
        return sorted({self.planned.lab.suite(cell.suite) for cell in self.planned.cells if self.cells[cell.id].will != "reuse"})

    def reading(self) -> Work:
        """What is needed to read them: one cell of each stands for all."""
        lab = self.planned.lab
        one = {cell.suite: cell for cell in reversed(self.planned.cells) if self.cells[cell.id].will != "reuse"}
        return Work(
            lab.root,
            lab.root,
            retries=0,
            cells=tuple(one.values()),
            costs={},
            builds={},
            suited={},
            targets=self.planned.targets,
            warm=frozenset(name for name in one if lab.suite_config(name).may_copy),
            cold=self.planned.request.cold,
            stories=self.planned.request.stories,
        )

    def knowing(self, measuring: Collection[str]) -> Outlook:
        """The same when it is known which suites measure."""
        why = "it measures: a figure is of its day"
        measured = [cell.id for cell in self.planned.cells if cell.suite in measuring and cell.channel is Channel.WALL]
        told = {cell_id: replace(self.cells[cell_id], why=why) for cell_id in measured if self.cells[cell_id].will == "run"}
        return replace(self, cells={**self.cells, **told})


def look_ahead(planned: Planned) -> Outlook:
    """What is known before the suites are read. ConfigError."""
    names = list(dict.fromkeys(cell.build for cell in planned.cells))
    with ThreadPoolExecutor(max_workers=4) as pool:
        identity = pool.submit(host.identity)  # asks QEMU for its version
        found = dict(zip(names, pool.map(lambda name: _held(planned, name), names), strict=True))
    builds = {build.name: build for build in found.values() if isinstance(build, Build)}
    cells = {cell.id: _named(cell, found[cell.build]) for cell in planned.cells}
    shelf = Shelf()
    suited, lacking = _suited(planned, list(cells.values()), builds, shelf)
    lacking |= {cell.build: build for cell in planned.cells if isinstance(build := found[cell.build], str)}
    known = {cell_id for cell_id, cell in cells.items() if not {cell.build, suited_key(cell)} & lacking.keys()}
    at_hand = [cell for cell in cells.values() if cell.build in builds]
    deciding = reuse.deciding(planned.lab.root, at_hand, {**builds, **suited}, planned.targets, identity.result())
    tables = {name: described(planned.lab, build) for name, build in builds.items()}
    unproving = proves_nothing(planned, list(cells.values()), tables)
    keys = {cell_id: key if cell_id in known else _NOT_MADE for cell_id, key in deciding.keys.items()}
    earlier = past(planned.results, {cell_id: key for cell_id, key in keys.items() if cell_id not in unproving})
    request = planned.request
    asked = "--fresh" if request.fresh else "--cold" if request.cold else ""
    forecasts: dict[str, Forecast] = {}
    with tempfile.TemporaryDirectory(prefix="labctl-forecast-") as folder:
        for cell_id, cell in cells.items():
            before = earlier.get(cell.id, Past())
            lacks = lacking.get(cell.build) or lacking.get(suited_key(cell)) or ""
            why = asked or unproving.get(cell.id) or lacks
            if not why and before.reused is not None:
                same = "it passed there, and nothing that decides it has changed"
                forecasts[cell_id] = Forecast("reuse", same, before.reused.run)
                continue
            of_its_build = {of_build(cell.build)} if lacks else set()
            what = () if asked or cell.id in unproving else _changed(before, cell, deciding.inputs, planned.results, of_its_build)
            boots = suited.get(suited_key(cell), builds[cell.build]) if cell_id in known else None
            workdir = Path(folder) / str(len(forecasts))
            workdir.mkdir()
            since = f"changed since it passed in {before.otherwise}: {listed(what)}" if what else ""
            told = "; ".join(filter(None, (why, since))) or _why_again(before)
            forecasts[cell_id] = replace(_started(planned, cell, boots, told, shelf, workdir), changed=what)
    return Outlook(planned, forecasts)


def _named(cell: Cell, build: Build | str) -> Cell:
    """As the run names it: a kernel's file is called otherwise than it was asked for."""
    return replace(cell, build=build.name) if isinstance(build, Build) else cell


def _held(planned: Planned, name: str) -> Build | str:
    """The build, or why it is not at hand. ConfigError."""
    try:
        return held(planned.lab, name) or "its build is not made yet"
    except (ConfigError, StorageError):
        raise
    except LabctlError as error:
        return f"its build cannot be told: {error.title}"


def _suited(planned: Planned, cells: Sequence[Cell], builds: Mapping[str, Build], shelf: Cache) -> tuple[dict[str, Build], dict[str, str]]:
    """By ``BUILD/SUITE`` what the suite boots of the build where that is more than the build, and why that cannot be told. ConfigError
    with the mistakes of all."""
    suited: dict[str, Build] = {}
    lacking: dict[str, str] = {}
    problems: list[Problem] = []
    for key, cell in {suited_key(cell): cell for cell in cells if cell.build in builds}.items():
        try:
            build = suite.with_suite(planned.lab, builds[cell.build], cell.suite, cache=shelf)
        except NotMade:
            lacking[key] = "what its suite needs in the machine is not made yet"
        except ConfigError as error:
            problems += error.problems
        except StorageError:
            raise
        except LabctlError as error:
            lacking[key] = f"what its suite needs in the machine cannot be told: {error.title}"
        else:
            if build is not builds[cell.build]:
                suited[key] = build
    if problems:
        raise ConfigError(problems)
    return suited, lacking


def _changed(before: Past, cell: Cell, now: Groups, results: Path, unknown: Collection[str]) -> tuple[str, ...]:
    """Since it passed last, where nothing newer speaks against it; empty where that is not known."""
    then = conditions_of(results, before.otherwise) if before.otherwise and not before.against else None
    return changed(cell, then.decided_by, record(now), unknown) or () if then is not None else ()


def _why_again(before: Past) -> str:
    if before.against:
        return f"its newest result is a {before.against}"
    if before.otherwise:
        return f"something that decides it has changed since it passed in {before.otherwise}"
    return "no earlier run has proven it"


def _started(planned: Planned, cell: Cell, build: Build | None, why: str, shelf: Cache, workdir: Path) -> Forecast:
    """A cell that is run: on a copy, or booted and, where its suite would take a copy, why so."""
    if not planned.lab.suite_config(cell.suite).may_copy or planned.request.cold:
        return Forecast("run", why)
    if build is None:
        return Forecast("run", why)
    target = registry.on_channel(planned.targets[cell.target], cell.channel)
    try:
        what = foreseen(target, equipped(build, target, cache=shelf), workdir)
    except NotMade:
        return Forecast("copy", f"{why}; of a machine that is booted first, and kept")
    except StorageError:
        raise
    except (Unusable, LabctlError) as error:
        return Forecast("run", f"{why}; no copy: {error.title if isinstance(error, LabctlError) else error}")
    return Forecast("copy", f"{why}; {what}")
