"""Power: each verb returns only when it is true."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from labctl.errors import PowerError
from labctl.machine.power import power_cycle
from labctl.machine.protocols import BootDevice, DriverContext, Power
from labctl.machine.registry import assemble
from labctl.machine.transcript import Transcript
from labctl.model import Build, PowerState
from tests.contract.conftest import Bench, Rig
from tests.leftovers import gone_within, our_machines

ROLE = Power
pytestmark = pytest.mark.qemu


def test_on_returns_time_zero_before_the_first_byte(bench: Bench) -> None:
    before = time.monotonic_ns()
    t0 = bench.power.on(bench.deadline())
    assert before < t0 < time.monotonic_ns()
    assert bench.power.state(bench.deadline()) is PowerState.ON
    found = bench.transcript.wait([bench.rig.first_words], deadline=bench.deadline())
    assert bench.transcript.time_of(0) > t0
    assert found.t_ns > t0


def test_on_twice_is_refused_and_does_no_harm(bench: Bench) -> None:
    bench.power.on(bench.deadline())
    with pytest.raises(PowerError, match="on already"):
        bench.power.on(bench.deadline())
    assert bench.power.state(bench.deadline()) is PowerState.ON
    bench.transcript.wait([bench.rig.first_words], deadline=bench.deadline())


def test_on_without_a_build_is_refused(rig: Rig, tmp_path: Path) -> None:
    with Transcript(tmp_path) as transcript:
        if rig.server is not None:
            pytest.skip("a server boots what its disk holds")
        bench = Bench(rig, rig.target(), None, assemble(DriverContext(rig.target(), tmp_path), transcript), transcript)  # type: ignore[arg-type]
        with pytest.raises(PowerError, match="build"):
            bench.power.on(bench.deadline())
        assert bench.power.state(bench.deadline()) is PowerState.OFF


def test_off_when_off_is_no_error(bench: Bench) -> None:
    bench.power.off(bench.deadline())
    bench.power.on(bench.deadline())
    bench.power.off(bench.deadline())
    bench.power.off(bench.deadline())
    assert bench.power.state(bench.deadline()) is PowerState.OFF


def test_off_leaves_nothing_behind(bench: Bench) -> None:
    bench.power.on(bench.deadline())
    bench.power.off(bench.deadline())
    assert bench.power.state(bench.deadline()) is PowerState.OFF
    assert bench.rig.left(bench.target.name) == []
    if bench.rig.server is None:
        # Everything it said is there, and nobody waits for more of it.
        assert bench.transcript.ended is not None


def test_cycle_is_off_then_on(bench: Bench) -> None:
    first = bench.power.on(bench.deadline())
    bench.transcript.wait([bench.rig.first_words], deadline=bench.deadline())
    seen = bench.transcript.size
    second = power_cycle(bench.power, bench.deadline())
    assert second > first
    again = bench.transcript.wait([bench.rig.first_words], since=seen, deadline=bench.deadline())
    assert again.t_ns > second
    assert bench.power.state(bench.deadline()) is PowerState.ON


def test_reset_boots_again_without_a_power_off(bench: Bench) -> None:
    first = bench.power.on(bench.deadline())
    found = bench.transcript.wait([bench.rig.first_words], deadline=bench.deadline())
    before = bench.rig.left(bench.target.name)
    if not bench.rig.resets:
        with pytest.raises(PowerError, match="no warm reset"):
            bench.power.reset(bench.deadline())
        return
    zero = bench.power.reset(bench.deadline())
    assert zero > found.t_ns > first
    assert bench.power.state(bench.deadline()) is PowerState.ON
    again = bench.transcript.wait([bench.rig.first_words], since=found.end, deadline=bench.deadline())
    assert again.t_ns > zero
    assert bench.rig.left(bench.target.name) == before


def test_reset_of_a_machine_that_is_off_is_refused(bench: Bench) -> None:
    with pytest.raises(PowerError, match="off"):
        bench.power.reset(bench.deadline())


def test_ten_times_on_and_off(bench: Bench) -> None:
    """No descriptor, thread or process stays behind."""
    bench.power.on(bench.deadline())
    helpers = {thread.native_id for thread in threading.enumerate()}
    bench.power.off(bench.deadline())
    ended = helpers - {thread.native_id for thread in threading.enumerate()}
    end = time.monotonic() + 5  # a thread that has been joined leaves /proc a moment later
    while any(Path(f"/proc/self/task/{each}").exists() for each in ended) and time.monotonic() < end:
        time.sleep(0.01)
    before = _held()
    for _ in range(10):
        bench.power.on(bench.deadline())
        bench.power.off(bench.deadline())
    end = time.monotonic() + 1
    while _held() != before and time.monotonic() < end:
        time.sleep(0.01)
    assert _held() == before


def _held() -> tuple[int, int]:
    """Descriptors and threads of this process."""
    return len(list(Path("/proc/self/fd").iterdir())), len(list(Path("/proc/self/task").iterdir()))


def test_a_server_stays_on_when_its_driver_is_gone(bench: Bench, tmp_path: Path) -> None:
    if bench.rig.server is None:
        pytest.skip("a process of its owner")
    bench.power.on(bench.deadline())
    (tmp_path / "another").mkdir()
    with Transcript(tmp_path / "another") as transcript:
        another = assemble(DriverContext(bench.target, tmp_path), transcript).power
        assert another.state(bench.deadline()) is PowerState.ON


def test_a_boot_device_is_for_one_boot(bench: Bench) -> None:
    """Where the management interface can set it: the next power-on begins with the network, the one after it does not."""
    power = bench.power
    if not isinstance(power, BootDevice):
        pytest.skip("cannot set a boot device")
    power.boot_next("disk", bench.deadline())
    power.boot_next("network", bench.deadline())
    power.on(bench.deadline())
    found = bench.transcript.wait([b"starting execution"], deadline=bench.deadline())
    power_cycle(power, bench.deadline())
    disk = bench.transcript.wait([b"from Hard Disk"], since=found.end, deadline=bench.deadline())
    assert b"starting execution" not in bench.transcript.read(found.end, disk.end)


_OWNER = """
import pickle, sys, time
from pathlib import Path
from labctl.machine.session import Session
target, build = pickle.load(sys.stdin.buffer)
with Session(target, build, Path(sys.argv[1])) as session:
    session.power_on()
    print("on", flush=True)
    time.sleep(60)
"""


def test_it_dies_with_its_owner(rig: Rig, debian: Build, tmp_path: Path) -> None:
    """Also when the owner has no chance to say goodbye."""
    import pickle

    if rig.server is not None:
        pytest.skip("a server stays on")
    target = rig.target()
    with subprocess.Popen([sys.executable, "-c", _OWNER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        assert owner.stdin is not None
        assert owner.stdout is not None
        pickle.dump((target, debian), owner.stdin)
        owner.stdin.close()
        assert owner.stdout.readline() == b"on\n"
        assert rig.left(target.name) or rig.left is not our_machines
        owner.send_signal(signal.SIGKILL)
        assert gone_within(1.0, target.name)
