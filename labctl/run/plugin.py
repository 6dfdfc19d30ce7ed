"""labctl as a pytest plugin: cells as parameters, states of a machine as fixtures, outcomes by whose fault it is.

``pytest suites/boot --build debian-cloud --target qemu-1c-512m`` is a one-cell run and needs nothing else; with ``-n N`` the same cells
run on xdist workers. The cells' own side is in `labctl.run.cells`, the fixtures in `labctl.run.fixtures`.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from _pytest.config import ConftestImportFailure
from _pytest.nodes import Node

from labctl.config import Lab, nearest
from labctl.errors import ConfigError, InfraError, LabctlError, Problem, StorageError, TargetFailure
from labctl.machine import budget, registry
from labctl.model import Channel, Outcome
from labctl.result import RunResult
from labctl.run import fixtures, requirements, soaking, suitemodules
from labctl.run.cells import CELLS, ERROR, EXPECTED, UNSTORED, WHERE, CellRunner, Skipped, cell_of, stories_of
from labctl.run.gathered import Gathered
from labctl.run.lines import failed_at, told_of
from labctl.run.scheduler import IDLE, CellScheduling
from labctl.run.stories import MARKER, why_no_story
from labctl.run.warmth import asks_too_much
from labctl.run.work import Work
from labctl.store.outcome import LAB_FAILED, NO_BOOT, run_outcome
from labctl.store.reader import read_run

if TYPE_CHECKING:
    from labctl.run.prepare import Prepared
    from labctl.run.workers import ForkedWorkers

CONTROLLER = pytest.StashKey["Controller"]()
GATHERED = pytest.StashKey[Gathered]()


class Hooks:
    """Hooks of ours that other plugins may answer."""

    @pytest.hookspec(firstresult=True)
    def pytest_labctl_finished(self, run: RunResult) -> Path | None:
        """A run has ended and is read back from its folder; who writes reports returns the path of the one to open."""


def pytest_plugin_registered(plugin: object) -> None:
    file = getattr(plugin, "__file__", None)
    if isinstance(plugin, ModuleType) and isinstance(file, str) and Path(file).name == "conftest.py":
        suitemodules.set_aside(Path(file))


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    pluginmanager.add_hookspecs(Hooks)
    pluginmanager.register(fixtures, fixtures.__name__)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("labctl", "labctl: builds on machines")
    group.addoption("--matrix", metavar="NAME", help="run the cells of matrix/NAME.toml")
    group.addoption("--build", action="append", default=[], metavar="NAME", help="a build by name or glob, or a kernel file; repeatable")
    group.addoption("--target", action="append", default=[], metavar="NAME", help="a target by name or glob; repeatable")
    group.addoption("--repeat", type=int, metavar="K", help="run each cell K times")
    group.addoption("--channel", action="append", default=[], choices=list(Channel), help="wall: real time; icount: counted instructions")
    group.addoption("--soak", metavar="TIME", help="how long the suite soak goes on: 90s, 30m, 8h (default: 20s)")
    group.addoption("--results", type=Path, metavar="DIR", help="folder of the runs (default: the lab's)")
    group.addoption("--story", action="append", default=[], metavar="US-N", help="only tests that prove this story; repeatable")
    group.addoption("--cold", action="store_true", help="boot every machine: none is a copy of one that was booted before")


def pytest_configure(config: pytest.Config) -> None:
    for line in (
        "requires(cpus=N, memory='1G', tags=[...], build='glob', hypervisor=[...], driver='kvm', ...): else it is skipped",
        "benchmark: measures wall time; the cell gets the whole host and is pinned",
        f"{MARKER}('US-14', ...): the stories of the plan that the test proves",
    ):
        config.addinivalue_line("markers", line)
    given = getattr(config, "workerinput", {}).get("labctl")
    if given is not None:
        _die_with_parent()
        config.stash[CELLS] = CellRunner(Work.from_json(given), worker=config.workerinput["workerid"])  # type: ignore[attr-defined]
        return
    options = config.option
    try:
        soaking.choose(options.soak)
    except LabctlError as error:
        raise pytest.UsageError(str(error)) from None
    if CONTROLLER not in config.stash and (options.matrix or options.build or options.target) and not options.help:
        try:
            config.stash[CONTROLLER] = Controller(_prepare(config))
        except LabctlError as error:
            raise pytest.UsageError(str(error)) from None
    if CONTROLLER in config.stash:
        controller = config.stash[CONTROLLER]
        config.pluginmanager.register(controller, "labctl-controller")
        if config.pluginmanager.has_plugin("dsession") or getattr(options, "numprocesses", None):
            config.pluginmanager.register(WorkerHooks(controller), "labctl-worker-hooks")
        else:
            config.stash[CELLS] = CellRunner(Work.from_json(controller.prepared.for_workers()), worker="main")


def _die_with_parent() -> None:
    """A worker whose run is killed is killed too, and its machines with it (prctl(2), PR_SET_PDEATHSIG)."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def _prepare(config: pytest.Config) -> Prepared:
    """The run that pytest's own command line asks for: suites by the folders it names."""
    from labctl.run.prepare import Request, plan, prepare

    lab = Lab.find(config.rootpath)
    options = config.option
    folders = [(config.invocation_params.dir / arg.split("::")[0]).resolve() for arg in config.args]
    suites = {
        name
        for name, folder in lab.suites.items()
        if any(f == folder.resolve() or f in folder.resolve().parents or folder.resolve() in f.parents for f in folders)
    }
    if not suites:
        raise ConfigError(f"no suite of this lab in {' '.join(config.args)}")
    if options.matrix and len(suites) == len(lab.suites):
        suites = set()  # `pytest suites --matrix NAME`: those that the matrix names
    request = Request(
        options.matrix,
        tuple(options.build),
        tuple(options.target),
        tuple(sorted(suites)),
        options.repeat,
        options.results,
        tuple(map(Channel, options.channel)),
        cold=options.cold,
        stories=tuple(options.story),
    )
    return prepare(plan(lab, request), sys.argv, lambda line: print(line, file=sys.stderr))


