"""A VM is created, started, listed, stopped and destroyed; its console is read and typed on; its CPUs are pinned; all of it is logged."""

import time

import pytest

from labctl.errors import VmFailed
from labctl.hypervisor.guests import MIB, TINY, next_beat, soon
from labctl.hypervisor.protocols import VmDisk, VmSpec, VmState
from labctl.model import Direction, Metric

START = Metric("vm.start", "s", Direction.LOWER, "from the request for a VM to its guest's word that it is ready")


def states(hypervisor):
    return {vm.name: vm.state for vm in hypervisor.list(soon())}


@pytest.mark.story("US-14", "US-17")
def test_create(hypervisor):
    """A VM that is created is there, as it was described, and is off; a second one of its name is refused, and harms nothing."""
    hypervisor.create(VmSpec("one", TINY, memory=24 * MIB, cpus=2), soon())
    (one,) = hypervisor.list(soon())
    assert (one.name, one.state, one.cpus, one.memory) == ("one", VmState.OFF, 2, 24 * MIB)
    with pytest.raises(VmFailed, match="one"):
        hypervisor.create(VmSpec("one", TINY), soon())
    assert [vm.memory for vm in hypervisor.list(soon())] == [24 * MIB]


@pytest.mark.story("US-14")
def test_create_without_kernel(hypervisor):
    """A VM whose kernel is not there is refused by its name, and nothing is left of it."""
    with pytest.raises(VmFailed, match="/no/such/kernel"):
        hypervisor.create(VmSpec("one", "/no/such/kernel"), soon())
    assert hypervisor.list(soon()) == ()


@pytest.mark.story("US-15", "US-16", "US-17")
@pytest.mark.requires(hypervisor=["Consoles"])
def test_start_and_stop(hypervisor, record):
    """A VM that is started is ready and beats by its own timer; stopped it is off and still there; it can be started again."""
    began = time.monotonic()
    hypervisor.create(VmSpec("one", TINY, append="hz=10"), soon())
    hypervisor.start("one", soon())
    hypervisor.heard("one", "tiny: ready", soon())
    record(START, time.monotonic() - began, guest="tiny")
    assert states(hypervisor) == {"one": VmState.RUNNING}
    next_beat(hypervisor, "one")
    next_beat(hypervisor, "one")
    hypervisor.stop("one", soon())
    assert states(hypervisor) == {"one": VmState.OFF}
    hypervisor.stop("one", soon())  # off already is no error
    hypervisor.start("one", soon())
    hypervisor.heard("one", "tiny: ready", soon())
    hypervisor.destroy("one", soon())
    hypervisor.destroy("one", soon())
    assert hypervisor.list(soon()) == ()


@pytest.mark.story("US-15")
@pytest.mark.requires(hypervisor=["Consoles"])
def test_start_of_one_that_runs(hypervisor, tiny):
    """It is refused by its name, and the VM goes on as it was."""
    tiny("one", "hz=10")
    with pytest.raises(VmFailed, match=r"VM one: is not off: it runs already"):
        hypervisor.start("one", soon())
    assert states(hypervisor) == {"one": VmState.RUNNING}
    next_beat(hypervisor, "one")


@pytest.mark.requires(hypervisor=["Pauses", "Digests", "Snapshots", "AttachesDisks"])
def test_verbs_on_one_that_is_off(hypervisor):
    """Refused at once and by name, for nobody is there to be asked; so is a VM that does not exist, and a disk whose file does not."""
    hypervisor.create(VmSpec("one", TINY), soon())
    began = time.monotonic()
    verbs = {
        "pause": lambda vm: hypervisor.pause(vm, soon()),
        "digest": lambda vm: hypervisor.memory_digest(vm, soon()),
        "snapshot": lambda vm: hypervisor.snapshot(vm, "kept", soon()),
        "disk": lambda vm: hypervisor.attach_disk(vm, VmDisk("more", size=MIB), soon()),
    }
    for name, verb in verbs.items():
        with pytest.raises(VmFailed, match="VM one: is off"):
            verb("one")
        with pytest.raises(VmFailed, match="VM nobody: does not exist"):
            verb("nobody")
        assert time.monotonic() - began < soon().seconds / 2, f"{name}: it was waited for"
    with pytest.raises(VmFailed, match="/no/such/disk: no such file"):
        hypervisor.attach_disk("one", VmDisk("more", file="/no/such/disk"), soon())


@pytest.mark.story("US-17")
def test_list(hypervisor, tiny):
    """Of several VMs each is listed with its own state."""
    tiny("one")
    hypervisor.create(VmSpec("two", TINY), soon())
    tiny("three")
    hypervisor.stop("three", soon())
    assert states(hypervisor) == {"one": VmState.RUNNING, "two": VmState.OFF, "three": VmState.OFF}


@pytest.mark.story("US-22")
@pytest.mark.requires(hypervisor=["Consoles"])
def test_console(hypervisor, tiny):
    """What is typed on the console of a VM reaches its guest, and the answer is read from it; nothing that was said before is lost."""
    one, two = tiny("one", "hz=5"), tiny("two", "hz=5")
    before = hypervisor.said(one, soon())
    hypervisor.type(one, b"p", soon())
    hypervisor.heard(one, "tiny: pong", soon())
    assert hypervisor.said(one, soon()).startswith(before)
    assert b"pong" not in hypervisor.said(two, soon()), "what was typed to one VM reached the other"


@pytest.mark.story("US-19")
@pytest.mark.requires(cpus=2, hypervisor=["Pins"])
def test_pin(hypervisor, tiny):
    """The CPUs of a VM run where they are pinned to, as the machine's own kernel sees it, from its start and when that is changed."""
    one = tiny("one", cpus=2, pinned=(1,))
    assert hypervisor.pinned(one, soon()) == ((1,), (1,))
    hypervisor.pin(one, (0,), soon())
    assert hypervisor.pinned(one, soon()) == ((0,), (0,))
    hypervisor.pin(one, (0, 1), soon())
    assert hypervisor.pinned(one, soon()) == ((0, 1), (0, 1))


@pytest.mark.story("US-40")
@pytest.mark.requires(hypervisor=["Audits"])
def test_audit(hypervisor, tiny):
    """Each verb is in the audit log with who, when, to which VM and how it ended, also one that failed, in their order."""
    before = hypervisor.audit(soon())
    tiny("one")
    hypervisor.stop("one", soon())
    with pytest.raises(VmFailed):
        hypervisor.start("nobody", soon())
    hypervisor.destroy("one", soon())
    entries = hypervisor.audit(soon())
    assert entries[: len(before)] == before, "the log was changed"
    new = entries[len(before) :]
    verbs = [(entry.verb, entry.vm) for entry in new]
    assert verbs == [("create", "one"), ("start", "one"), ("stop", "one"), ("start", "nobody"), ("destroy", "one")]
    assert [entry.result == "ok" for entry in new] == [True, True, True, False, True]
    assert "nobody" in new[3].result
    assert all(entry.who for entry in new)
    assert [entry.at for entry in new] == sorted(entry.at for entry in new)
