"""Bad input and faults, through the real command: one clear error with the cause, the right exit status, nothing lost, nothing left."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from labctl.deadline import Deadline
from labctl.errors import DeployError
from labctl.machine import registry
from labctl.machine.protocols import DriverContext
from labctl.machine.transcript import Transcript
from labctl.model import Target, TargetConfig
from tests.leftovers import gone_within, our_machines
from tests.temporary_lab import TARGET, Ran, TemporaryLab, reasons

pytestmark = pytest.mark.qemu

READY = "def test_ready(booted):\n    assert booted.milestones['ready'] > 0\n"
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

# --- the author's mistakes: exit 2, nothing is powered, no run is made ----------------------------------------------------


def add_to_target(line: str) -> Callable[[TemporaryLab], Any]:
    return lambda lab: lab.write(f"targets/{lab.target}.toml", line + "\n" + TARGET)


def replace_in_target(old: str, new: str) -> Callable[[TemporaryLab], Any]:
    assert old in TARGET
    return lambda lab: lab.write(f"targets/{lab.target}.toml", TARGET.replace(old, new))


def recipe(text: str) -> Callable[[TemporaryLab], Any]:
    return lambda lab: lab.write("kernel/bad.toml", f"schema = 1\n{text}\n")


MISTAKES: dict[str, tuple[Callable[[TemporaryLab], Any], tuple[str, ...], tuple[str, ...]]] = {
    "unknown key": (add_to_target("cpuz = 1"), (), ("targets/", "cpuz", "unknown key", "cpus")),
    "wrong type": (replace_in_target("cpus = 1", 'cpus = "many"'), (), ("targets/", "cpus", "'many'", "a whole number")),
    "duplicate key": (add_to_target("cpus = 1"), (), ("targets/", "cpus: stands twice", "line 3")),
    "no TOML": (lambda lab: lab.write("matrix/default.toml", "builds = [\n"), (), ("matrix/default.toml", "not valid TOML")),
    "two mistakes at once": (add_to_target("tag = 1\ndescription = 2"), (), ("tag", "description")),
    "unknown build": (lambda lab: None, ("--build", "debain"), ("debain", "did you mean 'debian'")),
    "unknown target": (lambda lab: lab.write("targets/abc-1.toml", TARGET), ("--target", "abc-2"), ("abc-2", "did you mean 'abc-1'")),
    "unknown suite": (lambda lab: None, ("--suite", "redy"), ("redy", "did you mean 'ready'")),
    "unknown matrix": (lambda lab: None, ("defualt",), ("defualt", "did you mean 'default'")),
    "unknown driver": (replace_in_target("drivers.qemu", "drivers.qemuu"), (), ("qemuu", "did you mean 'qemu'")),
    "unknown option of a driver": (replace_in_target("accel =", "accell ="), (), ("drivers.qemu.accell", "accel")),
    "no driver for a role": (replace_in_target('[drivers.qemu]\naccel = "tcg"\ndisk_bus = "none"\n', ""), (), ("needs a Console",)),
    "unknown builder": (recipe('builder = "pth"'), (), ("bad.toml", "pth", "did you mean 'path'")),
    "impossible memory": (replace_in_target("192M", "9999G"), (), ("9999G", "memory")),
    "more CPUs than the machine takes": (
        replace_in_target("cpus = 1", "cpus = 300"),
        (),
        ("targets/", "cpus: found 300", "at most", "QEMU's machine q35"),
    ),
    "a machine that QEMU has not": (
        replace_in_target("[drivers.qemu]", '[drivers.qemu]\nmachine = "microvn"'),
        (),
        ("drivers.qemu.machine: found 'microvn'", "did you mean 'microvm'"),
    ),
    "a disk too large": (
        lambda lab: lab.write(f"targets/{lab.target}.toml", 'disk = "9999999999T"\n' + TARGET.replace('disk_bus = "none"\n', "")),
        (),
        ("disk: found 9999999999T", "at most 2048T"),
    ),
    "a character that no command line holds": (
        replace_in_target("console=ttyS0", r"console=ttyS0\u0000b"),
        (),
        ("append: found 'console=ttyS0\\x00b'", "without control characters"),
    ),
    "a target with a name that is none": (lambda lab: lab.write("targets/fe2,q=.toml", TARGET), (), ("targets/fe2,q=.toml", "letters")),
    "true for a number": (replace_in_target("cpus = 1", "cpus = true"), (), ("cpus: found True", "a whole number")),
    "a pipe for a file": (lambda lab: os.mkfifo(lab.root / "targets/pipe.toml"), (), ("targets/pipe.toml", "is not a regular file")),
    "memory that is none": (replace_in_target("192M", "much"), (), ("memory", "'much'", "512M")),
    "a missing kernel": (recipe('builder = "path"\n[path]\nkernel = "gone/bzImage"'), (), ("gone/bzImage", "No such file")),
    "a kernel that is not one": (recipe('builder = "path"\n[path]\nkernel = "lab.toml"'), (), ("lab.toml", "is not a kernel")),
    "a file that is not a kernel": (lambda lab: None, ("--build", "./lab.toml"), ("lab.toml", "is not a kernel")),
    "a file that is not there": (lambda lab: None, ("--build", "./bzImage"), ("bzImage", "No such file")),
    "repeat of nothing": (lambda lab: None, ("--repeat", "0"), ("--repeat",)),
    "suite with an unknown fixture": (
        lambda lab: lab.suite("bootd", "def test_x(bootd, tmp_path, record):\n    pass\n"),
        ("--suite", "bootd"),
        ("test_bootd.py::test_x asks for 'bootd'", "did you mean 'booted'?"),
    ),
    "suite with a syntax error": (lambda lab: lab.suite("typo", "def test_x(:\n"), ("--suite", "typo"), ("test_typo.py", "SyntaxError")),
    "suite that imports what is not there": (lambda lab: lab.suite("imp", "import nowhere\n" + READY), ("--suite", "imp"), ("nowhere",)),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_of_the_author(lab: TemporaryLab, name: str) -> None:
    mistake, arguments, words = MISTAKES[name]
    lab.suite("ready", READY)
    mistake(lab)
    ran = lab.run(*arguments, seconds=30)
    assert ran.status == 2, ran.err
    assert ran.out == ""
    for word in words:
        assert word in ran.err, ran.err
    assert "Traceback" not in ran.err
    assert not any((run / "end.json").exists() and json.loads((run / "end.json").read_text())["outcome"] == "pass" for run in lab.runs)


def test_a_package_that_apt_does_not_have(lab: TemporaryLab) -> None:
    lab.suite("ready", READY)
    lab.write("kernel/old.toml", 'schema = 1\nbuilder = "deb"\n[deb]\npackage = "linux-image-1.2.3-no-such"\nposition = "newest"\n')
    ran = lab.run("--build", "old", seconds=60)
    assert ran.status in (2, 3), ran.err  # 3: this host's apt has no lists to ask
    assert "linux-image-1.2.3-no-such" in ran.err or "lists" in ran.err
    assert "Traceback" not in ran.err
    assert lab.runs == []


def test_outside_of_a_lab(lab: TemporaryLab, tmp_path: Path) -> None:
    lab.root = tmp_path
    ran = lab.run()
    assert ran.status == 2
    assert "labctl init" in ran.err


# --- the lab's own faults: exit 3 -----------------------------------------------------------------------------------------


def test_no_qemu(lab: TemporaryLab, tmp_path: Path) -> None:
    lab.suite("ready", READY)
    for program in ("setpriv", "sh", "env"):
        (tmp_path / program).symlink_to(shutil.which(program) or "")
    ran = lab.run(PATH=str(tmp_path))
    assert ran.status == 3, ran.err
    assert lab.runs == []  # known before anything is begun
    assert "no qemu-system-x86_64" in ran.err
    assert "apt-get install -y qemu-system-x86" in ran.err
    assert "Traceback" not in ran.err


def test_results_that_cannot_be_written(lab: TemporaryLab) -> None:
    lab.suite("ready", READY)
    lab.write("taken", "a file")
    ran = lab.run("--results", "taken/results")
    assert ran.status == 3
    assert "taken/results" in ran.err
    assert "Not a directory" in ran.err
    assert "--results" in ran.err
    assert "Traceback" not in ran.err


def test_a_machine_that_qemu_refuses(lab: TemporaryLab) -> None:
    """What nobody could know before: its own last line is an advice, the one before it says what is wrong."""
    lab.suite("ready", READY)
    lab.write(f"targets/{lab.target}.toml", TARGET.replace("[drivers.qemu]", '[drivers.qemu]\nextra = ["-machine", "nosuch"]'))
    ran = lab.run()
    assert ran.status == 3, ran.err
    (cell,) = json.loads(ran.out)["cells"]
    assert re.search("QEMU ended with status 1: .*unsupported machine type", cell["reason"])


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    folder.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk(lab: TemporaryLab) -> None:
    """The console's record fills it in the middle of a test."""
    lab.suite("flood", "def test_flood(shell):\n    shell('seq 1 400000 >/dev/console', deadline=60)\n")
    with small_disk(lab.root / "small", "1M"):
        ran = lab.run("--results", "small")
        assert ran.status == 3, ran.err
        assert "No space left on device" in ran.err
        assert "Traceback" not in ran.err
        assert "small" in ran.err


