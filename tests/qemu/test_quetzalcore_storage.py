"""The reference kernel writes a real ext4 on an NVMe disk; e2fsck and debugfs look at the image afterwards. And what it says of bad disks."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from labctl.build.obtain import obtain
from labctl.config import Lab
from labctl.model import Outcome
from labctl.parsers.ktap import Report, parse
from tests.leftovers import machine_name
from tests.temporary_lab import LABCTL

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(
        any(shutil.which(tool) is None for tool in ("rustc", "mke2fs", "e2fsck", "debugfs")), reason="the host lacks rustc or e2fsprogs"
    ),
]

MACHINE = [
    "-nodefaults",
    "-display",
    "none",
    "-serial",
    "stdio",
    "-machine",
    "q35",
    "-accel",
    "tcg",
    "-bios",
    "qboot.rom",
    "-m",
    "256M",
    "-no-reboot",
]
DEBUG_EXIT = ["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]
PASSED, FAILED = 33, 35
GOLDEN = 0x9E37_79B9_7F4A_7C15


@pytest.fixture(scope="module")
def kernel(repository: Lab) -> Path:
    return obtain(repository, "quetzalcore", progress=print).kernel


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", str(path), "64M"], check=True, capture_output=True, timeout=60)
    return path


def boot(kernel: Path, words: str, backend: dict[str, object] | None) -> tuple[int, str, Report]:
    """Status, console and the report as the lab reads it."""
    arguments = [*MACHINE, *DEBUG_EXIT, "-kernel", str(kernel), "-append", f"exit=debug {words}"]
    if backend is not None:
        arguments += ["-blockdev", json.dumps({"node-name": "disk", **backend}), "-device", "nvme,drive=disk,serial=quetzal-1"]
    ended = subprocess.run(["qemu-system-x86_64", *arguments], capture_output=True, timeout=150)
    return ended.returncode, ended.stdout.decode(errors="replace"), parse(ended.stdout)


def raw(path: Path, **more: object) -> dict[str, object]:
    return {"driver": "raw", "file": {"driver": "file", "filename": str(path), "cache": {"no-flush": True}}, **more}


def check(image: Path) -> None:
    ended = subprocess.run(["e2fsck", "-fn", str(image)], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stdout


def test_kernel_and_host_see_the_same_file(kernel: Path, image: Path) -> None:
    status, console, report = boot(kernel, "test=nvme,ext4,iops file=8 requests=300", raw(image))
    assert status == PASSED, console
    assert report.complete
    assert not report.problems
    assert all(result.outcome is Outcome.PASS for result in report.results), report
    assert {result.path[0] for result in report.results} == {"nvme", "ext4", "iops"}

    figures = {name: (int(value), unit) for name, value, unit in re.findall(r"^ *# bench (\S+)=(\d+) (\S+)\r?$", console, re.MULTILINE)}
    wanted = {f"nvme_{verb}_{order}_4k_qd{depth}" for verb in ("read", "write") for order in ("random", "sequential") for depth in (1, 32)}
    assert wanted <= {name for name, (value, unit) in figures.items() if value > 0 and unit == "IOPS"}, console
    assert figures["ext4_file"] == (8, "MiB")

    check(image)
    dumped = image.with_suffix(".dump")
    subprocess.run(["debugfs", "-R", f"dump /quetzalcore.bin {dumped}", str(image)], check=True, capture_output=True, timeout=60)
    expected = hashlib.sha256()
    for block in range((8 << 20) // 4096):
        expected.update(struct.pack("<Q", block * GOLDEN & (1 << 64) - 1) * 512)
    assert hashlib.sha256(dumped.read_bytes()).hexdigest() == expected.hexdigest()
    listed = subprocess.run(["debugfs", "-R", "ls /", str(image)], check=True, capture_output=True, text=True, timeout=60).stdout
    assert re.findall(r"quetzalcore\S*", listed) == ["quetzalcore.bin"], "the tests leave other files behind"


def test_sectors_of_4096_bytes_in_small_commands(kernel: Path, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", str(image), "32M"], check=True, capture_output=True, timeout=60)
    sectors = ["-global", "nvme.logical_block_size=4096", "-global", "nvme.physical_block_size=4096", "-global", "nvme.mdts=2"]
    arguments = [*MACHINE, *DEBUG_EXIT, *sectors, "-kernel", str(kernel), "-append", "exit=debug test=nvme,ext4 file=4"]
    disk = ["-blockdev", json.dumps({"node-name": "disk", **raw(image)}), "-device", "nvme,drive=disk,serial=quetzal-1"]
    ended = subprocess.run(["qemu-system-x86_64", *arguments, *disk], capture_output=True, text=True, timeout=150)
    assert ended.returncode == PASSED, ended.stdout
    assert "in sectors of 4096 bytes, at most 16 KiB a command" in ended.stdout
    check(image)


def spoil(image: Path) -> None:
    with image.open("r+b") as file:
        file.seek(1024 + 0x20)
        file.write(b"\xff\xff\xff")


def leave_unclean(image: Path) -> None:
    subprocess.run(["debugfs", "-w", "-R", "ssv state 0", str(image)], check=True, capture_output=True, timeout=60)


BAD_DISKS: dict[str, tuple[str, Callable[[Path], dict[str, object] | None], str]] = {
    "absent": ("nvme", lambda image: None, "there is no NVMe controller on the PCI bus"),
    "silent": (
        "iops disk-timeout=200",
        lambda image: {"driver": "null-aio", "size": 64 << 20, "latency-ns": 1_000_000_000},
        "the disk did not answer within 200 ms",
    ),
    "read-only": ("ext4", lambda image: raw(image, **{"read-only": True}), "the disk refused with status 0x280 (write fault)"),
    "empty": ("ext4", lambda image: {"driver": "null-co", "size": 64 << 20, "read-zeroes": True}, "ext4: no ext4 file system on this disk"),
    "corrupt": ("ext4", lambda image: spoil(image) or raw(image), "ext4: corrupt image: checksum of the superblock"),
    "not clean": ("ext4", lambda image: leave_unclean(image) or raw(image), "ext4: the file system was not unmounted cleanly: run e2fsck"),
}


@pytest.mark.parametrize("fault", BAD_DISKS)
def test_bad_disk(kernel: Path, image: Path, fault: str) -> None:
    """A clear error on the console and in the lab's report of every test that needs the disk, and an end."""
    test, spoiled, words = BAD_DISKS[fault]
    status, console, report = boot(kernel, f"test={test}", spoiled(image))
    assert status == FAILED, console
    assert re.search(rf"ERROR .*{re.escape(words)}", console), console
    assert report.complete
    assert not report.problems
    assert {result.outcome for result in report.results} == {Outcome.FAIL}
    assert words in report.results[0].reason
    assert "panic" not in console


