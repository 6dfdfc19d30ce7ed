"""A cell in the process that runs its tests: its attempts from the first test to the last, each test's result by whose fault it is."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

from labctl.errors import ConfigError, InfraError, LabctlError, MeasurementInvalid, StorageError, TargetFailure
from labctl.model import Cell, Channel, Outcome
from labctl.result import TestResult
from labctl.run.attempt import CellAttempt
from labctl.run.equip import Equipment
from labctl.run.lines import told_of
from labctl.run.stories import MARKER
from labctl.run.work import Work
from labctl.store.writer import RunWriter

CELLS = pytest.StashKey["CellRunner"]()
ERROR = pytest.StashKey[BaseException | None]()
WHERE = pytest.StashKey[tuple[str, ...]]()
"""Lines of the suite that the test failed in."""
UNSTORED = "labctl-unstored"
"""Property of a report: why nothing more of the run can be written."""


EXPECTED = pytest.StashKey[BaseException]()
"""How a test has failed that its author expects to fail (xfail)."""
_UNEXPECTED = "[XPASS(strict)] "
_IN_FIXTURE = {"setup": " (in a fixture, before the test)", "teardown": " (in a fixture, after the test)"}


class CellRunner:
    """In the process that runs the tests: the current cell's attempt, from its first test to its last."""

    def __init__(self, work: Work, worker: str) -> None:
        self.work = work
        self.equipment = Equipment(work)
        self.worker = worker
        self.by_suite: dict[str, list[Cell]] = {}
        for cell in work.cells:
            self.by_suite.setdefault(cell.suite, []).append(cell)
        self.order = {cell.id: index for index, cell in enumerate(work.cells)}
        self.current: CellAttempt | None = None
        self.cold: set[str] = set()
        """Cells that failed on a copy of a machine: they are booted from then on."""

    @cached_property
    def writer(self) -> RunWriter:
        """Opened by the first attempt: suites are also read where there is no run."""
        return RunWriter.open(self.work.folder)

    def suite_of(self, path: Path) -> str | None:
        """The suite that a test file belongs to: the first folder below ``suites/``."""
        suites = self.work.lab_root / "suites"
        for place, root in ((path, suites), (path.resolve(), suites.resolve())):  # as it is named, else as it lies: either may be a link
            if place.is_relative_to(root) and (parts := place.relative_to(root).parts):
                return parts[0]
        return None

    def run(self, item: pytest.Item, nextitem: pytest.Item | None, cell: Cell) -> list[pytest.TestReport]:
        """Run one test in its cell; an error of the lab's own is tried again on a fresh attempt."""
        # Counted figures do not change with the host's load: their cells share it.
        timed = cell.channel is Channel.WALL
        benchmark = timed and any(i.get_closest_marker("benchmark") for i in item.session.items if cell_of(i) == cell)
        try:
            while True:
                attempt = self._enter(cell, benchmark)
                item.stash[ERROR], item.stash[WHERE] = None, ()
                held_before = attempt.held
                attempt.test_begins()
                reports = runtestprotocol(item, log=False, nextitem=nextitem)
                error = item.stash[ERROR]
                result = _result(item, reports, error)
                if not held_before and attempt.held:  # waiting for others is no part of a test
                    result = replace(result, duration_s=max(0.0, result.duration_s - attempt.waited))
                attempt.add(result, error)
                mistaken = isinstance(error, ConfigError)  # of a file: no other machine makes it right
                if attempt.copied and result.outcome in (Outcome.FAIL, Outcome.ERROR) and not mistaken:
                    self.cold.add(cell.id)  # whether that is the copy's fault, a boot tells
                elif not isinstance(error, InfraError) or attempt.record.number > self.work.retries:
                    break
                self.leave()
                item._initrequest()  # type: ignore[attr-defined]  # as pytest-rerunfailures does: fixtures anew
            if nextitem is None or cell_of(nextitem) != cell:
                self.leave()
        except StorageError as error:
            # Nothing that comes now could be kept: the run ends, and its controller says why.
            with suppress(StorageError):
                self.leave(interrupted=True)
            item.session.shouldstop = error.title
            return [_unstored(item, error)]
        except BaseException:
            self.leave(interrupted=True)
            raise
        return reports

    def _enter(self, cell: Cell, benchmark: bool) -> CellAttempt:
        if self.current is not None and self.current.cell != cell:
            self.leave()
        if self.current is None:
            cold = benchmark or self.work.cold or cell.suite not in self.work.warm or cell.id in self.cold
            self.current = CellAttempt(self.equipment, self.writer, cell, self.worker, benchmark, cold)
        return self.current

    def leave(self, *, interrupted: bool = False) -> None:
        """Close the current attempt, if there is one."""
        attempt, self.current = self.current, None
        if attempt is None:
            return
        if interrupted:
            attempt.abandon()
        else:
            attempt.close()

    @property
    def attempt(self) -> CellAttempt:
        if self.current is None:
            raise pytest.UsageError("this fixture works only in a test of a suite")
        return self.current


