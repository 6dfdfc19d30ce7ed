"""What a suite's test asks for: states of a machine, its console and its shell, and where figures are recorded."""

from __future__ import annotations

import io
import re
import shlex
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from labctl.deadline import Deadline
from labctl.errors import CommandFailed
from labctl.hypervisor.protocols import Hypervisor
from labctl.hypervisor.registry import driver as hypervisor_driver
from labctl.machine.boot import Boot
from labctl.machine.expect import ConsoleExpect
from labctl.machine.group import Machines
from labctl.machine.protocols import CommandResult, Files, Shell
from labctl.machine.session import COMMAND_DEADLINE, FILE_DEADLINE, Session
from labctl.model import Build, Cell, Outcome
from labctl.result import TestResult
from labctl.run import soaking
from labctl.run.boot_figures import record_figures
from labctl.run.cells import CELLS, name_of
from labctl.run.recording import Recorder
from labctl.run.vms import Vms, why_no_hypervisor

if TYPE_CHECKING:
    from labctl.parsers.ktap import Report
    from labctl.store.writer import AttemptWriter

FIXTURES = (
    *("cell", "build", "target", "booted", "shell", "needs", "disk", "machines", "shells", "console"),
    *("hypervisor", "hypervisors", "keep_vm", "record", "record_boot", "record_histogram"),
    *("selftests", "ktap", "ltp", "soak", "keep_file"),
)


@pytest.fixture
def cell(request: pytest.FixtureRequest) -> Cell:
    """The point of the matrix that this test runs at."""
    found = getattr(request, "param", None)
    if not isinstance(found, Cell):
        pytest.fail("this test needs a machine: give --build NAME and --target NAME, or --matrix NAME", pytrace=False)
    return found


@pytest.fixture
def build(request: pytest.FixtureRequest, cell: Cell) -> Build:
    """The build under test."""
    return request.config.stash[CELLS].work.builds[cell.build]


@pytest.fixture
def target(request: pytest.FixtureRequest, cell: Cell) -> Session:
    """The machine, held by this cell; off until something asks for more."""
    runner = request.config.stash[CELLS]
    if several := runner.work.targets[cell.target].machines:
        pytest.skip(f"needs a target of one machine; this one has {', '.join(several)}")
    return runner.attempt.session


@pytest.fixture
def machines(request: pytest.FixtureRequest, cell: Cell) -> Machines:
    """The machines of a target of several by name, held by this cell, each as `target` is; off until something asks for more."""
    runner = request.config.stash[CELLS]
    if not runner.work.targets[cell.target].machines:
        pytest.skip("needs a target of several machines")
    return runner.attempt.machines


@pytest.fixture
def shells(machines: Machines) -> dict[str, Commands]:
    """Commands in each of several machines, all booted: ``shells["a"]("uname -r")``."""
    if without := [name for name, session in machines.items() if Shell not in session.machine.roles]:
        pytest.skip(f"needs a shell: no driver of {', '.join(without)} gives one")
    machines.booted()
    return {name: Commands(session) for name, session in machines.items()}


@pytest.fixture
def booted(target: Session) -> Boot:
    """The machine, booted to ``ready``: its milestones in seconds from power-on."""
    return target.booted()


