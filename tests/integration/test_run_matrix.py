"""The whole path: files of a lab → cells → machines under xdist → a stored run → JSON, table and reports."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from labctl.cli.verb import printable
from labctl.config import Lab
from labctl.model import Channel
from labctl.run.prepare import Request, plan
from tests.temporary_lab import LABCTL, TARGET, Ran, TemporaryLab

pytestmark = pytest.mark.qemu
ROOT = Path(__file__).parents[2]

SUITE = """
import pytest
from labctl.model import Direction, Metric

BOOT = Metric("boot.ready", "s", Direction.LOWER)


def test_boots(booted, record):
    record(BOOT, booted.milestones["ready"])


@pytest.mark.parametrize("words", ["a", "b-c"])
def test_says(shell, record, words):
    assert shell(f"echo {words}") == words
    record(Metric("say.length", "1", Direction.NONE), len(words), extra="x")
"""
COST_FREE = "def test_nothing(cell, build, target):\n    assert target.config.cpus == 1\n    assert build.name == cell.build\n"


@pytest.fixture(scope="module")
def made(new_lab: Callable[[], TemporaryLab]) -> tuple[TemporaryLab, Ran]:
    lab = new_lab()
    lab.build("other", append="loglevel=6 panic=-1")
    lab.suite("boot", SUITE)
    lab.suite("free", COST_FREE)
    lab.write(
        "matrix/default.toml",
        'schema = 1\nbuilds = ["*"]\ntargets = ["*"]\nsuites = ["*"]\n[[exclude]]\nbuilds = ["other"]\nsuites = ["free"]\nreason = "known"\n',
    )
    return lab, lab.run("-n", "2")


def test_the_object_on_stdout(made: tuple[TemporaryLab, Ran]) -> None:
    lab, ran = made
    assert ran.status == 0, ran.err
    data = ran.data
    assert set(data) >= {"schema", "run", "outcome", "results", "report", "cells"}
    assert data["schema"] == 1
    assert data["outcome"] == "pass"
    assert Path(data["results"]) == lab.runs[-1]
    assert Path(data["report"]).is_file()
    assert sorted(ran.cells) == ["debian/boot", "debian/free", "other/boot"]
    cell = ran.cells["debian/boot"]
    assert set(cell) >= {"id", "build", "target", "suite", "channel", "outcome", "attempts", "duration_s", "reason", "samples"}
    assert cell["id"] == f"debian/{lab.target}/boot"
    assert cell["channel"] == "wall"
    assert cell["attempts"] == 1
    assert 0.5 < cell["duration_s"] < 60
    lengths = [s["value"] for s in cell["samples"] if s["metric"] == "say.length"]
    assert lengths == [1, 3]
    (boot,) = (s for s in cell["samples"] if s["metric"] == "boot.ready")
    assert boot["unit"] == "s"
    assert 0.5 < boot["value"] < cell["duration_s"]


def test_what_is_on_disk(made: tuple[TemporaryLab, Ran]) -> None:
    lab, _ = made
    run = lab.runs[-1]
    assert (lab.root / "results/latest").resolve() == run
    for name in ("run.json", "events.jsonl", "end.json", "samples.parquet", "report.html", "junit.xml", "samples.csv"):
        assert (run / name).stat().st_size > 0, name
    attempt = next(run.glob("cells/debian~*~boot/attempt-1"))
    log = (attempt / "console.log").read_bytes()
    assert b"Linux version" in log
    assert b"labctl-guest: ready" in log
    assert not list(run.rglob("*.qcow2"))
    assert not list(run.rglob("*.tmp"))
    junit = ElementTree.parse(run / "junit.xml")
    assert len(junit.findall(".//testcase")) == 7 + 1
    assert len(junit.findall(".//skipped")) == 1  # what was left out


def test_samples_know_their_axes_and_parameters(made: tuple[TemporaryLab, Ran]) -> None:
    lab, _ = made
    attempts = lab.labctl("runs", "show", "--json").data["run"]["cells"]
    samples = [s for cell in attempts for a in cell["attempts"] for s in a["samples"] if s["metric"] == "say.length"]
    assert [s["params"] for s in samples] == [{"words": "a", "extra": "x"}, {"words": "b-c", "extra": "x"}] * 2
    assert {s["test"].partition("[")[0] for s in samples} == {"test_boot.py::test_says"}


def test_a_dry_run_shows_cells_costs_and_what_is_left_out(made: tuple[TemporaryLab, Ran]) -> None:
    lab, ran = made
    before = lab.runs
    plan = lab.run("--dry-run").data
    assert lab.runs == before
    assert sorted(cell["id"] for cell in plan["cells"]) == sorted(cell["id"] for cell in ran.data["cells"])
    costs = [cell["expected_s"] for cell in plan["cells"]]
    assert costs == sorted(costs, reverse=True)  # longest first, by what they took the last time
    assert {cell["expected_from"] for cell in plan["cells"]} == {"history"}
    (left,) = plan["left_out"]
    assert left["id"] == f"other/{lab.target}/free"
    assert "known" in left["reason"]


def test_the_table_for_people(made: tuple[TemporaryLab, Ran]) -> None:
    lab, _ = made
    ran = lab.labctl("run", "matrix", "--build", "debian", "--suite", "fr*", "--repeat", "2", "--results", "elsewhere")
    assert ran.status == 0, ran.err
    (run,) = (p.parent for p in lab.root.glob("elsewhere/2*/run.json"))
    assert len(list(run.glob("cells/*"))) == 2
    assert "report.html" in ran.out
    assert re.search(r"pass.*debian.*free", ran.out)
    assert "[2/2]" in ran.err
    assert printable(ran.out) == ran.out


def test_a_kernel_just_built(made: tuple[TemporaryLab, Ran]) -> None:
    lab, _ = made
    (lab.root / "bzImage").write_bytes(lab.debian.kernel.read_bytes())
    ran = lab.run("--build", "./bzImage", "--suite", "boot")
    assert ran.status == 0, ran.err
    (cell,) = ran.data["cells"]
    assert cell["build"] == "bzimage"
    assert cell["outcome"] == "pass"


@pytest.mark.parametrize("workers", [(), ("-n", "2")])
def test_pytest_by_itself_is_the_same_run(made: tuple[TemporaryLab, Ran], workers: tuple[str, ...]) -> None:
    """In a lab whose conftest.py names the plugin, as `labctl init` writes it."""
    lab, _ = made
    asked = ("suites/boot", "--build", "debian", "--target", lab.target) if not workers else ("suites", "--matrix", "default")
    ran = lab.pytest(*asked, *workers, "--results", "by-pytest")
    assert ran.status == 0, ran.out + ran.err
    run = max(p.parent for p in lab.root.glob("by-pytest/2*/end.json"))
    assert json.loads((run / "end.json").read_text())["outcome"] == "pass"
    assert len(list(run.glob("cells/*"))) == (3 if workers else 1)
    assert f"labctl: run {run.name}: pass; report: {run}/report.html" in ran.out
    assert f"test_says[debian/{lab.target}/boot-b-c]" in ran.out or workers or "3 passed" in ran.out


def test_a_new_lab_works_at_once(made: tuple[TemporaryLab, Ran], tmp_path: Path) -> None:
    """Up to the point where something would be downloaded or booted."""
    lab, _ = made
    lab.labctl("init", str(tmp_path / "new"))
    ran = subprocess.run(
        [LABCTL, "run", "matrix", "--dry-run", "--json"], cwd=tmp_path / "new", capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    plan = json.loads(ran.stdout)
    assert len({cell["build"] for cell in plan["cells"]}) >= 2
    assert len({cell["target"] for cell in plan["cells"]}) >= 4


def test_verbs_over_a_stored_run(made: tuple[TemporaryLab, Ran]) -> None:
    lab, ran = made
    listed = lab.labctl("runs", "list", "--json").data["runs"]
    assert ran.data["run"] in [run["id"] for run in listed]
    page = Path(ran.data["report"])
    page.unlink()
    again = lab.labctl("report", "run", ran.data["run"])
    assert again.status == 0, again.err
    assert page.is_file()


def test_pytest_over_all_suites_runs_those_that_the_matrix_names(made: tuple[TemporaryLab, Ran]) -> None:
    lab, _ = made
    lab.suite("unnamed", "def test_never(cell):\n    raise AssertionError\n")
    (lab.root / "matrix/narrow.toml").write_text('schema = 1\nbuilds = ["*"]\ntargets = ["*"]\nsuites = ["[!u]*"]\n')
    done = lab.pytest("suites", "--matrix", "narrow", "--collect-only", "-q")
    assert done.status == 0, done.out + done.err
    assert "test_" in done.out
    assert "unnamed" not in done.out


def test_a_build_that_comes_up_on_one_cpu_only_is_not_counted_on_more() -> None:
    planned = plan(Lab.find(ROOT), Request("default", channels=(Channel.ICOUNT,)))
    assert {cell.target for cell in planned.cells} == {"qemu-1c-512m"}
    assert {out.cell.target for out in planned.left_out} == {"qemu-2c-1g", "qemu-4c-2g", "qemu-8c-4g"}
    assert all("comes up on 1 CPU at most" in out.reason for out in planned.left_out)


def test_what_passed_is_not_run_again_until_something_changes(new_lab: Callable[[], TemporaryLab]) -> None:
    lab = new_lab()
    lab.suite("free", COST_FREE)
    lab.suite("timed", "import pytest\n\n\n@pytest.mark.benchmark\n" + COST_FREE)
    first = lab.run()
    assert first.status == 0, first.err
    again = lab.run()
    assert again.status == 0, again.err
    assert "1 of 2 cells passed before" in again.err
    assert again.cells["debian/free"]["reused_from"] == first.data["run"]
    assert (again.cells["debian/free"]["outcome"], again.cells["debian/free"]["attempts"]) == ("pass", 0)
    assert again.cells["debian/timed"]["reused_from"] is None  # what measures is measured
    assert f"../{first.data['run']}/report.html" in Path(again.data["report"]).read_text()

    lab.suite("free", COST_FREE + "\n\ndef test_no_more():\n    assert False\n")
    changed = lab.run("--suite", "free")
    assert changed.cells["debian/free"]["outcome"] == "fail"
    lab.suite("free", COST_FREE)
    assert lab.run("--suite", "free").cells["debian/free"]["reused_from"] == first.data["run"]
    fresh = lab.run("--suite", "free", "--fresh")
    assert fresh.cells["debian/free"]["reused_from"] is None


def test_a_dry_run_says_what_becomes_of_each_cell(new_lab: Callable[[], TemporaryLab]) -> None:
    """As the run then does it, and nothing is begun for it."""
    lab = new_lab()
    lab.cache = lab.root / "cache"
    lab.write(f"targets/{lab.target}.toml", TARGET.replace("[drivers.console_shell]", '[drivers.agent]\nchannel = "serial"'))
    lab.suite("free", COST_FREE)
    lab.suite("timed", "import pytest\n\n\n@pytest.mark.benchmark\n" + COST_FREE)
    lab.suite("always", COST_FREE)
    lab.write("suites/always/suite.toml", "schema = 1\nreuse = false\n")
    lab.suite("warm", "def test_up(shell):\n    assert shell('echo up') == 'up'\n")
    lab.write("suites/warm/suite.toml", "schema = 1\nwarm = true\n")

    def told(*more: str) -> dict[str, tuple[str, str, str | None]]:
        ran = lab.run("--dry-run", *more)
        assert ran.status == 0, ran.err
        return {name.partition("/")[2]: (cell["will"], cell["why"], cell["reused_from"]) for name, cell in ran.cells.items()}

    # The build is in the lab's files and not in its cache yet.
    assert {will for will, _, _ in told().values()} == {"run"}
    assert told()["free"] == ("run", "its build is not made yet", None)
    assert not lab.runs
    first = lab.run()
    assert first.status == 0, first.err
    run = first.data["run"]
    same = "it passed there, and nothing that decides it has changed"
    assert told() == {
        "free": ("reuse", same, run),
        "warm": ("reuse", same, run),
        "timed": ("run", "it measures: a figure is of its day", None),
        "always": ("run", "its suite says reuse = false", None),
    }
    assert told("--fresh")["free"] == ("run", "--fresh", None)
    assert told("--fresh")["warm"] == ("copy", "--fresh; of a machine that is kept", None)
    assert told("--cold")["warm"] == ("run", "--cold", None)
    assert told("--repeat", "2")["free"] == ("run", "who repeats a cell wants to see it run", None)
    again = lab.run()
    assert {name.partition("/")[2]: cell["reused_from"] for name, cell in again.cells.items()} == {
        name: reused for name, (_, _, reused) in told().items()
    }

    lab.suite("free", "def test_no(cell):\n    assert False\n")
    assert told("--suite", "free")["free"] == ("run", f"changed since it passed in {run}: suites/free/test_free.py", None)
    lab.write("suites/warm/overlay/etc/told", "x\n")
    lab.write("conftest.py", "# another\n")
    missing = f"what its suite needs in the machine is not made yet; changed since it passed in {run}: "
    assert told("--suite", "warm")["warm"] == ("run", missing + "suites/warm/overlay/etc/told, conftest.py", None)
    shutil.rmtree(lab.root / "suites/warm/overlay")
    (lab.root / "conftest.py").unlink()
    failed = lab.run("--suite", "free").data["run"]
    assert told("--suite", "free")["free"] == ("run", f"its newest result is a fail in {failed}", None)
    for kept in lab.cache.glob("warm/*/state"):
        kept.write_bytes(b"torn")
    assert told("--fresh")["warm"][:2] == ("run", "--fresh; no copy: what is kept of the machine has another state than it had")
    lab.write(f"targets/{lab.target}.toml", TARGET)
    (will, why, _) = told("--suite", "warm")["warm"]
    assert (will, "no copy: the target's drivers cannot copy a machine" in why) == ("run", True), why


def test_a_cell_of_which_no_test_is_selected_is_a_skip(new_lab: Callable[[], TemporaryLab]) -> None:
    lab = new_lab()
    lab.suite("one", "def test_here(cell):\n    pass\n")
    lab.suite("two", "def test_there(cell):\n    pass\n\n\ndef test_too(cell):\n    pass\n")
    ran = lab.run("-n", "2", PYTEST_ADDOPTS="-k here -m 'not benchmark'")  # there is in there too
    assert ran.status == 0, ran.err
    ran = lab.run("-n", "2", PYTEST_ADDOPTS="-k too")
    assert ran.status == 0, ran.err
    assert {name.partition("/")[2]: (cell["outcome"], cell["reason"]) for name, cell in ran.cells.items()} == {
        "one": ("skip", "none of its tests is selected: -k 'too'"),
        "two": ("pass", ""),
    }


def test_a_lab_that_takes_warnings_for_errors(new_lab: Callable[[], TemporaryLab]) -> None:
    """What it means are the warnings of its suites, not those of the harness."""
    lab = new_lab()
    lab.write("pytest.ini", "[pytest]\nfilterwarnings = error\n")
    lab.suite("free", COST_FREE)
    lab.suite("old", "import warnings\n\n\ndef test_old(cell):\n    warnings.warn('it is old', DeprecationWarning)\n")
    ran = lab.run("--dry-run")
    assert ran.status == 0, ran.err
    ran = lab.run()
    assert ran.status == 1, ran.err
    assert {name.partition("/")[2]: cell["outcome"] for name, cell in ran.cells.items()} == {"free": "pass", "old": "fail"}
    assert "DeprecationWarning: it is old" in ran.err


def test_a_dry_run_reads_the_suites(new_lab: Callable[[], TemporaryLab]) -> None:
    """What a run could not read ends the dry run as it ends the run: the same words, the same status."""
    lab = new_lab()
    lab.suite("free", COST_FREE)
    assert lab.run().status == 0
    lab.suite("broken", "def test_here(:\n")
    for what, words in {
        "def test_here(:\n": "suites/broken/test_broken.py",
        "import nowhere\n": "No module named 'nowhere'",
        "def test_x(nothing_of_that_name):\n    pass\n": "asks for 'nothing_of_that_name'",
        "import pytest\n\n@pytest.mark.requires(cpu=2)\ndef test_x():\n    pass\n": "@pytest.mark.requires(cpu=…): unknown",
    }.items():
        lab.suite("broken", what)
        dry, real = lab.labctl("run", "matrix", "--dry-run"), lab.labctl("run", "matrix")
        assert (dry.status, real.status) == (2, 2), (dry.err, real.err)
        assert words in dry.err, dry.err
        assert dry.err.splitlines() == [line for line in real.err.splitlines() if line in dry.err.splitlines()], (dry.err, real.err)
    lab.suite("broken", COST_FREE)
    for what, words in {
        "def (:\n": "SyntaxError",
        "import nowhere\n": "No module named 'nowhere'",
        "raise ValueError('of its own')\n": "ValueError: of its own",
    }.items():
        lab.write("suites/broken/conftest.py", what)
        for how in ("--dry-run", "--fresh"):
            ran = lab.labctl("run", "matrix", how)
            assert ran.status == 2, ran.err
            assert "a suite cannot be read:" in ran.err
            assert "suites/broken/conftest.py" in ran.err
            assert words in ran.err
            assert "Traceback" not in ran.err, ran.err
    assert not list(lab.runs[-1].glob("cells/*broken/*")), "no attempt"


SEVERAL = """import os
import pytest


