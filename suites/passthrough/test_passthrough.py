"""A PCI device of the machine belongs to a VM alone, kept from all other memory by the IOMMU, and comes back."""

import re

import pytest

from labctl.errors import VmFailed
from labctl.hypervisor.guests import LINUX_INITRD, LINUX_KERNEL, LINUX_MEMORY, soon, start_linux
from labctl.hypervisor.protocols import VmSpec, VmState

NVME, NETWORK, USB, DISPLAY = "0x010802", "0x020000", "0x0c0330", "0x03"
"""Classes of PCI devices, or how they begin."""
PATTERN = "written-on-the-disk"

pytestmark = pytest.mark.requires(hypervisor=["Consoles", "PassesDevices"])


def devices(shell, kind):
    """Addresses of the machine's PCI devices of a class."""
    lines = shell("cd /sys/bus/pci/devices && grep . */class").splitlines()
    return [address for address, _, found in (line.partition("/class:") for line in lines) if found.startswith(kind)]


@pytest.fixture
def given(hypervisor, shell):
    """``given("0x0108")``: a device of that class, free to be passed through; the machine has it back at the end."""
    taken = []

    def give(kind):
        found = devices(shell, kind)
        if not found:
            pytest.skip(f"the machine has no PCI device of class {kind}")
        hypervisor.give(found[-1], soon())
        taken.append(found[-1])
        return found[-1]

    yield give
    for vm in hypervisor.list(soon()):
        hypervisor.destroy(vm.name, soon())
    for device in taken:
        hypervisor.take_back(device, soon())


@pytest.mark.requires(tags=["iommu", "scratch-disk"])
def test_given_and_taken_back(hypervisor, shell, given):
    """A disk that is given away is the machine's no more, a VM that has it runs, and taken back it is the machine's again, as it was."""
    shell(f"echo {PATTERN} >/tmp/a; dd if=/tmp/a of=/dev/nvme0n1 conv=sync,fsync bs=512 2>/dev/null")
    nvme = given(NVME)
    assert "nvme0n1" not in shell("ls /sys/block"), "the machine still has the disk that was given away"
    hypervisor.create(VmSpec("one", LINUX_KERNEL, LINUX_INITRD, memory=LINUX_MEMORY, devices=(nvme,)), soon())
    hypervisor.start("one", soon())
    assert [vm.state for vm in hypervisor.list(soon())] == [VmState.RUNNING]
    hypervisor.destroy("one", soon())
    hypervisor.take_back(nvme, soon())
    returned(shell)
    assert shell("head -c 20 /dev/nvme0n1") == PATTERN


def returned(shell):
    """Until the machine has its disk again."""
    limit = soon(30)
    while "nvme0n1" not in shell("ls /sys/block"):
        assert not limit.expired, "the machine has not got its disk back"


@pytest.mark.story("US-25")
@pytest.mark.requires(tags=["iommu", "scratch-disk"])
def test_linux_drives_them(hypervisor, shell, given):
    """A Linux in a VM drives an NVMe disk, a network card and a USB controller of the machine's, which sees none of them meanwhile; what it
    wrote on the disk the machine reads afterwards."""
    nvme, network, usb = given(NVME), given(NETWORK), given(USB)
    assert "nvme0n1" not in shell("ls /sys/block"), "the machine still has the disk that was given away"
    linux = start_linux(hypervisor, devices=(nvme, network, usb))
    disk = linux.awaits("ls /sys/block | grep nvme")
    assert disk.startswith("nvme"), linux.run("dmesg | tail -5")
    linux.run(f"echo {PATTERN} >/tmp/a; dd if=/tmp/a of=/dev/{disk} conv=sync,fsync bs=512 2>/dev/null")
    cards = linux.awaits("grep -l 52:54:00:5a:5a:5a /sys/class/net/*/address")
    card = re.search(r"/sys/class/net/(\w+)/", cards)[1]
    linux.run(f"ip link set {card} up; ip address add 10.0.2.77/24 dev {card}")
    assert ", 0% packet loss" in linux.awaits("ping -c 2 -W 5 10.0.2.2 | grep loss"), "packets do not get out by the card"
    assert "03" in linux.awaits("cat /sys/bus/usb/devices/*/bInterfaceClass | grep 03"), "no keyboard at the USB controller"
    hypervisor.destroy(linux.name, soon())
    hypervisor.take_back(nvme, soon())
    returned(shell)
    assert shell("head -c 20 /dev/nvme0n1") == PATTERN


@pytest.mark.story("US-25")
@pytest.mark.requires(tags=["iommu"])
def test_groups(hypervisor, shell):
    """Each device that is to be passed through is in a group by itself, or with nothing but bridges."""
    for kind in (NVME, NETWORK, USB):
        for device in devices(shell, kind):
            assert device in hypervisor.group(device, soon())


@pytest.mark.story("US-25")
def test_without_group(hypervisor, shell, target):
    """A device that is in no IOMMU group is not given to a VM, and the machine keeps it; the error says which, and why."""
    if "iommu" in target.config.tags:
        pytest.skip("needs a machine without an IOMMU")
    device = devices(shell, "0x06")[0]
    with pytest.raises(VmFailed, match=f"{device} is in no IOMMU group"):
        hypervisor.give(device, soon())


@pytest.mark.story("US-25")
def test_no_such_device(hypervisor):
    """A device that the machine does not have is told as that."""
    with pytest.raises(VmFailed, match=r"no PCI device 0000:77:00\.0"):
        hypervisor.give("0000:77:00.0", soon())


@pytest.mark.story("US-24")
@pytest.mark.requires(tags=["gpu"])
def test_gpu(hypervisor, given):
    """A Linux in a VM sees the machine's GPU, with its class."""
    given(DISPLAY)
    linux = start_linux(hypervisor, devices=(given(DISPLAY),))
    assert "0x03" in linux.run("cat /sys/bus/pci/devices/*/class")