def test_a_full_disk_that_no_test_waits_for(lab: TemporaryLab) -> None:
    """By pytest too: what the console said, and the report, may tell of a crash."""
    lab.write(f"targets/{lab.target}.toml", TARGET.replace("[drivers.console_shell]", '[drivers.agent]\nchannel = "serial"'))
    lab.suite("flood", "def test_flood(shell):\n    shell('seq 1 100000 >/dev/console', deadline=60)\n")
    with small_disk(lab.root / "small", "420K"):
        ended = lab.pytest("suites/flood", "--build", "debian", "--target", lab.target, "--results", "small")
        assert ended.status == 3, ended.out
        assert re.search(r"^labctl: .*the console's record in \S+ failed: No space left on device", ended.out, re.MULTILINE), ended.out
        assert f"df -h {lab.root}/small" in ended.out
        assert ": pass" not in ended.out


def test_a_disk_for_which_there_is_no_room(lab: TemporaryLab) -> None:
    """The few words that a table has room for are those of the cause."""
    config = TargetConfig.model_validate({"schema": 1, "cpus": 1, "memory": "64M", "disk": "1G", "drivers": {"qemu": {"accel": "tcg"}}})
    with small_disk(lab.root / "full", "64K"), Transcript() as transcript:
        machine = registry.assemble(DriverContext(Target(lab.target, config), lab.root / "full"), transcript)
        with suppress(OSError):
            (lab.root / "full/filler").write_bytes(bytes(1 << 20))
        machine.deploy.put(lab.debian, "", Deadline.after(10))
        with pytest.raises(DeployError, match=r": qemu-img: [^/]*No space left on device \(the disk in .*/full\)$"):
            machine.power.on(Deadline.after(10))