@pytest.mark.story("US-1")
def test_one(cell):
    pass


@pytest.mark.story("US-2")
def test_two(cell):
    assert not os.path.exists("fail")


@pytest.mark.skip(reason="never")
def test_three(cell):
    pass


@pytest.mark.xfail(reason="known")
def test_four(cell):
    assert False
"""


def test_a_part_of_a_suite_and_a_repeat_never_stand_for_the_whole(new_lab: Callable[[], TemporaryLab]) -> None:
    """Their pass proves nothing, and their failure ends what an earlier pass proves; skips and expected failures are as they were."""
    lab = new_lab()
    lab.suite("several", SEVERAL)

    def by_pytest(word: str) -> int:
        return lab.pytest("suites/several", "--build", "debian", "--target", lab.target, "-k", word).status

    def reused(*more: str, **environment: str) -> str | None:
        (cell,) = lab.run("--dry-run", *more, **environment).data["cells"]
        return str(cell["reused_from"]) if cell["reused_from"] else None

    assert by_pytest("one") == 0
    assert lab.run("--story", "US-1").status == 0
    assert lab.run("--repeat", "2").status == 0
    assert reused() is None, "parts and repeats"
    whole = lab.run().data["run"]
    assert reused() == whole
    assert by_pytest("one") == 0
    assert reused() == whole
    for ends in (lambda: by_pytest("two"), lambda: lab.run("--story", "US-2").status, lambda: lab.run("--repeat", "2").status):
        lab.write("fail", "")
        assert ends() == 1
        (lab.root / "fail").unlink()
        assert reused() is None
        assert by_pytest("one") == 0
        assert reused() is None, "what has failed is not mended by a part that has not"
        whole = lab.run().data["run"]
        assert reused() == whole
    part = lab.run(PYTEST_ADDOPTS="-k one").data
    assert [cell["reused_from"] for cell in part["cells"]] == [None], "other options of pytest's"
    assert reused() == whole
    assert reused("--cold") is reused("--fresh") is None


def test_a_suite_may_be_a_link_and_have_folders(new_lab: Callable[[], TemporaryLab], tmp_path: Path) -> None:
    lab = new_lab()
    away = tmp_path / "away"
    (away / "more").mkdir(parents=True)
    (away / "test_here.py").write_text(COST_FREE)
    (away / "more/test_below.py").write_text('import pytest\n\n@pytest.mark.story("US-7")\n' + COST_FREE)
    (lab.root / "suites").mkdir()
    (lab.root / "suites/linked").symlink_to(away)
    first = lab.run()
    assert first.status == 0, first.err
    shown = lab.labctl("runs", "show", "--json").data["run"]["cells"][0]["attempts"][0]["tests"]
    assert [test["name"] for test in shown] == ["test_below.py::test_nothing", "test_here.py::test_nothing"]
    assert lab.run("--story", "US-7", "--dry-run").data["cells"][0]["suite"] == "linked"
    assert lab.run("--dry-run").data["cells"][0]["reused_from"] == first.data["run"]
    (away / "more/test_below.py").write_text("def test_no(cell):\n    assert False\n")
    assert lab.run().status == 1
    (away / "test_here.py").unlink()
    again = lab.run()
    assert (again.status, [cell["suite"] for cell in again.data["cells"]]) == (1, ["linked"]), "all of its files may lie in a folder"
