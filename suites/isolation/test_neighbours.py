"""A VM that takes all it can get of CPU, memory, disk or console does not keep another one from its heartbeat."""

import pytest

from labctl.hypervisor.guests import BEAT, LINUX_MEMORY, MIB, gaps, next_beat, soon, start_tiny
from labctl.model import Direction, Metric

GAP = Metric("isolation.beat_gap", "s", Direction.LOWER, "the longest time between two heartbeats of a VM, whatever its neighbour does")
PERIOD = 0.1
SECONDS = 5
MISSED = 3.0
"""Seconds without a heartbeat after which a VM is as good as dead: the limit that the density suite has too."""
LOADS = {
    "cpu": "while :; do :; done",
    "memory": "while :; do dd if=/dev/zero of=/tmp/fill bs=1M count=60 2>/dev/null; done",
    "disk": "while :; do dd if=/dev/zero of=/dev/{disk} bs=64k conv=fsync 2>/dev/null; done",
    "console": "yes so-much-is-said-by-this-one",
}
DISK, SAID = 8 * MIB, 1000
"""Bytes that a neighbour at the disk, at its console writes at least meanwhile."""
OVERHEAD = 160 * MIB
"""Most that a VM may take of the machine beside its own memory."""

pytestmark = [pytest.mark.story("US-34"), pytest.mark.requires(hypervisor=["Consoles", "Meters", "Pins"])]


def worst(hypervisor, vm, shell):
    """The longest pause between the heartbeats of some seconds."""
    since = len(hypervisor.said(vm, soon()))
    shell(f"sleep {SECONDS}")
    next_beat(hypervisor, vm)
    return max(gaps(hypervisor.lines(vm, BEAT, soon(), since)))


def available(shell):
    return int(shell("grep MemAvailable /proc/meminfo").split()[1]) << 10


def test_alone(hypervisor, shell, linux, record):
    """The measure of the others: the neighbour is there and does nothing."""
    start_tiny(hypervisor, "victim", f"every={PERIOD * 1000:.0f}")
    record(GAP, worst(hypervisor, "victim", shell), neighbour="none")


@pytest.mark.parametrize("neighbour", LOADS)
def test_neighbour(hypervisor, shell, linux, record, neighbour):
    """It beats on beside a neighbour on the same CPU, which is seen to do what it is to do; and the machine keeps its memory."""
    start_tiny(hypervisor, "victim", f"every={PERIOD * 1000:.0f}")
    for vm in ("victim", linux.name):
        hypervisor.pin(vm, [0], soon())
    quiet = worst(hypervisor, "victim", shell)
    free = available(shell)
    with linux.busy(LOADS[neighbour].format(disk=linux.disks()[0])):
        before, heard = hypervisor.metrics(linux.name, soon()), len(hypervisor.said(linux.name, soon()))
        gap = worst(hypervisor, "victim", shell)
        taken = free - available(shell)
        after, said = hypervisor.metrics(linux.name, soon()), len(hypervisor.said(linux.name, soon())) - heard
    record(GAP, gap)
    assert after.cpu_s - before.cpu_s > SECONDS / 4, "the neighbour is not busy: this test sees nothing"
    assert neighbour != "disk" or after.written - before.written > DISK, "the neighbour does not write: this test sees nothing"
    assert neighbour != "console" or said > SAID, "the neighbour says nothing: this test sees nothing"
    assert gap < MISSED + 3 * quiet, f"no heartbeat for {gap:.2f} s; alone it is {quiet:.2f} s"
    assert taken < LINUX_MEMORY + OVERHEAD, f"{taken} bytes of the machine's memory are gone"
    assert linux.run("echo well") == "well"
