"""What a run came to, as read back from its folder: samples, tests, attempts, cells. Frozen values; no I/O.

Units are SI: seconds, bytes, counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from labctl.histogram import Histogram
from labctl.model import Cell, Channel, Direction, Outcome


@dataclass(frozen=True)
class Sample:
    """One observation of a metric. Its cell, attempt and test are those of the record that holds it."""

    metric: str
    value: float
    unit: str
    direction: Direction
    channel: Channel
    test: str
    """Node id of the test that recorded it, without the cell's own brackets."""
    params: Mapping[str, str] = field(default_factory=dict)
    """The test's parameters: cheap axes."""
    index: int = 0
    """0, 1, ... within one attempt, metric and params."""
    at: float = 0.0
    """Seconds since the Unix epoch."""
    conditions: Mapping[str, float] = field(default_factory=dict)
    """State of the host when it was taken: load1, steal, cpu_pressure, mhz ..."""


@dataclass(frozen=True)
class Distribution:
    """Many observations of a metric, counted in one histogram. All else is as of a `Sample`."""

    metric: str
    histogram: Histogram
    unit: str
    direction: Direction
    channel: Channel
    test: str
    params: Mapping[str, str] = field(default_factory=dict)
    index: int = 0
    at: float = 0.0
    conditions: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TestResult:
    """One test in one attempt."""

    __test__ = False  # not for pytest to collect

    name: str
    outcome: Outcome
    duration_s: float
    reason: str = ""
    """One line: why it did not pass."""
    details: str = ""
    """The traceback or the longer report."""
    stories: tuple[str, ...] = ()
    """Those of the plan that it proves, ``US-14``."""
    where: tuple[str, ...] = ()
    """Lines of its suite on the way to what it failed by, the outermost first: ``test_it.py:27: shell("false")``."""


@dataclass(frozen=True, slots=True)
class MachineEvent:
    """What the machine's own event log (a BMC's SEL) gained during an attempt."""

    number: int
    """Of the entry; 0 for what the lab has to say about the log."""
    at: float
    """Seconds since the Unix epoch by the machine's clock, 0 where it says none."""
    text: str


@dataclass(frozen=True)
class Attempt:
    """One try at a cell, as read back from its folder."""

    number: int
    worker: str
    outcome: Outcome
    started_at: float
    duration_s: float
    reason: str
    error: str
    """Name of the error's class, empty if none."""
    tests: tuple[TestResult, ...]
    samples: tuple[Sample, ...]
    milestones: Mapping[str, float]
    """Seconds from power-on, of the first boot of the attempt."""
    kernel_stamps: tuple[tuple[float, str], ...]
    """The kernel's own phases of that boot: (seconds of silence, when and what the kernel said after it)."""
    excerpt: str
    """Console lines around the cause of failure, control characters made visible."""
    reproduce: str
    """Shell command that shows the same by hand."""
    folder: Path
    complete: bool
    """False if the run was killed in the middle of it."""
    waited_s: float = 0.0
    """Seconds before that in which it waited for its target and its share of the host."""
    distributions: tuple[Distribution, ...] = ()
    benchmark: bool = False
    """It had the host to itself, for what it measured."""
    machine_events: tuple[MachineEvent, ...] = ()
    arrived: tuple[str, ...] = ()
    """Of each boot whose build travelled, the digest of what the machine proved to have got, in their order."""
    remedy: str = ""
    """What can be done about it, in a line; empty where the lab knows nothing."""


@dataclass(frozen=True, slots=True)
class Reused:
    """Where a cell's result is from that was not run again, because nothing that decides it has changed."""

    run: str
    """Id of the run in which the cell was run."""
    tests: int
    """How many tests it had there."""
    duration_s: float
    """What it took there."""


@dataclass(frozen=True)
class CellResult:
    """A cell with all attempts at it."""

    cell: Cell
    outcome: Outcome
    duration_s: float
    reason: str
    attempts: tuple[Attempt, ...]
    reused: Reused | None = None
    """Not run in this run: passed in that one. It has no attempts here, and no samples: a figure is counted once."""
    key: str = ""
    """Digest over all that decides the result; empty where that is not known."""
    proves: bool = True
    """Its pass may stand for a later run's; False for a part of the tests, or one of several tries."""

    @property
    def tests(self) -> tuple[TestResult, ...]:
        """Of each test the latest result: a later attempt may run only those that did not finish in an earlier one."""
        latest: dict[str, TestResult] = {}
        for attempt in self.attempts:
            latest.update((test.name, test) for test in attempt.tests)
        return tuple(latest.values())

    @property
    def samples(self) -> tuple[Sample, ...]:
        """Those that passing tests recorded, of all attempts; of a test without a result the attempt's own outcome decides."""
        return tuple(sample for attempt in self.attempts for sample in _recorded_by(attempt, attempt.samples))

    @property
    def samples_of_failed(self) -> tuple[Sample, ...]:
        """Those that failed tests recorded, in the last attempt at a cell that has failed: what the machine did, though no figure of it."""
        last = self.attempts[-1:] if self.outcome is Outcome.FAIL else ()
        return tuple(sample for attempt in last for sample in _recorded_by(attempt, attempt.samples, Outcome.FAIL))

    @property
    def distributions(self) -> tuple[Distribution, ...]:
        """As `samples`."""
        return tuple(found for attempt in self.attempts for found in _recorded_by(attempt, attempt.distributions))


_Recorded = TypeVar("_Recorded", Sample, Distribution)


def _recorded_by(attempt: Attempt, recorded: Sequence[_Recorded], outcome: Outcome = Outcome.PASS) -> Iterator[_Recorded]:
    if not recorded:
        return iter(())
    outcomes = {test.name: test.outcome for test in attempt.tests}
    return (one for one in recorded if outcomes.get(one.test, attempt.outcome) is outcome)


@dataclass(frozen=True)
class LeftOut:
    """A cell that was not run, and why."""

    cell: Cell
    reason: str


@dataclass(frozen=True)
class RunResult:
    """A run as read back from its folder, whether it ended or was killed."""

    id: str
    folder: Path
    matrix: str
    started_at: float
    duration_s: float
    outcome: Outcome
    """pass, fail or error; error too if it never ended."""
    finished: bool
    interrupted: bool
    argv: tuple[str, ...]
    version: str
    host: Mapping[str, str]
    """What makes figures comparable: CPU model, cores, memory, kernel, QEMU, accelerator."""
    builds: Mapping[str, Mapping[str, Any]]
    """Name → digest, version, provenance."""
    targets: Mapping[str, Mapping[str, Any]]
    """Name → config as run."""
    cells: tuple[CellResult, ...]
    left_out: tuple[LeftOut, ...]
    skipped_lines: int = 0
    """Records in its files that could not be read: torn by a kill, or foreign."""
    running: bool = False
    """Its writer is alive: what has not ended yet may still end well."""
    decided_by: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """What decided the results of its cells: group → input → digest (`labctl.store.inputs`)."""
    stories: Mapping[str, str] = field(default_factory=dict)
    """The plan's stories as the lab named them then: story → title. Empty in a lab that names none."""
    story_tests: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """All tests that the lab had then for each of them, run or not: ``SUITE/test_it.py::test_create``."""