class Commands:
    """Run commands in the booted machine. ``shell("uname -r")`` gives the output, stripped; ``shell.run`` the whole result."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def __call__(self, command: str, *, deadline: float = COMMAND_DEADLINE) -> str:
        return self.run(command, deadline=deadline).output.strip()

    def run(self, command: str, *, deadline: Deadline | float = COMMAND_DEADLINE, check: bool = True) -> CommandResult:
        """CommandFailed if ``check`` and the status is not 0."""
        return self._session.run(command, deadline=deadline, check=check)

    def put(self, content: Path | bytes, path: str, *, deadline: Deadline | float = FILE_DEADLINE, mode: int | None = None) -> None:
        """Copy a file of the host, or bytes, into the machine: whole or not at all. A target whose Shell carries no files skips."""
        self._carries_files()
        self._session.put(content, path, deadline=deadline, mode=mode)

    def get(self, path: str, *, deadline: Deadline | float = FILE_DEADLINE) -> bytes:
        """What a file of the machine holds."""
        self._carries_files()
        content = io.BytesIO()
        self._session.get(path, content, deadline=deadline)
        return content.getvalue()

    def _carries_files(self) -> None:
        if not isinstance(self._session.machine.shell, Files):
            pytest.skip("needs files in and out: the target's shell has none; drivers that do: agent, ssh")


@pytest.fixture
def shell(target: Session) -> Commands:
    """Commands in the booted machine. A target without a driver for them skips what asks for it."""
    if Shell not in target.machine.roles:
        pytest.skip("needs a shell: no driver of the target gives one")
    target.ready()
    return Commands(target)


@pytest.fixture
def needs(shell: Commands) -> Callable[..., None]:
    """``needs("mkfs.xfs", "fio")``: skip where the machine does not have one of those programs."""

    def look(*programs: str) -> None:
        for program in programs:
            if shell.run(f"command -v {shlex.quote(program)}", check=False).status != 0:
                pytest.skip(f"{program} is not in the machine")

    return look


@pytest.fixture
def disk(target: Session, shell: Commands) -> str:
    """The device file of the disk that the target's file describes: told by its size, to the byte, so that no other is written to."""
    if target.config.disk is None:
        pytest.skip("needs a disk: the target's file gives none")
    lines = shell("cd /sys/block; for d in *; do echo $d $(cat $d/size); done")
    found = re.findall(r"^(?!loop|ram)(\S+) (\d{1,15})$", lines, re.MULTILINE)
    ours = [name for name, sectors in found if int(sectors) * 512 == target.config.disk]
    if len(ours) != 1:
        seen = ", ".join(f"{name} of {int(sectors) * 512}" for name, sectors in found)[:300]
        raise CommandFailed(f"one disk must be of {target.config.disk} bytes; the machine has {seen or 'none'}", target=target.name)
    return f"/dev/{ours[0]}"


@pytest.fixture
def hypervisor(request: pytest.FixtureRequest, cell: Cell) -> Generator[Hypervisor, None, None]:
    """VMs on the booted machine (`labctl.hypervisor.protocols`). Those that the test has made are gone at its end."""
    session = _with_vms(request, cell, "target")
    session.ready()
    vms = _vms(request, session)
    with vms.tidied(hypervisor_driver(session.build.hypervisor, session)) as found:
        yield found


@pytest.fixture
def hypervisors(request: pytest.FixtureRequest, cell: Cell) -> Generator[dict[str, Hypervisor], None, None]:
    """The same for each of several machines, all booted: ``hypervisors["a"]``."""
    machines = _with_vms(request, cell, "machines")
    machines.booted()
    with ExitStack() as stack:
        drivers = {name: hypervisor_driver(session.build.hypervisor, session) for name, session in machines.items()}
        yield {name: stack.enter_context(_vms(request, machines[name]).tidied(found)) for name, found in drivers.items()}


def _with_vms(request: pytest.FixtureRequest, cell: Cell, fixture: str) -> Any:
    if why := why_no_hypervisor(request.config.stash[CELLS].work.builds[cell.build]):
        pytest.skip(why)
    found = request.getfixturevalue(fixture)
    for session in [found] if isinstance(found, Session) else found.values():
        if not isinstance(session.machine.roles.get(Shell), Files):
            pytest.skip("needs a shell that keeps errors apart from output, and carries files: agent or ssh")
    return found


def _vms(request: pytest.FixtureRequest, session: Session) -> Vms:
    vms: dict[str, Vms] = request.config.stash[CELLS].attempt.vms
    return vms.setdefault(session.name, Vms(session))


