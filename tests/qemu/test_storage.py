"""The suites `storage` and `integrity` on real machines: power cuts on a disk that loses what was not flushed, and on one that lies; a disk
taken out; reports of fio's that are none; a machine that dies under a job; a host without room."""

from __future__ import annotations

import csv
import gzip
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from labctl.errors import CommandFailed, StorageError
from labctl.machine.session import Session
from labctl.model import Build, Target, TargetConfig
from labctl.process import find
from tests.leftovers import machine_name
from tests.temporary_lab import TARGET, TemporaryLab

pytestmark = pytest.mark.qemu

REPOSITORY = Path(__file__).parents[2]


def copy_of(suite: str, lab: TemporaryLab, *files: str) -> Path:
    """Only some of its files: what they need in the machine is laid over it here."""
    folder = lab.root / "suites" / suite
    folder.mkdir(parents=True)
    for name in files:
        shutil.copy(REPOSITORY / "suites" / suite / name, folder)
    return folder


def install(program: str, overlay: Path) -> None:
    """A program of the host with the libraries that it needs."""
    path = Path(find(program)).resolve()
    needed = re.findall(r"(/\S+) \(0x", subprocess.run(["ldd", path], check=True, capture_output=True, text=True, timeout=60).stdout)
    for source, to in ((str(path), f"usr/bin/{program}"), *((library, library.lstrip("/")) for library in needed)):
        (overlay / to).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, overlay / to)


