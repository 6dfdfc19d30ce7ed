"""The reference kernel through the real command: its own tests as results, its ways to fail, and the loop of `labctl watch`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from typing import Any

import pytest

from tests.leftovers import gone_within

ROOT = Path(__file__).parents[2]
LABCTL = Path(sys.executable).with_name("labctl")
TARGET = "microvm-pvh-1c-512m"

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(not all(map(shutil.which, ("rustc", "ld.lld"))), reason="the host lacks rustc or ld.lld"),
]


class KernelLab:
    """A lab of its own with the reference kernel, one target and the suite of self-tests."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()
        (root / "lab.toml").write_text("schema = 1\n")
        ignored = shutil.ignore_patterns("__pycache__")
        for part in ("kernel/quetzalcore", "suites/selftest", "suites/boot"):
            shutil.copytree(ROOT / part, root / part, ignore=ignored)
        (root / "targets").mkdir()
        self.target = f"pvh-{os.getpid()}-{root.parent.name}"[:60].lower()
        text = (ROOT / f"targets/{TARGET}.toml").read_text()
        (root / f"targets/{self.target}.toml").write_text(text.replace("silence = 30, end = 15", "silence = 8, end = 6"))
        (root / "matrix").mkdir()
        (root / "matrix/quick.toml").write_text('schema = 1\nbuilds = ["quetzalcore"]\ntargets = ["*"]\nsuites = ["selftest"]\n')

    def append(self, words: str) -> None:
        """Have the build ask for this on its command line."""
        recipe = self.root / "kernel/quetzalcore/build.toml"
        shutil.copyfile(ROOT / "kernel/quetzalcore/build.toml", recipe)
        recipe.write_text(recipe.read_text().replace("[milestones]", f'append = "{words}"\n[milestones]', 1))

    def tests(self) -> dict[str, dict[str, Any]]:
        """The tests of the last run's one attempt, by their names."""
        shown = json.loads(self.labctl("runs", "show", "--json").stdout)["run"]
        return {test["name"]: test for test in shown["cells"][0]["attempts"][0]["tests"]}

    @property
    def environment(self) -> dict[str, str]:
        own = {"LABCTL_LOCKS": str(self.root / "locks"), "LABCTL_CPUS": "4"}
        return {**os.environ, **own, "COLUMNS": "200", "NO_COLOR": "1"}

    def labctl(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [LABCTL, *words], cwd=self.root, env=self.environment, capture_output=True, text=True, timeout=400, check=False
        )

    def cell(self, *words: str) -> dict[str, Any]:
        """The one cell of a run."""
        done = self.labctl("run", "matrix", "quick", "--json", *words)
        assert done.stdout, done.stderr
        (cell,) = json.loads(done.stdout)["cells"]
        assert (done.returncode == 0) == (cell["outcome"] == "pass")
        assert gone_within(2.0, self.target)
        found: dict[str, Any] = cell
        return found


@pytest.fixture
def lab(tmp_path: Path) -> KernelLab:
    return KernelLab(tmp_path / "lab")


def test_each_self_test_is_a_test_of_the_run(lab: KernelLab) -> None:
    lab.append("test=boot,memory")
    cell = lab.cell()
    assert cell["outcome"] == "pass", cell["reason"]
    shown = json.loads(lab.labctl("runs", "show", "--json").stdout)["run"]
    tests = {test["name"]: test for test in shown["cells"][0]["attempts"][0]["tests"]}
    own = {
        name.rpartition("::")[2]: test["outcome"] for name, test in tests.items() if name.startswith("test_selftest.py::test_selftests::")
    }
    assert own["memory/pages"] == "pass"
    assert {name.split("/")[0] for name in own} == {"boot", "memory"}
    assert "less than 1 GiB" in tests["test_selftest.py::test_selftests::memory/gigabyte"]["reason"], "skipped with the kernel's reason"
    page = next(iter(lab.root.glob("results/*/report.html"))).read_text()
    assert "memory/pages" in page


