"""Real boots: milestones, samples of time, and whose fault it is when QEMU itself ends."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from labctl.deadline import Deadline
from labctl.errors import BootFailed, KernelCrash, ManagementError, PowerError
from labctl.machine.session import Session, Watcher
from labctl.model import Build, PowerState, Target, TargetConfig
from tests.leftovers import machine_name, our_machines

pytestmark = pytest.mark.qemu


def target(**qemu: object) -> Target:
    config = {
        "schema": 1,
        "cpus": 2,
        "memory": "256M",
        "disk": "64M",
        "append": "console=ttyS0",
        "boot": {"deadline": 60, "silence": 30},
        "drivers": {"qemu": qemu, "console_shell": {}},
    }
    return Target(machine_name("boot"), TargetConfig.model_validate(config))


@pytest.fixture(scope="module")
def session(debian: Build, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    with Session(target(), debian, tmp_path_factory.mktemp("machine")) as held:
        yield held


def test_milestones_come_in_their_order(session: Session) -> None:
    told: list[str] = []
    session.watcher = Watcher(milestone=lambda name, seconds, boot: told.append(name))
    boot = session.booted()
    assert list(boot.milestones) == told == ["firmware", "kernel_entry", "init", "ready"]
    times = list(boot.milestones.values())
    assert times == sorted(times)
    assert times[0] > 0
    assert boot.kernel_stamps


def test_the_machine_is_the_one_that_was_asked_for(session: Session, debian: Build) -> None:
    assert session.run("uname -r").output.strip() == debian.version
    assert session.run("nproc").output.strip() == "2"


def test_pexpect_over_the_console(session: Session) -> None:
    console = session.expect()
    console.sendline('echo "ans""wer $((6 * 7))"')
    console.expect(rb"answer (\d+)")
    assert console.match.group(1) == b"42"


def test_reset_and_power_off(session: Session) -> None:
    session.booted()
    boots = len(session.boots)
    assert "firmware" in session.reset().milestones
    assert session.run("echo back").output == "back\n"
    assert 0 < session.power_off() < 20
    assert our_machines(session.name) == []
    assert session.machine.power.state(Deadline.after(5)) is PowerState.OFF
    assert len(session.boots) == boots + 1


def test_a_crash_that_nobody_waited_for(session: Session) -> None:
    session.booted()
    session.check_crash()
    since = session.transcript.size
    session.machine.console.write(b"echo c >/proc/sysrq-trigger\n")
    session.transcript.wait([b"end Kernel panic"], since=since, deadline=Deadline.after(20))
    with pytest.raises(KernelCrash, match="sysrq triggered crash"):
        session.check_crash()


def test_an_emulator_that_is_killed_is_the_labs_fault(debian: Build, tmp_path: Path) -> None:
    """In the middle of a boot and in the middle of a command."""
    asked = target()
    with Session(
        asked, debian, tmp_path, watcher=Watcher(milestone=lambda name, *_: _kill(asked.name) if name == "firmware" else None)
    ) as held:
        with pytest.raises(ManagementError, match="QEMU ended with signal 9"):
            held.booted()
        held.watcher = Watcher()
        held.run("true")
        threading.Timer(0.3, _kill, [asked.name]).start()
        with pytest.raises(ManagementError, match="QEMU ended with signal 9"):
            held.run("sleep 20")
        assert held.run("echo back").output == "back\n"


def _kill(name: str) -> None:
    for pid in our_machines(name):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("qemu", "words"),
    [
        ({"extra": ["-no-such-option"]}, "no-such-option"),
        ({"extra": ["-m", "64T"]}, "memory|allocate|RAM"),
        ({"cpu": "no-such-cpu"}, "no-such-cpu"),
    ],
)
def test_what_qemu_says_reaches_the_user(debian: Build, tmp_path: Path, qemu: dict[str, object], words: str) -> None:
    with Session(target(**qemu), debian, tmp_path) as held, pytest.raises(PowerError, match=words) as error:
        held.booted()
    assert "qemu-system" in error.value.remedy


def test_a_kernel_without_its_initramfs_panics(debian: Build, tmp_path: Path) -> None:
    with Session(target(), replace(debian, initrd=None), tmp_path) as held:
        with pytest.raises(KernelCrash, match="Unable to mount root fs") as error:
            held.booted()
        assert error.value.last_milestone == "kernel_entry"
        with pytest.raises(KernelCrash):  # it is not tried again
            held.run("true")


def test_a_machine_that_goes_off_at_once(debian: Build, tmp_path: Path) -> None:
    """No init, and the kernel told to reset at once, where a reset ends QEMU."""
    build = replace(debian, initrd=None, append="panic=-1 quiet loglevel=0")
    with Session(target(extra=["-no-reboot"]), build, tmp_path) as held, pytest.raises((BootFailed, KernelCrash)) as error:
        held.booted()
    assert error.value.target == held.name