# --- guests that misbehave: exit 1 ----------------------------------------------------------------------------------------

GUESTS: dict[str, str] = {
    "flood": "while :; do echo flood flood flood flood flood flood flood flood flood flood flood flood flood flood flood; done",
    "silent": "exec sleep 1000",
    "panic": "echo c >/proc/sysrq-trigger; sleep 1000",
    "exits": "exit 3",
    "resets": "echo b >/proc/sysrq-trigger; sleep 1000",
    "goes-off": "poweroff -f",
    "escapes": r"printf '\033[2J\033]0;owned\007\233\000\001\377\376<script>alert(1)</script>\n'; poweroff -f",
    "binary": r"head -c 300000 /bin/busybox; printf '\033c\n\nlabctl-guest: ready\n'; exec sh",
}


@pytest.fixture(scope="module")
def bad_guests(new_lab: Callable[[], TemporaryLab]) -> tuple[TemporaryLab, Ran]:
    lab = new_lab()
    lab.suite("ready", READY)
    for name, script in GUESTS.items():
        lab.build(name, init=script, append="")
    torn = lab.root / "torn"
    torn.write_bytes(lab.debian.kernel.read_bytes()[: 1 << 20])
    lab.build("torn", kernel=torn)
    return lab, lab.run("-n", "2", seconds=180)


