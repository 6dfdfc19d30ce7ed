"""Programs in a real machine that report tests of their own: what they say, how they end, and a machine that dies under one."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.temporary_lab import TemporaryLab

pytestmark = pytest.mark.qemu

PROGRAMS = {
    "good": "echo 'TAP version 13'; echo 1..3; echo 'ok 1 one'; echo '[    1.000000] not of the kernel'; echo 'ok 2 # SKIP no disk'; "
    "echo 'not ok 3 three # TODO later'",
    "runner": "echo 'TAP version 13'; echo 1..2; echo '# selftests: timers: bad'; bad 2>&1 | sed -e 's/^/# /'; "
    "echo 'not ok 1 selftests: timers: bad # exit=1'; echo '# selftests: timers: good'; good | sed -e 's/^/# /'; "
    "echo 'ok 2 selftests: timers: good'",
    "bad": "echo 1..2; echo 'ok 1 one'; echo '# 4 is not 5' >&2; echo 'not ok 2 two'; exit 1",
    "cut_off": "echo 1..3; echo 'ok 1 one'; kill -9 $$",
    "odd": "echo 1..1; echo 'ok 1 one'; exit 3",
    "nothing": "echo not a test",
    "flood": "echo 1..1; echo 'ok 1 one'; while echo 0123456789012345678901234567890123456789012345678901234567890123456789; do :; done",
    "ltp": "echo 'a.c:1: TPASS: one' >&2; printf '\\nSummary:\\npassed   1\\nfailed   0\\nbroken   0\\nskipped  0\\nwarnings 0\\n'",
    "not_here": "echo 'tst_test.c:1415: TCONF: not compiled with numa' >&2; exit 32",
    "old": "echo 'old01       1  TPASS  :  one'; echo 'old01       2  TCONF  :  old01.c:5: no disk'; exit 2",
    "crash": "echo 1..3; echo 'ok 1 one'; echo 'not ok 2 two # why'; sleep 1; echo c >/proc/sysrq-trigger; sleep 60",
}
SUITE = """
import pytest

@pytest.mark.parametrize("program", ["good", "runner", "bad", "cut_off", "odd", "nothing", "nowhere"])
def test_program(ktap, program):
    report = ktap(program)
    assert not report.wrong, report.wrong

def test_ltp(ltp):
    report = ltp("ltp")
    assert not report.wrong, report.wrong

@pytest.mark.parametrize("program", ["not_here", "old"])
def test_ltp_that_says_no_summary(ltp, program):
    report = ltp(program)
    assert not report.wrong, report.wrong
    if report.skipped:
        pytest.skip(report.skipped)

def test_flood(ktap, monkeypatch):
    monkeypatch.setattr("labctl.machine.program.MOST_OUTPUT", 4096)
    report = ktap("flood")
    assert not report.wrong, report.wrong

def test_crash(ktap):
    ktap("crash", deadline=60)

def test_the_machine_is_booted_again(shell):
    assert shell("echo here") == "here"
"""


def by_name(lab: TemporaryLab) -> dict[str, tuple[str, str]]:
    """Outcome and reason of every test of the last run's one attempt."""
    shown: Any = lab.labctl("runs", "show", "--json").data["run"]
    (attempt,) = shown["cells"][0]["attempts"]
    return {test["name"].partition("::")[2]: (test["outcome"], test["reason"]) for test in attempt["tests"]}


def test_programs(lab: TemporaryLab) -> None:
    lab.suite("programs", SUITE)
    for name, script in PROGRAMS.items():
        lab.write(f"suites/programs/overlay/usr/bin/{name}", f"#!/bin/sh\n{script}\n").chmod(0o755)
    ran = lab.run("--build", "debian", "--suite", "programs")
    (cell,) = ran.data["cells"]
    assert (ran.status, cell["outcome"]) == (1, "fail"), ran.err
    told = by_name(lab)

    assert told["test_program[good]::one"] == told["test_program[good]"] == ("pass", "")
    assert told["test_program[good]::test 2"] == ("skip", "no disk")
    assert told["test_program[good]::three"] == ("skip", "fails as expected: later")

    quoted = "test_program[runner]::selftests: timers: "
    assert told[f"{quoted}bad/one"] == told[f"{quoted}good/one"] == ("pass", "")
    assert told[f"{quoted}bad/two"] == ("fail", "selftests: timers: bad/two: 4 is not 5")
    assert told["test_program[runner]"] == ("fail", "AssertionError: 1 of 5 failed: selftests: timers: bad/two: 4 is not 5")

    assert told["test_program[bad]::two"] == ("fail", "two: 4 is not 5")
    assert told["test_program[bad]"] == ("fail", "AssertionError: 1 of 2 failed: two: 4 is not 5")
    killed = "AssertionError: 3 tests planned, 1 reported; the report is cut off after one; no test failed, but the program was killed by signal 9"
    assert told["test_program[cut_off]"] == ("fail", killed)
    assert told["test_program[odd]"] == ("fail", "AssertionError: no test failed, but the program exited with 3")
    assert told["test_program[nothing]"] == ("fail", "AssertionError: no KTAP report; it last said 'not a test'")
    assert told["test_program[nowhere]"][0] == "fail"
    assert re.fullmatch(
        r"AssertionError: no KTAP report; the program exited with 127; it last said 'sh: .*nowhere: not found'",
        told["test_program[nowhere]"][1],
    )
    assert told["test_ltp::a.c:1"] == told["test_ltp"] == ("pass", "")
    assert told["test_ltp_that_says_no_summary[not_here]"] == ("skip", "not compiled with numa")
    assert told["test_ltp_that_says_no_summary[not_here]::tst_test.c:1415"] == ("skip", "not compiled with numa")
    assert told["test_ltp_that_says_no_summary[old]::old01 2"] == ("skip", "no disk")
    assert told["test_ltp_that_says_no_summary[old]"][1] == "AssertionError: no test failed, but the program exited with 2 (TBROK)"
    assert told["test_flood"][0] == "fail"
    assert "the rest is not read" in told["test_flood"][1]

    # What it had said when the machine died under it is there, and the cause is the kernel's.
    assert told["test_crash::one"] == ("pass", "")
    assert told["test_crash::two"] == ("fail", "two: why")
    assert told["test_crash"][0] == "fail"
    assert "sysrq triggered crash" in told["test_crash"][1]
    assert told["test_the_machine_is_booted_again"] == ("pass", "")
    assert "sysrq triggered crash" in cell["reason"], "the most specific cause speaks for the cell"
    junit = next(lab.root.glob("results/*/junit.xml")).read_text()
    assert 'test_crash::two"' in junit