class Controller:
    """In the process that the user started: makes the run's folder, closes it at the end."""

    def __init__(self, prepared: Prepared) -> None:
        self.prepared = prepared
        self.result: RunResult | None = None
        self.report: Path | None = None
        self.collection_errors: list[str] = []
        self.interrupted = False
        self.unstored: StorageError | None = None
        """Why the run could not be written to its end."""

    @pytest.hookimpl
    def pytest_keyboard_interrupt(self) -> None:
        self.interrupted = True

    @pytest.hookimpl
    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.collection_errors.append(_why_not_collected(report))

    @pytest.hookimpl
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, why in report.user_properties:
            if name == UNSTORED:
                self.unstored = self.unstored or StorageError(str(why))

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None, None, None]:
        # After everybody else: xdist's workers have ended, and with them the machines.
        yield
        if cells := session.config.stash.get(CELLS, None):
            cells.leave(interrupted=self.interrupted)
        writer = self.prepared.writer
        from labctl.judge.promise import broken_gates

        try:
            run = read_run(writer.folder)
            outcome = run_outcome(cell.outcome for cell in run.cells)
            if outcome is Outcome.PASS and broken_gates([run]):
                outcome, session.exitstatus = Outcome.FAIL, pytest.ExitCode.TESTS_FAILED
            self.result = writer.finish(outcome, interrupted=self.interrupted)
            self.report = session.config.hook.pytest_labctl_finished(run=self.result)
        except StorageError as error:
            self.unstored = self.unstored or error
        if self.unstored is not None:
            session.exitstatus = pytest.ExitCode.INTERNAL_ERROR  # 3, as labctl ends where the lab is at fault

    @pytest.hookimpl
    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self.unstored is not None:
            terminalreporter.write_line(f"labctl: {self.unstored.title}", red=True)
            if self.unstored.remedy:
                terminalreporter.write_line(f"  try: {self.unstored.remedy}")
        if self.result is not None:
            terminalreporter.write_line(f"labctl: run {self.result.id}: {self.result.outcome}; report: {self.report or self.result.folder}")


def read_suites(work: Work, suites: Sequence[Path]) -> tuple[list[str], set[str]]:
    """Read suites as a run does, and run nothing: what is wrong in them, and the names of those that measure. ConfigError of a conftest."""
    reading = _Reading(work)
    if suites:
        status = pytest.main([*_arguments(work.lab_root, suites), "--collect-only"], plugins=[reading])
        if not reading.mistakes and status in (pytest.ExitCode.INTERNAL_ERROR, pytest.ExitCode.USAGE_ERROR):
            reading.mistakes.append("pytest cannot read them; what it says stands above")
    return list(dict.fromkeys(reading.mistakes)), reading.measuring


