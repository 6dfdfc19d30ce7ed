"""The role Hypervisor without a machine: what a VM may be, what its tools say, which driver is which."""

from unittest.mock import MagicMock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labctl.deadline import Deadline
from labctl.errors import ConfigError, VmFailed
from labctl.hypervisor import qemuvm, registry, specfile
from labctl.hypervisor.drivers.kvm import Kvm, cpu_list
from labctl.hypervisor.keeper import Keeper, Status, status_of
from labctl.hypervisor.monitor import command, told
from labctl.hypervisor.protocols import CAPABILITIES, Hypervisor, VmDisk, VmDisplay, VmNic, VmSpec
from labctl.hypervisor.records import Records
from labctl.machine.protocols import CommandResult
from labctl.machine.session import Session

FULL = VmSpec(
    "one",
    "/boot/kernel",
    initrd="/boot/initrd",
    append='quiet "words"',
    memory=64 << 20,
    cpus=2,
    disks=(VmDisk("data", size=1 << 20), VmDisk("root", file="/dev/loop0")),
    nics=(VmNic("lan", "blue"),),
    display=VmDisplay(port=5901, websocket=5701, clipboard=True),
    pinned=(0, 1),
    devices=("0000:00:04.0",),
    restarts=3,
    paused=True,
)


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        ("name", {"name": "One"}),
        ("name", {"name": "one; rm -rf /"}),
        ("name", {"name": "../one"}),
        ("kernel", {"kernel": "kernel"}),
        ("memory", {"memory": 1000}),
        ("cpus", {"cpus": 0}),
        ("pinned", {"pinned": (-1,)}),
        ("devices", {"devices": ("00:04.0",)}),
        ("nics", {"nics": (VmNic("lan", "blue", mac="52:54"),)}),
        ("disks", {"disks": (VmDisk("data"),)}),
        ("append", {"append": "a\nb"}),
        ("restarts", {"restarts": -1}),
    ],
)
def test_a_vm_that_cannot_be_is_refused_by_its_key(key: str, wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"VmSpec.{key}: found .*; allowed: "):
        VmSpec(**{"name": "one", "kernel": "/boot/kernel", **wrong})  # type: ignore[arg-type]


def test_a_specification_comes_back_from_its_file() -> None:
    assert specfile.from_json(specfile.to_json(FULL)) == FULL
    assert "\n" not in specfile.to_json(FULL)


@given(st.text())
def test_what_is_no_specification_is_refused(text: str) -> None:
    with pytest.raises((ValueError, ConfigError)):
        specfile.from_json(text)


def test_the_words_of_qemu() -> None:
    words = qemuvm.arguments(FULL, "/run/labctl/vms/one")
    given_to = {words[i]: words[i + 1] for i in range(len(words) - 1)}
    assert given_to["-append"] == 'quiet "words"'
    assert given_to["-m"] == "65536K"
    assert given_to["-vnc"] == "0.0.0.0:1,websocket=5701"
    assert "qemu-vdagent,id=clipboard,name=vdagent,clipboard=on" in words
    assert "vfio-pci,host=0000:00:04.0,id=pci-0" in words
    assert "-S" in words
    assert sum("{console}" in word for word in words) == 1
    # A screen needs the firmware that sets it up; all others start by the smallest.
    assert "-bios" not in words
    assert "qboot.rom" in qemuvm.arguments(VmSpec("one", "/boot/kernel"), "/run/labctl/vms/one")


def test_no_two_cards_share_an_address_or_a_device() -> None:
    cards = [(vm, VmNic(name, "blue")) for vm in ("one", "two", "on") for name in ("lan", "wan", "e-lan")]
    assert len({qemuvm.mac(vm, nic) for vm, nic in cards}) == len(cards)
    assert len({qemuvm.tap(vm, nic.name) for vm, nic in cards}) == len(cards)
    assert all(len(qemuvm.tap(vm, nic.name)) <= 15 for vm, nic in cards)
    assert all(int(qemuvm.mac(vm, nic)[:2], 16) & 3 == 2 for vm, nic in cards), "given out locally, and to one card"