def samples(lab: TemporaryLab) -> dict[tuple[str, str], list[float]]:
    """Values of the last run by target and metric."""
    found: dict[tuple[str, str], list[float]] = {}
    with (lab.runs[-1] / "samples.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault((row["target"], row["metric"]), []).append(float(row["value"]))
    return found


def outcomes(lab: TemporaryLab, cell: int = 0) -> dict[str, tuple[str, str]]:
    """Outcome and reason of every test of the last attempt at a cell of the last run."""
    shown: Any = lab.labctl("runs", "show", "--json").data["run"]
    return {test["name"].partition("::")[2]: (test["outcome"], test["reason"]) for test in shown["cells"][cell]["attempts"][-1]["tests"]}


# --- power cuts ----------------------------------------------------------------------------------------------------------


def test_what_was_promised_is_there_and_a_lying_disk_is_found(lab: TemporaryLab) -> None:
    """The same test, cut and all, on both: it must pass where the disk is honest, and must fail where it is not."""
    overlay = copy_of("integrity", lab, "integrity_settings.py", "test_power_cuts.py") / "overlay"
    for program in ("mkfs.ext4", "e2fsck"):
        install(program, overlay)
    source = REPOSITORY / "guest/tools/cutwriter.c"
    compiled = subprocess.run(
        ["gcc", "-static", "-O2", "-Wall", "-Wextra", "-Werror", "-o", overlay / "usr/bin/cutwriter", source], timeout=120
    )
    assert compiled.returncode == 0
    names = {backend: machine_name(backend) for backend in ("volatile", "lying")}
    for backend, name in names.items():
        text = TARGET.replace("cpus = 1", 'cpus = 1\ndisk = "64M"\ntags = ["scratch-disk", "power-cut"]')
        lab.write(f"targets/{name}.toml", text.replace('disk_bus = "none"', f'disk_backend = "{backend}"'))
    ran = lab.run("--suite", "integrity", "--target", names["volatile"], "--target", names["lying"], seconds=300, STORAGE_CUTS="1")
    cells = {cell["target"]: cell for cell in ran.data["cells"]}
    honest, lying = cells[names["volatile"]], cells[names["lying"]]
    assert honest["outcome"] == "pass", ran.err
    found = samples(lab)
    assert found[names["volatile"], "storage.lost_blocks"] == [0]
    assert found[names["volatile"], "storage.promised_blocks"][0] >= 20
    assert found[names["lying"], "storage.promised_blocks"][0] >= 20

    # Blocks, or so much of the file system that it is not one any more.
    assert (ran.status, lying["outcome"]) == (1, "fail")
    assert re.search(r"that were fsync'd \d+ are lost|mount|e2fsck", lying["reason"]), lying["reason"]


# --- jobs and reports ------------------------------------------------------------------------------------------------------

# Named by --rw: what fio does. The reports are recorded ones; what happens to them, and to the machine, is real.
FIO = r"""#!/bin/sh
out=$(echo "$*" | sed 's/.*--output=//')
report=/usr/share/fio.json
case "$*" in
*--rw=good*) cat $report >"$out" ;;
*--rw=truncated*) head -c 9000 $report >"$out" ;;
*--rw=text*) echo 'read: IOPS=306k' >"$out" ;;
*--rw=empty*) : >"$out" ;;
*--rw=erred*) sed 's/"error" : 0,/"error" : 5,/' $report >"$out" ;;
*--rw=terminated*) cat /usr/share/terminated.json >"$out" ;;
*--rw=killed*) kill -9 $$ ;;
*--rw=full*) mount -t tmpfs -o size=8k none /tmp && cat $report >"$out" || { umount /tmp; exit 1; } ;;
*--rw=unanswered*) echo '<4>UNANSWERED' >/dev/kmsg; cat $report >"$out" ;;
*--rw=crash*) sleep 1; echo c >/proc/sysrq-trigger; sleep 60 ;;
esac
"""
UNANSWERED = "nvme nvme0: I/O 789 (I/O Cmd) QID 1 timeout, aborting"
JOBS = """
import pytest
from labctl.model import Direction, Metric

IOPS = Metric("storage.iops", "1/s", Direction.HIGHER)

@pytest.mark.parametrize("job", ["good", "truncated", "text", "empty", "erred", "terminated", "killed", "full", "unanswered", "crash"])
def test_job(fio, record, job):
    done = fio(rw=job)
    record(IOPS, done.requests["read"].iops)

def test_the_machine_is_booted_again(shell):
    assert shell("echo here") == "here"
"""


def test_jobs_that_go_wrong(lab: TemporaryLab) -> None:
    folder = copy_of("storage", lab, "conftest.py", "storage_settings.py")
    lab.write("suites/storage/test_jobs.py", JOBS)
    lab.write("suites/storage/overlay/usr/bin/fio", FIO.replace("UNANSWERED", UNANSWERED)).chmod(0o755)
    for name, recorded in {"fio": "randrw-qd8", "terminated": "terminated"}.items():
        report = gzip.decompress((REPOSITORY / f"tests/data/fio/{recorded}.json.gz").read_bytes())
        (folder / "overlay/usr/share").mkdir(exist_ok=True)
        (folder / f"overlay/usr/share/{name}.json").write_bytes(report)
    ran = lab.run("--suite", "storage", "--target", lab.target, seconds=240)
    assert ran.status == 1, ran.err
    told = outcomes(lab)
    assert told["test_job[good]"] == ("pass", "")
    assert told["test_job[truncated]"] == ("invalid", "fio's report is cut off after 9000 characters")
    assert told["test_job[text]"] == ("invalid", "fio's report holds no JSON: 'read: IOPS=306k'")
    assert told["test_job[empty]"] == ("invalid", "fio's report is empty: it was killed, or could not write")
    assert told["test_job[erred]"] == ("invalid", "fio's job ended with an error: Input/output error")
    assert told["test_job[terminated]"] == ("invalid", "fio was ended by signal 15")
    assert told["test_job[unanswered]"] == (
        "invalid",
        f"QEMU's NVMe controller did not answer a request ({UNANSWERED}): no fault of the build, and no figure of it",
    )
    assert told["test_job[killed]"][0] == told["test_job[full]"][0] == told["test_job[crash]"][0] == "fail"
    assert "was killed by signal 9" in told["test_job[killed]"][1]
    assert "No space left on device" in told["test_job[full]"][1]
    assert "sysrq triggered crash" in told["test_job[crash]"][1]
    assert told["test_the_machine_is_booted_again"] == ("pass", "")
    assert len(samples(lab)[lab.target, "storage.iops"]) == 1, "what was taken before is kept"
    assert ran.data["cells"][0]["reason"].startswith("Kernel panic"), "the most specific cause speaks for the cell"


def test_which_disk_is_overwritten(lab: TemporaryLab) -> None:
    """The one of the size that the target's file gives; a machine without it, and a target without any, are told apart."""
    lab.suite("storage", "def test_it(disk, needs):\n    needs('sh')\n    assert disk == '/dev/nvme0n1'\n    needs('nowhere')\n")
    one, none, other = (machine_name(name) for name in ("one", "none", "other"))
    with_disk = TARGET.replace("cpus = 1", 'cpus = 1\ndisk = "64M"')
    lab.write(f"targets/{one}.toml", with_disk.replace('disk_bus = "none"', 'disk_bus = "nvme"'))
    lab.write(f"targets/{none}.toml", TARGET)
    lab.write(f"targets/{other}.toml", with_disk)
    ran = lab.run("--suite", "storage", "--target", one, "--target", none, "--target", other, seconds=240)
    told = {cell["target"]: (cell["outcome"], cell["reason"]) for cell in ran.data["cells"]}
    assert told == {
        one: ("skip", "nowhere is not in the machine"),
        none: ("skip", "needs a disk: the target's file gives none"),
        other: ("fail", "one disk must be of 67108864 bytes; the machine has none"),
    }


# --- a machine's disk on its host ------------------------------------------------------------------------------------------


@pytest.fixture
def machine(debian: Build) -> Callable[..., Session]:
    def make(folder: Path, **options: object) -> Session:
        config = TargetConfig.model_validate(
            {
                "schema": 1,
                "cpus": 1,
                "memory": "192M",
                "disk": "64M",
                "append": "console=ttyS0",
                "drivers": {"qemu": {"accel": "tcg", **options}, "console_shell": {}},
            }
        )
        return Session(Target(machine_name("disk"), config), debian, folder)

    return make


def test_taken_out_while_busy(machine: Callable[..., Session], tmp_path: Path) -> None:
    with machine(tmp_path, disk_slot=True) as session:
        session.booted()
        session.run("(dd if=/dev/zero of=/dev/nvme0n1 bs=4k oflag=direct count=16000; echo $? >/tmp/status) >/dev/null 2>/tmp/said &")
        session.run("until [ $(awk '{print $5}' /sys/block/nvme0n1/stat) -gt 20 ]; do sleep 0.1; done", deadline=120)
        session.unplug_disk()
        assert session.run("until [ -s /tmp/status ]; do sleep 0.1; done; cat /tmp/status /tmp/said", deadline=120).output.startswith("1")
        assert "nvme" not in session.run("ls /sys/block").output
        session.check_crash()


def test_a_host_without_room(machine: Callable[..., Session], tmp_path: Path) -> None:
    """The machine's write fails, and it is said whose fault that is."""
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "none", str(tmp_path)], capture_output=True).returncode
    ):
        pytest.skip("only root can mount a small file system")
    try:
        with machine(tmp_path) as session:
            with pytest.raises(CommandFailed, match="exited with 1"):
                session.run("false")
            with pytest.raises(StorageError, match=r"the host has no room left in .* for the machine's disk: \d+ of its writes failed"):
                session.run("dd if=/dev/zero of=/dev/nvme0n1 bs=1M count=40 oflag=direct", deadline=120)
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)
