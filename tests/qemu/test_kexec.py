"""A build that a Linux on the machine's disk starts by kexec, sent over SSH; and one that refuses to."""

from __future__ import annotations

from pathlib import Path

import pytest

from labctl.build.initramfs import with_overlay
from labctl.errors import ConfigError, DeployError
from labctl.machine import registry
from labctl.machine.session import Session, Watcher
from labctl.model import Build, Milestone, Target, TargetConfig
from labctl.virtualserver.client import VirtualServer
from tests import living_system, ssh_guest
from tests.virtual_servers import virtual_server

pytestmark = pytest.mark.qemu


def target(server: VirtualServer, key: Path, **more: object) -> Target:
    s = server.settings
    drivers = {
        "ipmi": {"host": "127.0.0.1", "port": s.bmc_port, "user": "admin", "password": f"file:{server.files.password}"},
        "serial": {"port": f"socket://127.0.0.1:{s.serial_port}"},
        "ssh": {"port": s.ssh_port, "host": "127.0.0.1", "key": str(key), "host_key": "any"},
        "kexec": {"patience": 120, **more},
    }
    config = {"schema": 1, "cpus": 1, "memory": "512M", "append": "console=ttyS0,115200", "drivers": drivers}
    return Target(server.name, TargetConfig.model_validate({**config, "boot": {"deadline": 120, "silence": 60}}))


def test_over_ssh_and_a_kernel_that_refuses(debian: Build, tmp_path: Path) -> None:
    guest = ssh_guest.make(tmp_path)
    refuses = tmp_path / "refuses/etc/labctl/rc.d/90-no-kexec.sh"
    refuses.parent.mkdir(parents=True)
    refuses.write_text("grep -q nokexec /proc/cmdline && echo 1 >/proc/sys/kernel/kexec_load_disabled\n")
    for folder in ("boots", "refused"):
        (tmp_path / folder).mkdir()
    with virtual_server(tmp_path / "server", memory=512 << 20) as server:
        living_system.install(server, with_overlay(guest.build, tmp_path / "refuses"))
        arrived: list[str] = []
        with Session(target(server, guest.key), debian, tmp_path / "boots", watcher=Watcher(arrived=arrived.append)) as session:
            boot = session.booted()
            assert arrived == [debian.digest]
            # Nothing of the other system's boot counts: it has no firmware, and what it says comes behind the jump.
            assert Milestone.FIRMWARE not in boot.milestones
            said = session.transcript.read(boot.since, session.transcript.size)
            assert said.count(b"Linux version") == 1
            assert session.append.encode() in said
        server.files.disk.unlink()
        living_system.install(server, with_overlay(guest.build, tmp_path / "refuses"), "console=ttyS0,115200 quiet nokexec")
        with (
            Session(target(server, guest.key), debian, tmp_path / "refused") as session,
            pytest.raises(
                DeployError, match="the running kernel does not take it: the shell is not root's, or the running kernel is locked"
            ),
        ):
            session.booted()
        assert server.status()["power"] == "off"  # type: ignore[index]


def test_what_a_console_needs() -> None:
    config = {
        "schema": 1,
        "cpus": 1,
        "memory": "64M",
        "drivers": {"manual": {}, "console_shell": {}, "kexec": {}, "serial": {"port": "/dev/x"}},
    }
    with pytest.raises(ConfigError) as error:
        registry.check(Target("rack", TargetConfig.model_validate(config)))
    assert "drivers.kexec.ready: is missing" in str(error.value)
    assert "drivers.kexec.url: is missing" in str(error.value)
