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

CPUS = os.sched_getaffinity(0)
CPU = min(CPUS)
FIRST = os.SCHED_RR, os.sched_param(1)
USUAL = os.SCHED_OTHER, os.sched_param(0)
STALL = "<2>watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [sh:1]"


def run_for(target, seconds, cpus, *policy):
    # The machine spins on those CPUs of the host's: before all others, or as one of many.
    pid = target.machine.power._process.child.pid
    for thread in map(int, os.listdir(f"/proc/{pid}/task")):
        os.sched_setaffinity(thread, cpus)
        os.sched_setscheduler(thread, *policy)
    time.sleep(seconds)


def test_quiet(target, shell):
    shell("(while :; do :; done) &")
    run_for(target, 9, CPUS, *FIRST)
    shell(f"echo '{STALL}' >/dev/kmsg")
    shell("false")


def test_starved(target, shell):
    code = f"import os; os.sched_setaffinity(0, {{{CPU}}})\\nwhile True: pass"
    # Each a session of its own: the host's kernel shares its time between sessions first.
    others = [subprocess.Popen([sys.executable, "-c", code], start_new_session=True) for _ in range(8)]
    try:
        # Most of the 25 s that are looked at: before them it had all that it wanted.
        run_for(target, 16, {CPU}, *USUAL)
    finally:
        for other in others:
            other.kill()
            other.wait()
    run_for(target, 0, CPUS, *FIRST)
    shell(f"echo '{STALL}' >/dev/kmsg")
    assert shell("echo well") == "another word"


def test_starved_and_well(shell):
    assert shell("echo well") == "well"
"""


@pytest.mark.qemu
@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="to be run before all others needs root")
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
