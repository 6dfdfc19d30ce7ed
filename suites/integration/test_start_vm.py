"""The plan's script start_vm: a VM that is started boots to a shell, has what it was given, and stops."""

import time

import pytest

from labctl.hypervisor.guests import LINUX_MEMORY, soon, start_linux
from labctl.hypervisor.protocols import VmState
from labctl.model import Direction, Metric

START = Metric("vm.start", "s", Direction.LOWER, "from the request for a VM to its guest's word that it is ready")


@pytest.mark.story("US-15", "US-16")
@pytest.mark.requires(hypervisor=["Consoles"])
def test_start_vm(hypervisor, record):
    began = time.monotonic()
    linux = start_linux(hypervisor, "desktop", cpus=2)
    record(START, time.monotonic() - began, guest="linux")
    assert linux.run("nproc") == "2"
    memory = int(linux.run("grep MemTotal /proc/meminfo").split()[1]) << 10
    assert LINUX_MEMORY * 3 // 5 < memory < LINUX_MEMORY
    linux.hypervisor.type(linux.name, b"poweroff -f\n", soon())
    limit = soon()
    while hypervisor.list(soon())[0].state == VmState.RUNNING:
        assert not limit.expired, "the guest powers itself off, and the VM runs on"
    assert hypervisor.list(soon())[0].state == VmState.OFF