def test_a_comma_in_a_file_name_is_no_end_of_an_option() -> None:
    spec = VmSpec("one", "/boot/kernel", disks=(VmDisk("data", file="/tmp/a,b"),))
    assert any(word.endswith("file.filename=/tmp/a,,b") for word in qemuvm.arguments(spec, "/run/labctl/vms/one"))


def test_what_a_keeper_says() -> None:
    line = "/run/v state=running pid=12 started_ns=2000000000 first_ns=0 ended_ns=0 ended=0 starts=1 console=17 keeper=11"
    assert status_of(line) == ("/run/v", Status("running", 12, 2.0, 0.0, 0, 1, 17))
    assert status_of("/run/v state=gone") == ("/run/v", Status("gone"))
    assert status_of("/run/v state=lost") == ("/run/v", Status("lost"))
    for wrong in ("/run/v state=dancing", "/run/v", "/run/v state"):
        with pytest.raises(ValueError):
            status_of(wrong)


def test_what_qemu_says() -> None:
    found = told(
        '{"return": {"status": "running"}}\n{"timestamp": {}, "event": "STOP"}\n{"error": {"class": "X", "desc": "no such device"}}\n'
    )
    assert found.returned == [{"status": "running"}]
    assert [event["event"] for event in found.events] == ["STOP"]
    assert found.error == "no such device"
    for wrong in ("no json", "[1]", '{"QMP": {}}', '"return"'):
        with pytest.raises(ValueError):
            told(wrong)


def test_a_command_is_written_as_qmp_writes_it() -> None:
    assert command("blockdev-add", node_name="disk") == {"execute": "blockdev-add", "arguments": {"node-name": "disk"}}
    assert command("stop") == {"execute": "stop"}


def test_lists_of_cpus() -> None:
    assert cpu_list(" 0-2,5\n") == (0, 1, 2, 5)
    with pytest.raises(ValueError):
        cpu_list("all")


def test_a_driver_is_found_by_its_name() -> None:
    assert registry.load("kvm") is Kvm
    assert "kvm" in registry.names()
    with pytest.raises(ConfigError, match=r"unknown hypervisor 'kvn'.*kvm"):
        registry.load("kvn")


def test_what_a_driver_declares_is_what_it_has() -> None:
    class Small:
        create = start = stop = list = destroy = pause = resume = print

    assert registry.declared(Small) == ("Pauses",)
    assert registry.half_declared(Small, "Pauses") == registry.half_declared(Small, "Consoles") == ""

    class Misspelt(Small):
        heard = said = lines = typ = began = print

    assert "Consoles" not in registry.declared(Misspelt)
    assert registry.half_declared(Misspelt, "Consoles") == "Consoles (its driver lacks type)"
    assert {"Consoles", "Pins", "Audits"} <= set(registry.declared(Kvm))
    assert Hypervisor.__name__ not in CAPABILITIES


@pytest.mark.parametrize(
    ("kernel", "remedy"),
    [
        ("/usr/bin/tinyguest", 'tools = ["tinyguest"] in the suite.toml of the suite'),
        ("/usr/lib/labctl/linuxguest/kernel", 'tools = ["linuxguest"] in the suite.toml of the suite'),
        ("/boot/kernel", ""),
    ],
)
def test_a_guest_of_the_labs_that_the_machine_lacks_is_told_with_what_brings_it(kernel: str, remedy: str) -> None:
    session = MagicMock(Session)
    session.name = ""
    session.run.return_value = CommandResult("", 4, f"{kernel}: no such file\n", 0.0)
    with pytest.raises(VmFailed, match=f"VM one: cannot be made: {kernel}: no such file") as caught:
        Records(Keeper(session), "me").define(VmSpec("one", kernel), [], Deadline.after(1))
    assert caught.value.remedy == remedy
    assert "echo $f: no such file; exit 4" in session.run.call_args_list[0].args[0], "the words that are looked for"
