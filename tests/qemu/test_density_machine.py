"""VMs in a real machine, carried by the density runner: how many are healthy, and what becomes of the faults. One boot for all but the last."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from labctl.config import cache_folder
from labctl.judge.density import curves
from labctl.model import Outcome
from labctl.store.reader import read_run
from tests.conftest import REPOSITORY
from tests.temporary_lab import TemporaryLab

pytestmark = pytest.mark.qemu

TARGET = """schema = 1
cpus = 2
memory = "384M"
append = "console=ttyS0"
boot = { deadline = 120, silence = 60 }
[drivers.qemu]
accel = "tcg"
disk_bus = "none"
cpu = "EPYC,svm=on"
[drivers.agent]
"""
SUITE = """
import density_runner
import pytest
from density_runner import carry

from labctl.errors import CommandFailed, TargetHung

PATIENT = {"beat": 0.5, "late": 20, "ready": 60}


def end_runner(shell):
    shell("killall -9 density-kvm; true", deadline=30)  # its VMs are gone with it, also while they are being looked for


def test_twelve(target, shell, record):
    end = carry(target, shell, record, "kvm", vms=12, every=4, hold=2, **PATIENT)
    assert (end.limit, end.healthy, end.started, end.why) == ("target", 12, 12, "")


def test_one_that_never_beats(target, shell, record):
    end = carry(target, shell, record, "kvm", vms=4, every=4, hold=9, plant="nobeat=3", **PATIENT | {"late": 8})
    assert (end.limit, end.healthy, end.started) == ("heartbeat-missed", 3, 4), end
    assert end.why.startswith("VM 3: "), end


def test_no_memory_left(target, shell, record):
    shell("mkdir /full && mount -t tmpfs -o size=100% none /full")
    left = int(shell("awk '/^MemAvailable/ {print int($2 / 1024)}' /proc/meminfo"))
    shell(f"dd if=/dev/zero of=/full/file bs=1M count={left - 24}")
    end = carry(target, shell, record, "kvm", vms=40, hold=1, reserve=20, **PATIENT)
    assert (end.limit, end.why) == ("memory-reserve", ""), end
    assert 0 < end.started == end.healthy < 5, end
    end = carry(target, shell, record, "kvm", vms=40, hold=1, reserve=0, **PATIENT)
    assert end.limit in ("vm-died", "start-failed"), end
    assert "out of memory" in end.why, end
    shell("umount /full")


def test_a_runner_that_is_killed(target, shell, record):
    with pytest.raises(CommandFailed, match="the runner was killed by signal 9, with 2 VMs"):
        carry(target, shell, record, "kvm", vms=4, plant="kill=3", **PATIENT)


def test_a_runner_that_hangs(target, shell, record, monkeypatch):
    monkeypatch.setattr(density_runner, "PATIENCE", 15.0)
    with pytest.raises(TargetHung, match="no line of the density runner for 15 s, with 1 VMs"):
        carry(target, shell, record, "kvm", vms=4, plant="hang=2", **PATIENT)
    end_runner(shell)


def test_a_panic(target, shell, record):
    carry(target, shell, record, "kvm", vms=12, every=1, plant="panic=3", **PATIENT)


def test_the_machine_is_booted_again(target, shell, record):
    assert carry(target, shell, record, "kvm", vms=1, hold=1, **PATIENT).healthy == 1
