"""One attempt at a cell, in the process that runs its tests: lease → share of the host → session, taken when first needed, given back
together at the end."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property

from labctl.deadline import Deadline
from labctl.errors import (
    BootFailed,
    CommandFailed,
    ConfigError,
    InfraError,
    KernelCrash,
    LabctlError,
    LeftOn,
    MeasurementInvalid,
    TargetFailure,
    TargetHung,
)
from labctl.machine import budget, lease, registry, standing
from labctl.machine.boot import Boot
from labctl.machine.group import Machines
from labctl.machine.protocols import Health, Power
from labctl.machine.session import Session, Watcher
from labctl.machine.warm import WarmStart
from labctl.model import Build, Cell, Outcome, Target
from labctl.result import MachineEvent, TestResult
from labctl.run.equip import Equipment
from labctl.run.vms import Vms
from labctl.run.work import Work
from labctl.store.outcome import ON_A_COPY, attempt_outcome
from labctl.store.writer import AttemptWriter, RunWriter

WAIT_DEADLINE = 3600.0
"""Seconds that a cell waits for its target and its share of the host: other runs may be at work."""

HEALTH_DEADLINE = 10.0
"""Seconds that a BMC may take for its sensors or its event log."""

_LOG_FULL = "the event log is full: what happens is not logged any more, until somebody clears it (ipmitool sel clear)"
FAILED = (Outcome.FAIL, Outcome.ERROR, Outcome.INVALID)


@dataclass(frozen=True)
class _Failure:
    """A test that did not pass, why, and the last lines of the console then."""

    result: TestResult
    error: BaseException | None
    tail: str

    def rank(self) -> int:
        """Smaller says more about what went wrong."""
        kinds = ((KernelCrash,), (TargetHung, BootFailed), (TargetFailure,), (LabctlError,))
        return next((rank for rank, kind in enumerate(kinds) if isinstance(self.error, kind)), len(kinds))

    @property
    def excerpt(self) -> str:
        """The lines around the cause."""
        of_error = self.error.excerpt if isinstance(self.error, KernelCrash) else getattr(self.error, "tail", "")
        return of_error or self.tail


def _besides(others: int, spoken: _Failure, failures: Sequence[_Failure], left_on: LeftOn | None) -> str:
    """How many other tests did not pass. What the build failed by is told behind a fault of the lab's or of a suite's, which decides the
    outcome; a machine that was left on is named whatever else is the cause."""
    failed = next((f for f in failures if f.result.outcome is Outcome.FAIL), None)
    told = (
        f", {failed.result.name.rpartition('::')[2]} failed: {failed.result.reason}"
        if failed and spoken.result.outcome is Outcome.ERROR
        else ""
    )
    apart = left_on is not None and left_on is not spoken.error
    more = f" (and {others - apart} more{told})" if others > apart else ""
    return more + (f"; and {left_on.title}" if left_on is not None and apart else "")


@dataclass
class CellAttempt:
    """Use as a ``with`` block. What fails while it closes is the attempt's outcome too."""

    equipment: Equipment
    writer: RunWriter
    cell: Cell
    worker: str
    exclusive: bool
    """A benchmark: the whole host, and pinned."""
    cold: bool = True
    """The machine is booted, and no copy of one that was."""

    results: list[TestResult] = field(default_factory=list, init=False)
    failures: list[_Failure] = field(default_factory=list, init=False)
    broken: InfraError | None = field(default=None, init=False)
    """The lab's own fault that ended the attempt: its other tests are not tried on it."""
    unheard: MeasurementInvalid | None = field(default=None, init=False)
    """Why it says nothing of the build that the machine did not boot."""
    record: AttemptWriter = field(init=False)
    held: bool = field(default=False, init=False)
    waited: float = field(default=0.0, init=False)
    """Seconds spent waiting for the target and for room on the host."""
    vms: dict[str, Vms] = field(default_factory=dict, init=False)
    """Of hypervisors under test, by the name of their machine."""

    _sessions: Mapping[str, Session] = field(default_factory=dict, init=False)
    """Those that are held, by machine; one that is alone has no name."""
    _said: Mapping[str, int] = field(default_factory=dict, init=False)
    """How much of each machine's console there was when the test that runs began."""
    _health: object = field(default=None, init=False)
    """The target's Power driver, which may be one that knows of its health."""
    _mistaken: ConfigError | None = field(default=None, init=False)
    """Why the target cannot be held at all."""
    _logged: int | None = field(default=None, init=False)
    """The last entry of the machine's event log when the attempt began."""

    def __post_init__(self) -> None:
        self._stack = ExitStack()
        self._machine_stack: ExitStack | None = None
        self.record = self._stack.enter_context(self.writer.attempt(self.cell, worker=self.worker, benchmark=self.exclusive))

    @property
    def work(self) -> Work:
        return self.equipment.work

    @cached_property
    def session(self) -> Session:
        """The target, held and off. TargetBusy, or InfraError when the host has no room in time."""
        with self._holding() as (target, build, cpus, stack):
            starter = None if self.cold else WarmStart(self._started)
            copies = self.cell.suite in self.work.warm
            session = Session(target, build, self.record.folder, cpus, self._watcher(), starter=starter, copies=copies)
            stack.enter_context(session)
            self._health = session.machine.roles.get(Power)
            if isinstance(self._health, Health):
                with suppress(InfraError):  # what its event log says is a help, never a reason to fail
                    self._logged = self._health.latest_event(Deadline.after(HEALTH_DEADLINE))
        self._sessions = {"": session}
        self.held = True
        return session

    @cached_property
    def machines(self) -> Machines:
        """The machines of a target of several, held and off. Raises as `session`."""
        with self._holding() as (target, build, cpus, stack):
            machines = stack.enter_context(Machines(target, build, self.record.folder, host_cpus=cpus, watcher=self._watcher))
        self._sessions = machines
        self.held = True
        return machines

    def _watcher(self, machine: str = "") -> Watcher:
        """What is written down of a machine; of several each has its own name in it."""
        if not machine:
            return Watcher(status=self.record.status, milestone=self.record.milestone, booted=self._booted, arrived=self.record.arrived)
        return Watcher(
            status=lambda state: self.record.status(state, machine=machine),
            milestone=lambda name, seconds, boot: self.record.milestone(name, seconds, boot, machine=machine),
            arrived=self.record.arrived,
        )

    @contextmanager
    def _holding(self) -> Iterator[tuple[Target, Build, tuple[int, ...], ExitStack]]:
        """As `_hold`; given back if the block fails, or the attempt's next test would wait for what this one holds. A mistake in the lab's
        files is not tried again: each try with a wrong password brings a BMC nearer to locking the account."""
        if self._mistaken is not None:
            raise self._mistaken
        held = self._hold()
        try:
            yield held
        except BaseException as error:
            self._mistaken = error if isinstance(error, ConfigError) else None
            with suppress(LabctlError):  # what failed is told; that the machine cannot be switched off either is told by it
                held[-1].close()
            raise

    def _hold(self) -> tuple[Target, Build, tuple[int, ...], ExitStack]:
        """The target and its share of the host, ours until the stack is closed; what is to be booted; the CPUs to pin it to."""
        target = registry.on_channel(self.work.targets[self.cell.target], self.cell.channel)
        deadline = Deadline.after(WAIT_DEADLINE)
        stack = self._machine_stack = self._stack.enter_context(ExitStack())
        self.record.status("leasing")
        began = time.monotonic()
        if target.machines:
            standing.check_free(self.work.lab_root, target.name)
        # Always the lease before the share: two runs that each held one and waited for the other would wait for ever.
        why = f"run {self.writer.id}: {self.cell.id}"
        stack.enter_context(lease.hold_all(target.parts, self.work.lab_root, why=why, deadline=deadline, on_wait=self._waits))
        cpus = self._take_share(target, deadline, stack)
        self.waited = time.monotonic() - began
        return target, self.equipment.of(self.cell, target), cpus, stack

    def _take_share(self, target: Target, deadline: Deadline, stack: ExitStack) -> tuple[int, ...]:
        """What the target takes of the host, ours until the stack is closed: a server takes nothing. CPUs to pin it to."""
        cpus, memory = registry.host_share(target)
        if not memory:
            return ()
        taken = budget.take(cpus, memory, exclusive=self.exclusive, why=self.cell.id, deadline=deadline, on_wait=self._waits)
        share = stack.enter_context(taken)
        return share.cpus if self.exclusive else ()

    @property
    def failure(self) -> TargetFailure | None:
        """Why a machine did not boot."""
        return next((session.failure for session in self._sessions.values() if session.failure is not None), None)

    def check_crash(self) -> None:
        """Raise KernelCrash if a kernel has crashed since its boot, or since the last call."""
        for session in self._sessions.values():
            session.check_crash()

    def explain(self, error: Exception) -> Exception:
        """Of several machines one may have failed because another did: what says most about it, or the error itself."""
        if len(self._sessions) < 2:
            return error
        try:
            self.check_crash()
            for session in self._sessions.values():
                if (gone := session.went_off()) and not (isinstance(error, LabctlError) and error.target == session.name):
                    how = error.title if isinstance(error, LabctlError) else f"{type(error).__name__}: {error}"
                    return CommandFailed(
                        f"the machine went off ({gone}); then: {how}", target=session.name, tail=session.transcript.tail(10)
                    )
        except LabctlError as cause:
            return cause
        return error

    def test_begins(self) -> None:
        """What the machines say from now on is of the next test."""
        self._said = {name: session.transcript.size for name, session in self._sessions.items()}

    def noise(self, error: BaseException) -> MeasurementInvalid | None:
        """What a test failed by says nothing of the build where a machine stood still while it ran, and its host had no time for it."""
        for name, session in self._sessions.items():
            why = ""
            with suppress(InfraError):  # where its console can't be read any more the failure itself is told
                why = session.stood_still(self._said.get(name, 0))
            if why:
                how = error.title if isinstance(error, LabctlError) else f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
                noise = MeasurementInvalid(
                    f"host noise: {why}; then: {how}",
                    target=session.name,
                    tail=session.transcript.tail(10),
                    remedy="run it again on a host with less to do",
                )
                if error is session.failure:
                    self.unheard = noise
                return noise
        return None

    def _naming_the_machine(self, result: TestResult, error: BaseException | None) -> TestResult:
        """Of several machines the one that the error is about."""
        about = next((n for n, s in self._sessions.items() if n and isinstance(error, LabctlError) and error.target == s.name), "")
        return replace(result, reason=f"{about}: {result.reason}") if about else result

    def _tail(self) -> str:
        """What the console said last; of several machines each under its name."""
        said = {name: session.transcript.tail(10) for name, session in self._sessions.items()}
        return "\n".join(f"--- {name}\n{tail}" if name else tail for name, tail in said.items())

    def conditions(self) -> dict[str, float]:
        """The machine's temperature and draw beside a measurement, where it has a BMC that tells."""
        if not (self.exclusive and self.held and isinstance(self._health, Health)):
            return {}
        with suppress(InfraError):
            return dict(self._health.sample(Deadline.after(HEALTH_DEADLINE)))
        return {}

    def _record_events(self) -> None:
        """What the machine's own event log has gained in this attempt."""
        if self._logged is None or not isinstance(self._health, Health):
            return
        try:
            # Asked first: to read a log of a thousand entries takes a slow BMC longer than it may be given.
            if self._health.log_is_full(Deadline.after(HEALTH_DEADLINE)):
                self.record.machine_event(MachineEvent(0, 0.0, _LOG_FULL))
            for event in self._health.events(self._logged, Deadline.after(HEALTH_DEADLINE)):
                self.record.machine_event(MachineEvent(event.number, event.at, event.text))
        except InfraError as error:
            self.record.machine_event(MachineEvent(0, 0.0, f"what the event log gained could not be read: {error.message}"))

    @property
    def copied(self) -> bool:
        """Whether its machine was a copy of one that was booted before."""
        return any(session.copied for session in self._sessions.values())

    def _started(self, how: str, why: str) -> None:
        self.record.event("start", how=how, why=why)
        if why:
            self.session.transcript.note(f"not a copy of a machine that was booted before: {why}")

    def _waits(self, why: str) -> None:
        self.record.status("waiting", why=why)

    def _booted(self, boot: Boot) -> None:
        if self.held and len(self.session.boots) > 1:
            return  # the phases are those of the first boot
        self.record.phases(boot.kernel_stamps)

    def add(self, result: TestResult, error: BaseException | None) -> None:
        """One test has ended."""
        result = self._naming_the_machine(result, error)
        self.results.append(result)
        self.record.test(result)
        if isinstance(error, InfraError):
            self.broken = self.broken or error
        if result.outcome in FAILED:
            # What the console said then; at the attempt's end it may have said much more.
            tail = self._tail()
            self.failures.append(_Failure(result, error, tail))

    def close(self) -> None:
        """Power off, give everything back, write the attempt's end. StorageError, also of a console that could not be kept."""
        self._record_events()
        reproduce = ""
        left_on: LeftOn | None = None
        if self.failures and self.held:
            with suppress(LabctlError):  # how to see it by hand is a help, never a reason to fail
                reproduce = "\n".join(session.reproduce for session in self._sessions.values())
        try:
            if self._machine_stack is not None:
                self._machine_stack.close()
        except InfraError as error:
            self.add(TestResult("power off", Outcome.ERROR, 0.0, error.title), error)
            left_on = error if isinstance(error, LeftOn) else None
        # Nobody may have waited for the console since: what is missing of it may be a crash.
        unheard = next((failure for session in self._sessions.values() if (failure := session.transcript.failure) is not None), None)
        if unheard is not None:
            self.add(TestResult("console.log", Outcome.ERROR, 0.0, unheard.title), unheard)
        outcome = attempt_outcome(result.outcome for result in self.results)
        # The most specific cause speaks for the attempt: a panic, though an assertion failed before it.
        worst = min((f for f in self.failures if f.result.outcome is outcome), key=_Failure.rank, default=None)
        others = len(self.failures) - 1
        mistaken = worst is not None and isinstance(worst.error, ConfigError)  # of a file: it is no other when booted
        warmth = ON_A_COPY if self.copied and not mistaken else ""
        self.record.finish(
            outcome,
            reason=warmth + worst.result.reason + _besides(others, worst, self.failures, left_on) if worst else self._skipped(outcome),
            error=type(worst.error).__name__ if worst and isinstance(worst.error, LabctlError) else "",
            excerpt=worst.excerpt if worst else "",
            reproduce=reproduce,
            remedy="; ".join(dict.fromkeys(e.remedy for e in (left_on, worst and worst.error) if isinstance(e, LabctlError) and e.remedy)),
        )
        self._stack.close()
        if unheard is not None:
            raise unheard

    def _skipped(self, outcome: Outcome) -> str:
        return self.results[0].reason if outcome is Outcome.SKIP else ""

    def abandon(self) -> None:
        """Interrupted: power off and give everything back; the attempt reads as never ended."""
        self._stack.close()
