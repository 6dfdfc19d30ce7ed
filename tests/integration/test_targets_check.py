"""`labctl targets check` asks real servers; what is reserved or unhealthy stays out of runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from labctl.deadline import Deadline
from labctl.machine import checkup, registry, standing
from labctl.machine.drivers.ipmi import Ipmi
from labctl.machine.protocols import DriverContext, Health
from labctl.virtualserver import bmc
from labctl.virtualserver.client import VirtualServer
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
    assert {(r["name"], r["value"], r["unit"]) for r in rack["readings"]} >= {("CPU Temp", 45.0, "degC"), ("Power", 180.0, "W")}
    assert rack["inventory"] == {"manufacturer": "labctl", "product": "virtual server", "serial": server.name[:32]}
    assert "power" not in found[lab.target]  # an emulated machine is nothing that can be asked
    assert "45 °C, 180 W" in lab.labctl("targets", "check", server.name).out


def test_its_event_log(server: VirtualServer) -> None:
    power = registry.assemble(DriverContext(target_of(server), server.lab_root), _transcript()).power
    assert isinstance(power, Ipmi)
    assert isinstance(power, Health)
    deadline = Deadline.after(60)
    assert (power.latest_event(deadline), power.events(0, deadline)) == (0, ())
    server.fault("fill-sel")
    everything = power.events(0, deadline)
    assert len(everything) == bmc.SEL_ENTRIES
    assert "temperature, sensor" in everything[0].text
    last = power.latest_event(deadline)
    assert power.events(last, deadline) == ()
    assert power.events(everything[-4].number, deadline) == everything[-3:]
    assert power.events(64000, deadline) == everything  # one that is no more
    assert power.sample(deadline) == {"machine_degc": 45.0, "machine_watts": 180.0}
    assert power.sample(deadline) == {"machine_degc": 45.0, "machine_watts": 180.0}


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
