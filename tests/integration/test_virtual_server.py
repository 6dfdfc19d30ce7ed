"""The virtual server: starts, is what a real one is to a driver, misbehaves when told to, and leaves nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pytest

from labctl.config import Lab
from labctl.deadline import Deadline
from labctl.errors import ConfigError, InfraError, ManagementError, TargetBusy
from labctl.machine import budget, lease, standing
from labctl.machine.polling import until
from labctl.size import format_size
from labctl.virtualserver.client import VirtualServer, all_of
from tests.leftovers import our_machines
from tests.temporary_lab import LABCTL
from tests.virtual_servers import virtual_server

pytestmark = pytest.mark.qemu


def eventually(true: Callable[[], bool], seconds: float = 30) -> bool:
    return until(true, Deadline.after(seconds))


def processes_of(server: VirtualServer) -> list[str]:
    """Command lines that name its folder or its machine."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(server.files.folder) in words or f"-name {server.name}" in words:
                found.append(words)
    return found


def ipmitool(server: VirtualServer, *command: str) -> str:
    """Another IPMI implementation than the drivers'."""
    where = ["-H", "127.0.0.1", "-p", str(server.settings.bmc_port), "-U", "admin", "-f", str(server.files.password)]
    argv = ["ipmitool", "-I", "lanplus", "-C", "3", *where, *command]
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout


@pytest.fixture
def server(tmp_path: Path) -> Iterator[VirtualServer]:
    with virtual_server(tmp_path) as running:
        yield running


def test_its_bmc_switches_a_machine_whose_console_all_listeners_hear(server: VirtualServer) -> None:
    with socket.create_connection(("127.0.0.1", server.settings.serial_port)) as listener:
        listener.settimeout(30)
        assert "is off" in ipmitool(server, "power", "status")
        ipmitool(server, "power", "on")
        assert "is on" in ipmitool(server, "power", "status")
        assert our_machines(server.name)
        said = b""
        while b"No bootable device" not in said:
            more = listener.recv(65536)
            assert more
            said += more
        ipmitool(server, "power", "off")
        assert "is off" in ipmitool(server, "power", "status")
        assert not our_machines(server.name)
    # Its own log has every byte that was told, and is there when nobody listens.
    assert server.files.serial_log.read_bytes().startswith(said)


def test_it_boots_from_the_network_once(server: VirtualServer, tmp_path: Path) -> None:
    web = tmp_path / "web"
    web.mkdir()
    (web / "boot.ipxe").write_text("#!ipxe\necho booted by the ${net0/next-server} network\nsleep 1\nreboot\n")
    port = str(server.settings.boot_server_port)
    with subprocess.Popen(["python3", "-m", "http.server", "--bind", "127.0.0.1", port], cwd=web, stderr=subprocess.DEVNULL) as http:
        try:
            ipmitool(server, "chassis", "bootdev", "pxe")
            assert "Force PXE" in ipmitool(server, "chassis", "bootparam", "get", "5")
            ipmitool(server, "power", "on")
            assert "No override" in ipmitool(server, "chassis", "bootparam", "get", "5")
            # It resets itself: the second boot is from the disk, which is empty.
            assert eventually(lambda: b"No bootable device" in server.files.serial_log.read_bytes(), 60)
        finally:
            http.kill()
    log = server.files.serial_log.read_bytes()
    assert log.count(b"booted by the 10.0.2.2 network") == 1


def sol(server: VirtualServer) -> pexpect.spawn:
    where = ["-H", "127.0.0.1", "-p", str(server.settings.bmc_port), "-U", "admin", "-f", str(server.files.password)]
    return pexpect.spawn("ipmitool", ["-I", "lanplus", "-C", "3", *where, "sol", "activate"], timeout=30)


def test_its_sol_carries_the_console_of_whoever_has_it(server: VirtualServer) -> None:
    server.fault("busy")
    refused = sol(server)
    refused.expect("already active on another session")
    refused.close(force=True)
    ipmitool(server, "sol", "deactivate")
    console = sol(server)
    console.expect("operational")
    ipmitool(server, "power", "on")
    console.expect("SeaBIOS")
    console.expect("No bootable device")
    console.close(force=True)