def test_all_without_a_disk_is_skipped(kernel: Path) -> None:
    """Who asks for all tests takes the machine as it is."""
    _, console, report = boot(kernel, "test=all log=error", None)
    of_disk = [result for result in report.results if result.path[0] in ("nvme", "ext4", "iops")]
    assert of_disk, console
    assert {(result.outcome, result.reason) for result in of_disk} == {(Outcome.SKIP, "there is no NVMe controller")}


def test_figures_in_the_lab(kernel: Path, tmp_path: Path) -> None:
    """From the kernel's own count, on a disk that the lab made, to samples of the run."""
    name = machine_name("iops")
    recipe = f"""schema = 1
builder = "path"
initramfs = false
append = "requests=100"
[milestones]
ready = 'milestone: ready at'
[path]
kernel = "{kernel}"
"""
    target = """schema = 1
cpus = 1
memory = "256M"
disk = "64M"
boot = { deadline = 60, silence = 30, end = 30 }
[drivers.qemu]
icount_disk = true
accel = "tcg"
bios = "qboot.rom"
disk_filesystem = "ext4"
"""
    matrix = f'schema = 1\nbuilds = ["quetzal"]\ntargets = ["{name}"]\nsuites = ["iops"]\n'
    for file, text in {
        "lab.toml": "schema = 1\n",
        "kernel/quetzal.toml": recipe,
        f"targets/{name}.toml": target,
        "matrix/one.toml": matrix,
    }.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text)
    shutil.copytree(Path(__file__).parents[2] / "suites/iops", tmp_path / "suites/iops")
    own = {"LABCTL_CACHE": str(tmp_path / "cache"), "LABCTL_LOCKS": str(tmp_path / "locks"), "LABCTL_CPUS": "4"}
    ran = subprocess.run(
        [str(LABCTL), "run", "matrix", "one", "--channel", "wall", "--channel", "icount", "--json"],
        cwd=tmp_path,
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (samples,) = (tmp_path / "results").rglob("samples.csv")
    found: dict[str, dict[str, list[float]]] = {}
    with samples.open(newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["metric"], {}).setdefault(json.loads(row["params"])["requests"], []).append(float(row["value"]))
    timed, counted = found["kernel.iops"], found["kernel.instructions_per_request"]
    assert len(timed) == 8
    assert timed.keys() == counted.keys(), "each is counted that is timed"
    assert all(len(values) == 2 for values in counted.values()), "in two boots"
    assert all(value > 0 for values in (*timed.values(), *counted.values()) for value in values)
