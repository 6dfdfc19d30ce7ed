"""A console by SSH to a BMC that describes it in Redfish: nothing lost or doubled, and what is wrong is told by one clear error."""

from __future__ import annotations

import base64
import http.server
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paramiko
import pytest

from labctl.deadline import Deadline
from labctl.errors import ConfigError, ConsoleLost, LabctlError, ManagementError
from labctl.machine import line
from labctl.machine.drivers import redfish_console
from labctl.machine.drivers.redfish_console import RedfishConsole
from labctl.machine.polling import until
from labctl.machine.protocols import DriverContext, Power
from labctl.machine.registry import assemble, check_together
from labctl.machine.transcript import Transcript
from labctl.model import Target, TargetConfig
from labctl.virtualserver.client import VirtualServer
from labctl.virtualserver.sshconsole import SshConsole
from tests import boot_sector
from tests.virtual_servers import target_of, virtual_server

LINES = 20_000
EVERY = b"\r~.\r~~.\n~?\x00\x01\x11\x13\x1a\x1b\x1bT\x7f\xff\r~" + bytes(range(1, 70)) * 100  # without F
SYSTEM, MANAGER = "/redfish/v1/Systems/1", "/redfish/v1/Managers/1"
SECRET = "rosebud-in-a-sled"


@pytest.fixture
def transcript(tmp_path: Path) -> Iterator[Transcript]:
    with Transcript(tmp_path) as transcript:
        yield transcript


def marks(folder: Path) -> list[str]:
    file = folder / "console.marks.jsonl"
    return [json.loads(text)["text"] for text in file.read_text().splitlines()] if file.exists() else []


def echoes(console: RedfishConsole, words: bytes, seconds: float = 30) -> bytes:
    since = console.transcript.size
    console.write(words)
    assert console.transcript.wait_beyond(since + len(words) - 1, Deadline.after(seconds))
    return console.transcript.read(since)


# --- A virtual server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VirtualServer]:
    with virtual_server(tmp_path_factory.mktemp("lab"), redfish=True) as running:
        boot_sector.make_disk(running.files.disk, LINES)
        power(running, tmp_path_factory.mktemp("power")).on(Deadline.after(30))
        assert until(lambda: boot_sector.READY in running.files.serial_log.read_bytes(), Deadline.after(30))
        yield running


def power(server: VirtualServer, folder: Path) -> Power:
    with Transcript(folder) as transcript:
        return assemble(DriverContext(target_of(server), folder), transcript).power


@pytest.fixture
def console(server: VirtualServer, transcript: Transcript, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RedfishConsole]:
    """Of the target that was written for the server, attached, with the machine at its prompt."""
    monkeypatch.setattr(line, "CHECKED_EVERY", 0.3)
    driver = assemble(DriverContext(target_of(server), tmp_path), transcript).console
    assert isinstance(driver, RedfishConsole)
    driver.attach(Deadline.after(30))
    yield driver
    server.clear()
    driver.detach()


