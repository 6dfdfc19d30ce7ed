"""Disks, network cards and USB devices come to a Linux that runs, and go again."""

import pytest

from labctl.hypervisor.guests import soon
from labctl.hypervisor.protocols import VmDisk, VmNic

SIZE = 3 << 20
MAC = "52:54:01:aa:bb:cc"


@pytest.mark.story("US-22")
@pytest.mark.requires(hypervisor=["Consoles"])
def test_linux(linux, build):
    """A Linux boots in a VM, and its console takes commands."""
    assert linux.run("uname -s") == "Linux"
    assert "hypervisor" in linux.run("grep -o -m1 hypervisor /proc/cpuinfo")


@pytest.mark.story("US-20")
@pytest.mark.requires(hypervisor=["Consoles", "AttachesDisks"])
def test_disk(hypervisor, linux):
    """A disk that is attached is seen with its size, keeps what is written on it, and is gone when it is detached."""
    hypervisor.attach_disk(linux.name, VmDisk("data", size=SIZE), soon())
    seen = linux.awaits(f"grep -slx {SIZE // 512} /sys/block/*/size")  # -s: until then there may be none at all
    assert seen.startswith("/sys/block/"), "the guest does not see its disk"
    device = seen.split("/")[3]
    linux.run(f"echo hello-from-the-guest >/tmp/a; dd if=/tmp/a of=/dev/{device} conv=sync,fsync bs=512 2>/dev/null")
    assert linux.run(f"head -c 20 /dev/{device}") == "hello-from-the-guest"
    hypervisor.detach_disk(linux.name, "data", soon())
    assert linux.run(f"ls /sys/block | grep -c {device}") == "0"


@pytest.mark.story("US-21")
@pytest.mark.requires(hypervisor=["Consoles", "AttachesNics", "Networks"])
def test_nic(hypervisor, linux, shell):
    """A network card that is attached is seen with its address; over it guest and machine reach each other; detached it is gone."""
    hypervisor.attach_nic(linux.name, VmNic("lan", "blue", mac=MAC), soon())
    hypervisor.address("blue", "192.168.90.1/24", soon())
    device = linux.awaits(f"grep -l {MAC} /sys/class/net/*/address").split("/")[4]
    linux.run(f"ip address add 192.168.90.2/24 dev {device}; ip link set {device} up")
    assert ", 0% packet loss" in linux.awaits("ping -c 2 -W 5 192.168.90.1 | grep loss")
    assert ", 0% packet loss" in shell("ping -c 2 -W 5 192.168.90.2 | grep loss", deadline=60)
    hypervisor.detach_nic(linux.name, "lan", soon())
    assert linux.run("grep -c . /proc/net/dev") == linux.run("echo $(($(ls /sys/class/net | wc -l) + 2))")
    assert device not in linux.run("ls /sys/class/net")


@pytest.mark.story("US-25")
@pytest.mark.requires(hypervisor=["Consoles", "AttachesUsb"])
@pytest.mark.parametrize(("kind", "seen"), [("storage", "08"), ("keyboard", "03")])
def test_usb(hypervisor, linux, kind, seen):
    """A USB device that is attached is seen with its class; detached it is gone."""
    look = "cat /sys/bus/usb/devices/*/bInterfaceClass 2>/dev/null"
    before = linux.run(look).split()
    hypervisor.attach_usb(linux.name, "stick", kind, soon())
    assert seen in linux.awaits(f"{look} | grep {seen}").split()
    hypervisor.detach_usb(linux.name, "stick", soon())
    linux.awaits(f"! {look} | grep -q {seen}")
    assert [each for each in linux.run(look).split() if each != "09"] == [each for each in before if each != "09"]