@pytest.mark.parametrize("suite", ["selftest", "boot"])
def test_its_boot_is_counted_twice(lab: KernelLab, suite: str) -> None:
    lab.append("test=boot")
    cell = lab.cell("--suite", suite, "--channel", "icount")
    assert cell["outcome"] == "pass", cell["reason"]
    counted = {reading["params"]["milestone"]: reading for reading in cell["readings"] if reading["metric"] == "boot.instructions"}
    assert list(counted) == ["kernel_entry", "init", "ready"]
    assert {(reading["agreement"], reading["count"]) for reading in counted.values()} == {("exact", 2)}
    assert f"{counted['ready']['value']:,} instr." in lab.labctl("runs", "show").stdout


def test_what_needs_a_shell_is_skipped_where_there_is_none(lab: KernelLab) -> None:
    cell = lab.cell("--suite", "boot")
    assert cell["outcome"] == "pass", cell["reason"]
    tests = lab.tests()
    for name in ("version", "cpus", "memory", "clean_power_off"):
        test = tests[f"test_boot.py::test_{name}"]
        assert (test["outcome"], test["reason"]) == ("skip", "needs a shell: no driver of the target gives one")
    assert tests["test_boot.py::test_five_power_cycles"]["outcome"] == "pass"


def test_an_unknown_test_is_an_error_on_the_console_and_in_the_lab(lab: KernelLab) -> None:
    lab.append("test=boot,memori")
    cell = lab.cell()
    assert cell["outcome"] == "fail"
    assert cell["reason"].startswith("memori: ")
    assert "no test" in cell["reason"]
    assert "memory" in cell["reason"], "the names that there are"
    (log,) = lab.root.glob("results/latest/cells/*/*/console.log")
    assert b'there is no test "memori"' in log.read_bytes()


@pytest.mark.parametrize(
    ("words", "outcome", "reason"),
    [
        ("variant=panic", "KernelCrash", "this variant panics"),
        ("variant=hang", "TargetHung", "silent for 8 s"),
        ("variant=slow:many", "BootFailed", "ended before ready"),
    ],
)
def test_what_goes_wrong_in_it_is_named(lab: KernelLab, words: str, outcome: str, reason: str) -> None:
    lab.append(words)
    cell = lab.cell()
    assert cell["outcome"] == "fail"
    assert reason in cell["reason"]
    shown = json.loads(lab.labctl("runs", "show", "--json").stdout)["run"]
    assert shown["cells"][0]["attempts"][0]["error"] == outcome


@pytest.mark.parametrize(
    ("words", "reasons"),
    [
        ("test=boot variant=leak", ["Bail out! memory leaked", "by the debug port, with 0x11 (status 35)"]),
        ("test=boot exit=reset", ["the machine was reset after the report"]),
        ("test=boot exit=halt", ["the machine did not end within 6 s of its report"]),
    ],
)
def test_a_kernel_that_fails_after_its_report_fails(lab: KernelLab, words: str, reasons: list[str]) -> None:
    lab.append(words)
    cell = lab.cell()
    assert cell["outcome"] == "fail"
    assert [words for words in reasons if words not in cell["reason"]] == []


def test_a_build_of_another_architecture_is_left_out_with_the_reason(lab: KernelLab) -> None:
    arm = (lab.root / f"targets/{lab.target}.toml").read_text().replace('arch = "x86_64"', 'arch = "aarch64"')
    (lab.root / "targets/arm.toml").write_text(arm)
    done = lab.labctl("run", "matrix", "quick", "--dry-run", "--json")
    plan = json.loads(done.stdout)
    assert [cell["target"] for cell in plan["cells"]] == [lab.target]
    assert plan["left_out"] == [{"id": "quetzalcore/arm/selftest", "reason": "build is x86_64, target is aarch64"}]


