"""A toolstack that answers no more is told by its name and in time; once it answers again, its VMs are as they were."""

import pytest

from labctl.errors import TargetHung, VmFailed
from labctl.hypervisor.guests import TINY, next_beat, soon
from labctl.hypervisor.protocols import VmSpec, VmState


@pytest.mark.requires(driver="xl", hypervisor=["Consoles"])
def test_store_that_hangs(hypervisor, shell, tiny):
    """xl waits for xenstored without end; the VMs do not need it."""
    one = tiny("one", "hz=5")
    hypervisor.create(VmSpec("two", TINY), soon())
    shell("kill -STOP $(pidof xenstored)")
    try:
        with pytest.raises(TargetHung, match="the toolstack hangs: xl list"):
            hypervisor.list(soon(5))
        with pytest.raises(TargetHung, match="the toolstack hangs: xl create two"):
            hypervisor.start("two", soon(5))
        next_beat(hypervisor, one)
    finally:
        shell("kill -CONT $(pidof xenstored)")
    assert {vm.name: vm.state for vm in hypervisor.list(soon())} == {"one": VmState.RUNNING, "two": VmState.OFF}


@pytest.mark.requires(driver="xl", hypervisor=["Consoles"])
def test_more_memory_than_there_is(hypervisor):
    """A VM that the machine has no memory for does not start, xl's reason is told, and nothing of it is left running."""
    hypervisor.create(VmSpec("big", TINY, memory=64 << 30), soon())
    with pytest.raises(VmFailed, match=r"VM big: does not start: .*memory"):
        hypervisor.start("big", soon())
    assert [vm.state for vm in hypervisor.list(soon())] == [VmState.OFF]