@pytest.fixture
def keep_vm(request: pytest.FixtureRequest, target: Session) -> Callable[[str], None]:
    """``keep_vm("linux")``: a VM that is dear to start is there for the cell's next tests too, as long as the machine is up."""
    return _vms(request, target).keep


@pytest.fixture
def console(target: Session, booted: Boot) -> ConsoleExpect:
    """The booted machine's console with pexpect's API; nothing that it said since the boot began is lost."""
    return target.expect()


@pytest.fixture
def selftests(request: pytest.FixtureRequest, target: Session) -> Callable[[Boot], Report]:
    """``selftests(target.boots[-1])``: what the kernel's own tests report on the console of a boot. Each is a test in the record, also
    of a kernel that did not come to the end of them."""
    from labctl.machine.selftest import read_report

    return partial(read_report, target, take=partial(_add_reported, request))


def _recorder(request: pytest.FixtureRequest, cell: Cell) -> Recorder:
    own = {k: str(v) for k, v in getattr(request.node, "callspec", None).params.items() if k != "cell"}  # type: ignore[union-attr]
    return Recorder(request.config.stash[CELLS].attempt, cell, name_of(request.node), own)


def _add_reported(request: pytest.FixtureRequest, report: Report, took: Sequence[float]) -> None:
    """Each result of a report that a test has read becomes a test of the run, below that test."""
    attempt = request.config.stash[CELLS].attempt
    for result, seconds in zip(report.results, took, strict=True):
        reason = f"{result.name}: {result.reason or 'failed'}" if result.outcome is Outcome.FAIL else result.reason
        attempt.add(TestResult(f"{name_of(request.node)}::{result.name}", result.outcome, seconds, reason, result.details), None)


@pytest.fixture
def ktap(request: pytest.FixtureRequest, target: Session, shell: Commands) -> Callable[..., Report]:
    """``ktap("/usr/bin/program", deadline=60)``: run a program in the machine that reports in KTAP or TAP. Each line is a test in the
    record, also of a program that did not come to its end."""
    from labctl.machine.program import KTAP, run_program

    return partial(run_program, target, language=KTAP, take=partial(_add_reported, request))


@pytest.fixture
def ltp(request: pytest.FixtureRequest, target: Session, shell: Commands) -> Callable[..., Report]:
    """As `ktap`, for a program of the Linux Test Project."""
    from labctl.machine.program import LTP, run_program

    return partial(run_program, target, language=LTP, take=partial(_add_reported, request))


@pytest.fixture
def soak() -> float:
    """Seconds that a soak is to go on: ``--soak 8h``, or 20."""
    return soaking.chosen()


@pytest.fixture
def keep_file(request: pytest.FixtureRequest, cell: Cell) -> Callable[[str, bytes], Path]:
    """``keep_file("screen.png", picture)``: a file beside the record of the attempt, to which its report leads. Returns where it is."""
    writer: AttemptWriter = request.config.stash[CELLS].attempt.record
    return writer.keep


@pytest.fixture
def record(request: pytest.FixtureRequest, cell: Cell) -> Callable[..., None]:
    """``record(METRIC, value, **params)``: one observation. The cell's axes and the test's parameters are attached by themselves.

    In a cell of the channel ``icount`` figures of real time are left out: a suite need not know on which channel it runs.
    """
    return _recorder(request, cell).sample


@pytest.fixture
def record_histogram(request: pytest.FixtureRequest, cell: Cell) -> Callable[..., None]:
    """``record_histogram(METRIC, histogram, **params)``: many observations at once, else as `record`."""
    return _recorder(request, cell).histogram


@pytest.fixture
def record_boot(record: Callable[..., None]) -> Callable[[Boot], None]:
    """``record_boot(booted)``: what a boot measures, to each of its milestones: seconds, and where instructions are counted those."""
    return lambda boot: record_figures(boot, record)
