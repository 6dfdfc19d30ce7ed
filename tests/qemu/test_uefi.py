"""A server whose firmware is UEFI: told by its BMC to boot from the network, it fetches the build, checks it and boots it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from labctl.deadline import Deadline
from labctl.errors import DeployError
from labctl.machine.session import Session, Watcher
from labctl.model import Build, PowerState
from labctl.virtualserver.client import VirtualServer
from labctl.virtualserver.machine import OVMF
from tests.virtual_servers import target_of, virtual_server

pytestmark = [pytest.mark.qemu, pytest.mark.skipif(not OVMF.exists(), reason="needs Debian's package ovmf")]
FLAGS = 5
"""Boot flags, of the boot options: IPMI 2.0, table 28-14."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VirtualServer]:
    with virtual_server(tmp_path_factory.mktemp("lab"), uefi=True) as running:
        yield running


def test_it_boots_from_the_network_and_is_asked_to_in_uefis_way(
    server: VirtualServer, tmp_path: Path, debian: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyipmi

    told: list[tuple[int, bytes]] = []
    tell = pyipmi.Ipmi.set_system_boot_options

    def seen(bmc: pyipmi.Ipmi, selector: int, data: bytes, *more: object, **words: object) -> object:
        told.append((selector, bytes(data)))
        return tell(bmc, selector, data, *more, **words)

    monkeypatch.setattr(pyipmi.Ipmi, "set_system_boot_options", seen)
    arrived: list[str] = []
    # What iPXE would read as its own, and what is no ASCII.
    hard = " labctl.word=${net0/mac} || && # ;  'two  blanks' labctl.not_ascii=ä€𝄞"
    build = replace(debian, append=debian.append + hard)
    with Session(target_of(server), build, tmp_path, watcher=Watcher(arrived=arrived.append)) as session:
        session.booted()
        found = session.run("uname -r; test -d /sys/firmware/efi && echo by-uefi; cat /proc/cmdline").output.splitlines()
        assert found == [debian.version, "by-uefi", session.append]
        assert hard in session.append
        session.reset()
    # Valid, for the next boot, by EFI; the network.
    assert told
    assert {(selector, data[:2]) for selector, data in told} == {(FLAGS, b"\xa0\x04")}
    assert arrived == [debian.digest] * 2


@pytest.mark.parametrize(
    ("fault", "argument", "cause"),
    [
        ("corrupt", 100_000, "the kernel that arrived is not the one that was sent"),
        ("lose-network", 4_000_000, "in the middle of the kernel"),
    ],
)
def test_what_did_not_arrive_is_the_labs_fault(
    server: VirtualServer, debian: Build, tmp_path: Path, fault: str, argument: float, cause: str
) -> None:
    server.fault(fault, argument)
    try:
        with Session(target_of(server), debian, tmp_path) as session:
            with pytest.raises(DeployError, match=cause):
                session.booted()
            power = session.machine.power
        assert power.state(Deadline.after(30)) is PowerState.OFF
    finally:
        server.clear()