"""


def test_density(lab: TemporaryLab) -> None:
    lab.suite("density", SUITE)
    lab.write(f"targets/{lab.target}.toml", TARGET)
    lab.write("suites/density/suite.toml", 'schema = 1\ntools = ["tinyguest", "density-kvm"]\nmodules = ["kvm_amd"]\n')
    shutil.copy(REPOSITORY / "suites/density/density_runner.py", lab.root / "suites/density")
    shutil.copy(REPOSITORY / "kernel/debian-cloud.toml", lab.root / "kernel")
    ran = lab.run("--build", "debian-cloud", "--suite", "density", seconds=420, LABCTL_CACHE=str(cache_folder()))
    run = read_run(lab.runs[-1])
    (attempt,) = run.cells[0].attempts
    found: Any = {test.name.partition("::")[2].partition("[")[0]: test for test in attempt.tests}
    failed = {name: test.reason for name, test in found.items() if test.outcome is not Outcome.PASS}
    assert list(failed) == ["test_a_panic"], failed
    assert failed["test_a_panic"].startswith("Kernel panic - not syncing: sysrq triggered crash"), failed
    assert failed["test_a_panic"].endswith(", with 2 VMs")
    assert ran.status == 1

    of = dict(zip(found, curves([run]), strict=True))  # one a test, in their order
    twelve = of["test_twelve"]
    assert (twelve.healthy, twelve.limit, twelve.runner) == (12, "target", "kvm")
    assert [number for number, _ in twelve.starts] == list(range(1, 13))
    assert [check.vms for check in twelve.checks] == [0, 4, 8, 12, 12]  # the last while all were held
    last = twelve.checks[-1]
    assert last.gap is not None
    assert 0.4 < last.gap < 20
    assert last.pss is not None
    assert 3 << 20 < last.pss < 4.5 * (1 << 20)  # all of 3 MiB is touched, the first MiB hardly
    assert twelve.memory is not None
    assert 2 << 20 < twelve.memory < 6 << 20
    assert of["test_one_that_never_beats"].limit == "heartbeat missed"
    assert of["test_a_runner_that_is_killed"].limit == "runner or machine lost"
    assert of["test_a_runner_that_hangs"].limit == "runner silent"
    # What was measured until the machine died is kept.
    cut_off = of["test_a_panic"]
    assert (cut_off.outcome, cut_off.healthy, cut_off.limit) == (Outcome.FAIL, 2, "machine crashed")
    assert [check.vms for check in cut_off.checks] == [0, 1, 2]


XEN_TARGET = """schema = 1
cpus = 1
memory = "1G"
append = "console=ttyS0"
boot = { deadline = 240, silence = 120 }
[drivers.qemu]
accel = "tcg"
disk_bus = "none"
cpu = "EPYC,svm=on,monitor=off,smap=off,rdtscp=off"
[drivers.agent]
"""
XEN_SUITE = """
import pytest
from density_runner import carry

from labctl.errors import CommandFailed

PATIENT = {"beat": 2, "late": 60, "ready": 120}


def test_a_runner_that_is_killed(target, shell, record):
    with pytest.raises(CommandFailed, match="the runner was killed by signal 9, with 1 VMs"):
        carry(target, shell, record, "xen", vms=4, plant="kill=2", **PATIENT)


def test_what_it_left_is_not_in_the_way(target, shell, record):
    end = carry(target, shell, record, "xen", vms=2, every=1, hold=1, **PATIENT)
    assert (end.limit, end.healthy, end.why) == ("target", 2, ""), end
    # It says how it ended before it destroys them.
    assert shell("while pidof density-xen >/dev/null; do usleep 200000; done; xl list | grep -c density; true") == "0"


def test_a_panic(target, shell, record):
    carry(target, shell, record, "xen", vms=4, every=1, plant="panic=2", **PATIENT)
"""


def test_density_under_xen(lab: TemporaryLab) -> None:
    """Its console ends lines in another way, its VMs outlive their runner, and it falls with its first machine."""
    lab.suite("density", XEN_SUITE)
    lab.write(f"targets/{lab.target}.toml", XEN_TARGET)
    lab.write("suites/density/suite.toml", 'schema = 1\ntools = ["tinyguest", "density-xen"]\n')
    shutil.copy(REPOSITORY / "suites/density/density_runner.py", lab.root / "suites/density")
    shutil.copytree(REPOSITORY / "hypervisor/debian-xen", lab.root / "hypervisor/debian-xen")
    lab.run("--build", "debian-xen", "--suite", "density", seconds=420, LABCTL_CACHE=str(cache_folder()))
    run = read_run(lab.runs[-1])
    (attempt,) = run.cells[0].attempts
    found: Any = {test.name.partition("::")[2].partition("[")[0]: test for test in attempt.tests}
    failed = {name: test.reason for name, test in found.items() if test.outcome is not Outcome.PASS}
    assert list(failed) == ["test_a_panic"], failed
    assert failed["test_a_panic"].startswith("Xen: Dom0 crashed: Kernel panic - not syncing: sysrq triggered crash"), failed
    assert failed["test_a_panic"].endswith(", with 1 VMs")
    of = dict(zip(found, curves([run]), strict=True))
    assert [number for number, _ in of["test_what_it_left_is_not_in_the_way"].starts] == [1, 2]
    assert (of["test_a_panic"].healthy, of["test_a_panic"].limit) == (1, "machine crashed")
