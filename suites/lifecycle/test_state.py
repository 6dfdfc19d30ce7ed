"""A VM's state is kept and comes back: snapshots compared by the digest of all memory, templates and their clones, backups, restarts."""

import pytest

from labctl.errors import VmFailed
from labctl.hypervisor.guests import MIB, TINY, next_beat, soon
from labctl.hypervisor.protocols import VmDisk, VmSpec, VmState
from labctl.model import Direction, Metric

RESTART = Metric("restart.time", "s", Direction.LOWER, "from the death of a VM until its guest is ready again")
FILLED = "yes abcdefghijklmno | dd of={} bs=65536 count=16 conv=notrunc iflag=fullblock 2>/dev/null"
"""Writes a pattern over the first MiB of a file."""


@pytest.mark.story("US-36")
@pytest.mark.requires(hypervisor=["Consoles", "Pauses", "Digests", "Snapshots"])
def test_snapshot(hypervisor, tiny):
    """A VM goes on after a snapshot, and its memory changes; restored it holds the very bytes of then, and goes on from there."""
    one = tiny("one", "hz=5 fill=7", memory=8 * MIB)
    hypervisor.pause(one, soon())
    then = hypervisor.memory_digest(one, soon())
    assert hypervisor.memory_digest(one, soon()) == then, "the memory of a VM that is paused has changed"
    hypervisor.snapshot(one, "first", soon())
    hypervisor.resume(one, soon())
    next_beat(hypervisor, one)
    hypervisor.pause(one, soon())
    assert hypervisor.memory_digest(one, soon()) != then, "the guest beats, and not a byte of its memory has changed"
    hypervisor.restore(one, "first", soon())
    assert hypervisor.memory_digest(one, soon()) == then
    hypervisor.resume(one, soon())
    next_beat(hypervisor, one)


@pytest.mark.story("US-36")
@pytest.mark.requires(hypervisor=["Consoles", "Snapshots"])
def test_corrupt_snapshot(hypervisor, shell, tiny):
    """A snapshot that is not what was kept is told as that, and the VM runs on as if nobody had asked."""
    one = tiny("one", "hz=5", memory=8 * MIB)
    hypervisor.snapshot(one, "first", soon())
    found = shell("find /run /var -path '*one*' -name state -o -path '*one*' -name '*.save' | head -1")
    shell(f"dd if=/dev/zero of={found} bs=1 seek=5000 count=64 conv=notrunc 2>/dev/null; echo x >>{found}")
    with pytest.raises(VmFailed, match="corrupt"):
        hypervisor.restore(one, "first", soon())
    next_beat(hypervisor, one)


@pytest.mark.story("US-18")
@pytest.mark.requires(hypervisor=["Consoles", "Templates"])
def test_template(hypervisor, shell):
    """Clones of a template are like it, each with disks of its own; a VM that runs is no template; a corrupt one makes no clone."""
    hypervisor.create(VmSpec("model", TINY, append="hz=10", memory=8 * MIB, disks=(VmDisk("data", size=MIB),)), soon())
    (disk,) = _disks(shell, "model")
    shell(FILLED.format(disk))
    hypervisor.template("model", "golden", soon())
    hypervisor.start("model", soon())
    with pytest.raises(VmFailed, match="not off"):
        hypervisor.template("model", "other", soon())
    hypervisor.destroy("model", soon())
    for name in ("one", "two"):
        hypervisor.clone("golden", name, soon())
    assert {vm.name: (vm.state, vm.memory) for vm in hypervisor.list(soon())} == dict.fromkeys(("one", "two"), (VmState.OFF, 8 * MIB))
    hypervisor.start("one", soon())
    hypervisor.heard("one", "tiny: ready", soon())
    ones, twos = _disks(shell, "one")[0], _disks(shell, "two")[0]
    assert shell(f"cmp {ones} {twos} && echo same") == "same"
    shell(f"echo changed | dd of={ones} conv=notrunc 2>/dev/null")
    assert shell(f"head -c 16 {twos}") == "abcdefghijklmno", "what one clone wrote is in the other"
    kept = shell("find /run /var -path '*golden*' -type f -size +500k | head -1")
    shell(f"echo changed | dd of={kept} conv=notrunc 2>/dev/null")
    with pytest.raises(VmFailed, match="corrupt"):
        hypervisor.clone("golden", "three", soon())
    assert "three" not in [vm.name for vm in hypervisor.list(soon())]
    hypervisor.forget("golden", soon())
    with pytest.raises(VmFailed, match="golden"):
        hypervisor.clone("golden", "three", soon())


