"""A server whose firmware is UEFI: told by its BMC to boot from the network, it fetches the build and boots it."""

from __future__ import annotations

from pathlib import Path

import pytest

from labctl.machine.session import Session, Watcher
from labctl.model import Build
from labctl.virtualserver.machine import OVMF
from tests.virtual_servers import target_of, virtual_server

pytestmark = pytest.mark.qemu
FLAGS = 5
"""Boot flags, of the boot options: IPMI 2.0, table 28-14."""


@pytest.mark.skipif(not OVMF.exists(), reason="needs Debian's package ovmf")
def test_it_boots_from_the_network_and_is_asked_to_in_uefis_way(tmp_path: Path, debian: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyipmi

    told: list[tuple[int, bytes]] = []
    tell = pyipmi.Ipmi.set_system_boot_options

    def seen(bmc: pyipmi.Ipmi, selector: int, data: bytes, *more: object, **words: object) -> object:
        told.append((selector, bytes(data)))
        return tell(bmc, selector, data, *more, **words)

    monkeypatch.setattr(pyipmi.Ipmi, "set_system_boot_options", seen)
    arrived: list[str] = []
    with (
        virtual_server(tmp_path / "lab", uefi=True) as server,
        Session(target_of(server), debian, tmp_path / "run", watcher=Watcher(arrived=arrived.append)) as session,
    ):
        session.booted()
        found = session.run("uname -r; test -d /sys/firmware/efi && echo by-uefi; cat /proc/cmdline").output.split()
        assert found == [debian.version, "by-uefi", "kernel", "initrd=initrd", *session.append.split()]
    # Valid, for the next boot, by EFI; the network.
    assert told
    assert {(selector, data[:2]) for selector, data in told} == {(FLAGS, b"\xa0\x04")}
    # Nothing checks there what arrived, and nothing is claimed of it.
    assert arrived == []