def test_misbehaving_guests_fail_the_run_and_no_other_cell(bad_guests: tuple[TemporaryLab, Ran]) -> None:
    _, ran = bad_guests
    assert ran.status == 1, ran.err
    assert ran.data["outcome"] == "fail"
    assert set(ran.cells) == {f"{name}/ready" for name in (*GUESTS, "torn", "debian")}
    assert ran.cells["debian/ready"]["outcome"] == "pass"
    assert "Traceback" not in ran.err


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("flood", r"did not reach ready in 30 s; last milestone: init at .* s; the console was flooded: \d+\.\d MB in the last 10 s$"),
        ("silent", r"silent for 10 s.*last milestone: init"),
        ("panic", "Kernel panic - not syncing: sysrq triggered crash"),
        ("exits", "Attempted to kill init"),
        ("resets", "resets for ever"),
        ("goes-off", "ended before ready.*the guest powered the machine off"),
        ("escapes", "ended before ready.*the guest powered the machine off"),
        ("torn", "silent for 10 s|resets for ever|ended before ready|did not reach ready"),
    ],
)
def test_each_guest_is_told_for_what_it_is(bad_guests: tuple[TemporaryLab, Ran], name: str, words: str) -> None:
    _, ran = bad_guests
    cell = ran.cells[f"{name}/ready"]
    assert cell["outcome"] == "fail", reasons(ran.cells)
    assert re.search(words, cell["reason"]), reasons(ran.cells)
    assert cell["attempts"] == 1  # a verdict on the build is never retried
    assert cell["duration_s"] < 60


def test_the_failures_are_told_at_length_beside_the_json(bad_guests: tuple[TemporaryLab, Ran]) -> None:
    _, ran = bad_guests
    told = ran.err[ran.err.index("✗ fail panic/") :]
    assert "│ " in told
    assert re.search(r"^  by hand:\nqemu-system-x86_64 ", told, re.MULTILINE)
    before, panic, _ = told.partition("] Kernel panic - not syncing: sysrq triggered crash\n")
    assert panic
    assert "sysrq: Trigger a crash" in before


def test_a_guest_that_prints_rubbish_and_then_boots_passes(bad_guests: tuple[TemporaryLab, Ran]) -> None:
    lab, ran = bad_guests
    assert ran.cells["binary/ready"]["outcome"] == "pass", reasons(ran.cells)
    log = next(lab.runs[-1].glob("cells/binary~*/attempt-1/console.log")).read_bytes()
    assert len(log) > 300_000


def test_nothing_of_a_guest_steers_the_terminal_or_the_page(bad_guests: tuple[TemporaryLab, Ran]) -> None:
    lab, ran = bad_guests
    assert not CONTROL.search(ran.out.replace("\n", ""))
    assert not CONTROL.search(ran.err.replace("\n", ""))
    shown = lab.labctl("runs", "show")
    assert not CONTROL.search(shown.out.replace("\n", ""))
    page = (lab.runs[-1] / "report.html").read_text()
    assert "owned" in page
    assert "<script>alert(1)" not in page
    assert "\x1b" not in page


# --- tests that misbehave -------------------------------------------------------------------------------------------------

RIGHT = "\n\ndef test_after(shell):\n    assert shell('echo hi') == 'hi'\n"

