"""Does the build boot, is the machine what it should be, and how long does it take?"""

import re

import pytest

from labctl.model import Direction, Metric

POWER_OFF = Metric("power.off", "s", Direction.LOWER, "from the command to seen off")


def test_reaches_ready(booted, record_boot):
    """The machine says that it is ready, within the target's deadline."""
    assert "ready" in booted.milestones
    record_boot(booted)


@pytest.mark.requires(channel="icount")
def test_a_second_boot_counts_the_same(target, record_boot):
    """Counted in two boots, so that it shows whether they repeat."""
    record_boot(target.boot())


def test_version(build, shell):
    """The kernel that runs is the one that was put there."""
    running = shell("uname -r")
    assert running
    if not build.version:
        pytest.skip(f"the build does not say its version; {running} is running")
    assert running == build.version


def test_cpus(target, shell):
    """Every CPU of the target is online."""
    assert int(shell("grep -c ^processor /proc/cpuinfo")) == target.config.cpus


def test_memory(target, build, shell):
    """The kernel sees the target's memory; what it and the firmware keep for themselves is at most an eighth and 64 MiB.

    Where Linux is the first machine of a hypervisor, the hypervisor is asked: it gives Linux a part."""
    if build.hypervisor == "xl":
        kib = int(re.search(r"total_memory\s*: (\d+)", shell("xl info"))[1]) << 10
    else:
        kib = int(re.search(r"MemTotal:\s+(\d+)", shell("cat /proc/meminfo"))[1])
    assert target.config.memory * 7 // 8 - (64 << 20) <= kib << 10 <= target.config.memory


def test_clean_power_off(target, shell, record):
    """The machine powers itself off when it is told to."""
    record(POWER_OFF, target.power_off())


@pytest.mark.requires(channel="wall")
def test_five_power_cycles(target, record_boot):
    """Off, on, ready: five times in a row."""
    for _ in range(5):
        record_boot(target.boot())
