"""The plan's script create_vm: a VM with CPUs, memory, a disk and a network card is there as it was described."""

import pytest

from labctl.hypervisor.guests import LINUX_INITRD, LINUX_KERNEL, LINUX_MEMORY, MIB, soon
from labctl.hypervisor.protocols import VmDisk, VmNic, VmSpec, VmState


@pytest.mark.story("US-14")
def test_create_vm(hypervisor):
    spec = VmSpec(
        "desktop",
        LINUX_KERNEL,
        LINUX_INITRD,
        append="console=ttyS0 quiet",
        memory=LINUX_MEMORY,
        cpus=2,
        disks=(VmDisk("data", size=MIB),),
        nics=(VmNic("lan", "office"),),
    )
    hypervisor.create(spec, soon())
    (vm,) = hypervisor.list(soon())
    assert (vm.name, vm.state, vm.cpus, vm.memory) == ("desktop", VmState.OFF, 2, LINUX_MEMORY)
