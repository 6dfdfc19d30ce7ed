"""What goes wrong with a BMC has one name, is known before anything is powered where it can be, and tells no secret."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from labctl.deadline import Deadline
from labctl.errors import ConfigError, InfraError, ManagementError, PowerError
from labctl.machine import lease
from labctl.machine.protocols import BootDevice, DriverContext, Power
from labctl.machine.registry import assemble
from labctl.machine.transcript import Transcript
from labctl.model import PowerState, Target
from labctl.store.reader import read_run
from labctl.virtualserver.client import VirtualServer
from tests.kernels import bzimage
from tests.leftovers import our_machines
from tests.temporary_lab import LABCTL
from tests.virtual_servers import target_of, virtual_server

pytestmark = pytest.mark.qemu


@pytest.fixture(scope="module", params=["ipmi", "redfish"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VirtualServer]:
    with virtual_server(tmp_path_factory.mktemp("lab"), redfish=request.param == "redfish") as running:
        yield running


@pytest.fixture
def power(server: VirtualServer, tmp_path: Path) -> Iterator[Power]:
    yield power_of(target_of(server), tmp_path)
    server.clear()
    power_of(target_of(server), tmp_path / "after").off(Deadline.after(30))
    assert not our_machines(server.name)


def power_of(target: Target, folder: Path, **options: object) -> Power:
    """Its Power driver alone, with some options changed."""
    driver = "redfish" if "redfish" in target.config.drivers else "ipmi"
    drivers = {driver: {**target.config.drivers[driver], **options}}
    folder.mkdir(exist_ok=True)
    with Transcript(folder) as transcript:
        alone = Target(target.name, target.config.model_copy(update={"drivers": drivers}))
        return assemble(DriverContext(alone, folder), transcript).power


def test_a_power_command_that_is_ignored(server: VirtualServer, power: Power) -> None:
    server.fault("ignore-power")
    with pytest.raises(PowerError, match="said yes to power on"):
        power.on(Deadline.after(1))
    assert power.state(Deadline.after(10)) is PowerState.OFF
    assert server.clear()["faults"] == {}
    power.on(Deadline.after(30))
    server.fault("ignore-power")
    with pytest.raises(PowerError, match="said yes to power off"):
        power.off(Deadline.after(1))
    assert power.state(Deadline.after(10)) is PowerState.ON


def test_a_power_command_that_is_refused(server: VirtualServer, power: Power) -> None:
    server.fault("refuse-power")
    with pytest.raises(PowerError, match=r"power on: the BMC at .* says (0x[0-9a-f]{2}: .|HTTP 409: .)"):
        power.on(Deadline.after(10))
    power.on(Deadline.after(30))


def test_a_bmc_that_answers_late(server: VirtualServer, power: Power) -> None:
    server.fault("late", 0.2)
    power.on(Deadline.after(60))
    assert power.state(Deadline.after(30)) is PowerState.ON


def test_a_bmc_that_does_not_answer(server: VirtualServer, power: Power) -> None:
    server.fault("silent")
    with pytest.raises(ManagementError, match="does not answer"):
        power.state(Deadline.after(1))
    server.clear()
    assert power.state(Deadline.after(30)) is PowerState.OFF


def test_a_bmc_that_answers_garbage(server: VirtualServer, power: Power) -> None:
    server.fault("garbage")
    for _ in range(5):
        with pytest.raises(ManagementError, match=r"answers without a sense|does not answer") as caught:
            power.on(Deadline.after(2))
        assert str(caught.value).isprintable() or "\n  try: " in str(caught.value)
    server.clear()
    assert power.state(Deadline.after(30)) is PowerState.OFF


def test_a_bmc_whose_network_comes_and_goes(server: VirtualServer, power: Power) -> None:
    """Each verb ends, well or with the cause; none hangs and the machine ends where the last one that was true left it."""
    server.fault("flap", 0.3)
    said = []
    for _ in range(3):
        try:
            power.on(Deadline.after(2))
            power.off(Deadline.after(2))
        except InfraError as error:
            said.append(error.message)
    assert [words for words in said if not re.search(r"does not answer|on already|said yes", words)] == []
    server.clear()
    power.off(Deadline.after(30))


def test_a_full_event_log_keeps_nobody_from_switching(server: VirtualServer, power: Power) -> None:
    server.fault("fill-sel")
    power.on(Deadline.after(30))
    assert isinstance(power, BootDevice)


def test_a_user_or_password_that_is_refused(server: VirtualServer, power: Power, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WRONG_PASSWORD", "hunter2-is-wrong")
    target = target_of(server)
    for options in ({"password": "env:WRONG_PASSWORD"}, {"user": "nobody"}):
        with pytest.raises(ConfigError, match=rf"targets/{target.name}.toml: drivers.*refuses the user '(admin|nobody)'") as caught:
            power_of(target, tmp_path / "wrong", **options).on(Deadline.after(10))
        assert "hunter2" not in str(caught.value)
    assert power.state(Deadline.after(30)) is PowerState.OFF


def test_nothing_at_the_address(server: VirtualServer, power: Power, tmp_path: Path) -> None:
    nothing = {"url": "http://127.0.0.1:9"} if "redfish" in target_of(server).config.drivers else {"port": 9}
    with pytest.raises(ManagementError, match=r"does not answer: (nothing listens there|.*refused)"):
        power_of(target_of(server), tmp_path / "nothing", **nothing).state(Deadline.after(10))


@dataclass
class Watch:
    """Looks at every command line of the host until it is told to stop, for one that holds the secret."""

    secret: str
    seen: list[bytes] = field(default_factory=list)
    looked: int = 0
    _ended: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Watch:
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.is_set():
            for folder in Path("/proc").glob("[0-9]*"):
                try:
                    words = (folder / "cmdline").read_bytes()
                except OSError:
                    continue
                self.looked += 1
                if self.secret.encode() in words:
                    self.seen.append(words)
            time.sleep(0.005)


def test_a_secret_is_shown_nowhere(tmp_path: Path) -> None:
    """Not in what the commands say, well or badly, nor in a run's files, nor on a command line."""
    with virtual_server(tmp_path) as server:
        secret = server.files.password.read_text()
        assert len(secret) == 16
        text = server.target_file.read_text()
        server.target_file.write_text(text.replace(f'"file:{server.files.password}"', '"env:RACK_PASSWORD"'))
        for path in ("suites/none/test_none.py", "matrix/default.toml", "kernel/none.toml"):
            (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / "suites/none/test_none.py").write_text("def test_none(booted):\n    pass\n")
        (tmp_path / "matrix/default.toml").write_text('schema = 1\nbuilds = ["*"]\ntargets = ["*"]\nsuites = ["*"]\n')
        (tmp_path / "kernel/none.toml").write_text(f'schema = 1\nbuilder = "path"\n[path]\nkernel = "{tmp_path}/lab.toml"\n')
        commands = [
            ["power", "on", server.name],
            ["power", "on", server.name, "--json"],
            ["targets", "show", server.name],
            ["targets", "check", "--json"],
            ["run", "matrix", "--json"],
        ]
        said = []
        environment = {
            **os.environ,
            "RACK_PASSWORD": secret,
            "LABCTL_CACHE": str(tmp_path / "cache"),
            "LABCTL_LOCKS": str(tmp_path / "locks"),
        }
        with Watch(secret) as watch:
            for command in commands:
                done = subprocess.run([str(LABCTL), *command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
                said.append(f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}")
            server.fault("garbage")
            done = subprocess.run([str(LABCTL), "power", "on", server.name], cwd=tmp_path, env=environment, capture_output=True, text=True)
            said.append(done.stdout + done.stderr)
        server.clear()
        assert "env:RACK_PASSWORD" in "\n".join(said)  # the reference is no secret
        assert secret not in "\n".join(said)
        assert watch.looked > 100
        assert watch.seen == []
        written = [path for folder in ("results", "reports") for path in (tmp_path / folder).rglob("*") if path.is_file()]
        assert [path for path in written if secret.encode() in path.read_bytes()] == []


def test_a_password_that_is_refused_in_a_run_ends_it_and_nothing_waits_for_its_own_lease(tmp_path: Path) -> None:
    with virtual_server(tmp_path) as server:
        server.files.password.write_text("another")
        for path in ("suites/two/test_two.py", "matrix/default.toml", "kernel/mine.toml"):
            (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / "suites/two/test_two.py").write_text("def test_one(booted):\n    pass\n\n\ndef test_two(booted):\n    pass\n")
        (tmp_path / "matrix/default.toml").write_text('schema = 1\nbuilds = ["*"]\ntargets = ["*"]\nsuites = ["*"]\n')
        (tmp_path / "bzImage").write_bytes(bzimage("6.1.0"))
        (tmp_path / "kernel/mine.toml").write_text('schema = 1\nbuilder = "path"\n[path]\nkernel = "bzImage"\n')
        environment = {**os.environ, "LABCTL_CACHE": str(tmp_path / "cache"), "LABCTL_LOCKS": str(tmp_path / "locks")}
        words = [str(LABCTL), "run", "matrix", "--json"]
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        (cell,) = read_run(Path(json.loads(done.stdout)["results"])).cells
        assert [len(attempt.tests) for attempt in cell.attempts] == [2]
        assert all("refuses the user 'admin' or the password" in test.reason for test in cell.attempts[0].tests)
        assert done.returncode == 3
        assert not lease.holders(target_of(server), tmp_path)


def test_two_targets_with_one_bmc_are_refused_before_anything_is_powered(tmp_path: Path) -> None:
    with virtual_server(tmp_path) as server:
        (server.target_file.parent / "twin.toml").write_text(server.target_file.read_text())
        done = subprocess.run([str(LABCTL), "targets", "check"], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 2
        assert f"names the BMC 127.0.0.1:{server.settings.bmc_port}, as target" in done.stderr