class _Reading:
    """Hands the cells to the plugin, and takes what was found."""

    def __init__(self, work: Work) -> None:
        self.cells = CellRunner(work, worker="none")
        self.mistakes: list[str] = []
        self.measuring: set[str] = set()

    @pytest.hookimpl(wrapper=True)
    def pytest_load_initial_conftests(self, early_config: pytest.Config) -> Generator[None, None, None]:
        early_config.stash[CELLS] = self.cells
        try:
            yield
        except (ConftestImportFailure, SystemExit) as failure:
            raise _mistake_of(failure, self.cells.work.lab_root) from None

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.mistakes.append(_why_not_collected(report))

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        measuring = (cell_of(item) for item in session.items if item.get_closest_marker("benchmark"))
        self.measuring = {cell.suite for cell in measuring if cell is not None}


def unreadable(mistakes: Sequence[str]) -> ConfigError:
    """What a run says that cannot read its suites."""
    return ConfigError("a suite cannot be read:\n" + "\n".join(dict.fromkeys(mistakes)))


def _mistake_of(failure: ConftestImportFailure | SystemExit, root: Path) -> LabctlError:
    """A mistake that a conftest.py has found says all there is to say; pytest would tell where in it Python was."""
    if isinstance(failure, SystemExit):
        return unreadable([f"a conftest.py {_ends_python(failure, root)}"])
    if isinstance(failure.cause, LabctlError):
        return failure.cause
    return unreadable([f"{failure.path}: {_said(failure.cause)}"])


def _said(error: BaseException) -> str:
    """An error as Python tells it, without where it came from: its last lines."""
    return "".join(traceback.format_exception_only(error)).strip()


def _arguments(root: Path, suites: Sequence[Path]) -> list[str]:
    """What pytest is told to read these suites of a lab, silently."""
    arguments = [
        *map(str, suites),
        f"--rootdir={root}",
        *("-p", "labctl.run.plugin", "-p", "labctl.report.plugin", "-p", "no:terminal", "-p", "no:cacheprovider"),
        *("-p", "no:hypothesispytest"),  # a tenth of a second in each process, and machines are not shrunk
        # Of an unknown marker pytest tells no place, and nothing else that is wrong in the file: `_wrong` tells both.
        *("-o", "strict_markers=false", "-W", "ignore::pytest.PytestUnknownMarkWarning"),
        # A lab with `filterwarnings = error` means its suites: that our plugins were imported before pytest is none of their doing.
        *("-W", "ignore::pytest.PytestAssertRewriteWarning"),
    ]
    if not any((root / name).is_file() for name in ("pytest.ini", "pyproject.toml", "tox.ini", "setup.cfg")):
        arguments += ["-c", os.devnull]  # a lab without settings of its own is not to find those of a folder above
    return arguments


def execute(
    prepared: Prepared, workers: int, suites: Sequence[Path], forked: ForkedWorkers, meanwhile: Callable[[], None] = lambda: None
) -> Controller:
    """Run the cells under pytest with ``workers`` xdist workers, silently; returns when the run's folder is complete.

    ``meanwhile`` is called once, when the workers have been started and are not there yet.
    """
    controller = Controller(prepared)
    arguments = [
        *_arguments(prepared.planned.lab.root, suites),
        *("-n", str(workers), "--max-worker-restart", str(2 * len(prepared.cells) + workers)),
    ]
    pytest.main(arguments, plugins=[_Given(controller, forked, meanwhile)])
    return controller


class _Given:
    """Hands a controller that exists already to the plugin."""

    def __init__(self, controller: Controller, forked: ForkedWorkers, meanwhile: Callable[[], None]) -> None:
        self.controller = controller
        self.forked = forked
        self.meanwhile = meanwhile

    @pytest.hookimpl(trylast=True)
    def pytest_sessionstart(self) -> None:
        self.meanwhile()

    def pytest_keyboard_interrupt(self) -> None:
        self.forked.interrupt()

    def pytest_xdist_setupnodes(self, config: pytest.Config) -> None:
        config.pluginmanager.getplugin("dsession").nodemanager.group = self.forked

    @pytest.hookimpl(wrapper=True)
    def pytest_load_initial_conftests(self, early_config: pytest.Config) -> Generator[None, None, None]:
        early_config.stash[CONTROLLER] = self.controller
        try:
            yield
        except (ConftestImportFailure, SystemExit) as failure:
            self.controller.prepared.writer.finish(Outcome.ERROR)
            raise _mistake_of(failure, self.controller.prepared.planned.lab.root) from None


