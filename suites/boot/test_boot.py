"""Does the build boot, is the machine what it should be, and how long does it take?"""

import re

import pytest

from labctl.model import Channel, Direction, Metric

BOOT = Metric("boot.ready", "s", Direction.LOWER, "from power-on to ready")
MILESTONE = Metric("boot.milestone", "s", Direction.LOWER, "from power-on to a milestone")
INSTRUCTIONS = Metric("boot.instructions", "1", Direction.LOWER, "from power-on to a milestone", Channel.ICOUNT)
KERNEL_CLOCK = Metric("boot.kernel_clock", "s", Direction.LOWER, "the kernel's own clock at a milestone", Channel.ICOUNT)
POWER_OFF = Metric("power.off", "s", Direction.LOWER, "from the command to seen off")


def test_reaches_ready(booted, record):
    """The machine says that it is ready, within the target's deadline."""
    assert "ready" in booted.milestones
    record(BOOT, booted.milestones["ready"])
    for name, seconds in booted.milestones.items():
        record(MILESTONE, seconds, milestone=name)


@pytest.mark.requires(channel="icount")
def test_instructions_to_each_milestone(target, booted, record):
    """Counted in two boots, so that it shows whether they repeat."""
    for boot in (booted, target.boot()):
        for name, count in boot.instructions.items():
            record(INSTRUCTIONS, count, milestone=name)
        for name, seconds in boot.kernel_clock.items():
            record(KERNEL_CLOCK, seconds, milestone=name)


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


def test_memory(target, shell):
    """The kernel sees the target's memory; what it and the firmware keep for themselves is at most an eighth and 64 MiB."""
    kib = int(re.search(r"MemTotal:\s+(\d+)", shell("cat /proc/meminfo"))[1])
    assert target.config.memory * 7 // 8 - (64 << 20) <= kib << 10 <= target.config.memory


def test_clean_power_off(target, booted, record):
    """The machine powers itself off when it is told to."""
    record(POWER_OFF, target.power_off())


@pytest.mark.requires(channel="wall")
def test_five_power_cycles(target, record):
    """Off, on, ready: five times in a row."""
    for _ in range(5):
        boot = target.boot()
        record(BOOT, boot.milestones["ready"])
        for name, seconds in boot.milestones.items():
            record(MILESTONE, seconds, milestone=name)
