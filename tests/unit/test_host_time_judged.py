"""What a host gave a machine of its time: read from the kernel's own counts; starved only where they show it."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from labctl.machine.hosttime import Given, HostTime
from labctl.machine.session import STANDSTILL_S, Session
from labctl.machine.transcript import Transcript
from labctl.model import Build, Target, TargetConfig
from labctl.parsers.crash import Standstill, standstills
from tests.unit.test_crash import CONSOLES, FATAL, SURVIVED, WELL, console

STALL = (
    b"[   12.000001] smp: Brought up 1 node, 2 CPUs\r\n"
    b"[   65.768212] clocksource: timekeeping watchdog on CPU0: Marking clocksource 'tsc' as unstable because the skew is too large:\r\n"
    b"[   91.100000] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:\r\n"
    b"[  120.500000] watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [sh:84]\r\n"
    b"[  148.500000] watchdog: BUG: soft lockup - CPU#1 stuck for 49s! [sh:84]\r\n"
)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (Given(25, 24, 1, 0.0, 1.1), ""),  # quiet: it had all it wanted, and so it hung by itself
        (Given(25, 45, 4, 0.02, 3.0), ""),
        (Given(25, 0.1, 0.4, 0.0, 30.0), ""),  # it wanted nothing: a kernel that sleeps for ever does not want for time
        (Given(3, 0.2, 2.8, 0.0, 30.0), ""),  # too short to tell
        (Given(25, 14, 11, 0.05, 6.0), ""),
        (Given(25, 3, 22, 0.0, 19.3), "in 25 s it waited for a CPU for 22.0 of the 25.0 s for which it wanted one, load 19.3"),
        (Given(25, 24, 1, 0.55, 2.0), "in 25 s 55% of the host's CPUs was taken by other virtual machines, load 2.0"),
    ],
)
def test_starved_is_only_what_was_seen_to_wait(given: Given, said: str) -> None:
    assert given.starved() == said


def test_every_standstill_is_found_in_its_order_and_nothing_else() -> None:
    found = standstills(STALL)
    assert [each.title for each in found] == [
        "clocksource tsc is unstable",
        "INFO: rcu detected stall",
        "BUG: soft lockup",
        "BUG: soft lockup",
    ]
    assert all(STALL[each.offset :].startswith(b"[ ") for each in found)
    assert standstills(STALL + b"[  150.000000] BUG: kernel NULL pointer dereference, address: 0000000000000000\r\n") == ()
    assert standstills(STALL + b"[  150.000000] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000009\r\n") == ()
    assert len(standstills(STALL + b"[  150.000000] Kernel panic - not syncing: softlockup: hung tasks\r\n")) == 4


@pytest.mark.parametrize("name", [*FATAL, *SURVIVED, *WELL])
def test_of_recorded_consoles_those_that_stood_still_are_known(name: str) -> None:
    """An oops that also made others wait is no standstill; nor is a process that was killed, or that waits for a disk."""
    stands = {"soft-lockup": "BUG: soft lockup", "rcu-stall": "INFO: rcu detected stall"}
    found = {each.title for each in standstills(console(name))}
    assert found == ({stands[name]} if name in stands else set())
    assert (CONSOLES / f"{name}.txt.gz").exists()


def test_the_kernels_counts_are_read(tmp_path: Path) -> None:
    def told(ran: int, waited: int, stolen: int) -> None:
        for name in ("7", "8"):
            task = tmp_path / "5" / "task" / name
            task.mkdir(parents=True, exist_ok=True)
            (task / "schedstat").write_text(f"{ran} {waited} 3\n")
        (tmp_path / "stat").write_text(f"cpu 100 0 0 100 0 0 0 {stolen} 0 0\ncpu0 1\n")

    watched = HostTime(5, tmp_path)
    assert watched.given(0, 1) is None
    told(1_000_000_000, 0, 0)
    watched.look()
    began = time.monotonic_ns()
    assert watched.given(began, began) is None
    told(2_000_000_000, 5_000_000_000, 200)
    watched.look()
    given = watched.given(began - 10**12, time.monotonic_ns())
    assert given is not None
    assert (given.ran, given.waited, given.stolen) == (2.0, 10.0, 1.0)
    for task in (tmp_path / "5" / "task").iterdir():
        (task / "schedstat").write_text("nonsense")
    watched.look()
    again = watched.given(began - 10**12, time.monotonic_ns())
    assert again is not None
    assert (again.ran, again.waited) == (2.0, 10.0), "a thread that has ended still had its time"


def test_a_standstill_is_where_its_line_is() -> None:
    assert standstills(b"rcu: INFO: rcu_sched self-detected stall on CPU\n") == (Standstill("INFO: rcu detected stall", 0),)


class Host:
    """A Power driver as far as it is asked here: what the host gave, whenever that was."""

    def __init__(self, given: Given) -> None:
        self.given = given
        self.asked: list[float] = []

    def host_time(self, since_ns: int, until_ns: int) -> Given:
        self.asked.append((until_ns - since_ns) / 1e9)
        return self.given


QUIET, STARVED = Given(25, 24, 1, 0.0, 1.0), Given(25, 2, 23, 0.0, 21.0)


@pytest.mark.parametrize(
    ("said", "given", "noise"),
    [
        (STALL, STARVED, True),
        (STALL, QUIET, False),  # a true lockup
        (STALL + b"[  150.000000] BUG: kernel NULL pointer dereference, address: 0000000000000000\r\n", STARVED, False),
        (b"[   12.000001] smp: Brought up 1 node, 2 CPUs\r\n", STARVED, False),  # a slow host alone excuses nothing
        (
            b"watchdog: BUG: soft lockup - CPU#1 stuck for 22s!\r\n[   12.0] x\r\n[    1.000000] smp: up\r\n",
            STARVED,
            False,
        ),  # a program's words
    ],
)
def test_what_a_machine_did_says_nothing_only_if_it_stood_still_and_its_host_was_starved(
    tmp_path: Path, said: bytes, given: Given, noise: bool
) -> None:
    host = Host(given)
    target = Target("one", TargetConfig.model_validate({"schema": 1, "cpus": 1, "memory": "64M", "drivers": {"qemu": {"accel": "tcg"}}}))
    build = Build("one", "", "x86_64", tmp_path / "kernel", None, "", "", {}, None)  # type: ignore[arg-type]
    held = Session(target, build, tmp_path)
    with Transcript(tmp_path) as held.transcript:
        held.machine = SimpleNamespace(power=host)  # type: ignore[assignment]
        held.transcript.feed(said)
        found = held.stood_still(0)
        assert bool(found) is noise, found
        assert set(host.asked) <= {STANDSTILL_S}
        if noise:
            assert "(clocksource tsc is unstable): in 25 s it waited for a CPU for 23.0 of the 25.0 s" in found
        assert held.stood_still(held.transcript.size) == "", "what was said before the test began is not of it"