class WorkerHooks:
    """xdist's hooks, on the controller's side."""

    def __init__(self, controller: Controller) -> None:
        self.prepared = controller.prepared
        self.controller = controller
        self.scheduling: CellScheduling | None = None

    @pytest.hookimpl
    def pytest_configure_node(self, node: Any) -> None:
        node.workerinput["labctl"] = self.prepared.for_workers()

    @pytest.hookimpl
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> CellScheduling:
        targets = self.prepared.planned.targets
        points = {(cell.target, cell.channel) for cell in self.prepared.cells}
        cpus = {point: registry.host_share(registry.on_channel(targets[point[0]], point[1]))[0] for point in points}
        self.scheduling = CellScheduling(
            order=[cell.id for cell in self.prepared.cells],
            cpus={cell.id: cpus[cell.target, cell.channel] for cell in self.prepared.cells},
            capacity=len(budget.capacity().cpus),
            refused=lambda: bool(self.controller.collection_errors),
        )
        return self.scheduling


class Idle(pytest.Item):
    """Does nothing: it lets xdist start the last test of a cell (see scheduler.py)."""

    def runtest(self) -> None:
        """Never called."""


def _why_not_collected(report: pytest.CollectReport) -> str:
    """A file's own mistake without the machinery that found it: pytest marks the lines that tell it with an E."""
    text = str(report.longrepr)
    told = [line[1:].strip().removeprefix("labctl.errors.ConfigError: ") for line in text.splitlines() if line.startswith("E ")]
    if told and all(line.startswith("environment: ") for line in told):
        return "\n".join(told)  # the user's own mistake, found by each file that reads it: once is enough
    if told:
        text = "\n  ".join(told)
    return text if text.startswith(report.nodeid.partition("::")[0]) else f"{report.nodeid}: {text}"


