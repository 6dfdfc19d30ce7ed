"""Each check of the suites `memory` and `soak` can fail: they run as they are, in machines with a defect each."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.temporary_lab import TemporaryLab, reasons

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.qemu, pytest.mark.skipif(not shutil.which("gcc"), reason="the host lacks gcc")]

HOG = """#include <sched.h>
int main(void) { return sched_setscheduler(0, SCHED_FIFO, &(struct sched_param){ 99 }) ? 1 : ({ for (;;); 0; }); }
"""
"""Leaves nobody else the only CPU."""

# Name of a copy of a suite → its tool, and what is in its place: ``$REAL`` is the tool itself.
PLANTED = {
    "memory": {
        "memory": """case $1 in
        patterns) exec $REAL "$@" --flip ;;
        lives) exec $REAL lives "$2" --leak 8192 ;;
        greedy) echo 1 >/proc/sys/vm/panic_on_oom; exec $REAL greedy ;;
        esac"""
    },
    "soak_hang": {"load": "sleep 3; echo -1 >/proc/sys/kernel/sched_rt_runtime_us; exec hog"},
    "soak_silent": {"heartbeat": 'exec $REAL "$@" --stop-after 2'},
    "soak_crash": {"load": '(sleep 3; echo c >/proc/sysrq-trigger) & exec $REAL "$@"'},
    "soak_reset": {"load": "sleep 3; reboot -f"},
    "soak_wrong": {"load": 'exec $REAL "$@" --flip'},
    "soak_healthy": {},
}


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tools")
    (folder / "hog.c").write_text(HOG)
    for source in (folder / "hog.c", *(ROOT / f"guest/tools/{name}.c" for name in ("memory", "heartbeat", "load"))):
        subprocess.run(["gcc", "-O2", "-static", "-s", "-Werror", "-Wall", "-o", folder / source.stem, source], check=True)
    return folder


def plant(lab: TemporaryLab, tools: Path) -> None:
    for suite, wrappers in PLANTED.items():
        kind = suite.partition("_")[0]
        lab.suite(suite, (ROOT / f"suites/{kind}/test_{kind}.py").read_text())
        # As it is, but for the tools, which the defects are planted in.
        needs = (ROOT / f"suites/{kind}/suite.toml").read_text()
        lab.write(f"suites/{suite}/suite.toml", re.sub(r"^tools = .*$", "", needs, flags=re.MULTILINE))
        for name in ["memory"] if kind == "memory" else ["heartbeat", "load", "hog"]:
            path = lab.root / f"suites/{suite}/overlay/usr/bin/{name}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if name in wrappers:
                shutil.copy(tools / name, path.with_name(f"real-{name}"))
                path.write_text(f"#!/bin/sh\nREAL=/usr/bin/real-{name}\n{wrappers[name]}\n")
                path.chmod(0o755)
            else:
                shutil.copy(tools / name, path)


def samples(lab: TemporaryLab, suite: str) -> dict[str, list[float]]:
    """Every sample of a suite's cell by metric, from the run's own record."""
    found: dict[str, list[float]] = {}
    with (lab.runs[-1] / "samples.csv").open() as file:
        for row in csv.DictReader(file):
            if row["suite"] == suite:
                found.setdefault(row["metric"], []).append(float(row["value"]))
    return found


def test_each_check_can_fail(lab: TemporaryLab, tools: Path) -> None:
    plant(lab, tools)
    ran = lab.run("--soak", "5s", "--build", "debian", seconds=400)
    cells = ran.cells
    assert set(cells) == {f"debian/{suite}" for suite in PLANTED}, ran.err
    why = {name.removeprefix("debian/"): cell["reason"] for name, cell in cells.items()}
    assert {name for name, cell in cells.items() if cell["outcome"] == "pass"} == {"debian/soak_healthy"}, reasons(cells)
    shown: Any = lab.labctl("runs", "show", "--json").data["run"]
    told = {
        (cell["cell"]["suite"], test["name"].partition("::")[2]): test["reason"]
        for cell in shown["cells"]
        for test in cell["attempts"][0]["tests"]
        if test["outcome"] == "fail"
    }

    assert {name for suite, name in told if suite == "memory"} == {"test_patterns", "test_huge_pages", "test_no_leak", "test_out_of_memory"}
    assert "1 wrong with own, the first at " in told["memory", "test_patterns"]
    assert "1 wrong with own, the first at " in told["memory", "test_huge_pages"]
    assert "bytes less after 1000 processes" in told["memory", "test_no_leak"]
    assert "panic_on_oom" in told["memory", "test_out_of_memory"]

    assert re.fullmatch(r"no heartbeat for \d+ s, after [1-4]\.\d s of its heartbeat", why["soak_hang"])
    assert "s of its heartbeat; the machine answers: what beat there was killed" in why["soak_silent"]
    assert "sysrq triggered crash" in why["soak_crash"]
    assert "s of its heartbeat" in why["soak_crash"]
    assert "s of its heartbeat" in why["soak_reset"]
    assert "wrong memory at " in why["soak_wrong"]

    for suite in PLANTED:
        if suite.startswith("soak"):
            of = samples(lab, suite)
            broke = suite not in ("soak_wrong", "soak_healthy")
            assert of["uptime.failures"] == [float(broke and suite != "soak_silent")], suite
            assert (of["uptime.seconds"][0] < 5) == broke, f"{suite}: {of}"
            assert of["uptime.gap"], f"{suite}: what was said before the end is kept"
            assert min(of["uptime.gap"]) > 0, f"{suite}: the first beat has none before it"

    proves = {cell["cell"]["suite"]: bool(cell["key"]) and cell["proves"] for cell in shown["cells"]}
    assert proves["memory"], "what passed need not be run again"
    assert not proves["soak_healthy"], "a soak is: each hour adds to what is known"