def test_its_sol_is_not_taken_from_whoever_has_it(server: VirtualServer) -> None:
    console = sol(server)
    console.expect("operational")
    with pytest.raises(ManagementError, match=rf"another session has the SOL: .*\n  try: labctl power status {server.name} says who"):
        server.fault("busy")
    assert server.fault("late", 0.01)["faults"] == {"late": 0.01}  # the other is not in force
    console.close(force=True)
    ipmitool(server, "sol", "deactivate")
    for _ in range(3):  # the administrator of before makes room for the next
        assert server.fault("busy")["faults"] == {"late": 0.01, "busy": 0}


def test_it_has_one_start_and_leaves_nothing(server: VirtualServer) -> None:
    with pytest.raises(ConfigError, match="runs already"):
        server.start(cpus=1, memory=256 << 20, disk=1 << 30)
    assert server.target_file.exists()
    ipmitool(server, "power", "on")
    assert processes_of(server)
    server.stop()
    assert eventually(lambda: not processes_of(server), 2)
    assert not server.target_file.exists()
    assert server.files.disk.exists()  # the next start finds it
    assert not server.running


def test_killed_it_leaves_no_process(tmp_path: Path) -> None:
    with virtual_server(tmp_path) as server:
        ipmitool(server, "power", "on")
        keeper = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and _is_keeper(p, server)]
        assert len(keeper) == 1
        os.kill(keeper[0], signal.SIGKILL)
        assert eventually(lambda: not processes_of(server), 5)
        with pytest.raises(ManagementError, match="does not run"):
            server.fault("late")


def _is_keeper(folder: Path, server: VirtualServer) -> bool:
    try:
        return f"labctl.virtualserver.serve\0{server.files.folder}".encode() in (folder / "cmdline").read_bytes()
    except OSError:
        return False


def test_its_bmc_outlives_whoever_hangs_up_on_it(server: VirtualServer) -> None:
    """A QEMU that gives up while it starts does, as the other side of the BMC's own line to the machine."""
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", server.settings.sim_console_port)) as console:
            console.sendall(b"help\n" * 20)
            console.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert not eventually(lambda: not server.running, 2)
    assert "is off" in ipmitool(server, "power", "status")


def test_two_at_once_do_not_know_each_other(server: VirtualServer, tmp_path: Path) -> None:
    with virtual_server(tmp_path) as other:
        ipmitool(other, "power", "on")
        assert "is off" in ipmitool(server, "power", "status")


def test_in_a_lab_that_is_moved_it_is_found_and_stopped(tmp_path: Path) -> None:
    with virtual_server(tmp_path / "lab") as server:
        ipmitool(server, "power", "on")
        moved = VirtualServer((tmp_path / "lab").rename(tmp_path / "moved"), server.name)
        with pytest.raises(ConfigError, match="runs already"):
            moved.start(cpus=1, memory=256 << 20, disk=1 << 30)
        assert moved.stop()
        assert eventually(lambda: not processes_of(server), 2)
        assert not moved.target_file.exists()
        with virtual_server(moved.lab_root, name=server.name) as again:
            assert "is off" in ipmitool(again, "power", "status")
            assert f"file:{moved.files.password}" in again.target_file.read_text()


def test_what_runs_in_a_lab_is_not_touched_from_a_copy(server: VirtualServer, tmp_path: Path) -> None:
    ipmitool(server, "power", "on")
    copied = VirtualServer(Path(shutil.copytree(tmp_path, tmp_path / "copy")), server.name)
    assert not copied.running
    taken = rf"port {server.settings.serial_port} is not to be had: Address already in use\n  try: ss .*labctl virtual-server delete"
    with pytest.raises(InfraError) as refused:
        copied.start(cpus=1, memory=256 << 20, disk=1 << 30)
    assert re.search(taken, str(refused.value))
    assert not copied.stop()
    copied.delete()
    assert not copied.files.folder.exists()
    assert "is on" in ipmitool(server, "power", "status")
    assert server.running


def test_it_ends_when_its_folder_is_deleted(server: VirtualServer) -> None:
    ipmitool(server, "power", "on")
    keeper_socket = server.socket
    shutil.rmtree(server.files.folder)
    assert eventually(lambda: not processes_of(server), 5)
    assert not keeper_socket.parent.exists()


def test_what_was_found_of_it_is_not_found_of_the_next_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with virtual_server(tmp_path) as server:
        standing.set_unhealthy(tmp_path, server.name, "it does not come up")
        standing.reserve(tmp_path, server.name, "to find out why")
        assert server.stop()
        assert standing.in_a_word(tmp_path, server.name) == "reserved, unhealthy"  # it is the same server
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(standing, "user_name", lambda: "somebody-else")
            with pytest.raises(TargetBusy, match=r"is reserved by .*: to find out why"):
                server.delete()
        assert server.files.folder.exists()
        server.delete()
    assert standing.in_a_word(tmp_path, server.name) == ""


