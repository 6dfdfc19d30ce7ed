"""What Xen's xl is told of a VM, and what it prints: recorded of xl 4.17 on the machine under test, and all else that may come instead."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labctl.hypervisor import registry, xenvm, xltext
from labctl.hypervisor.protocols import VmDisk, VmNic, VmSpec

LIST = """\
Name                                        ID   Mem VCPUs\tState\tTime(s)
Domain-0                                     0   512     1     r-----      88.9
one                                          1    16     1     ------      10.3
two                                         12    24     2     -bp---       0.1
"""
VCPUS = """\
Name                                ID  VCPU   CPU State   Time(s) Affinity (Hard / Soft)
one                                  1     0    0   ---      17.6  all / all
one                                  1     1    1   -b-       0.4  0-1,3 / all
"""
LOG = """\
Waiting for domain one (domid 1) to die [pid 152]
Domain 1 has shut down, reason code {} 0x{}
Action for shutdown reason code {} is destroy
Domain 1 needs to be cleaned up: destroying the domain
Done. Exiting now
"""


def test_the_list_of_domains_is_read_without_the_machine_itself() -> None:
    found = xltext.domains(LIST)
    assert found == {
        "one": xltext.Domain("one", 1, 16, 1, paused=False, ending=False),
        "two": xltext.Domain("two", 12, 24, 2, paused=True, ending=False),
    }


@pytest.mark.parametrize("flags", ["---s--", "----c-", "-----d", "--ps--"])
def test_a_domain_that_ends_is_seen_to(flags: str) -> None:
    assert xltext.domains(LIST.replace("------", flags))["one"].ending


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "libxl: error: cannot get domain list",
        LIST.replace("Time(s)", "Time"),
        LIST.replace(" 16 ", " -16 "),
        LIST.replace("------", "!-----"),
        LIST.replace("10.3", "10.3 more"),
        LIST + "one\n",
    ],
)
def test_what_is_no_list_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"no (list of VMs|VM in a list): "):
        xltext.domains(wrong)


@given(st.text(st.characters(exclude_characters="- "), min_size=1))
def test_what_a_guest_might_add_to_the_list_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="no VM in a list") as caught:
        xltext.domains(f"{LIST}{line}x")
    assert len(str(caught.value)) < 1000


def test_where_a_vms_cpus_may_run() -> None:
    assert xltext.affinities(VCPUS, 2) == ((0, 1), (0, 1, 3))


@pytest.mark.parametrize("wrong", ["", "no", VCPUS.replace("0-1,3", "0-1,x"), VCPUS.replace("all / all", "all")])
def test_what_is_no_list_of_cpus_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="no "):
        xltext.affinities(wrong, 2)


@pytest.mark.parametrize(
    ("code", "why"),
    [(0, ""), (1, "its guest has reset itself"), (3, "its guest has crashed"), (7, "its guest has ended for the reason 7 of Xen's")],
)
def test_how_a_vm_ended(code: int, why: str) -> None:
    told = xltext.ending(LOG.format(code, code, code))
    assert told.startswith(why)
    assert bool(told) == bool(why)


def test_a_vm_that_somebody_destroyed_has_not_ended_by_itself() -> None:
    assert "somebody destroyed it" in xltext.ending("Waiting for domain one (domid 1) to die [pid 152]\nDomain 1 has been destroyed.\n")


def test_what_xl_is_told_of_a_vm() -> None:
    spec = VmSpec(
        "one",
        "/boot/kernel",
        initrd="/boot/initrd",
        append='quiet "two words" a\\b',
        memory=(16 << 20) + 1,
        cpus=2,
        disks=(VmDisk("data", size=1 << 20), VmDisk("root", file="/srv/a,b.raw")),
        nics=(VmNic("lan", "blue", mac="52:54:01:aa:bb:cc"),),
        pinned=(1, 0),
    )
    lines = dict(line.split(" = ", 1) for line in xenvm.config(spec, "/run/one").splitlines())
    assert lines["name"] == '"one"'
    assert lines["type"] == '"pvh"'
    assert lines["ramdisk"] == '"/boot/initrd"'
    assert lines["cmdline"] == '"quiet \\"two words\\" a\\\\b"'
    assert lines["memory"] == "17", "whole MiB, and not less than asked for"
    assert lines["cpus"] == '"0,1"'
    assert lines["on_crash"] == '"destroy"'
    assert lines["disk"].count("vdev=xvda") == 1
    assert lines["disk"].endswith('vdev=xvdb,access=rw,backendtype=phy,script=/run/labctl/xen/block,target=/srv/a,b.raw"]')
    assert lines["vif"].startswith('["mac=52:54:01:aa:bb:cc,bridge=net')


def test_what_it_can_is_declared_and_what_it_cannot_is_not() -> None:
    able = registry.declared(registry.load("xl"))
    assert {"Consoles", "Pauses", "Digests", "Snapshots", "Templates", "Pins", "Meters", "Restarts", "Audits"} <= set(able)
    assert not {"Displays", "PassesDevices", "AttachesUsb", "Migrates"} & set(able)
