"""`labctl targets check` asks real servers; what is reserved or unhealthy stays out of runs."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from labctl.deadline import Deadline
from labctl.errors import DeployError, StorageError
from labctl.machine import checkup, registry, standing
from labctl.machine.bootserver.offer import Shelf
from labctl.machine.bootserver.web import serving
from labctl.machine.drivers.ipmi import Ipmi
from labctl.machine.drivers.redfish import Redfish
from labctl.machine.polling import until
from labctl.machine.protocols import DriverContext, Health
from labctl.model import Build, Target, TargetConfig
from labctl.virtualserver import bmc
from labctl.virtualserver.client import VirtualServer
from tests import living_system
from tests.temporary_lab import TemporaryLab
from tests.virtual_servers import target_of, virtual_server

pytestmark = pytest.mark.qemu


@pytest.fixture
def server(lab: TemporaryLab) -> Iterator[VirtualServer]:
    with virtual_server(lab.root) as running:
        yield running


def test_a_server_that_is_well(server: VirtualServer, lab: TemporaryLab) -> None:
    ran = lab.labctl("targets", "check", "--json")
    assert ran.status == 0, ran.err
    found = {result["target"]: result for result in ran.data["targets"]}
    rack = found[server.name]
    assert (rack["ok"], rack["power"], rack["console"]) == (True, "off", "connects")
    assert rack["boot_server"] == f"http://127.0.0.1:{server.settings.boot_server_port}/boot.ipxe"
    assert {(r["name"], r["value"], r["unit"]) for r in rack["readings"]} >= {("CPU Temp", 45.0, "degC"), ("Power", 180.0, "W")}
    assert rack["inventory"] == {"manufacturer": "labctl", "product": "virtual server", "serial": server.name[:32]}
    assert "power" not in found[lab.target]  # an emulated machine is nothing that can be asked
    assert "45 °C, 180 W" in lab.labctl("targets", "check", server.name).out


@pytest.mark.parametrize("redfish", [False, True], ids=["ipmi", "redfish"])
def test_its_event_log(lab: TemporaryLab, redfish: bool) -> None:
    with virtual_server(lab.root, redfish=redfish) as server:
        _its_event_log(server, Redfish if redfish else Ipmi)


def _its_event_log(server: VirtualServer, driver: type) -> None:
    power = registry.assemble(DriverContext(target_of(server), server.lab_root), _transcript()).power
    assert isinstance(power, driver)
    assert isinstance(power, Health)
    deadline = Deadline.after(60)
    assert (power.latest_event(deadline), power.events(0, deadline)) == (0, ())
    assert not power.log_is_full(deadline)
    server.fault("fill-sel")
    assert power.log_is_full(deadline)
    everything = power.events(0, deadline)
    assert len(everything) == bmc.SEL_ENTRIES
    assert "temperature, sensor" in everything[0].text
    last = power.latest_event(deadline)
    assert power.events(last, deadline) == ()
    assert power.events(everything[-4].number, deadline) == everything[-3:]
    assert power.events(64000, deadline) == everything  # one that is no more
    assert power.sample(deadline) == {"machine_degc": 45.0, "machine_watts": 180.0}
    bmc.tell_simulator(server.settings, ["sensor_set_value 0x20 0 2 99 0"])  # another sensor is hotter now
    assert power.sample(deadline) == {"machine_degc": 45.0, "machine_watts": 180.0}
    assert {(r.name, r.value, r.unit) for r in power.readings(deadline)} == {
        ("CPU Temp", 45.0, "degC"),
        ("Inlet Temp", 99.0, "degC"),
        ("Power", 180.0, "W"),
    }
    assert power.inventory(deadline) == {"manufacturer": "labctl", "product": "virtual server", "serial": server.name[:32]}


def _transcript() -> object:
    from labctl.machine.transcript import Transcript

    return Transcript()


@pytest.mark.parametrize(
    ("spoil", "status", "words"),
    [
        (lambda server: server.fault("silent"), 3, "does not answer"),
        (lambda server: server.fault("garbage"), 3, "the BMC at 127.0.0.1"),
        (lambda server: server.files.password.write_text("wrong"), 2, "refuses the user 'admin' or the password of file:"),
        (lambda server: server.files.password.chmod(0o644), 2, "can be read by others"),
    ],
)
def test_one_that_is_not(
    server: VirtualServer, lab: TemporaryLab, spoil: Callable[[VirtualServer], object], status: int, words: str
) -> None:
    spoil(server)
    ran = lab.labctl("targets", "check", server.name)
    assert words in ran.err
    assert server.name in ran.err
    assert ran.status == status
    assert "wrong" in ran.out
    assert (lab.labctl("targets", "check", "--offline").status == 0) == ("others" not in words)


def test_a_console_in_use_is_left_alone(server: VirtualServer, lab: TemporaryLab, monkeypatch: pytest.MonkeyPatch) -> None:
    target = target_of(server)
    standing.reserve(lab.root, target.name, "")
    assert checkup.check(target, lab.root).console == "connects"
    monkeypatch.setattr(standing, "user_name", lambda: "somebody-else")
    found = checkup.check(target, lab.root)
    assert (found.console, found.wrong) == ("in use", [])


def test_a_target_of_somebody_else_is_left_out_with_the_reason(lab: TemporaryLab) -> None:
    lab.suite("nothing", "def test_nothing(target):\n    pass\n")
    lab.write("targets/other.toml", (lab.root / f"targets/{lab.target}.toml").read_text())
    (lab.root / ".labctl/targets").mkdir(parents=True)
    (lab.root / ".labctl/targets/other.reserved.json").write_text(json.dumps({"user": "ada", "since": 1.7e9, "note": "leak"}))
    planned = lab.labctl("run", "matrix", "--dry-run", "--json").data
    assert [cell["target"] for cell in planned["cells"]] == [lab.target]
    assert planned["left_out"][0]["reason"].startswith("reserved by ada since 2023-11-1")
    refused = lab.labctl("run", "matrix", "--target", "other")
    assert refused.status == 2
    assert "targets/other.toml: reserved by ada" in refused.err
    assert lab.labctl("targets", "reserve", "other").status == 3
    assert "reserved by ada" in lab.labctl("targets", "check", "other").out
    assert lab.labctl("targets", "release", "other", "--force").status == 0
    assert lab.labctl("targets", "reserve", "other", "--note", "mine").status == 0
    assert len(lab.labctl("run", "matrix", "--dry-run", "--json").data["cells"]) == 2


def test_a_target_that_fails_its_known_good_boot_is_out_until_it_passes(lab: TemporaryLab) -> None:
    lab.suite("nothing", "def test_nothing(target):\n    pass\n")
    lab.build("hangs", init="sleep 1000")
    lab.write(f"targets/{lab.target}.toml", (lab.root / f"targets/{lab.target}.toml").read_text().replace("silence = 10", "silence = 4"))
    failed = lab.labctl("targets", "check", lab.target, "--boot", "hangs")
    assert failed.status == 1
    left = lab.labctl("run", "matrix", "--dry-run")
    assert left.status == 2
    assert "unhealthy since" in left.err
    assert "hangs does not come up: silent for" in left.err
    passed = lab.labctl("targets", "check", lab.target, "--boot", "debian")
    assert passed.status == 0, passed.err
    assert lab.labctl("run", "matrix", "--dry-run").status == 0


def test_nothing_is_left_of_a_check(server: VirtualServer, tmp_path: Path) -> None:
    checkup.check(target_of(server), server.lab_root)
    status = server.status()
    assert status is not None
    assert status["power"] == "off"


def test_what_its_console_does(server: VirtualServer, lab: TemporaryLab, debian: Build) -> None:
    target = target_of(server)
    living_system.install(server, debian)
    machine = registry.assemble(DriverContext(target, lab.root), _transcript())
    machine.power.on(Deadline.after(30))
    log = server.files.serial_log
    assert until(lambda: b"labctl-guest: ready" in log.read_bytes(), Deadline.after(90))
    assert until(lambda: checkup.check(target, lab.root).console == "echoes", Deadline.after(30))
    with socket.create_connection(("127.0.0.1", server.settings.serial_port)) as console:
        console.sendall(b"stty -echo; exec sleep 1000\n")
    assert until(lambda: checkup.check(target, lab.root).console == "silent", Deadline.after(30))


def test_a_boot_server_that_cannot_be_had(server: VirtualServer, lab: TemporaryLab, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", server.settings.boot_server_port)):
        (wrong,) = checkup.check(target_of(server), lab.root).wrong
        assert "the boot server cannot listen on" in str(wrong)

    def by_service() -> checkup.Found:
        drivers = {"manual": {}, "netboot": {"service": str(tmp_path), "mac": "52:54:00:12:34:56"}}
        config = TargetConfig.model_validate({"schema": 1, "cpus": 1, "memory": "64M", "drivers": drivers})
        found = checkup.Found("rack")
        machine = registry.assemble(DriverContext(Target("rack", config), tmp_path), _transcript())
        found.boot_server = machine.deploy.boot_server(Deadline.after(10))  # type: ignore[attr-defined]
        return found

    with pytest.raises(DeployError, match="no boot server serves"):
        by_service()
    shelf = Shelf(tmp_path)
    with serving(shelf, "127.0.0.1", 0) as port, shelf.served("0.0.0.0", port):
        assert by_service().boot_server == f"http://127.0.0.1:{port}/boot.ipxe"
        with pytest.raises(StorageError, match="is served already"), shelf.served("127.0.0.1", 1):
            pass
    with socket.create_server(("127.0.0.1", 0)) as nobody, shelf.served("127.0.0.1", nobody.getsockname()[1]):
        nobody.close()
        with pytest.raises(DeployError, match="does not answer at"):
            by_service()