@pytest.hookimpl(tryfirst=True)  # a test's cell comes before the parameters of its fixtures: `cell_of` and `name_of` find it there
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    runner = metafunc.config.stash.get(CELLS, None)
    suite = runner.suite_of(metafunc.definition.path) if runner else None
    if runner is None or suite is None:
        return
    cells = runner.by_suite.get(suite, [])
    if "cell" not in metafunc.fixturenames:
        metafunc.fixturenames.append("cell")  # every test of a suite has a cell, whether it asks for it or not
    metafunc.parametrize("cell", cells, ids=[cell.id for cell in cells], indirect=True)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A test that asks for a fixture that does not exist is a mistake in its file, told like one in its syntax: before any power."""
    runner = collector.config.stash.get(CELLS, None)
    suite = runner.suite_of(collector.path) if runner is not None else None
    try:
        with suitemodules.alone(runner.work.lab_root / "suites" / suite) if runner is not None and suite is not None else nullcontext():
            report = yield
    except SystemExit as error:
        if runner is None:
            raise
        report = pytest.CollectReport(collector.nodeid, "failed", f"{collector.nodeid}: {_ends_python(error, runner.work.lab_root)}", [])
    if runner is not None and report.skipped and isinstance(collector, pytest.Module):
        _keep_skipped(report, collector, runner)
    items = [item for item in report.result if isinstance(item, pytest.Function)] if report.passed else []
    for mistake in dict.fromkeys(why for item in items for why in _wrong(item, read_by_lab=runner is not None)):
        # In a report of its own: of one that failed pytest would not read the classes in it, and what is wrong in those.
        report.result = [found for found in report.result if not isinstance(found, pytest.Item)]
        mistaken = pytest.CollectReport(collector.nodeid, "failed", mistake, [])
        collector.ihook.pytest_collectreport(report=mistaken)
        if runner is not None:
            _gather(mistaken, collector, runner)
    if runner is not None:
        _gather(report, collector, runner)
    return report


def _ends_python(error: SystemExit, root: Path) -> str:
    """What is wrong with a file that ends the process which reads it."""
    lines = failed_at(error, root / "suites")
    return "ends Python while it is read" + (f" ({lines[-1]})" if lines else "")


def _keep_skipped(report: pytest.CollectReport, module: pytest.Module, runner: CellRunner) -> None:
    """A file that skips itself while it is read is a skip of its cells, with its reason."""
    why = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    cells = runner.by_suite.get(runner.suite_of(module.path) or "", [])
    report.result = [Skipped.from_parent(module, cell=cell, told=module.path.name, why=why.removeprefix("Skipped: ")) for cell in cells]
    report.outcome, report.longrepr = "passed", None


def _gather(report: pytest.CollectReport, collector: pytest.Collector, runner: CellRunner) -> None:
    gathered = collector.config.stash.setdefault(GATHERED, Gathered())
    suite = runner.suite_of(collector.path)
    if suite is None:
        gathered.blind = gathered.blind or report.failed
        return
    if isinstance(collector, pytest.Module) and report.passed:
        gathered.files.setdefault(suite, []).append(collector.path.name)
    if report.failed or any(isinstance(found, pytest.Item) for found in report.result):
        gathered.told.add(suite)


def _wrong(item: pytest.Function, *, read_by_lab: bool) -> Iterator[str]:
    """All that can be told of a test before any power; what its class or its file says is told as theirs, and so once."""
    known = {line.partition(":")[0].partition("(")[0].strip() for line in item.config.getini("markers")}
    for node in item.listchain():
        for marker in node.own_markers:
            if read_by_lab and marker.name not in known:
                allowed = f"{nearest(marker.name, known)}; one of your own: markers, in pytest's settings"
                yield str(Problem(_place(node), f"@pytest.mark.{marker.name}", "unknown", allowed))
            if marker.name == MARKER and (why := why_no_story(marker.args, marker.kwargs)):
                yield f"{_place(node)}: @pytest.mark.{MARKER}: {why}"
            if marker.name == requirements.MARKER:
                yield from map(str, requirements.mistakes(marker.args, marker.kwargs, _place(node)))
    if read_by_lab and (why := _missing_fixtures(item) or _too_much_of_a_copy(item)):
        yield why


def _place(node: Node) -> str:
    """A file, or a test in it, without its parameters."""
    return node.nodeid.partition("[")[0]


def _missing_fixtures(item: pytest.Function) -> str:
    known = item._fixtureinfo.name2fixturedefs
    given = item.callspec.params if hasattr(item, "callspec") else {}
    missing = [name for name in item.fixturenames if name not in known and name not in given and name != "request"]
    if not missing:
        return ""
    there = nearest(missing[0], sorted({*fixtures.FIXTURES, *known}))
    return f"{_place(item)} asks for {', '.join(map(repr, missing))}: {there}"


def _too_much_of_a_copy(item: pytest.Function) -> str:
    return _refused_when_warm(item, item.fixturenames, benchmark=item.get_closest_marker("benchmark") is not None)


def _refused_when_warm(item: pytest.Item, fixtures: Collection[str], *, benchmark: bool = False) -> str:
    runner = item.config.stash[CELLS]
    if runner.suite_of(item.path) not in runner.work.warm:
        return ""
    why = asks_too_much(fixtures, benchmark=benchmark)
    return f"{_place(item)}, of a suite with warm = true, {why}" if why else ""


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest) -> None:
    """What no collection can see: a test that asks while it runs (``request.getfixturevalue``). Refused on a machine that was booted too,
    or the verdict would depend on what was kept of an earlier run."""
    item = request.node
    if not isinstance(item, pytest.Item) or item.config.stash.get(CELLS, None) is None:
        return
    if why := _refused_when_warm(item, (fixturedef.argname,)):
        raise ConfigError(why, remedy="warm = false in its suite.toml")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    runner = config.stash.get(CELLS, None)
    if runner is None:
        return
    gathered = config.stash.setdefault(GATHERED, Gathered())
    for mistake in gathered.without_tests(runner.by_suite):
        # As of a file that cannot be read: a worker's is sent to its controller before any cell is given out.
        config.hook.pytest_collectreport(report=pytest.CollectReport(mistake.partition(":")[0], "failed", mistake, []))
    wanted = runner.work.stories
    chosen = [item for item in items if cell_of(item) is not None and (not wanted or not set(wanted).isdisjoint(stories_of(item)))]
    if wanted:
        config.hook.pytest_deselected(items=[item for item in items if item not in set(chosen)])
    items[:] = [*chosen, *_not_selected(session, runner, chosen, gathered)]
    items.sort(key=lambda item: runner.order[cell_of(item).id])  # type: ignore[union-attr]  # stable: file order within a cell
    if hasattr(config, "workerinput"):
        items.append(Idle.from_parent(session, name=IDLE))


def _not_selected(session: pytest.Session, runner: CellRunner, chosen: Sequence[pytest.Item], gathered: Gathered) -> Iterator[Skipped]:
    """A cell that has tests, none of which is selected (``PYTEST_ADDOPTS="-k create"``), is a skip that says so."""
    options = session.config.option
    asked = [f"{flag} {value!r}" for flag, value in (("-k", options.keyword), ("-m", options.markexpr)) if value]
    asked += [f"--deselect {value}" for value in options.deselect or ()]
    selected = {cell.id for item in chosen if (cell := cell_of(item)) is not None}
    for cell in runner.work.cells if asked else ():
        if cell.id not in selected and cell.suite in gathered.told:
            yield Skipped.from_parent(session, cell=cell, told="all tests", why=f"none of its tests is selected: {' '.join(asked)}")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    if isinstance(item, Idle):
        return True
    runner, cell = item.config.stash.get(CELLS, None), cell_of(item)
    if runner is None or cell is None:
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    with suitemodules.alone(runner.work.lab_root / "suites" / cell.suite):
        reports = runner.run(item, nextitem, cell)
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    runner = item.config.stash.get(CELLS, None)
    if call.excinfo is not None and call.when != "teardown" and runner is not None and runner.current is not None:
        found = call.excinfo.value
        of_the_build = isinstance(found, (TargetFailure, AssertionError, pytest.fail.Exception))
        if of_the_build and (noise := runner.current.noise(found)) is not None:
            noise.__cause__ = found
            call.excinfo = pytest.ExceptionInfo.from_exception(noise.with_traceback(found.__traceback__))
    report = yield
    if report.skipped and hasattr(report, "wasxfail") and call.excinfo is not None:
        item.stash[EXPECTED] = call.excinfo.value
        if isinstance(call.excinfo.value, InfraError | ConfigError):
            report.outcome = "failed"  # nobody expects a fault of the lab's: it says nothing about what was to fail
            del report.wasxfail
    if report.failed and call.excinfo is not None and item.stash.get(ERROR, None) is None:
        error = call.excinfo.value
        item.stash[ERROR] = error
        item.stash[WHERE] = failed_at(error, runner.work.lab_root / "suites") if runner is not None else ()
        if isinstance(error, LabctlError):
            # The lab's errors say all there is to say; the traceback of its insides would bury it. Not so the suite's own lines.
            report.longrepr = told_of(error, item.stash[WHERE]) + (f"\n\n{error.tail}" if error.tail else "")
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    runner = item.config.stash.get(CELLS, None)
    try:
        yield
    except Exception as error:
        if runner is not None and runner.current is not None and (cause := runner.current.explain(error)) is not error:
            raise cause from error
        raise
    if runner is not None and runner.current is not None and runner.current.held:
        runner.current.check_crash()


def pytest_runtest_setup(item: pytest.Item) -> None:
    runner, cell = item.config.stash.get(CELLS, None), cell_of(item)
    if runner is None or cell is None:
        return
    for marker in item.iter_markers(requirements.MARKER):
        if wrong := requirements.mistakes(marker.args, marker.kwargs, _place(item)):
            raise ConfigError(wrong)  # of a marker that was put there after the files were read
        config = registry.on_channel(runner.work.targets[cell.target], cell.channel).config
        if why := requirements.unmet(marker.kwargs, config, runner.work.builds[cell.build]):
            pytest.skip(why)
    attempt = runner.current
    if attempt is not None and attempt.broken is not None:
        pytest.skip(f"{LAB_FAILED}{attempt.broken.title}")
    if attempt is not None and attempt.held and (failure := attempt.failure) is not None:
        if attempt.unheard is not None:
            pytest.skip(f"{LAB_FAILED}{attempt.unheard.title}")
        pytest.skip(f"{NO_BOOT}{failure.title}")