@pytest.mark.skipif(
    not all(map(shutil.which, ("qemu-system-aarch64", "qemu-system-riscv64"))), reason="the host lacks qemu-system-arm or qemu-system-misc"
)
def test_it_runs_on_arm_and_risc_v(lab: KernelLab) -> None:
    for arch in ("aarch64", "riscv64"):
        shutil.copyfile(ROOT / f"kernel/quetzalcore-{arch}.toml", lab.root / f"kernel/quetzalcore-{arch}.toml")
        shutil.copyfile(ROOT / f"targets/qemu-{arch}-virt.toml", lab.root / f"targets/qemu-{arch}-virt.toml")
    shutil.copyfile(ROOT / "matrix/virt.toml", lab.root / "matrix/virt.toml")
    done = lab.labctl("run", "matrix", "virt", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    run = json.loads(done.stdout)
    assert {cell["build"] for cell in run["cells"]} == {"quetzalcore-aarch64", "quetzalcore-riscv64"}
    shown = json.loads(lab.labctl("runs", "show", "--json").stdout)["run"]
    for cell in shown["cells"]:
        assert any(test["name"].endswith("::memory/pages") and test["outcome"] == "pass" for test in cell["attempts"][0]["tests"])


# --- labctl watch


class Watch:
    """``labctl watch --json`` under way: its lines as they come."""

    def __init__(self, lab: KernelLab) -> None:
        self.process = subprocess.Popen(
            [LABCTL, "watch", "--json"],
            cwd=lab.root,
            env=lab.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.runs: Queue[dict[str, Any]] = Queue()
        self.said: Queue[str] = Queue()
        self.threads = [threading.Thread(target=self._read_runs, daemon=True), threading.Thread(target=self._read_words, daemon=True)]
        for thread in self.threads:
            thread.start()

    def _read_runs(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.runs.put(json.loads(line))

    def _read_words(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.put(line)

    def until(self, words: str) -> str:
        """What it says up to and with a line that holds ``words``."""
        said = ""
        while words not in said:
            said += self.said.get(timeout=120)
        return said

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        status = self.process.wait(60)
        for thread in self.threads:
            thread.join(10)
        return status


@pytest.fixture
def watch(lab: KernelLab) -> Iterator[Watch]:
    lab.append("test=boot")
    watching = Watch(lab)
    yield watching
    if watching.process.poll() is None:
        watching.process.kill()
        watching.process.wait()


def test_watch_builds_runs_and_shows_the_difference(lab: KernelLab, watch: Watch) -> None:
    first = watch.runs.get(timeout=120)
    assert first["outcome"] == "pass"
    assert first["before"] is None
    watch.until("watching")

    main = lab.root / "kernel/quetzalcore/src/main.rs"
    good = main.read_text()
    main.write_text(good + 'fn broken() -> u8 { "x" }\n')
    said = watch.until("watching")
    assert said.count("error[E0308]: mismatched types") == 1, said
    assert "--> kernel/quetzalcore/src/main.rs:" in said
    assert watch.runs.get(timeout=10)["run"] is None
    assert watch.process.poll() is None

    main.write_text(good)
    (lab.root / "kernel/quetzalcore/build.toml").write_text(
        (lab.root / "kernel/quetzalcore/build.toml").read_text().replace("test=boot", "test=boot,memori")
    )
    second = watch.runs.get(timeout=120)
    assert second["before"] == first["run"]
    (cell,) = second["cells"]
    assert (cell["before"], cell["after"]) == ("pass", "fail")
    assert cell["ready_before"] > 0
    assert cell["ready_after"] > 0
    assert [test["after"] for test in cell["tests"] if test["name"].endswith("::memori")] == ["fail"]
    watch.until("watching")
    assert watch.end(signal.SIGINT) == 0
    assert gone_within(2.0, lab.target)


def test_ctrl_c_in_the_middle_of_a_run_leaves_nothing(lab: KernelLab, watch: Watch) -> None:
    (lab.root / "kernel/quetzalcore/build.toml").write_text(
        (lab.root / "kernel/quetzalcore/build.toml").read_text().replace("test=boot", "variant=flood")
    )
    end = time.monotonic() + 120
    while not any(log.stat().st_size > 10_000 for log in lab.root.glob("results/*/cells/*/*/console.log")):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert watch.process.poll() is None
    assert watch.end(signal.SIGINT) == 0
    assert gone_within(5.0, lab.target)
