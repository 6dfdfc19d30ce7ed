"""A kernel's own tests on its console, where the machine does not come to the end of them."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from labctl.errors import KernelCrash, TargetHung
from labctl.machine.selftest import read_report
from labctl.machine.transcript import Transcript
from labctl.model import PowerState

STOPS = b"""\
KTAP version 1
1..2
    KTAP version 1
    # Subtest: list
    1..2
    ok 1 list_add
    # list_del: EXPECTATION FAILED at lib/list-test.c:40
    not ok 2 list_del
not ok 1 list
    KTAP version 1
    # Subtest: cut
    1..3
    ok 1 first
"""
REPORTED = [("list/list_add", "pass"), ("list/list_del", "fail"), ("cut/first", "pass")]


class Machine:
    """What `read_report` asks of a session, with a console that has said all that it will."""

    name = "one"

    def __init__(self, said: bytes) -> None:
        self.transcript = Transcript()
        self.config = SimpleNamespace(boot=SimpleNamespace(silence=0.05, end=None))
        self.machine = SimpleNamespace(power=SimpleNamespace(state=lambda _deadline: PowerState.OFF))
        self.taken: list[tuple[str, str]] = []
        self.boot: Any = SimpleNamespace(since=0, t0_ns=time.monotonic_ns(), milestones={"ready": 0.0}, offsets={})
        self.transcript.feed(said)

    def check_crash(self) -> None:
        """It has not crashed."""

    def read(self) -> None:
        try:
            read_report(self, self.boot, take=self.take)  # type: ignore[arg-type]
        finally:
            self.transcript.close()

    def take(self, report: Any, took: list[float]) -> None:
        assert len(took) == len(report.results)
        self.taken += [(result.name, result.outcome.value) for result in report.results]


def test_a_kernel_that_stops_in_the_middle_keeps_what_it_reported() -> None:
    machine = Machine(STOPS)
    with pytest.raises(TargetHung, match=r"self-tests: silent for 0.05 s, after cut/first$"):
        machine.read()
    assert machine.taken == REPORTED


def test_so_does_one_that_crashes() -> None:
    machine = Machine(STOPS + b"[    3.000000] Kernel panic - not syncing: Fatal exception\n")
    with pytest.raises(KernelCrash, match="Fatal exception"):
        machine.read()
    assert machine.taken == REPORTED


def test_one_that_reports_nothing_adds_nothing() -> None:
    machine = Machine(b"labctl-guest: ready\n")
    with pytest.raises(TargetHung, match="before the first test"):
        machine.read()
    assert machine.taken == []


def test_a_whole_report_is_taken_once() -> None:
    machine = Machine(STOPS.replace(b"1..3", b"1..1") + b"ok 2 cut\n")
    machine.transcript.end("the machine is off")
    machine.read()
    assert machine.taken == REPORTED
