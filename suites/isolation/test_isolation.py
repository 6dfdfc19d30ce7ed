"""What one VM has, no other one can have: its memory, also when it is gone, its disks, its network."""

import pytest

from labctl.hypervisor.guests import MIB, soon, start_linux, start_tiny
from labctl.hypervisor.protocols import VmDisk, VmNic

SECRET = "secret-1d9f84c2a7b3"

pytestmark = pytest.mark.story("US-34")


@pytest.mark.requires(hypervisor=["Consoles", "Pauses", "Digests"])
def test_memory(hypervisor):
    """What is in the memory of one VM is not in that of another, neither while both run nor when it is used again for a new one."""
    start_tiny(hypervisor, "owner", f"hz=2 {SECRET}", memory=16 * MIB)
    start_tiny(hypervisor, "other", "hz=2", memory=16 * MIB)
    for vm in ("owner", "other"):
        hypervisor.pause(vm, soon())
    assert hypervisor.memory_holds("owner", SECRET, soon()), "it is not even where it belongs: this test sees nothing"
    assert not hypervisor.memory_holds("other", SECRET, soon())
    hypervisor.destroy("owner", soon())
    start_tiny(hypervisor, "new", "hz=2", memory=64 * MIB)
    hypervisor.pause("new", soon())
    assert not hypervisor.memory_holds("new", SECRET, soon()), "memory is not cleared before another VM has it"


@pytest.mark.requires(hypervisor=["Consoles"])
def test_disk(hypervisor, linux, shell):
    """A VM sees its own disk and no other one, and reads nothing behind its end."""
    start_tiny(hypervisor, "owner", "hz=2", disks=(VmDisk("data", size=MIB),))
    (file,) = shell("find /run -path '*/owner/*' -type f -size +500k").split()
    shell(f"echo {SECRET} | dd of={file} conv=notrunc 2>/dev/null")
    assert shell(f"grep -c {SECRET} {file}") == "1", "it is not even where it belongs: this test sees nothing"
    disks = linux.disks()
    assert len(disks) == 1, "it has other disks than its own"
    assert linux.run(f"cat /sys/block/{disks[0]}/size") == str(8 * MIB // 512)
    assert linux.run(f"grep -c {SECRET} /dev/{disks[0]}") == "0"
    assert "0+0" in linux.run(f"dd if=/dev/{disks[0]} bs=512 skip={8 * MIB // 512} count=8 2>&1 | head -1")


@pytest.mark.requires(hypervisor=["Consoles", "AttachesNics"])
def test_network(hypervisor, linux):
    """Two VMs on networks of their own do not reach each other, by addresses that would be neighbours; on one network they do."""
    other = start_linux(hypervisor, "other", nics=(VmNic("lan", "green"),))
    other.address("192.168.95.3/24")
    assert "100% packet loss" in linux.run("ping -c 2 -W 3 192.168.95.3 | grep loss")
    assert "100% packet loss" in other.run("ping -c 2 -W 3 192.168.95.2 | grep loss")
    other.run("ip address del 192.168.95.3/24 dev $(ls /sys/class/net | grep -v '^lo$' | head -1)")
    hypervisor.attach_nic("other", VmNic("more", "blue"), soon())
    other.address("192.168.95.4/24", card=2)
    assert ", 0% packet loss" in other.awaits("ping -c 2 -W 3 192.168.95.2 | grep loss"), "the test itself reaches nothing"
