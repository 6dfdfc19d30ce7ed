"""What keeps VMs on a machine under test and speaks to them, as programs: compiled as for the machine, tried with real processes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from labctl.deadline import Deadline
from labctl.errors import VmFailed
from labctl.hypervisor.keeper import Keeper, status_of
from labctl.hypervisor.monitor import Monitor, command, told
from labctl.machine.protocols import CommandResult

SOURCES = Path(__file__).parents[2] / "guest/tools"
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tools")
    for name in ("vmkeeper", "qmp"):
        warned = subprocess.run(
            ["gcc", "-static", "-O2", "-Wall", "-Wextra", "-Werror", "-o", folder / name, SOURCES / f"{name}.c"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert warned.returncode == 0, warned.stderr
    return folder


@pytest.fixture
def keeper(tools: Path, tmp_path: Path) -> Iterator[Run]:
    """``keeper("status", ...)``; its VM is gone at the end."""

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run([tools / "vmkeeper", *map(str, words)], capture_output=True, text=True, timeout=60, check=False)

    yield run
    run("end", tmp_path)


def test_a_console_is_kept_with_its_times(keeper: Run, tmp_path: Path) -> None:
    assert keeper("start", tmp_path, 0, "--", "sh", "-c", "echo hello; read a; echo got $a; echo why >&2; read b").returncode == 0
    first = keeper("wait", tmp_path, 0, 20000, "hello")
    assert (first.returncode, bool(re.fullmatch(r"at=5 ns=[0-9]+\n", first.stdout))) == (0, True)
    assert keeper("type", tmp_path, b"word\n".hex()).returncode == 0
    assert keeper("wait", tmp_path, 6, 20000, "got word").returncode == 0
    assert keeper("read", tmp_path, 6).stdout == "from=6 to=15 dropped=0\ngot word\n"
    (line,) = keeper("lines", tmp_path, 0, "got").stdout.splitlines()
    assert line.split()[2:] == ["got", "word"]
    assert int(line.split()[1]) > int(first.stdout.split("ns=")[1])
    assert keeper("said", tmp_path).stdout == "why\n"
    late = keeper("wait", tmp_path, 0, 50, "never")
    assert (late.returncode, late.stdout) == (1, "late\n")


def test_a_flood_keeps_its_end(keeper: Run, tmp_path: Path) -> None:
    keeper("start", tmp_path, 0, "--", "sh", "-c", "yes 0123456789abcde | head -c 4000000; echo; echo over; read a")
    assert keeper("wait", tmp_path, 0, 50000, "over").returncode == 0
    head, _, kept = keeper("read", tmp_path, 0).stdout.partition("\n")
    found = re.fullmatch(r"from=([0-9]+) to=([0-9]+) dropped=([0-9]+)", head)
    assert found
    assert int(found[2]) == 4000000 + len("\nover\n")
    assert int(found[1]) == int(found[3]) == int(found[2]) - (1 << 20)
    assert kept.endswith("\nover\n")


def test_a_program_that_dies_is_started_again_as_often_as_asked(keeper: Run, tmp_path: Path) -> None:
    keeper("start", tmp_path, 1, "--", "sh", "-c", "echo up; sleep 1000")
    keeper("wait", tmp_path, 0, 20000, "up")
    first = status_of(keeper("status", tmp_path).stdout)[1]
    os.kill(first.pid, signal.SIGKILL)
    assert keeper("wait", tmp_path, 3, 20000, "up").returncode == 0
    again = status_of(keeper("status", tmp_path).stdout)[1]
    assert (again.state, again.starts, again.how) == ("running", 2, 137)
    assert first.started < again.ended <= again.started
    os.kill(again.pid, signal.SIGKILL)
    ended = keeper("wait", tmp_path, 6, 20000, "up")
    assert (ended.returncode, ended.stdout) == (1, "ended\n")
    assert status_of(keeper("status", tmp_path).stdout)[1].pid == again.pid, "by which the kernel's own word for its end is found"


def test_a_program_that_ends_well_stays_ended(keeper: Run, tmp_path: Path) -> None:
    keeper("start", tmp_path, 5, "--", "sh", "-c", "echo up; read a")
    keeper("type", tmp_path, "0a")
    assert keeper("wait", tmp_path, 0, 20000, "never").stdout == "ended\n"
    status = status_of(keeper("status", tmp_path).stdout)[1]
    assert (status.state, status.starts, status.how) == ("ended", 1, 0)


def test_its_end_is_the_end_of_both(keeper: Run, tmp_path: Path) -> None:
    keeper("start", tmp_path, 3, "--", "sleep", "1000")
    pid = status_of(keeper("status", tmp_path).stdout)[1].pid
    assert keeper("end", tmp_path).returncode == 0
    assert not Path(f"/proc/{pid}").exists()
    assert keeper("status", tmp_path).stdout == f"{tmp_path} state=gone\n"
    assert keeper("end", tmp_path).returncode == 3


def test_a_keeper_that_is_killed_is_told_from_one_that_was_ended(keeper: Run, tmp_path: Path) -> None:
    """Its program goes with it, who waits hears of it at once; ended, or started anew, nothing is left of that."""
    keeper("start", tmp_path, 3, "--", "sleep", "1000")
    told = keeper("status", tmp_path).stdout
    program, own = status_of(told)[1].pid, int(told.rpartition("keeper=")[2])
    files = Path(f"/proc/{own}/fd")
    open_before = len([*files.iterdir()])
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(keeper, "wait", tmp_path, 0, 50000, "never")
        while len([*files.iterdir()]) == open_before:
            assert not waiting.done(), "it did not wait"
        os.kill(own, signal.SIGKILL)
        assert waiting.result().returncode == 5
    assert status_of(keeper("status", tmp_path).stdout.strip())[1].state == "lost"
    assert keeper("wait", tmp_path, 0, 50000, "never").returncode == 5
    assert keeper("end", tmp_path).returncode == 5
    # Its end is seen; that nobody has taken it away yet is no matter of the keeper's.
    assert not Path(f"/proc/{program}").exists() or Path(f"/proc/{program}/stat").read_text().split()[2] in "XZ"
    assert keeper("status", tmp_path).stdout == f"{tmp_path} state=gone\n"
    assert keeper("start", tmp_path, 0, "--", "sleep", "1000").returncode == 0
    os.kill(int(keeper("status", tmp_path).stdout.rpartition("keeper=")[2]), signal.SIGKILL)
    while "state=lost" not in keeper("status", tmp_path).stdout:
        pass  # under load a signal takes its time
    assert keeper("start", tmp_path, 0, "--", "sleep", "1000").returncode == 0, "what a dead one left is in the way"
    assert status_of(keeper("status", tmp_path).stdout)[1].state == "running"


def test_a_program_that_is_none_is_told(keeper: Run, tmp_path: Path) -> None:
    done = keeper("start", tmp_path, 0, "--", "/no/such/program")
    assert (done.returncode, "/no/such/program: No such file" in done.stderr) == (1, True)


def test_the_audit_log_is_lines_of_json(keeper: Run, tmp_path: Path) -> None:
    log = tmp_path / "new" / "audit.json"
    for result in ("ok", 'said "no"\n'):
        assert keeper("audit", log, "me", "start", "one", result).returncode == 0
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    assert [entry["result"] for entry in entries] == ["ok", 'said "no"\n']
    assert entries[0]["at"] <= entries[1]["at"]


def test_qmp_speaks_to_a_real_qemu(tools: Path, keeper: Run, tmp_path: Path) -> None:
    socket = tmp_path / "qmp"
    keeper("start", tmp_path, 0, "--", "qemu-system-x86_64", "-M", "none", "-display", "none", "-qmp", f"unix:{socket},server=on,wait=off")

    def qmp(*steps: str, milliseconds: int = 20000) -> subprocess.CompletedProcess[str]:
        return subprocess.run([tools / "qmp", socket, str(milliseconds), *steps], capture_output=True, text=True, timeout=60, check=False)

    stopped = qmp('{"execute":"stop"}', 'wait:"STOP"', '{"execute":"query-status"}')
    assert stopped.returncode == 0
    found = told(stopped.stdout)
    assert (found.returned[-1]["running"], [event["event"] for event in found.events]) == (False, ["STOP"])
    refused = qmp('{"execute":"no-such-command"}', '{"execute":"quit"}')
    assert (refused.returncode, "no-such-command" in told(refused.stdout).error) == (1, True)
    late = qmp("wait:NEVER", milliseconds=200)
    assert (late.returncode, "in time" in late.stderr) == (4, True)
    assert qmp('{"execute":"quit"}').returncode == 0
    keeper("wait", tmp_path, 0, 20000, "never")
    assert qmp('{"execute":"query-status"}', milliseconds=200).returncode == 3


_LEAVES = """
import socket, sys, time
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
listener.accept()[0].close()
time.sleep(0.5)
sys.exit(7)
"""
"""A QEMU that gives up: its monitor closes before its process has ended."""


@dataclass
class _Here:
    """A session whose machine is this host."""

    tools: Path
    name: str = "here"

    def run(self, command: str, *, deadline: Deadline, check: bool = True) -> CommandResult:
        path = f"{self.tools}:{os.environ['PATH']}"
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, check=check, env={"PATH": path})
        return CommandResult(command, done.returncode, done.stdout, 0.0, done.stderr)


def test_a_qemu_whose_monitor_is_gone_has_ended_when_that_is_told(tools: Path, keeper: Run, tmp_path: Path) -> None:
    session: Any = _Here(tools)
    monitor, socket = Monitor(Keeper(session)), str(tmp_path / "qmp")
    keeper("start", tmp_path, 0, "--", sys.executable, "-c", _LEAVES, socket)
    with pytest.raises(VmFailed, match="QEMU of one"):
        monitor.run("one", socket, [command("query-status")], Deadline.after(20))
    status = status_of(keeper("status", tmp_path).stdout)[1]
    assert (status.state, status.how) == ("ended", 7)
