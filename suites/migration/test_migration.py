"""A VM moves from one machine to another while it runs; how long it stood still its guest's own heartbeat tells."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from labctl.errors import VmFailed
from labctl.hypervisor.guests import BEAT, MIB, TINY, next_beat, number, soon, start_tiny
from labctl.hypervisor.protocols import VmSpec, VmState
from labctl.machine.addressing import bring_up
from labctl.machine.protocols import Renews
from labctl.model import Direction, Metric

DOWNTIME = Metric("migration.downtime", "s", Direction.LOWER, "from its last heartbeat at the source to its first at the destination")
TOTAL = Metric("migration.total", "s", Direction.LOWER, "from the request to move a VM until it runs at the other end only")
PERIOD = 0.02
"""Seconds between two heartbeats."""
ADDRESSES = {"a": "192.168.93.1", "b": "192.168.93.2"}

pytestmark = [pytest.mark.story("US-37"), pytest.mark.requires(hypervisor=["Consoles", "Migrates"])]


@pytest.fixture
def cable(machines, hypervisors):
    """Both ends of the cable have their addresses. Gives the device of each."""
    return {name: bring_up(machines[name], "cable", f"{address}/24") for name, address in ADDRESSES.items()}


def spec(memory=16 * MIB, words=""):
    return VmSpec("one", TINY, append=f"every={PERIOD * 1000:.0f} fill=11 {words}", memory=memory)


def beats(hypervisor):
    return hypervisor.lines("one", BEAT, soon())


def digest(hypervisor):
    """Of the guest's memory, as the guest itself says when it is asked."""
    since = len(hypervisor.said("one", soon()))
    hypervisor.type("one", b"d", soon())
    hypervisor.heard("one", "tiny: digest ", soon(), since)
    return next_line(hypervisor, "tiny: digest ", since)


def next_line(hypervisor, prefix, since):
    next_beat(hypervisor, "one")  # the line is whole then
    return hypervisor.lines("one", prefix, soon(), since)[0].text


def states(hypervisor):
    return {vm.name: vm.state for vm in hypervisor.list(soon())}


def real_time(machine, hypervisor):
    """What to add to the machine's monotonic clock for a clock that both machines share: the host's."""
    if not isinstance(machine.machine.shell, Renews):
        pytest.skip("needs a shell that can set the machine's clock: the driver agent")
    machine.machine.shell.set_clock(soon())
    monotonic, real = hypervisor.clock(soon())
    return real - monotonic


def test_migrate(machines, hypervisors, cable, record):
    """It goes on at the other end where it stopped at this one, with all of its memory, and is off here."""
    a, b = hypervisors["a"], hypervisors["b"]
    start_tiny(a, "one", spec().append, memory=spec().memory)
    before = digest(a)
    to = b.receive(spec(), ADDRESSES["a"], soon())
    clocks = {name: real_time(machines[name], hypervisors[name]) for name in ("a", "b")}
    found = a.migrate("one", to, soon())
    b.heard("one", BEAT, soon())
    next_beat(b, "one")
    assert states(a) == {"one": VmState.OFF}
    assert states(b) == {"one": VmState.RUNNING}
    first = beats(b)[0]
    assert digest(b) == before, "its memory has changed on the way"
    last = beats(a)[-1]
    assert number(first) > number(last), "it began anew"
    record(TOTAL, found.total)
    record(DOWNTIME, first.at + clocks["b"] - last.at - clocks["a"])


def test_peer_refuses(hypervisors, cable):
    """Nobody waits for it at the other end: told at once, and it runs here as before."""
    a = hypervisors["a"]
    start_tiny(a, "one", spec().append)
    with pytest.raises(VmFailed, match=r"one.*did not arrive.*runs here"):
        a.migrate("one", f"tcp:{ADDRESSES['b']}:4999", soon())
    next_beat(a, "one")
    assert states(a) == {"one": VmState.RUNNING}


def test_peer_dies(machines, hypervisors, cable):
    """The other machine loses its power in the middle of it: that is told in time, and the VM runs here as before."""
    a, b = hypervisors["a"], hypervisors["b"]
    large = spec(memory=256 * MIB)
    start_tiny(a, "one", large.append, memory=large.memory)
    to = b.receive(large, ADDRESSES["a"], soon())
    with ThreadPoolExecutor(1) as pool:
        moving = pool.submit(a.migrate, "one", to, soon(40))
        limit = soon()
        while int(machines["b"].run(f"cat /sys/class/net/{cable['b']}/statistics/rx_bytes").output) < 4 * MIB:
            assert not moving.done(), "it has arrived, or failed, before its peer died"
            assert not limit.expired, "nothing is on its way"
        machines["b"].cut_power()
        with pytest.raises(VmFailed, match=r"one.*(did not arrive|has not arrived).*runs here"):
            moving.result()
    next_beat(a, "one")
    assert states(a) == {"one": VmState.RUNNING}
