"""How many VMs does the machine carry? One after another is started, all must go on beating by timers of their own."""

import pytest
from density_runner import carry

AIM = 200
"""VMs; of the smallest ones, on a machine with 8 GiB of memory or more, `AIM_LARGE`."""
AIM_LARGE = 1000


def require_carried(end):
    assert end.limit in ("target", "memory-reserve"), f"{end.limit}: {end.why} ({end.healthy} of {end.started} were healthy)"
    assert end.healthy == end.started


@pytest.mark.benchmark
@pytest.mark.requires(channel="wall", driver="kvm")
def test_tiny_guests_under_kvm(target, shell, record):
    """VMs of 4 MiB, each a process with a small monitor of its own: what KVM itself carries."""
    large = target.config.memory >= 8 << 30
    require_carried(carry(target, shell, record, "kvm", vms=AIM_LARGE if large else AIM, beat=5 if large else 1))


@pytest.mark.benchmark
@pytest.mark.requires(channel="wall", driver="kvm", memory="4G")
def test_microvms_of_qemu(target, shell, record):
    """The same with QEMU as the monitor."""
    require_carried(carry(target, shell, record, "qemu", vms=AIM, memory=8, reserve=64))


@pytest.mark.benchmark
@pytest.mark.requires(channel="wall", driver="xl")
def test_guests_of_xen(target, shell, record):
    """PVH guests of 4 MiB, made by xl."""
    require_carried(carry(target, shell, record, "xen", vms=AIM, beat=2))