SUITES: dict[str, str] = {
    "good": READY + RIGHT,
    "wrong": "def test_wrong(shell):\n    assert shell('echo hi') == 'ho'\n" + RIGHT,
    "panics": "def test_panic(shell):\n    shell('echo c >/proc/sysrq-trigger')\n" + RIGHT,
    "hangs": "def test_hang(shell):\n    shell('sleep 100', deadline=2)\n" + RIGHT,
    "command": "def test_command(shell):\n    shell('echo no such luck; exit 7')\n",
    "noisy": """
def test_noisy(shell):
    print("\\033[2J" + "x" * 100000)
    shell("(yes >/dev/console &) ; seq 100000", deadline=5)
""",
    "needs": """
import pytest

@pytest.mark.requires(cpus=64)
def test_big(shell):
    raise AssertionError

@pytest.mark.requires(memory="1G")
def test_memory(shell):
    raise AssertionError
""",
    "partly": """
import pytest

@pytest.mark.requires(cpus=64)
def test_big(shell):
    raise AssertionError

def test_small(cell):
    pass
""",
    "dies": """
import os
from pathlib import Path

def test_before(cell):
    pass

def test_dies(booted):
    if not Path("died").exists():
        Path("died").touch()
        os._exit(9)
""",
    "dies-twice": "import os, signal\n\ndef test_dies(cell):\n    os.kill(os.getpid(), signal.SIGKILL)\n",
    "lab-once": """
from pathlib import Path
from labctl.errors import ManagementError

def test_lab(target):
    if not Path("once").exists():
        Path("once").touch()
        raise ManagementError("the outlet does not answer")
""",
    "lab-always": """
from labctl.errors import ManagementError

def test_lab(target):
    raise ManagementError("the outlet does not answer")
""",
}


@pytest.fixture(scope="module")
def bad_suites(new_lab: Callable[[], TemporaryLab]) -> tuple[TemporaryLab, Ran]:
    lab = new_lab()
    for name, code in SUITES.items():
        lab.suite(name, code)
    return lab, lab.run("-n", "3", seconds=240)


@pytest.mark.parametrize(
    ("name", "outcome", "words", "attempts"),
    [
        ("good", "pass", "", 1),
        ("wrong", "fail", "assert 'hi' == 'ho'", 1),
        ("panics", "fail", "sysrq triggered crash", 1),
        ("hangs", "fail", "did not end within 2 s", 1),
        ("command", "fail", "exited with 7.*no such luck", 1),
        ("needs", "skip", "needs 64 CPUs, the target has 1", 1),
        ("partly", "pass", "", 1),
        ("dies", "flaky", "worker died", 2),
        ("dies-twice", "error", "worker died", 2),
        ("lab-once", "flaky", "the outlet does not answer", 2),
        ("lab-always", "error", "the outlet does not answer", 2),
        ("noisy", "fail", "did not end within 5 s", 1),
    ],
)
def test_each_suite_is_told_for_what_it_is(
    bad_suites: tuple[TemporaryLab, Ran], name: str, outcome: str, words: str, attempts: int
) -> None:
    _, ran = bad_suites
    cell = ran.cells[f"debian/{name}"]
    assert cell["outcome"] == outcome, reasons(ran.cells)
    assert re.search(words, cell["reason"]), reasons(ran.cells)
    assert cell["attempts"] == attempts


def test_what_comes_after_a_failure_runs_on_a_fresh_boot(bad_suites: tuple[TemporaryLab, Ran]) -> None:
    lab, _ = bad_suites
    for name in ("panics", "hangs"):
        events = next(lab.runs[-1].glob(f"cells/*~{name}/attempt-1/events.jsonl")).read_text()
        tests = {e["name"].partition("::")[2]: e["outcome"] for e in map(json.loads, events.splitlines()) if e["kind"] == "test"}
        assert tests["test_after"] == "pass", events


def test_a_run_with_faults_is_stored_whole(bad_suites: tuple[TemporaryLab, Ran]) -> None:
    lab, ran = bad_suites
    assert ran.status == 1
    assert set(ran.cells) == {f"debian/{name}" for name in SUITES}
    assert not CONTROL.search(ran.err.replace("\n", ""))
    again = lab.labctl("runs", "show", "--json").data["run"]
    assert again["finished"]
    assert again["skipped_lines"] == 0
    assert {c["cell"]["suite"]: c["outcome"] for c in again["cells"]} == {c["suite"]: c["outcome"] for c in ran.data["cells"]}


def test_only_the_labs_faults_is_exit_3(lab: TemporaryLab) -> None:
    lab.suite("lab", SUITES["lab-always"])
    lab.suite("fine", "def test_fine(cell):\n    pass\n")
    ran = lab.run()
    assert ran.status == 3, ran.err
    assert ran.data["outcome"] == "error"
    assert "the outlet does not answer" in ran.err