def test_a_target_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "targets").mkdir()
    file = tmp_path / "targets" / "mine.toml"
    file.write_text("schema = 1\n")
    with pytest.raises(ConfigError, match="a target already"), virtual_server(tmp_path, name="mine"):
        pass
    assert file.read_text() == "schema = 1\n"


def test_more_memory_than_the_host_has_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "lab.toml").write_text("schema = 1\n")
    host = format_size(budget.capacity().memory // (1 << 20) * (1 << 20) + (1 << 20))
    for memory, why in (("999999G", "needs 999999G of memory, the host has"), (host, "the host has"), ("1M", "at least 16M")):
        argv = [str(LABCTL), "virtual-server", "start", "rack1", "--memory", memory]
        ran = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=90)
        assert ran.returncode == 2
        assert re.search(rf"command line: --memory: found '{memory}'; .*{why}", ran.stderr)
    assert not (tmp_path / ".labctl").exists()
    argv = [str(LABCTL), "virtual-server", "start", "rack1", "--disk", "999999999G"]
    ran = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=90)
    assert ran.returncode == 3
    assert "qemu-img: " in ran.stderr
    assert "too large" in ran.stderr
    assert all_of(tmp_path) == []


@pytest.mark.parametrize("redfish", [False, True])
def test_why_its_machine_does_not_start_is_told(tmp_path: Path, redfish: bool) -> None:
    """QEMU finds a port taken that it has for the machine's SSH."""

    def power(verb: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([str(LABCTL), "power", verb, server.name], cwd=tmp_path, capture_output=True, text=True, timeout=90)

    with virtual_server(tmp_path, redfish=redfish) as server:
        port = server.settings.ssh_port
        with socket.create_server(("127.0.0.1", port)):
            refused = power("on")
        told = rf"set power 1: QEMU did not start: qemu-system-x86_64: .*127.0.0.1:{port}"
        assert refused.returncode == 3
        assert len(re.findall(told, refused.stderr)) == 1
        assert str(server.files.log) in refused.stderr
        assert re.search(told, server.files.log.read_text())
        status = server.status()
        assert status is not None
        assert re.match(told, status["refused"])
        assert power("on").returncode == 0
        status = server.status()
        assert status is not None
        assert status["refused"] == ""


def test_it_is_used_from_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "lab.toml").write_text("schema = 1\n")

    def labctl(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([str(LABCTL), "virtual-server", *words], cwd=tmp_path, capture_output=True, text=True, timeout=90)

    try:
        started = labctl("start", "rack1", "--memory", "256M", "--json")
        assert started.returncode == 0, started.stderr
        assert json.loads(started.stdout)["power"] == "off"
        assert "running" in labctl("list").stdout
        assert labctl("start", "rack1").returncode == 2
        assert json.loads(labctl("fault", "rack1", "late", "--arg", "0.1", "--json").stdout)["faults"] == {"late": 0.1}
        assert labctl("fault", "rack1", "late", "--arg", "0.2").stdout == "rack1: every answer of the BMC comes so late (seconds: 0.2)\n"
        assert "did you mean 'late'" in labctl("fault", "rack1", "lat").stderr
        assert labctl("fault", "rack1", "silent", "--arg", "1").returncode == 2
        assert json.loads(labctl("fault", "rack1", "clear", "--json").stdout)["faults"] == {}
        password = (tmp_path / ".labctl/virtual-servers/rack1/password").read_text()
        assert password not in (tmp_path / "targets/rack1.toml").read_text()
        with lease.hold(Lab.find(tmp_path).target("rack1"), tmp_path, why="a night's run", deadline=Deadline.after(1)):
            for verb in ("stop", "delete"):
                refused = labctl(verb, "rack1")
                assert refused.returncode == 3
                assert re.search(rf"target rack1 is held by .*: a night's run\n.*{verb} --force rack1", refused.stderr)
            assert "running" in labctl("list").stdout
            assert labctl("stop", "--force", "rack1").stdout == "rack1: stopped\n"
        assert labctl("start", "rack1").returncode == 0
    finally:
        stopped = labctl("stop", "rack1")
    assert stopped.stdout == "rack1: stopped\n"
    assert labctl("delete", "rack1").returncode == 0
    assert "did you mean" not in labctl("status", "rack1").stderr
    assert not list((tmp_path / "targets").iterdir())
