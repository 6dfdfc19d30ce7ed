"""A driver is found by name, its options are checked like the rest of a target's file, and roles are injected."""

from __future__ import annotations

from pathlib import Path

import pytest

from labctl.errors import ConfigError
from labctl.machine import registry
from labctl.machine.drivers.console_shell import ConsoleShell
from labctl.machine.drivers.qemu import Qemu
from labctl.machine.protocols import Console, Counter, Deploy, DriverContext, Ports, Power, Shell
from labctl.machine.transcript import Transcript
from labctl.model import Channel, Target, TargetConfig


def target(**drivers: dict[str, object]) -> Target:
    return Target("t", TargetConfig.model_validate({"schema": 1, "cpus": 1, "memory": "64M", "drivers": drivers}))


def test_names_and_roles() -> None:
    assert {"qemu", "console_shell"} <= set(registry.names())
    assert registry.roles_of(Qemu) == (Power, Console, Deploy, Counter, Ports)
    assert registry.roles_of(ConsoleShell) == (Shell,)


def test_a_machine_whose_instructions_cannot_be_counted() -> None:
    def counted(**drivers: dict[str, object]) -> Target:
        raw = {"schema": 1, "cpus": 1, "memory": "64M", "disk": "1G", "channel": "icount", "drivers": drivers}
        return Target("t", TargetConfig.model_validate(raw))

    registry.check(counted(qemu={}))
    assert registry.why_not_counted(counted(qemu={})) == ""
    with pytest.raises(ConfigError, match=r"targets/t\.toml: channel: icount: accel = .kvm.: instructions are counted under TCG only"):
        registry.check(counted(qemu={"accel": "kvm"}))
    assert "no driver" in registry.why_not_counted(counted(console_shell={}))
    assert registry.why_not_counted(counted(nothing={})) == "", "a driver that does not exist is told by the check, if the target is used"


def test_the_machine_that_is_counted_has_no_disk_unless_it_is_asked_for() -> None:
    raw = {"schema": 1, "cpus": 1, "memory": "64M", "disk": "1G"}
    with_disk, without = (
        Target("t", TargetConfig.model_validate({**raw, "drivers": {"qemu": {"icount_disk": asked}}})) for asked in (True, False)
    )
    assert registry.on_channel(without, Channel.WALL) is without
    assert registry.on_channel(without, Channel.ICOUNT).config.disk is None
    assert registry.on_channel(with_disk, Channel.ICOUNT).config.disk == 1 << 30
    assert registry.on_channel(without, Channel.ICOUNT).config.channel is Channel.ICOUNT


def test_roles_are_injected_whatever_the_order(tmp_path: Path) -> None:
    asked = target(console_shell={}, qemu={"machine": "microvm"})
    with Transcript() as transcript:
        machine = registry.assemble(DriverContext(asked, tmp_path), transcript)
    shell = machine.shell
    assert isinstance(shell, ConsoleShell)
    assert shell.console is machine.console is machine.power
    assert shell.transcript is transcript
    assert isinstance(machine.power, Qemu)
    assert machine.power.machine == "microvm"


@pytest.mark.parametrize(
    ("drivers", "words"),
    [
        ({"qmeu": {}}, ["targets/t.toml", "drivers.qmeu", "did you mean 'qemu'"]),
        ({"qemu": {"machin": "q35"}}, ["drivers.qemu.machin", "unknown key", "did you mean 'machine'"]),
        ({"qemu": {"accel": "xen"}}, ["drivers.qemu.accel", "'xen'", "'kvm'"]),
        ({"console_shell": {}}, ["needs a Console"]),
        ({"qemu": {"context": 1}}, ["drivers.qemu.context", "unknown key"]),
        ({"../etc": {}}, ["unknown driver"]),
    ],
)
def test_mistakes_name_the_file_the_key_and_what_is_allowed(drivers: dict[str, dict[str, object]], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        registry.check(target(**drivers))
    for word in words:
        assert word in str(caught.value)


def test_a_disk_that_no_qcow2_can_hold() -> None:
    def with_disk(size: str, bus: str = "nvme") -> Target:
        raw = {"schema": 1, "cpus": 1, "memory": "64M", "disk": size, "drivers": {"qemu": {"disk_bus": bus}}}
        return Target("t", TargetConfig.model_validate(raw))

    registry.check(with_disk("2048T"))
    registry.check(with_disk("2049T", "none"))
    with pytest.raises(ConfigError, match=r"targets/t\.toml: disk: found 9999999999T; at most 2048T"):
        registry.check(with_disk("9999999999T"))


def test_every_mistake_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        registry.check(target(qemu={"machin": "q35", "accel": "xen"}, nothing={}))
    assert len(caught.value.problems) == 3


def test_a_role_that_nobody_fills_says_so(tmp_path: Path) -> None:
    with Transcript() as transcript:
        machine = registry.assemble(DriverContext(target(qemu={}), tmp_path), transcript)
    with pytest.raises(ConfigError, match="no driver fills the role Shell"):
        _ = machine.shell


def test_a_role_that_a_driver_may_do_without(tmp_path: Path) -> None:
    without = target(netboot={}, manual={})
    beside = target(netboot={}, manual={}, serial={"port": "socket://127.0.0.1:1"})
    with Transcript() as transcript:
        assert registry.assemble(DriverContext(without, tmp_path), transcript).role(Deploy).console is None  # type: ignore[type-abstract,attr-defined]
        machine = registry.assemble(DriverContext(beside, tmp_path), transcript)
        assert machine.deploy.console is machine.console  # type: ignore[attr-defined]


def test_an_agent_over_a_network_that_does_not_lead_to_it() -> None:
    """Refused with the file: found out by waiting for it, it would read as the build's fault."""
    config: dict[str, object] = {"schema": 1, "cpus": 1, "memory": "128M", "drivers": {"qemu": {}, "agent": {"channel": "tcp"}}}
    with pytest.raises(ConfigError, match=r"drivers\.agent\.channel: tcp, and no card of the emulated machine forwards port 7007"):
        registry.check(Target("t", TargetConfig.model_validate(config)))
    registry.check(Target("t", TargetConfig.model_validate({**config, "nics": {"host": {"to": "host", "forward": [7007]}}})))


def test_what_a_machine_takes_of_the_host() -> None:
    """A server has CPUs and memory of its own, unless it is a virtual one."""

    def share(drivers: dict[str, object], **more: object) -> tuple[int, int]:
        config = {"schema": 1, "cpus": 32, "memory": "128G", "drivers": drivers, **more}
        return registry.host_share(Target("t", TargetConfig.model_validate(config)))

    bmc = {"host": "192.0.2.9", "user": "u", "password": "env:P"}
    server = {"ipmi": bmc, "sol": bmc, "netboot": {}}
    assert share(server) == (0, 0)
    assert share({"manual": {}, "serial": {"port": "/dev/ttyUSB0"}}) == (0, 0)
    assert share(server, on_host=True) == (32, 128 << 30)
    assert share({"qemu": {"accel": "kvm", "tcg_thread": "multi"}}) == (32, 128 << 30)
