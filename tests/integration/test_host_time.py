"""What a host gives an emulated machine of its CPUs: seen of real processes, and what follows for a test's outcome."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from labctl.machine.hosttime import HostTime
from labctl.store.reader import read_run
from tests.temporary_lab import TemporaryLab

SUITE = """
import os
import subprocess
import sys
import time

CPU = min(os.sched_getaffinity(0))
STALL = "<2>watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [sh:1]"


def run_for(target, seconds, nice):
    # The machine spins on one CPU of the host's, at that priority.
    pid = target.machine.power._process.child.pid
    for thread in map(int, os.listdir(f"/proc/{pid}/task")):
        os.setpriority(os.PRIO_PROCESS, thread, nice)
        os.sched_setaffinity(thread, {CPU})
    time.sleep(seconds)


def test_quiet(target, shell):
    shell("(while :; do :; done) &")
    run_for(target, 12, -20)
    shell(f"echo '{STALL}' >/dev/kmsg")
    shell("false")


def test_starved(target, shell):
    code = f"import os; os.sched_setaffinity(0, {{{CPU}}})\\nwhile True: pass"
    others = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    try:
        run_for(target, 18, 19)
    finally:
        for other in others:
            other.kill()
            other.wait()
    run_for(target, 0, -20)
    shell(f"echo '{STALL}' >/dev/kmsg")
    assert shell("echo well") == "another word"


def test_starved_and_well(shell):
    assert shell("echo well") == "well"
"""


@pytest.mark.qemu
@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="a priority above the usual needs root")
def test_a_standstill_is_the_builds_on_a_quiet_host_and_nobodys_on_a_starved_one(lab: TemporaryLab) -> None:
    """The same words on the console, the same failing test: what the host gave the machine decides. What passes passes."""
    lab.suite("stall", SUITE)
    ran = lab.run(seconds=240)
    tests = {test["test"].rpartition("::")[2]: test for test in ran.cells["debian/stall"]["failed"]}
    assert set(tests) == {"test_quiet", "test_starved"}, ran.err
    assert tests["test_quiet"]["reason"].startswith("'false' exited with 1")
    reason = tests["test_starved"]["reason"]
    assert reason.startswith("host noise: the machine stood still for want of its host's time (BUG: soft lockup): in "), reason
    assert " s for which it wanted one, load " in reason
    assert "then: AssertionError" in reason
    assert any("another word" in line for line in tests["test_starved"]["where"])
    assert ran.cells["debian/stall"]["outcome"] == "fail", "the quiet one's"
    outcomes = {test.name.rpartition("::")[2]: test.outcome.value for test in read_run(lab.runs[-1]).cells[0].tests}
    assert outcomes == {"test_quiet": "fail", "test_starved": "invalid", "test_starved_and_well": "pass"}


def test_of_a_real_process_that_is_kept_from_its_cpu_the_wait_is_seen() -> None:
    """Four that spin on one CPU: each waits for most of the time. It ends when it is told to."""
    cpu = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, {{{cpu}}})\nwhile True: pass"
    spinning = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(4)]
    try:
        watched = HostTime(spinning[0].pid)
        watched.start()
        began = time.monotonic_ns()
        time.sleep(6.5)  # what is measured
        given = watched.given(began, time.monotonic_ns())
        watched.stop()
    finally:
        for process in spinning:
            process.kill()
            process.wait()
    assert given is not None
    assert given.seconds >= 5
    assert given.waited > given.ran
    assert "it waited for a CPU for " in given.starved()
