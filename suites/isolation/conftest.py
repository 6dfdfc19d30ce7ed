"""A Linux guest for all tests of a cell."""

import pytest

from labctl.hypervisor.guests import MIB, soon, start_linux
from labctl.hypervisor.protocols import VmDisk, VmNic


@pytest.fixture
def linux(hypervisor, keep_vm):
    """A Linux with a disk of its own and a card on the network blue, which has the address .2: all tests of a cell share it."""
    there = "linux" in [vm.name for vm in hypervisor.list(soon()) if vm.state == "running"]
    guest = start_linux(hypervisor, disks=(VmDisk("own", size=8 * MIB),), nics=(VmNic("lan", "blue"),))
    keep_vm(guest.name)
    if not there:
        guest.address("192.168.95.2/24")
    return guest
