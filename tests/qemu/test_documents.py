"""The commands and the example suite of README.md and docs/ work as written, in a lab made by ``labctl init``."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"^\$ ((?:labctl|pytest) .*?)\s*(?:  # .*)?$", re.MULTILINE)
COMMANDS = [(document.name, command) for document in DOCUMENTS for command in COMMAND.findall(document.read_text())]
SHORTER = {
    # What takes minutes is looked at without booting; the same verbs boot below.
    "labctl run matrix --target 'qemu-1c*' --repeat 5": "labctl run matrix --target 'qemu-1c*' --repeat 5 --dry-run",
    "labctl run matrix --target microvm-1c-512m --build debian-cloud --channel icount": "labctl run matrix --channel icount --dry-run",
    "labctl profile diff debian-cloud-previous debian-cloud --target microvm-1c-512m": "labctl profile diff --help",
    "labctl profile debian-cloud --target microvm-1c-512m": "labctl profile --help",
    "labctl run matrix --suite hello": "labctl run matrix --suite hello --target qemu-1c-512m --build debian-cloud",
    "labctl run matrix": "labctl run matrix --dry-run",
    # Ends by Ctrl-C; that it watches and runs is tested with the reference kernel.
    "labctl watch": "labctl watch --help",
    "labctl watch quick --target 'microvm-pvh*'": "labctl watch --help",
    "labctl run matrix default --build ./bzImage --repeat 5": "labctl run matrix default --build ./bzImage --repeat 5 --dry-run",
    "labctl run matrix --build ./bzImage": "labctl run matrix --build ./bzImage --dry-run",
    "labctl run matrix storage": "labctl run matrix storage --dry-run",
    "labctl run matrix storage --suite integrity": "labctl run matrix storage --suite integrity --dry-run",
    "labctl run matrix storage --target 'storage-nvme-*'": "labctl run matrix storage --target 'storage-nvme-*' --dry-run",
    "labctl run matrix storage --target storage-virtio-icount --repeat 5": "labctl run matrix storage --target 'storage-virtio-i*' --dry-run",
    "pytest suites/integrity/test_power_cuts.py --build debian-cloud --target storage-powercut": "pytest suites/integrity --collect-only -q",
    "labctl run matrix hypervisor --suite desktop": "labctl run matrix hypervisor --suite desktop --dry-run",
    "labctl run matrix density": "labctl run matrix density --dry-run",
    "pytest suites/density --build debian-kvm --target hv-2c-8g": "pytest suites/density --collect-only -q",
    "pytest suites/lifecycle --build debian-kvm --target hv-2c-2g": "pytest suites/lifecycle --collect-only -q",
    "pytest suites/migration --build debian-kvm --target hv-pair": "pytest suites/migration --collect-only -q",
    "pytest suites/passthrough --build debian-kvm --target hv-2c-4g-iommu": "pytest suites/passthrough --collect-only -q",
    "pytest suites/boot --build debian-cloud --target agent-1c-512m": "pytest suites/boot --build debian-cloud --target agent-1c-512m -k version",
    "pytest suites/boot --build debian-cloud --target qemu-1c-512m": "pytest suites/boot --build debian-cloud --target qemu-1c-512m -k ready",
}

pytestmark = pytest.mark.qemu


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("documents") / "lab"
    run("labctl init lab", folder.parent)
    example = re.search(r"```python\n# (suites/hello/\S+)\n(.*?)```", (ROOT / "docs/suites.md").read_text(), re.DOTALL)
    assert example
    (folder / example[1]).parent.mkdir()
    (folder / example[1]).write_text(example[2])
    from labctl.build.obtain import obtain
    from labctl.config import Lab

    shutil.copy(obtain(Lab.find(folder), "debian-cloud", progress=print).kernel, folder / "bzImage")
    yield folder
    run("labctl power off qemu-1c-512m", folder)


def run(command: str, folder: Path, typed: str = "") -> str:
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    done = subprocess.run(command, shell=True, cwd=folder, env=environment, input=typed, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_there_are_commands() -> None:
    assert len(COMMANDS) > 15
    assert {name for name, _ in COMMANDS} >= {"README.md", "suites.md", "targets.md"}


def test_the_commands_of_the_documents_work(lab: Path) -> None:
    run("labctl run matrix --suite hello --target qemu-1c-512m --build debian-cloud", lab)  # `runs show` and `report` need a run
    for document, command in COMMANDS:
        if command == "labctl doctor":  # says what the host lacks, by its status too
            continue
        print(f"{document}: {command}")
        run(SHORTER.get(command, command), lab, typed="poweroff -f\n" if command.startswith("labctl console") else "")
