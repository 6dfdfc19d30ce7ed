"""A console on a serial port, local or of a terminal server."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import termios
import threading
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from labctl.deadline import Deadline
from labctl.errors import ConfigError, ConsoleLost, TargetBusy
from labctl.machine import registry
from labctl.machine.drivers.serial import Serial
from labctl.machine.protocols import DriverContext
from labctl.machine.transcript import Transcript
from labctl.model import Target, TargetConfig

BYTES = bytes(range(256)) * 400
EVERY = b"all of them:" + bytes(range(256)) + b"\xff\xff~.\r~."


class Machine:
    """The other end of a line."""

    def __init__(self) -> None:
        self.ours, its = os.openpty()
        tty.setraw(its)
        self.port = os.ttyname(its)
        self.its = its

    def say(self, data: bytes) -> None:
        while data:
            data = data[os.write(self.ours, data[:512]) :]

    def hears(self, size: int) -> bytes:
        heard = b""
        while len(heard) < size:
            heard += os.read(self.ours, 4096)
        return heard

    def close(self) -> None:
        for descriptor in (self.ours, self.its):
            with suppress(OSError):
                os.close(descriptor)


@pytest.fixture
def machine() -> Iterator[Machine]:
    made = Machine()
    yield made
    made.close()


class TerminalServer:
    """ser2net before one port: as it is over TCP, or by RFC 2217."""

    def __init__(self, machine: Machine, rfc2217: bool, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            number = probe.getsockname()[1]
        self.url = f"{'rfc2217' if rfc2217 else 'socket'}://127.0.0.1:{number}"
        self._port = number
        self._config = folder / "ser2net.yaml"
        accepter = f"{'telnet(rfc2217),' if rfc2217 else ''}tcp,127.0.0.1,{number}"
        self._config.write_text(f"connection: &one\n  accepter: {accepter}\n  connector: serialdev,{machine.port},9600n81,local\n")
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "ser2net", "-n", "-u", "-c", str(self._config)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        end = time.monotonic() + 20
        while not self._listens() and time.monotonic() < end:
            time.sleep(0.02)

    def _listens(self) -> bool:
        words = f"0100007F:{self._port:04X} 00000000:0000 0A"
        return words in Path("/proc/net/tcp").read_text()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture(params=["tty", "socket", "rfc2217"])
def line(request: pytest.FixtureRequest, machine: Machine, tmp_path: Path) -> Iterator[tuple[Machine, str]]:
    if request.param == "tty":
        yield machine, machine.port
        return
    server = TerminalServer(machine, request.param == "rfc2217", tmp_path)
    yield machine, server.url
    server.close()


@contextmanager
def attached(port: str, folder: Path, **options: object) -> Iterator[Serial]:
    target = Target("rack1", TargetConfig.model_validate({"schema": 1, "cpus": 1, "memory": "1G", "drivers": {"serial": {"port": port}}}))
    with Transcript(folder) as transcript:
        driver = Serial(DriverContext(target, folder), transcript, port, **options)  # type: ignore[arg-type]
        driver.attach(Deadline.after(20))
        try:
            yield driver
        finally:
            driver.detach()


def test_every_byte_both_ways(line: tuple[Machine, str], tmp_path: Path) -> None:
    machine, port = line
    with attached(port, tmp_path, baud=57600) as driver:
        driver.attach(Deadline.after(5))
        machine.say(b"here")  # once it is read, so is all that comes
        assert driver.transcript.wait_beyond(3, Deadline.after(20))
        began = time.monotonic_ns()
        machine.say(BYTES)
        assert driver.transcript.wait_beyond(len(BYTES) + 3, Deadline.after(60))
        assert driver.transcript.read(0) == b"here" + BYTES
        assert driver.transcript.time_of(4) > began
        driver.write(EVERY)
        assert machine.hears(len(EVERY)) == EVERY
        if not port.startswith("socket"):
            assert termios.tcgetattr(machine.its)[5] == termios.B57600
    assert driver.transcript.ended
    with pytest.raises(ConsoleLost, match="not attached"):
        driver.write(b"x")


@pytest.mark.parametrize("rfc2217", [False, True])
def test_a_connection_that_breaks_is_made_again_with_a_mark(machine: Machine, tmp_path: Path, rfc2217: bool) -> None:
    server = TerminalServer(machine, rfc2217, tmp_path)
    with attached(server.url, tmp_path) as driver:
        machine.say(b"before")
        assert driver.transcript.wait_beyond(5, Deadline.after(20))
        server.close()
        server.start()
        end = time.monotonic() + 20
        while "connected again" not in _marks(tmp_path) and time.monotonic() < end:
            time.sleep(0.02)
        assert "bytes may be missing" in driver.transcript.gap_since(0)
        machine.say(b" after")
        assert driver.transcript.wait_beyond(11, Deadline.after(20))
        assert driver.transcript.read(0) == b"before after"
    server.close()


def _marks(folder: Path) -> str:
    file = folder / "console.marks.jsonl"
    return file.read_text() if file.exists() else ""


def test_a_terminal_server_that_stays_away_is_a_lost_console(machine: Machine, tmp_path: Path) -> None:
    server = TerminalServer(machine, False, tmp_path)
    with attached(server.url, tmp_path) as driver:
        driver._line.patience = 0.5
        server.close()
        assert "refused" in driver.transcript.wait_end(Deadline.after(30)).lower()
        with pytest.raises(ConsoleLost, match=r"did not come back within 0\.5 s"):
            driver.write(b"x")


def test_one_that_hangs_up_again_and_again_is_lost_too(tmp_path: Path) -> None:
    """As a terminal server does whose port somebody else has."""
    listener = socket.create_server(("127.0.0.1", 0))

    def refuse() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                client.sendall(b"Port already in use\r\n")
                client.close()

    threading.Thread(target=refuse, daemon=True).start()
    with attached(f"socket://127.0.0.1:{listener.getsockname()[1]}", tmp_path) as driver:
        assert "broke 5 times" in driver.transcript.wait_end(Deadline.after(30))
    listener.close()


def test_a_port_that_somebody_else_has(machine: Machine, tmp_path: Path) -> None:
    holder = subprocess.Popen(["flock", "--exclusive", machine.port, "sleep", "60"])
    try:
        end = time.monotonic() + 10
        while not _locked(machine.port) and time.monotonic() < end:
            time.sleep(0.02)
        with pytest.raises(TargetBusy, match=r"is held by .*(flock|sleep) \(pid \d+, user \w+\) since"), attached(machine.port, tmp_path):
            pass
    finally:
        holder.kill()
        holder.wait()


def _locked(path: str) -> bool:
    with Path(path).open("rb", buffering=0) as port:
        try:
            fcntl.flock(port, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@pytest.mark.parametrize(
    ("port", "words"),
    [("/dev/no-such-tty", "No such file or directory"), ("socket://127.0.0.1:1", "refused"), ("rfc2217://127.0.0.1:1", "refused")],
)
def test_a_port_that_is_not_there(tmp_path: Path, port: str, words: str) -> None:
    with pytest.raises(ConsoleLost, match=f"(?i){words}") as error, attached(port, tmp_path):
        pass
    assert error.value.remedy
    assert error.value.target == "rack1"


@pytest.mark.parametrize(
    "options", [{"port": "telnet://x:1"}, {"port": "COM1"}, {"port": "/dev/ttyS0", "bits": "9N1"}, {"port": "/dev/ttyS0", "baud": 1}]
)
def test_options_that_make_no_sense(options: dict[str, object]) -> None:
    config = {"schema": 1, "cpus": 1, "memory": "1G", "drivers": {"serial": options}}
    with pytest.raises(ConfigError, match=r"drivers\.serial\.(port|bits|baud)"):
        registry.check(Target("rack1", TargetConfig.model_validate(config)))