class Skipped(pytest.Item):
    """Stands for the tests of a file that skips itself as a whole while it is read, or for those of a cell of which none was selected: else
    nothing of them would be in the record."""

    def __init__(self, *, cell: Cell, told: str, why: str, **parent: Any) -> None:
        super().__init__(name=f"skipped[{cell.id}]", **parent)
        self.cell = cell
        self.told = told
        """What they are called in the record."""
        self.why = why

    def runtest(self) -> None:
        pytest.skip(self.why)


def cell_of(item: pytest.Item) -> Cell | None:
    if isinstance(item, Skipped):
        return item.cell
    callspec = getattr(item, "callspec", None)
    found = callspec.params.get("cell") if callspec is not None else None
    return found if isinstance(found, Cell) else None


def name_of(item: pytest.Item) -> str:
    """The test's name without its cell: ``test_boot.py::test_ready`` or ``test_boot.py::test_x[a-1]``."""
    if isinstance(item, Skipped):
        return item.told
    cell = cell_of(item)
    inner = item.name.partition("[")[2].rstrip("]")
    rest = inner.removeprefix(cell.id).removeprefix("-") if cell else inner
    plain = getattr(item, "originalname", item.name)
    return f"{item.path.name}::{plain}" + (f"[{rest}]" if rest else "")


def _result(item: pytest.Item, reports: Sequence[pytest.TestReport], error: BaseException | None) -> TestResult:
    """Setup, call and teardown of a test → one result, named by whose fault it is."""
    return replace(_ended(item, reports, error), stories=stories_of(item))


def stories_of(item: pytest.Item) -> tuple[str, ...]:
    """Those that the test proves, those of its module first."""
    markers = [*item.iter_markers(MARKER)][::-1]
    return tuple(dict.fromkeys(story for marker in markers for story in marker.args))


def _ended(item: pytest.Item, reports: Sequence[pytest.TestReport], error: BaseException | None) -> TestResult:
    duration = sum(report.duration for report in reports)
    bad = next((report for report in reports if report.failed), None)
    if bad is not None and error is None and bad.longreprtext.startswith(_UNEXPECTED):
        return TestResult(name_of(item), Outcome.FAIL, duration, f"passes, and was to fail: {bad.longreprtext.removeprefix(_UNEXPECTED)}")
    if bad is not None:
        outcome, lines = _outcome_of(error, bad.when), item.stash.get(WHERE, ())
        if isinstance(error, LabctlError):
            return TestResult(name_of(item), outcome, duration, error.title, told_of(error, lines) if lines else "", where=lines)
        reason = _first_line(error) + _IN_FIXTURE.get(bad.when, "")
        return TestResult(name_of(item), outcome, duration, reason, bad.longreprtext[-20000:], where=lines)
    skipped = next((report for report in reports if report.skipped), None)
    if skipped is not None and hasattr(skipped, "wasxfail"):
        why = skipped.wasxfail.removeprefix("reason: ") or _first_line(item.stash.get(EXPECTED, None))
        return TestResult(name_of(item), Outcome.SKIP, duration, f"fails as expected: {why}")
    if skipped is not None:
        where = skipped.longrepr
        reason = where[2] if isinstance(where, tuple) else str(where)
        return TestResult(name_of(item), Outcome.SKIP, duration, reason.removeprefix("Skipped: "))
    return TestResult(name_of(item), Outcome.PASS, duration)


def _outcome_of(error: BaseException | None, when: str | None) -> Outcome:
    if isinstance(error, TargetFailure):
        return Outcome.FAIL
    if isinstance(error, MeasurementInvalid):
        return Outcome.INVALID
    if isinstance(error, LabctlError):
        return Outcome.ERROR
    # A check of a fixture's is one of the test's; anything else that goes wrong there says nothing of the build.
    return Outcome.FAIL if when == "call" or isinstance(error, AssertionError) else Outcome.ERROR


def _unstored(item: pytest.Item, error: StorageError) -> pytest.TestReport:
    properties = [(UNSTORED, str(error))]
    return pytest.TestReport(item.nodeid, item.location, {}, "failed", str(error), "setup", user_properties=properties)


def _first_line(error: BaseException | None) -> str:
    if isinstance(error, pytest.FixtureLookupError):
        return f"fixture {error.argname!r} not found"
    text = str(error).strip().splitlines()
    name = type(error).__name__ if error is not None else "failed"
    return f"{name}: {text[0]}" if text else name
