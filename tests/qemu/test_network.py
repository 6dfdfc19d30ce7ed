"""Two machines in one cell: the suite network on them, and what goes wrong between them is told by its cause."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from labctl.store.reader import read_run
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.qemu

FAULTS = """
import socket

import network_paths
import pytest
from network_paths import PORT, RATE_PORT, ping, rate, require

from labctl.machine.addressing import await_carrier, bring_up
from labctl.model import Direction, Metric

LOSS = Metric("network.loss", "1", Direction.LOWER, "")


def test_garbage(machines, shells, guest_path):
    shells["a"]("mkdir -p /usr/local/bin; printf '#!/bin/sh\\\\necho udpping 1; echo sent many; echo end complete' > /usr/local/bin/udpping")
    shells["a"]("chmod +x /usr/local/bin/udpping")
    try:
        guest_path.ping(10)
    finally:
        shells["a"]("rm /usr/local/bin/udpping")


def test_link_never_comes_up(machines, shells, guest_path):
    shells["a"](f"ip link set {guest_path.device} down")
    try:
        await_carrier(machines["a"], guest_path.device, seconds=1)
    finally:
        shells["a"](f"ip link set {guest_path.device} up")
        await_carrier(machines["a"], guest_path.device)


def test_no_answer(machines, shells, guest_path):
    require(guest_path, ping(machines["a"], shells["a"], "192.168.127.99/24", 3, timeout_ms=100))


def test_nobody_listens(machines, shells, guest_path):
    assert rate(machines["a"], shells["a"], guest_path.peer, "receive", 1, port=PORT + 5).end == "refused"


def test_the_lab_reaches_a_port_of_each_machine(machines, shells, guest_path):
    where = {name: machine.endpoint(RATE_PORT) for name, machine in machines.items()}
    assert len(set(where.values())) == 2
    for name, machine in machines.items():
        bring_up(machine, "host", machine.config.nics["host"].address)
        shells[name].run(f"tcprate serve {RATE_PORT}", check=False)  # b serves already
        with socket.create_connection(where[name], timeout=30) as connection:
            connection.sendall(b"receive 20\\n")
            assert len(connection.recv(1000)) > 100


def test_peer_dies(machines, shells, guest_path, record):
    record(LOSS, guest_path.ping(50).loss)
    shells["b"]("(sleep 1; echo c > /proc/sysrq-trigger) > /dev/null 2>&1 &")
    found = guest_path.ping(1000000, silent_ms=1500)
    record(LOSS, found.loss, peer="dead")
    require(guest_path, found)


def test_booted_afresh_and_off(machines, shells, guest_path):
    require(guest_path, guest_path.ping(20))
    shells["b"]("(sleep 1; poweroff -f) > /dev/null 2>&1 &")
    require(guest_path, guest_path.ping(1000000, silent_ms=1500))
"""


def suite_on(lab: Path, results: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={lab}", "-c", "/dev/null", *arguments]
    # With locks of its own: two CPUs at once are long to wait for beside other tests, and nothing here is timed.
    own = {"LABCTL_LOCKS": str(results.with_name(f"{results.name}-locks")), "LABCTL_CPUS": "4"}
    return subprocess.run(
        [*command, "--build", "debian-cloud", "--results", str(results)],
        cwd=lab,
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        check=False,
    )


def outcomes(results: Path) -> dict[str, Any]:
    (folder,) = (run for run in results.iterdir() if run.name != "latest")
    (cell,) = read_run(folder).cells
    return {test.name.partition("::")[2]: test for test in cell.tests}


def test_the_suite_on_two_machines(debian, tmp_path: Path) -> None:
    """What needs no quiet host: addresses, and a path that loses and reorders."""
    wanted = "(address_is_kept and guest) or (loss and 0.1) or reordering"
    ran = suite_on(REPOSITORY, tmp_path, "suites/network", "--target", "pair-1c-512m", "-k", wanted)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert {name: str(test.outcome) for name, test in outcomes(tmp_path).items()} == {
        "test_address_is_kept[guest]": "pass",
        "test_loss[0.1]": "pass",
        "test_reordering": "pass",
    }
    (attempt,) = tmp_path.glob("2*/cells/*/attempt-1")
    for machine in "ab":
        assert b"labctl-guest: ready" in (attempt / machine / "console.log").read_bytes()
    milestones = [json.loads(line) for line in (attempt / "events.jsonl").read_text().splitlines() if '"milestone"' in line]
    assert {event["machine"] for event in milestones} == {"a", "b"}


def test_what_goes_wrong_between_two_machines_is_told_by_its_cause(debian, tmp_path: Path) -> None:
    lab = tmp_path / "lab"
    (lab / "suites").mkdir(parents=True)
    for name in ("lab.toml", "conftest.py", "kernel", "targets", "guest"):
        (lab / name).symlink_to(REPOSITORY / name)
    shutil.copytree(REPOSITORY / "suites/network", lab / "suites/faulty", ignore=shutil.ignore_patterns("test_*", "__pycache__"))
    (lab / "suites/faulty/test_faults.py").write_text(FAULTS)
    ran = suite_on(lab, tmp_path / "results", "suites/faulty", "--target", "pair-1c-512m")
    assert ran.returncode == 1, ran.stdout + ran.stderr
    found = outcomes(tmp_path / "results")
    told = {name: (str(test.outcome), test.reason) for name, test in found.items()}
    assert told["test_garbage"][0] == "invalid"
    assert "does not print: 'sent many'" in told["test_garbage"][1]
    assert told["test_link_never_comes_up"][0] == "fail"
    assert "its link never came up" in told["test_link_never_comes_up"][1]
    assert told["test_no_answer"][1].startswith("a: the peer fell silent: 0 of 3 pings")
    assert told["test_nobody_listens"][0] == "pass"
    assert told["test_the_lab_reaches_a_port_of_each_machine"] == ("pass", "")
    assert told["test_peer_dies"][0] == "fail"
    assert told["test_peer_dies"][1] == "b: Kernel panic - not syncing: sysrq triggered crash"
    afresh = told["test_booted_afresh_and_off"][1]
    assert afresh.startswith("b: the machine went off (the guest powered the machine off); then: the peer fell silent: ")
    assert "pair-1c-512m.b" in ran.stdout
    (folder,) = (run for run in (tmp_path / "results").iterdir() if run.name != "latest")
    (cell,) = read_run(folder).cells
    assert cell.reason.startswith(told["test_peer_dies"][1])
    taken = [sample.params.get("peer", "alive") for attempt in cell.attempts for sample in attempt.samples]
    assert taken == ["alive", "dead"]
    report = (folder / "report.html").read_text()
    for machine in "ab":
        assert f"/attempt-1/{machine}/console.log" in report
