"""The plan's script vm_network: a VM and the machine reach each other over the VM's network, and so do two VMs."""

import pytest

from labctl.hypervisor.guests import soon, start_linux
from labctl.hypervisor.protocols import VmNic


@pytest.mark.story("US-21")
@pytest.mark.requires(hypervisor=["Consoles", "Networks"])
def test_vm_network(hypervisor, shell):
    one = start_linux(hypervisor, "one", nics=(VmNic("lan", "office"),))
    hypervisor.address("office", "192.168.94.1/24", soon())
    one.address("192.168.94.2/24")
    assert ", 0% packet loss" in one.awaits("ping -c 3 -W 5 192.168.94.1 | grep loss")
    assert ", 0% packet loss" in shell("ping -c 3 -W 5 192.168.94.2 | grep loss")
    two = start_linux(hypervisor, "two", nics=(VmNic("lan", "office"),))
    two.address("192.168.94.3/24")
    assert ", 0% packet loss" in two.awaits("ping -c 3 -W 5 192.168.94.2 | grep loss")
