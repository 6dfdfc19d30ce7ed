"""VMs and toolstacks that fail: told in time and by the right cause, and nothing is left of them."""

import time

import pytest

from labctl.errors import TargetHung, VmFailed
from labctl.hypervisor.guests import BEAT, MIB, TINY, next_beat, soon, start_tiny
from labctl.hypervisor.protocols import VmSpec, VmState

pytestmark = pytest.mark.requires(hypervisor=["Consoles"])


def started(hypervisor, name, deadline):
    """Until its guest says that it is ready."""
    hypervisor.start(name, deadline)
    hypervisor.heard(name, "tiny: ready", deadline)


def test_never_beats(hypervisor):
    """A VM that starts and never beats is told as that, and others beat on."""
    start_tiny(hypervisor, "well", "hz=5")
    start_tiny(hypervisor, "mute", "nobeat")
    with pytest.raises(VmFailed, match=r"mute: has not said 'tiny: beat ' within 3 s"):
        hypervisor.heard("mute", BEAT, soon(3))
    next_beat(hypervisor, "well")
    assert {vm.name: vm.state for vm in hypervisor.list(soon())} == {"mute": VmState.RUNNING, "well": VmState.RUNNING}


def test_no_guest_at_all(hypervisor, shell):
    """A kernel that is none: the VM fails or is silent, it is not said to be ready."""
    shell("head -c 4096 /dev/urandom >/tmp/no-kernel")
    hypervisor.create(VmSpec("one", "/tmp/no-kernel"), soon())
    with pytest.raises(VmFailed, match="one"):
        started(hypervisor, "one", soon(20))


def test_out_of_memory(hypervisor, target, shell):
    """A VM that takes more memory than the machine has is ended, and that is told as the cause; the machine is well, and others too."""
    start_tiny(hypervisor, "small", "hz=5")
    hypervisor.create(VmSpec("greedy", TINY, append="touch hz=5", memory=target.config.memory * 5 // 4), soon())
    with pytest.raises(VmFailed, match=r"greedy.*(memory|signal 9)"):
        started(hypervisor, "greedy", soon())
    assert shell("echo well") == "well"
    next_beat(hypervisor, "small")
    hypervisor.destroy("greedy", soon())
    assert [vm.name for vm in hypervisor.list(soon())] == ["small"]


@pytest.mark.requires(driver="kvm")
def test_memory_is_taken_bit_by_bit(hypervisor, shell):
    """VMs of KVM get memory as they touch it. One that takes all of it once it runs is ended, and the cause is told; others beat on."""
    start_tiny(hypervisor, "small", "hz=5")
    everything = int(shell("grep MemTotal /proc/meminfo").split()[1]) << 10
    hypervisor.create(VmSpec("greedy", TINY, append="touch hz=5", memory=everything - 16 * MIB), soon())
    with pytest.raises(VmFailed, match=r"greedy.*the machine ran out of memory"):
        started(hypervisor, "greedy", soon())
    next_beat(hypervisor, "small")


KILLED = {
    "keeper": ("kill -9 $(vmkeeper status /run/labctl/vms/one | sed 's/.*keeper=//')", "its keeper on the machine was killed"),
    "QEMU": ("kill -9 $(pidof qemu-system-x86_64)", "its QEMU was ended by signal 9"),
    "QEMU, politely": ("kill $(pidof qemu-system-x86_64)", "its QEMU was ended by signal 15"),
}


@pytest.mark.requires(driver="kvm")
@pytest.mark.parametrize("what", KILLED)
def test_killed(hypervisor, shell, what):
    """A VM that somebody in the machine kills has failed, and is not off: the list says how, and who waits for it hears of it at once. It
    can be stopped, and then it is off, and be started again."""
    command, cause = KILLED[what]
    start_tiny(hypervisor, "one", "hz=5")
    shell(command)
    began = time.monotonic()
    with pytest.raises(VmFailed, match=f"one: ended before it said 'never': {cause}"):
        hypervisor.heard("one", "never", soon())
    assert time.monotonic() - began < soon().seconds / 2, "it was waited for"
    (one,) = hypervisor.list(soon())
    assert (one.state, cause in one.why) == (VmState.FAILED, True), one
    hypervisor.stop("one", soon())
    assert [vm.state for vm in hypervisor.list(soon())] == [VmState.OFF]
    started(hypervisor, "one", soon())
    next_beat(hypervisor, "one")


@pytest.mark.requires(driver="kvm", hypervisor=["Pauses"])
def test_toolstack_hangs(hypervisor, shell):
    """A QEMU that answers nothing any more is named as what hangs, in time; the list tells it, and it can be destroyed."""
    start_tiny(hypervisor, "one", "hz=5")
    shell("kill -STOP $(pidof qemu-system-x86_64)")
    with pytest.raises(TargetHung, match="the toolstack hangs: QEMU of one has not answered"):
        hypervisor.pause("one", soon(3))
    (one,) = hypervisor.list(soon())
    assert (one.state, "has not answered" in one.why) == (VmState.FAILED, True)
    hypervisor.destroy("one", soon())
    assert hypervisor.list(soon()) == ()
    assert shell("pidof qemu-system-x86_64 || echo none") == "none"