@pytest.mark.story("US-39")
@pytest.mark.requires(hypervisor=["Consoles", "BacksUp"])
def test_backup(hypervisor, shell, tiny):
    """A disk is backed up while its VM runs; lost and put back it holds the same bytes; a backup that has changed is not put back."""
    one = tiny("one", "hz=5", memory=8 * MIB, disks=(VmDisk("data", size=MIB),))
    hypervisor.stop(one, soon())
    (disk,) = _disks(shell, one)
    shell(FILLED.format(disk))
    before = shell(f"sha256sum <{disk}").split()[0]
    hypervisor.start(one, soon())
    assert hypervisor.backup(one, "data", "/tmp/backup", soon()) == before
    next_beat(hypervisor, one)
    hypervisor.stop(one, soon())
    shell(f"dd if=/dev/zero of={disk} bs=65536 count=16 conv=notrunc 2>/dev/null")
    hypervisor.restore_backup(one, "data", "/tmp/backup", before, soon())
    assert shell(f"sha256sum <{disk}").split()[0] == before
    shell("echo changed | dd of=/tmp/backup conv=notrunc 2>/dev/null")
    with pytest.raises(VmFailed, match="corrupt"):
        hypervisor.restore_backup(one, "data", "/tmp/backup", before, soon())
    assert shell(f"sha256sum <{disk}").split()[0] == before
    shell("rm /tmp/backup")


@pytest.mark.story("US-38")
@pytest.mark.requires(hypervisor=["Consoles", "Restarts"])
def test_restart(hypervisor, tiny, record):
    """A VM that dies by a fault is started again by itself as often as it was asked for, and is ready soon; after that it has failed."""
    one = tiny("one", "hz=5", restarts=1)
    said = len(hypervisor.said(one, soon()))
    killed = hypervisor.kill(one, soon())
    ready = hypervisor.heard(one, "tiny: ready", soon(), said)
    record(RESTART, ready.at - killed)
    assert hypervisor.starts(one, soon()) == 2
    assert [vm.state for vm in hypervisor.list(soon())] == [VmState.RUNNING]
    hypervisor.kill(one, soon())
    with pytest.raises(VmFailed, match=r"ended before it said .*(signal 9|crashed)"):
        hypervisor.heard(one, "tiny: no such word", soon(), ready.offset)
    (failed,) = hypervisor.list(soon())
    assert (failed.state, bool(failed.why)) == (VmState.FAILED, True)


@pytest.mark.story("US-33")
@pytest.mark.requires(hypervisor=["Consoles", "Meters"])
def test_metrics(hypervisor, tiny):
    """What a VM takes of the machine is told: CPU time that grows, memory that is not more than the machine has, less for a smaller VM."""
    small, large = tiny("small", "hz=20 touch", memory=4 * MIB), tiny("large", "hz=20 touch", memory=64 * MIB)
    first = hypervisor.metrics(small, soon())
    next_beat(hypervisor, small)
    then = hypervisor.metrics(small, soon())
    assert 0 < first.cpu_s < then.cpu_s
    more = hypervisor.metrics(large, soon()).memory - then.memory
    assert 40 * MIB < more < 80 * MIB, f"60 MiB more of memory, all of it touched, cost {more} bytes"


def _disks(shell, vm):
    """The files that are a VM's own disks."""
    return shell(f"find /run /var -path '*/{vm}/*' -type f -size +500k | grep -v state").split()
