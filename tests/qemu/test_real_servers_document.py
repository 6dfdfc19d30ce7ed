"""The commands of docs/real-servers.md that are shown as a script, on a virtual server."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
DOCUMENT = (ROOT / "docs/real-servers.md").read_text()
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", DOCUMENT, re.DOTALL) for line in block.splitlines() if line.strip()]
NOT_HERE = {
    "apt-get install -y dnsmasq-base ipxe",
    # Needs root and a network card; tests/integration/test_boot_server.py has it in a network namespace.
    "labctl boot-server --address 10.9.0.1 --interface enp3s0 --network 10.9.0.1/24 --dhcp 10.9.0.50,10.9.0.99",
    # Likewise; tests/integration/test_site_dhcp.py.
    "labctl boot-server --address 10.9.0.1 --interface enp3s0 --network 10.9.0.1/24 --dhcp none",
}
SERVICE = "labctl boot-server --address 10.9.0.1 --offers /run/labctl-boot"
SHORTER = {"labctl run matrix --target 'rack*' --suite boot": "labctl run matrix --target 'rack*' --suite boot --dry-run"}

pytestmark = pytest.mark.qemu


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Path]:
    for folder in ("kernel", "matrix"):
        (tmp_path / folder).mkdir()
    (tmp_path / "lab.toml").write_text("schema = 1\n")
    (tmp_path / "matrix/default.toml").write_text('schema = 1\nbuilds = ["*"]\ntargets = ["*"]\nsuites = ["*"]\n')
    shutil.copy(ROOT / "kernel/debian-cloud.toml", tmp_path / "kernel")
    shutil.copytree(ROOT / "suites/boot", tmp_path / "suites/boot")
    run("labctl virtual-server start rack2 --memory 256M", tmp_path)
    yield tmp_path
    run("labctl virtual-server delete rack2", tmp_path)


def environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}


def run(command: str, folder: Path, typed: str = "") -> None:
    done = subprocess.run(command, shell=True, cwd=folder, env=environment(), input=typed, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


def test_every_command_works(lab: Path) -> None:
    assert {SERVICE, *SHORTER, *NOT_HERE} <= set(COMMANDS)
    for command in COMMANDS:
        if command == SERVICE:
            _serves(command.replace("10.9.0.1", "127.0.0.1 --port 0").replace("/run/labctl-boot", str(lab / "offers")), lab)
        elif command not in NOT_HERE:
            print(command)
            run(
                SHORTER.get(command, command).replace("rack1", "rack2"),
                lab,
                "poweroff -f\n" if command.startswith("labctl console") else "",
            )


def _serves(command: str, folder: Path) -> None:
    words = command.split()
    with subprocess.Popen([BIN / words[0], *words[1:]], cwd=folder, stdout=subprocess.PIPE, text=True) as service:
        try:
            assert service.stdout is not None
            assert service.stdout.readline().startswith("boot server: http://127.0.0.1:")
        finally:
            service.send_signal(signal.SIGTERM)
        assert service.wait(10) == 0
