"""A console over a BMC's SOL: nothing lost or doubled, typed bytes arrive as they are, and what breaks it is named and marked."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from labctl.deadline import Deadline
from labctl.errors import ConfigError, ConsoleLost, LabctlError, ManagementError
from labctl.machine import ipmi, line
from labctl.machine.drivers.sol import Sol
from labctl.machine.protocols import DriverContext
from labctl.machine.transcript import Transcript
from labctl.process import start_on_terminal
from labctl.virtualserver.client import VirtualServer
from tests import boot_sector
from tests.virtual_servers import target_of, virtual_server

pytestmark = pytest.mark.qemu
LINES = 105_000  # 1 MiB and a little


def ipmitool(server: VirtualServer, *command: str) -> str:
    where = ["-H", "127.0.0.1", "-p", str(server.settings.bmc_port), "-U", "admin", "-f", str(server.files.password)]
    return subprocess.run(["ipmitool", "-I", "lanplus", "-C", "3", *where, *command], check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VirtualServer]:
    with virtual_server(tmp_path_factory.mktemp("lab")) as running:
        boot_sector.make_disk(running.files.disk, LINES)
        ipmitool(running, "power", "on")
        yield running


@pytest.fixture
def transcript(tmp_path: Path) -> Iterator[Transcript]:
    with Transcript(tmp_path) as transcript:
        yield transcript


@pytest.fixture
def sol(server: VirtualServer, transcript: Transcript, tmp_path: Path) -> Iterator[Sol]:
    """Attached, with the machine at its prompt."""
    driver = make(server, transcript, tmp_path)
    driver.attach(Deadline.after(30))
    try:
        until = time.monotonic() + 30
        while boot_sector.READY not in server.files.serial_log.read_bytes() and time.monotonic() < until:
            time.sleep(0.05)
        yield driver
    finally:
        server.clear()
        driver.detach()


def make(server: VirtualServer, transcript: Transcript, folder: Path, *, password: str = "", port: int = 0) -> Sol:
    settings = server.settings
    reference = password or f"file:{server.files.password}"
    return Sol(DriverContext(target_of(server), folder), transcript, "127.0.0.1", "admin", reference, port or settings.bmc_port)


def echoes(sol: Sol, words: bytes, seconds: float = 30) -> bytes:
    """Type, and wait for the last byte to come back."""
    # The simulator takes the first packet of a session for a repetition where it has the number of the last session's last.
    said = sol.transcript.size
    limit = time.monotonic() + seconds
    sol.write(b".")
    while not sol.transcript.wait_beyond(said, Deadline.after(1)):
        assert time.monotonic() < limit
        sol.write(b".")
    time.sleep(0.2)
    since = sol.transcript.size
    sol.write(words)
    assert sol.transcript.wait_beyond(since + len(words) - 1, Deadline.after(seconds))
    return sol.transcript.read(since)


def marks(folder: Path) -> list[str]:
    file = folder / "console.marks.jsonl"
    return [json.loads(text)["text"] for text in file.read_text().splitlines()] if file.exists() else []


def test_a_flood_is_there_to_the_last_byte_and_each_chunk_has_its_time(sol: Sol, server: VirtualServer) -> None:
    echoes(sol, b"awake")
    before, since, began = server.files.serial_log.stat().st_size, sol.transcript.size, time.monotonic_ns()
    sol.write(boot_sector.FLOOD)
    size = len(boot_sector.lines(LINES))
    assert size > 1 << 20
    sol.transcript.wait([boot_sector.READY.strip()], since=since, deadline=Deadline.after(120))
    said = sol.transcript.read(since)
    assert said == boot_sector.lines(LINES)
    assert said == server.files.serial_log.read_bytes()[before:]
    times = [sol.transcript.time_of(offset) for offset in range(since, since + size, size // 100)]
    assert times == sorted(times)
    assert times[0] > began
    assert len(set(times)) > 50
    assert not sol.transcript.gap_since(0)


def test_a_listener_that_falls_behind_loses_nothing(sol: Sol, server: VirtualServer) -> None:
    """The simulator keeps 16 KiB for it, and reads on where that is full: it must not be told more."""
    echoes(sol, b"awake")
    (tool,) = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and _names(p, str(server.settings.bmc_port))]
    before, since = server.files.serial_log.stat().st_size, sol.transcript.size
    sol.write(boot_sector.FLOOD)
    for _ in range(5):
        assert sol.transcript.wait_beyond(sol.transcript.size + 4096, Deadline.after(20))
        os.kill(tool, signal.SIGSTOP)
        time.sleep(0.7)  # within the second after which the simulator would say it again
        os.kill(tool, signal.SIGCONT)
    sol.transcript.wait([boot_sector.READY.strip()], since=since, deadline=Deadline.after(120))
    assert sol.transcript.read(since) == boot_sector.lines(LINES)
    assert server.files.serial_log.read_bytes()[before:] == boot_sector.lines(LINES)


def test_a_machine_nobody_listens_to_is_not_kept_waiting(sol: Sol, server: VirtualServer) -> None:
    """Whoever had its SOL is gone in the middle of a flood."""
    echoes(sol, b"awake")
    before, since, began = server.files.serial_log.stat().st_size, sol.transcript.size, time.monotonic()
    sol.write(boot_sector.FLOOD)
    assert sol.transcript.wait_beyond(since + 4096, Deadline.after(20))
    sol.detach()
    while server.files.serial_log.stat().st_size < before + len(boot_sector.lines(LINES)):
        assert time.monotonic() - began < 60
        time.sleep(0.05)
    sol.attach(Deadline.after(20))
    since = sol.transcript.size
    sol.write(b".")  # the simulator may take a session's first packet for a repetition
    sol.write(b"again\r")  # behind what was still on its way to whoever listens
    sol.transcript.wait([b"again"], since=since, deadline=Deadline.after(60))


def test_what_is_typed_arrives_as_it_is(sol: Sol) -> None:
    words = b"\r~.\r~~.~\n~?\r\n~B~\x00\x01\x11\x13\x1a\x1b\x7f\xff\r~"
    assert echoes(sol, words) == words
    long = bytes(range(1, 70)) * 100  # without F
    assert echoes(sol, long) == long


def test_the_password_is_on_no_command_line_and_in_no_environment(sol: Sol, server: VirtualServer) -> None:
    secret = server.files.password.read_bytes()
    ours = [p for p in Path("/proc").iterdir() if p.name.isdigit() and (p / "comm").exists() and _names(p, str(server.settings.bmc_port))]
    assert ours
    for process in ours:
        assert secret not in (process / "cmdline").read_bytes()
        assert secret not in (process / "environ").read_bytes()


def _names(process: Path, words: str) -> bool:
    try:
        return b"ipmitool" in (text := (process / "cmdline").read_bytes()) and words.encode() in text
    except OSError:
        return False


def test_attached_twice_it_is_one_reader_and_detached_it_leaves_nothing(sol: Sol, server: VirtualServer) -> None:
    sol.attach(Deadline.after(5))
    assert echoes(sol, b"once") == b"once"
    sol.detach()
    sol.detach()
    assert sol.transcript.ended
    assert not [p for p in Path("/proc").iterdir() if p.name.isdigit() and _names(p, str(server.settings.bmc_port))]
    with pytest.raises(ConsoleLost, match="not attached"):
        sol.write(b"x")
    sol.attach(Deadline.after(20))
    assert echoes(sol, b"again") == b"again"


@pytest.mark.parametrize(("took", "late"), [(0.2, False), (17.2, True)])
def test_a_bmc_that_is_too_late_for_ipmitool_is_told_to_be(
    server: VirtualServer, transcript: Transcript, tmp_path: Path, took: float, late: bool
) -> None:
    """What it says itself of that, as was recorded, could be anything."""
    words = "Error: Unable to establish IPMI v2 / RMCP+ session"
    child, terminal = start_on_terminal(["echo", words])
    with pytest.raises(ConsoleLost, match=f"ipmitool says {re.escape(words)}") as caught:
        make(server, transcript, tmp_path)._await_operational(child, terminal, took, Deadline.after(10))
    assert ("answers late: logging in and freeing its SOL took 17.2 s" in caught.value.message) is late
    os.close(terminal)


def test_a_sol_that_somebody_else_holds_is_taken_and_that_is_noted(server: VirtualServer, transcript: Transcript, tmp_path: Path) -> None:
    server.fault("busy")
    driver = make(server, transcript, tmp_path)
    try:
        driver.attach(Deadline.after(30))
        assert echoes(driver, b"mine") == b"mine"
    finally:
        driver.detach()
        server.clear()
    assert marks(tmp_path)[0] == "the SOL was in use by another session, which was ended"


def test_a_sol_that_is_taken_from_us_comes_back_with_a_mark(sol: Sol, server: VirtualServer, tmp_path: Path) -> None:
    ipmitool(server, "sol", "deactivate")
    until = time.monotonic() + 30
    while not sol.transcript.gap_since(0) and time.monotonic() < until:
        time.sleep(0.05)
    assert "bytes may be missing" in sol.transcript.gap_since(0)
    assert echoes(sol, b"back") == b"back"
    assert marks(tmp_path)[-1] == "the console is connected again"
    assert sol.transcript.ended is None


def test_packets_lost_while_we_type_are_noticed(sol: Sol, server: VirtualServer) -> None:
    server.fault("drop-sol", 6)
    sol.write(b"lost?")
    until = time.monotonic() + 40
    while not sol.transcript.gap_since(0) and time.monotonic() < until:
        time.sleep(0.05)
    assert sol.transcript.gap_since(0)
    server.clear()
    assert echoes(sol, b"back").endswith(b"back")


def test_a_bmc_that_is_away_for_a_while(sol: Sol, server: VirtualServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line, "CHECKED_EVERY", 0.3)
    monkeypatch.setattr(ipmi, "ANSWER", 0.5)
    sol.detach()
    sol.attach(Deadline.after(20))
    server.fault("silent")
    until = time.monotonic() + 60
    while "broke" not in "".join(text for _, text in sol.transcript._gaps) and time.monotonic() < until:
        time.sleep(0.05)
    server.clear()
    assert "does not answer" in sol.transcript.gap_since(0)
    assert echoes(sol, b"back") == b"back"


def test_a_bmc_that_stays_away_is_a_lost_console_and_the_labs_fault(
    sol: Sol, server: VirtualServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line, "CHECKED_EVERY", 0.3)
    monkeypatch.setattr(ipmi, "ANSWER", 0.5)
    sol.detach()
    sol._line.patience = 2
    sol.attach(Deadline.after(20))
    server.fault("silent")
    assert "does not answer" in sol.transcript.wait_end(Deadline.after(90))
    with pytest.raises(ConsoleLost, match="did not come back within 2 s"):
        sol.write(b"x")
    server.clear()
    sol.attach(Deadline.after(30))
    assert echoes(sol, b"back") == b"back"


def test_a_machine_that_goes_off_ends_the_transcript(sol: Sol, server: VirtualServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line, "CHECKED_EVERY", 0.3)
    monkeypatch.setattr(ipmi, "ANSWER", 0.5)
    sol.detach()
    sol.attach(Deadline.after(20))
    time.sleep(2)  # it must have been seen on
    ipmitool(server, "power", "off")
    try:
        assert sol.transcript.wait_end(Deadline.after(30)) == "the machine is off"
        with pytest.raises(ConsoleLost, match="is off"):
            sol.write(b"x")
        sol.attach(Deadline.after(10))
        since = sol.transcript.size
    finally:
        ipmitool(server, "power", "on")
    sol.transcript.wait([boot_sector.READY.strip()], since=since, deadline=Deadline.after(60))
    assert echoes(sol, b"on") == b"on"


@pytest.mark.parametrize("fault", ["password", "port"])
def test_a_console_that_cannot_be_had_says_why_and_leaves_nothing(
    server: VirtualServer, transcript: Transcript, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setenv("WRONG", "not-it")
    wrong = {"password": "env:WRONG"} if fault == "password" else {"port": 1}
    driver = make(server, transcript, tmp_path, **wrong)  # type: ignore[arg-type]
    with pytest.raises(LabctlError) as error:
        driver.attach(Deadline.after(20))
    driver.detach()
    assert isinstance(error.value, ConfigError if fault == "password" else ManagementError)
    assert ("refuses the user 'admin' or the password of env:WRONG" if fault == "password" else "does not answer") in str(error.value)
    assert "not-it" not in str(error.value)
    assert replace(target_of(server)).name in str(error.value)
