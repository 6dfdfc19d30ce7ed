"""The plan's script gpu_passthrough: a GPU of the machine is seen by a VM. For targets with the tag gpu."""

import pytest

from labctl.hypervisor.guests import soon, start_linux


@pytest.mark.story("US-24")
@pytest.mark.requires(tags=["gpu"], hypervisor=["Consoles", "PassesDevices"])
def test_gpu_passthrough(hypervisor, shell):
    device = next(iter(shell("cd /sys/bus/pci/devices; grep -l ^0x03 */class | cut -d/ -f1").split()), None)
    assert device is not None, "the target's tags say that it has a GPU, and it has none"
    hypervisor.give(device, soon())
    try:
        linux = start_linux(hypervisor, "desktop", devices=(device,))
        assert "0x03" in linux.run("cat /sys/bus/pci/devices/*/class")
    finally:
        hypervisor.destroy("desktop", soon())
        hypervisor.take_back(device, soon())