# --- the run itself is ended ----------------------------------------------------------------------------------------------

LONG = """
from labctl.model import Direction, Metric

def test_first(booted, record):
    record(Metric("boot.ready", "s", Direction.LOWER), booted.milestones["ready"])

def test_long(shell):
    shell("sleep 100", deadline=120)
"""


@pytest.fixture
def under_way(lab: TemporaryLab) -> Iterator[tuple[TemporaryLab, subprocess.Popen[str]]]:
    """A run of two cells, both in the middle of their second test."""
    lab.suite("long", LONG)
    lab.suite("longer", LONG)
    with lab.start("run", "matrix", "--json", "-n", "2") as process:
        try:
            end = time.monotonic() + 60
            while sum('"kind":"test"' in e.read_text() for e in lab.root.glob("results/*/cells/*/attempt-1/events.jsonl")) < 4:
                assert process.poll() is None
                assert time.monotonic() < end
                time.sleep(0.05)
            time.sleep(0.3)
            assert len(our_machines(lab.target)) == 2
            yield lab, process
        finally:
            if process.poll() is None:
                process.kill()


def check_what_is_left(lab: TemporaryLab) -> None:
    """Everything measured is kept, readable, and the next run starts at once."""
    (run,) = lab.runs
    shown = lab.labctl("runs", "show", "--json")
    assert shown.status == 0, shown.err
    content = shown.data["run"]
    assert sum(len(attempt["samples"]) for cell in content["cells"] for attempt in cell["attempts"]) == 2
    assert len(list(run.glob("cells/*/attempt-1/console.log"))) == 2
    lab.suite("fine", READY)
    began = time.monotonic()
    assert lab.run("--suite", "fine").status == 0
    assert time.monotonic() - began < 30


def test_a_machine_of_a_run_is_not_said_to_be_off(under_way: tuple[TemporaryLab, subprocess.Popen[str]]) -> None:
    lab, process = under_way
    with lab.start("power", "status", lab.target, "--json") as asking:
        status = json.loads(asking.communicate(timeout=30)[0])
    assert status["state"] == "unknown"
    assert status["holders"][0]["why"].startswith("run ")
    with lab.start("power", "off", lab.target) as switching:
        _, err = switching.communicate(timeout=30)
    assert switching.returncode == 3
    assert "holds it" in err
    assert process.poll() is None
    assert our_machines(lab.target)


def test_kill_9_of_the_whole_run(under_way: tuple[TemporaryLab, subprocess.Popen[str]]) -> None:
    lab, process = under_way
    process.send_signal(signal.SIGKILL)
    process.wait(5)
    assert gone_within(1.0, lab.target)
    assert not lab.labctl("runs", "show", "--json").data["run"]["finished"]
    check_what_is_left(lab)


INTERRUPTS = [(signal.SIGINT, "group"), (signal.SIGINT, "run"), (signal.SIGTERM, "run"), (signal.SIGHUP, "group"), (signal.SIGINT, "twice")]


@pytest.mark.parametrize(("what", "whom"), INTERRUPTS)
def test_an_interrupt(under_way: tuple[TemporaryLab, subprocess.Popen[str]], what: signal.Signals, whom: str) -> None:
    """Ctrl-C and a terminal that goes away reach the whole group of processes; a supervisor's signal only the run itself."""
    lab, process = under_way
    began = time.monotonic()
    if whom in ("group", "twice"):
        os.killpg(process.pid, what)
        if whom == "twice":  # an impatient one, while everything is being switched off
            time.sleep(0.05)
            os.killpg(process.pid, what)
    else:
        process.send_signal(what)
    out, err = process.communicate(timeout=20)
    assert time.monotonic() - began < 8
    assert process.returncode == 130, err
    assert gone_within(1.0, lab.target)
    assert "Traceback" not in err, err
    assert json.loads(out)["cells"]
    content = lab.labctl("runs", "show", "--json").data["run"]
    assert content["interrupted"]
    assert content["finished"]
    check_what_is_left(lab)
