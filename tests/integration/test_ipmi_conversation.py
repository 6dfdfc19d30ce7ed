"""How often the lab logs in at a BMC: once for verbs in a row, again behind a fault or a pause."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from labctl.deadline import Deadline
from labctl.errors import PowerError
from labctl.machine import ipmi
from labctl.machine.drivers.ipmi import Ipmi
from labctl.machine.power import power_cycle, together
from labctl.machine.protocols import DriverContext
from labctl.model import PowerState, Target, TargetConfig
from labctl.virtualserver.client import VirtualServer
from tests.virtual_servers import virtual_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VirtualServer]:
    with virtual_server(tmp_path_factory.mktemp("lab")) as running:
        yield running


@pytest.fixture
def power(server: VirtualServer, tmp_path: Path) -> Iterator[Ipmi]:
    target = Target(server.name, TargetConfig.model_validate({"schema": 1, "cpus": 1, "memory": "256M", "drivers": {"ipmi": {}}}))
    context = DriverContext(target, tmp_path)
    found = Ipmi(context, "127.0.0.1", "admin", f"file:{server.files.password}", port=server.settings.bmc_port)
    yield found
    server.clear()
    found.off(Deadline.after(30))


@pytest.fixture
def logins(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    seen: list[None] = []
    log_in = ipmi._log_in
    monkeypatch.setattr(ipmi, "_log_in", lambda *arguments: (seen.append(None), log_in(*arguments)))
    return seen


def test_verbs_in_a_row_log_in_once(power: Ipmi, logins: list[None]) -> None:
    power.off(Deadline.after(30))
    power.state(Deadline.after(30))
    assert len(logins) == 2
    logins.clear()
    with together(power):
        power.boot_next("network", Deadline.after(30))
        power_cycle(power, Deadline.after(30))
    assert len(logins) == 1
    assert power.state(Deadline.after(30)) is PowerState.ON
    assert len(logins) == 2


def test_behind_a_fault_it_logs_in_again(server: VirtualServer, power: Ipmi, logins: list[None]) -> None:
    with together(power):
        power.off(Deadline.after(30))
        server.fault("refuse-power", 1)
        with pytest.raises(PowerError, match="power on"):
            power.on(Deadline.after(30))
        assert len(logins) == 1
        power.on(Deadline.after(30))
        assert len(logins) == 2


def test_a_session_that_was_not_used_for_long_is_made_anew(power: Ipmi, logins: list[None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ipmi, "KEPT", 0.0)
    with together(power):
        power.state(Deadline.after(30))
        power.state(Deadline.after(30))
    assert len(logins) == 2
