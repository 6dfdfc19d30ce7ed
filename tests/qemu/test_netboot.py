"""A whole machine over the network: a virtual server's BMC, its console, the lab's boot server; and what goes wrong on the way."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from labctl.deadline import Deadline
from labctl.errors import DeployError
from labctl.machine.session import Session, Watcher
from labctl.model import Build, PowerState, Target, TargetConfig, build_digest
from labctl.virtualserver.client import VirtualServer
from tests.virtual_servers import virtual_server

pytestmark = pytest.mark.qemu


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VirtualServer]:
    with virtual_server(tmp_path_factory.mktemp("lab")) as running:
        yield running


@pytest.fixture
def healthy(server: VirtualServer) -> Iterator[VirtualServer]:
    yield server
    server.clear()


def target(server: VirtualServer, **more: object) -> Target:
    s = server.settings
    drivers = {
        "ipmi": {"host": "127.0.0.1", "port": s.bmc_port, "user": "admin", "password": f"file:{server.files.password}"},
        "serial": {"port": f"socket://127.0.0.1:{s.serial_port}"},
        "console_shell": {},
        "netboot": {"port": s.boot_server_port, **more},
    }
    config = {"schema": 1, "cpus": 1, "memory": "256M", "append": "console=ttyS0,115200", "drivers": drivers}
    return Target(server.name, TargetConfig.model_validate({**config, "boot": {"deadline": 120, "silence": 60}}))


def test_it_boots_what_was_sent_by_cycle_and_by_reset(healthy: VirtualServer, debian: Build, tmp_path: Path) -> None:
    seen: list[str] = []
    with Session(target(healthy), debian, tmp_path, watcher=Watcher(arrived=seen.append)) as session:
        session.booted()
        assert session.run("uname -r").output.strip() == debian.version
        session.reset()
        assert session.run("cat /proc/cmdline").output.strip() == session.append
        assert seen == [debian.digest] * 2
    assert healthy.status()["power"] == "off"  # type: ignore[index]


@pytest.mark.parametrize(
    ("fault", "argument", "cause"),
    [
        ("corrupt", 100_000, "the kernel that arrived is not the one that was sent"),
        ("lose-network", 4_000_000, "in the middle of the kernel"),
    ],
)
def test_what_did_not_arrive_is_the_labs_fault(
    healthy: VirtualServer, debian: Build, tmp_path: Path, fault: str, argument: float, cause: str
) -> None:
    healthy.fault(fault, argument)
    with Session(target(healthy), debian, tmp_path) as session:
        with pytest.raises(DeployError, match=cause):
            session.booted()
        power = session.machine.power
    assert power.state(Deadline.after(30)) is PowerState.OFF
    assert not list(tmp_path.glob("*.offer"))


def test_a_kernel_that_no_loader_starts_is_refused_before_anything_is_powered(
    healthy: VirtualServer, debian: Build, tmp_path: Path
) -> None:
    """As the reference kernel is, or Xen."""
    elf = tmp_path / "kernel"
    elf.write_bytes(b"\x7fELF" + bytes(100))
    build = replace(debian, kernel=elf, initrd=None, digest=build_digest(f"sha256:{hashlib.sha256(elf.read_bytes()).hexdigest()}", ""))
    before = healthy.files.serial_log.read_bytes()
    with Session(target(healthy), build, tmp_path) as session, pytest.raises(DeployError, match="is an ELF file: over the network"):
        session.booted()
    assert healthy.files.serial_log.read_bytes() == before