@pytest.mark.qemu
def test_a_flood_is_byte_for_byte_what_the_machine_said_and_so_is_what_is_typed(console: RedfishConsole, server: VirtualServer) -> None:
    assert echoes(console, EVERY) == EVERY
    before, since, began = server.files.serial_log.stat().st_size, console.transcript.size, time.monotonic_ns()
    console.write(boot_sector.FLOOD)
    console.transcript.wait([boot_sector.READY.strip()], since=since, deadline=Deadline.after(120))
    said = console.transcript.read(since)
    assert said == boot_sector.lines(LINES)
    assert said == server.files.serial_log.read_bytes()[before:]
    size = len(said)
    times = [console.transcript.time_of(offset) for offset in range(since, since + size, size // 100)]
    assert times == sorted(times)
    assert times[0] > began
    assert len(set(times)) > 50
    assert not console.transcript.gap_since(0)


@pytest.mark.qemu
def test_attached_twice_it_is_one_reader_and_detached_it_leaves_nothing(console: RedfishConsole, server: VirtualServer) -> None:
    console.attach(Deadline.after(5))
    assert echoes(console, b"once") == b"once"
    with socket.create_connection(("127.0.0.1", server.settings.serial_port)) as other:  # the hub's other listeners hear it too
        console.write(b"both")
        assert other.recv(1)
    console.detach()
    console.detach()
    assert console.transcript.ended
    assert until(lambda: _listeners(server) == 0, Deadline.after(10))
    with pytest.raises(ConsoleLost, match="not attached"):
        console.write(b"x")
    console.attach(Deadline.after(20))
    assert echoes(console, b"again") == b"again"


def _listeners(server: VirtualServer) -> int:
    """Of its serial port, but for the BMC's SOL."""
    status = server.status()
    assert status is not None
    return int(status["console_listeners"]) - 1


@pytest.mark.qemu
def test_a_console_that_is_away_for_a_while(
    console: RedfishConsole, server: VirtualServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.fault("drop-sol", 1)  # shorter than is waited for: late, and whole
    assert echoes(console, b"late, and whole") == b"late, and whole"
    assert not console.transcript.gap_since(0)
    monkeypatch.setattr(redfish_console, "ANSWER", 0.5)
    server.fault("garbage")
    assert until(lambda: bool(console.transcript.gap_since(0)), Deadline.after(20))
    assert "bytes may be missing here" in console.transcript.gap_since(0)
    monkeypatch.setattr(redfish_console, "ANSWER", 10.0)
    server.clear()
    assert echoes(console, b"back") == b"back"
    assert marks(tmp_path)[-1] == "the console is connected again"


@pytest.mark.qemu
def test_a_console_that_stays_away_is_lost_and_the_labs_fault(
    console: RedfishConsole, server: VirtualServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redfish_console, "ANSWER", 0.5)
    console._line.patience = 1
    server.fault("drop-sol", 600)
    assert "did not come back" in console.transcript.wait_end(Deadline.after(30))
    with pytest.raises(ConsoleLost, match=r"the BMC's SSH has not answered for 0\.5 s\) and did not come back within 1 s"):
        console.write(b"x")


@pytest.mark.qemu
def test_a_machine_that_goes_off_ends_the_transcript(console: RedfishConsole, server: VirtualServer, tmp_path: Path) -> None:
    switch = power(server, tmp_path / "power")
    assert until(lambda: console._was_on, Deadline.after(10))
    switch.off(Deadline.after(30))
    try:
        assert console.transcript.wait_end(Deadline.after(20)) == "the machine is off"
        with pytest.raises(ConsoleLost, match="is off"):
            console.write(b"x")
        console.attach(Deadline.after(10))
        since = console.transcript.size
    finally:
        switch.on(Deadline.after(30))
    found = console.transcript.wait([boot_sector.READY.strip()], since=since, deadline=Deadline.after(30))
    assert console.transcript.wait_beyond(found.end + 1, Deadline.after(10))  # its line end
    assert echoes(console, b"on") == b"on"


@pytest.mark.qemu
def test_an_older_servers_settings_get_the_last_port_of_its_block(server: VirtualServer) -> None:
    from labctl.virtualserver import settings

    data = json.loads(server.files.settings.read_text())
    given = data.pop("ssh_console_port")
    server.files.settings.write_text(json.dumps(data))
    try:
        assert settings.load(server.files).ssh_console_port == given == data["redfish_port"] + 1  # type: ignore[union-attr]
    finally:
        server.files.settings.write_text(json.dumps({**data, "ssh_console_port": given}))


# --- Other BMCs: what they describe, and an SSH server of the same kind as the virtual server's


@dataclass
class OtherBmc:
    """Redfish resources as they are, before an SSH server with a machine that echoes."""

    resources: dict[str, Any]
    url: str = ""
    ssh_port: int = 0
    key: paramiko.PKey = field(default_factory=paramiko.ECDSAKey.generate)
    typed: bytearray = field(default_factory=bytearray)
    serials: list[socket.socket] = field(default_factory=list)

    def serial(self) -> socket.socket:
        """A new line to a machine that says what is typed."""
        ours, theirs = socket.socketpair()
        self.serials.append(theirs)

        def echo() -> None:
            with suppress(OSError), theirs:
                while data := theirs.recv(4096):
                    self.typed += data
                    theirs.sendall(data)

        threading.Thread(target=echo, daemon=True).start()
        return ours


@contextmanager
def other_bmc(
    serial: dict[str, Any] | None, *, manager: dict[str, Any] | None = None, entry: str = "", password: str = SECRET
) -> Iterator[OtherBmc]:
    """``serial`` and ``manager``: SerialConsole of the system and of its manager, where PORT stands for the SSH server's."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.headers.get("Authorization") == "Basic " + base64.b64encode(f"lab:{SECRET}".encode()).decode()
            found = bmc.resources.get(self.path.rstrip("/")) if known or self.path.rstrip("/") == "/redfish/v1" else None
            body = json.dumps(found or {"error": {"message": "no"}}).encode()
            self.send_response(200 if found else 404 if known else 401)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web,
    ):
        port = listener.getsockname()[1]
        links = {"ManagedBy": [{"@odata.id": MANAGER}]} if manager else {}
        tree: dict[str, Any] = {
            "/redfish/v1": {"Id": "Root", "RedfishVersion": "1.11.0", "Systems": {"@odata.id": "/redfish/v1/Systems"}, "Links": {}},
            "/redfish/v1/Systems": {"Name": "Systems", "Members": [{"@odata.id": SYSTEM}], "Members@odata.count": 1},
            SYSTEM: {"Id": "1", "PowerState": "On", "Links": links, **({"SerialConsole": serial} if serial else {})},
            MANAGER: {"Id": "1", "NetworkProtocol": {"@odata.id": f"{MANAGER}/NetworkProtocol"}, "SerialConsole": manager},
            f"{MANAGER}/NetworkProtocol": {"Id": "NetworkProtocol", "SSH": {"ProtocolEnabled": True, "Port": "PORT"}},
        }
        bmc = OtherBmc(json.loads(json.dumps(tree).replace('"PORT"', str(port))), f"http://127.0.0.1:{web.server_address[1]}", port)
        threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        console = SshConsole(bmc.key, "lab", password, bmc.serial, entry)
        threading.Thread(target=console.serve, args=(listener,), daemon=True).start()
        try:
            yield bmc
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            web.shutdown()


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "lab.toml").write_text("schema = 1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RIGHT", SECRET)
    return tmp_path


@contextmanager
def attached(bmc: OtherBmc, folder: Path, **options: str) -> Iterator[RedfishConsole]:
    given = {"url": bmc.url, "user": "lab", "password": "env:RIGHT", **options}
    target = Target("rack1", TargetConfig.model_validate({"schema": 1, "cpus": 1, "memory": "1G", "drivers": {"redfish_console": given}}))
    with Transcript(folder) as transcript:
        driver = assemble(DriverContext(target, folder), transcript).console
        assert isinstance(driver, RedfishConsole)
        try:
            driver.attach(Deadline.after(20))
            yield driver
        finally:
            driver.detach()


def refused(bmc: OtherBmc, folder: Path, kind: type[LabctlError], **options: str) -> str:
    """The one error: named, of that target, and without the secret."""
    began = time.monotonic()
    with pytest.raises(kind) as error, attached(bmc, folder, **options):
        pass
    assert time.monotonic() - began < 5
    assert error.value.target == "rack1"
    assert SECRET not in repr(error.value) + str(error.value)
    return str(error.value)


SUPERMICRO = {
    "MaxConcurrentSessions": 1,
    "SSH": {
        "ServiceEnabled": True,
        "Port": "PORT",
        "SharedWithManagerCLI": True,
        "ConsoleEntryCommand": "cd system1/sol1; start",
        "HotKeySequenceDisplay": "press <Enter>, <Esc>, and then <T> to terminate session",
    },
    "IPMI": {"HotKeySequenceDisplay": "Press ~.  - terminate connection", "ServiceEnabled": True, "Port": 623},
}
"""As one describes itself, but for the port."""
OPENBMC = {
    "MaxConcurrentSessions": 15,
    "SSH": {"ServiceEnabled": True, "Port": "PORT", "HotKeySequenceDisplay": "Press ~. to exit console"},
}
OLDER = {"ServiceEnabled": True, "MaxConcurrentSessions": 1, "ConnectTypesSupported": ["SSH", "IPMI"]}


@pytest.mark.parametrize(
    ("serial", "manager", "entry", "option"),
    [
        (SUPERMICRO, None, "start", ""),  # two commands, of which this one knows the second
        (OPENBMC, None, "", ""),
        (None, OLDER, "console com2", "console com2"),
        ({**SUPERMICRO, "SSH": {"ServiceEnabled": True, "Port": "PORT", "SharedWithManagerCLI": True}}, OLDER, "vsp", "vsp"),
    ],
    ids=["two commands", "at once", "of its manager", "shared and not said how"],
)
def test_ways_in(lab: Path, serial: dict[str, Any] | None, manager: dict[str, Any] | None, entry: str, option: str) -> None:
    with other_bmc(serial, manager=manager, entry=entry) as bmc, attached(bmc, lab / "run", entry=option) as console:
        assert echoes(console, EVERY) == EVERY
        assert console.transcript.read(0) == EVERY  # nothing of the way in
        assert bytes(bmc.typed) == EVERY


@pytest.mark.parametrize(
    ("serial", "manager", "words"),
    [
        (None, None, "describes no serial console in Redfish; the driver sol"),
        ({"IPMI": {"ServiceEnabled": True, "Port": 623}, "Telnet": {"ServiceEnabled": False}}, None, "by IPMI, not by SSH; the driver sol"),
        ({"Telnet": {"ServiceEnabled": True, "Port": 23}}, None, "by Telnet, not by SSH; SSH switched on in the BMC"),
        ({"IPMI": {"ServiceEnabled": False}}, None, "by no service; the driver sol, if it"),
        (None, {**OLDER, "ConnectTypesSupported": ["IPMI"]}, "by IPMI, not by SSH; the driver sol"),
        (None, OLDER, "does not say by which command; the option entry"),
    ],
)
def test_none_that_can_be_had(lab: Path, serial: dict[str, Any] | None, manager: dict[str, Any] | None, words: str) -> None:
    with other_bmc(serial, manager=manager) as bmc:
        said = refused(bmc, lab / "run", ConfigError)
    assert "targets/rack1.toml: drivers.redfish_console: the BMC at http" in said
    assert words in said


def test_a_service_that_is_switched_off(lab: Path) -> None:
    with other_bmc({"SSH": {"ServiceEnabled": False, "Port": "PORT"}, "IPMI": {"ServiceEnabled": True}}) as bmc:
        assert "SSH switched off: SerialConsole/SSH/ServiceEnabled" in refused(bmc, lab / "run", ManagementError)
    with other_bmc(None, manager={**OLDER, "ServiceEnabled": False}) as bmc:
        assert "switched off: SerialConsole/ServiceEnabled of its Manager" in refused(bmc, lab / "run", ManagementError, entry="vsp")
    with other_bmc(None, manager=OLDER) as bmc:
        bmc.resources[f"{MANAGER}/NetworkProtocol"]["SSH"]["ProtocolEnabled"] = False
        assert "switched off: SSH/ProtocolEnabled" in refused(bmc, lab / "run", ManagementError, entry="vsp")


def test_a_wrong_password(lab: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("WRONG", "not-it")
    caplog.set_level(logging.DEBUG)
    with other_bmc(OPENBMC) as bmc:
        said = refused(bmc, lab / "run", ConfigError, password="env:WRONG")
        assert "the BMC at http://127.0.0.1" in said
        assert "refuses the user 'lab' or the password of env:WRONG" in said
    with other_bmc(OPENBMC, password="another one") as bmc:  # of its SSH alone
        said = refused(bmc, lab / "run", ConfigError)
        assert f"the SSH of 127.0.0.1:{bmc.ssh_port} refuses the user 'lab' or the password of env:RIGHT" in said
    logged = [record.getMessage() for record in caplog.records]
    assert logged
    assert not [words for words in logged if SECRET in words or "not-it" in words]


def test_a_host_key_that_has_changed(lab: Path) -> None:
    with other_bmc(OPENBMC) as bmc:
        with attached(bmc, lab / "run") as console:
            assert echoes(console, b"first") == b"first"
        (kept,) = (lab / ".labctl/host-keys").iterdir()
        assert kept.read_text() == f"ecdsa-sha2-nistp256 {bmc.key.get_base64()}\n"
        kept.write_text("ssh-ed25519 AAAAanother\n")
        said = refused(bmc, lab / "run", ConfigError)
        assert "drivers.redfish_console.host_key" in said
        assert f"127.0.0.1:{bmc.ssh_port} shows another host key than before: ecdsa-sha2-nistp256" in said
        assert str(kept) in said
        for right in (f"ecdsa-sha2-nistp256 {bmc.key.get_base64()}", "any"):
            with attached(bmc, lab / "run", host_key=right) as console:
                assert echoes(console, b"again") == b"again"


def test_a_command_that_the_bmc_does_not_know(lab: Path) -> None:
    with other_bmc(SUPERMICRO, entry="start") as bmc:
        said = refused(bmc, lab / "run", ConsoleLost, entry="vsp")
    assert "its command line does not know 'vsp': unknown command" in said


def test_nothing_at_the_port_that_is_described(lab: Path) -> None:
    with other_bmc(OPENBMC) as bmc:
        bmc.resources[SYSTEM]["SerialConsole"]["SSH"]["Port"] = 1
        assert "the SSH of 127.0.0.1:1 does not give the console: [Errno 111] Connection refused" in refused(bmc, lab / "run", ConsoleLost)


def test_a_console_that_the_bmc_ends_comes_back_with_a_mark(lab: Path) -> None:
    with other_bmc(SUPERMICRO, entry="start") as bmc, attached(bmc, lab / "run") as console:
        assert echoes(console, b"before") == b"before"
        bmc.serials[-1].shutdown(socket.SHUT_RDWR)
        assert until(lambda: len(bmc.serials) > 1, Deadline.after(10))
        assert echoes(console, b"after") == b"after"
        assert console.transcript.read(0) == b"beforeafter"
        assert "the BMC ended its console (press <Enter>, <Esc>" in console.transcript.gap_since(0)
        assert marks(lab / "run")[-1] == "the console is connected again"


def test_two_targets_do_not_share_a_bmc(lab: Path) -> None:
    options = {"url": "https://10.0.8.21", "user": "lab", "password": "env:RIGHT"}
    config = {"schema": 1, "cpus": 1, "memory": "1G", "drivers": {"redfish_console": options}}
    with pytest.raises(ConfigError, match=r"names the BMC 10\.0\.8\.21:443, as target rack1 does"):
        check_together([Target(name, TargetConfig.model_validate(config)) for name in ("rack1", "rack2")])
