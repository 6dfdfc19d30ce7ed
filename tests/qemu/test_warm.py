"""Warm start on real machines: copies differ where they must, and nothing that is broken stops a cell."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from labctl.build.obtain import obtain
from labctl.config import Lab
from labctl.errors import ConfigError
from labctl.machine.session import Session
from labctl.machine.warm import KeptMachines, WarmStart, _seals
from labctl.model import Build, Target, TargetConfig
from labctl.run.equip import equipped
from tests.leftovers import machine_name
from tests.temporary_lab import TARGET, TemporaryLab, reasons

pytestmark = pytest.mark.qemu


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> KeptMachines:
    return KeptMachines(tmp_path_factory.mktemp("warm"))


@pytest.fixture(scope="module")
def target() -> Target:
    config = {
        "schema": 1,
        "cpus": 1,
        "memory": "192M",
        "disk": "1G",
        "append": "console=ttyS0,115200",
        "boot": {"deadline": 60, "silence": 30},
        "drivers": {"qemu": {"disk_bus": "virtio"}, "agent": {}},
    }
    return Target(machine_name("warm"), TargetConfig.model_validate(config))


@pytest.fixture
def warm(debian: Build, kept: KeptMachines, target: Target, tmp_path: Path) -> Callable[[ExitStack, list[str]], Session]:
    def start(stack: ExitStack, told: list[str]) -> Session:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        starter = WarmStart(lambda how, why: told.append(f"{how} {why}".strip()), kept)
        session = stack.enter_context(Session(target, equipped(debian, target), folder, starter=starter))
        session.ready()
        return session

    return start


def test_copies_share_no_clock_no_random_numbers_and_no_files(warm: Callable[[ExitStack, list[str]], Session]) -> None:
    told: list[str] = []
    with ExitStack() as stack:
        one, two = warm(stack, told), warm(stack, told)
        assert told == ["copy", "copy"]
        draws = [session.run("cat /proc/sys/kernel/random/uuid; head -c 32 /dev/urandom | base64").output for session in (one, two)]
        assert draws[0] != draws[1]
        one.run("echo mine >/tmp/file")
        assert two.run("ls /tmp").output == ""
        for session in (one, two):
            assert abs(int(session.run("date +%s").output) - time.time()) < 20
        with pytest.raises(ConfigError, match="asks for the boot of a machine that is a copy"):
            one.booted()


def only(kept: KeptMachines) -> Path:
    (folder,) = [path for path in kept.root.iterdir() if path.is_dir()]
    return folder


def test_a_memory_file_that_has_vanished(warm: Callable[[ExitStack, list[str]], Session], kept: KeptMachines) -> None:
    told: list[str] = []
    with ExitStack() as stack:
        running = warm(stack, told)
        (only(kept) / "memory").unlink()
        booted = warm(stack, told)
        assert told == ["copy", "boot what is kept of the machine has lost its memory"]
        assert booted.booted().milestones["ready"] > 0
        assert not booted.copied
        assert running.run("echo unharmed").output == "unharmed\n"


def test_a_state_that_qemu_does_not_take(
    warm: Callable[[ExitStack, list[str]], Session], kept: KeptMachines, target: Target, debian: Build, tmp_path: Path
) -> None:
    """Cut off, and the manifest says that it is right: QEMU itself finds it out."""
    told: list[str] = []
    with ExitStack() as stack:
        warm(stack, told)
    folder = only(kept)
    os.truncate(folder / "state", 100_000)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "files": _seals(folder)}))
    with Session(target, equipped(debian, target), tmp_path) as session:
        starter = WarmStart(lambda how, why: told.append(f"{how} {why}"), kept)
        assert not starter(session)
        assert told[-1].startswith("boot what is kept of the machine cannot be started from: "), told
        assert not session.up
        assert not list(tmp_path.glob("*.qcow2")), "nothing that a boot would take for its disk"
    assert [path for path in kept.root.iterdir() if path.is_dir()] == [], "it is made anew by who wants it next"


def test_a_memory_that_is_not_what_it_was(
    warm: Callable[[ExitStack, list[str]], Session], kept: KeptMachines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same size and time: nothing tells but that the copy does not answer. It costs one cell that time, and not each."""
    told: list[str] = []
    with ExitStack() as stack:
        warm(stack, told)
    memory = only(kept) / "memory"
    status, noise = memory.stat(), os.urandom(1 << 20)
    with memory.open("r+b") as file:
        for _ in range(status.st_size >> 20):
            file.write(noise)
    os.utime(memory, ns=(status.st_atime_ns, status.st_mtime_ns))
    monkeypatch.setattr("labctl.machine.warm._REFRESH_S", 3.0)
    with ExitStack() as stack:
        booted = warm(stack, told)
        assert told[-1].startswith("boot what is kept of the machine cannot be started from: "), told
        assert booted.booted().milestones["ready"] > 0
    assert [path for path in kept.root.iterdir() if path.is_dir()] == [], "it is made anew by who wants it next"


def test_a_copy_that_resets_itself_is_none(warm: Callable[[ExitStack, list[str]], Session], kept: KeptMachines) -> None:
    """Half of its memory is another: it boots, and answers then as a copy would."""
    told: list[str] = []
    with ExitStack() as stack:
        warm(stack, told)
    memory = only(kept) / "memory"
    status = memory.stat()
    with memory.open("r+b") as file:
        for at in range(1 << 20, status.st_size, 2 << 20):
            file.seek(at)
            file.write(b"\xcc" * (1 << 20))
    os.utime(memory, ns=(status.st_atime_ns, status.st_mtime_ns))
    with ExitStack() as stack:
        booted = warm(stack, told)
        assert told[-1].startswith("boot what is kept of the machine cannot be started from: "), told
        assert booted.booted().milestones["ready"] > 0
    assert [path for path in kept.root.iterdir() if path.is_dir()] == []


VIRTIO_DISK = """schema = 1
builder = "deb"

[deb]
package = "linux-image-6.1.*-cloud-amd64"
modules = ["virtio_pci", "virtio_blk"]
"""


def test_a_disk_that_loses_what_was_not_flushed(kept: KeptMachines, tmp_path: Path) -> None:
    """Each copy begins with what was kept, in a file of its own: what a power cut takes from one is missing there, and nowhere else."""
    config = {
        "schema": 1,
        "cpus": 1,
        "memory": "192M",
        "disk": "64M",
        "append": "console=ttyS0,115200",
        "boot": {"deadline": 60, "silence": 30},
        "drivers": {"qemu": {"disk_bus": "virtio", "disk_backend": "volatile", "disk_filesystem": "ext4"}, "agent": {}},
    }
    target = Target(machine_name("volatile"), TargetConfig.model_validate(config))
    (tmp_path / "lab/kernel").mkdir(parents=True)
    (tmp_path / "lab/lab.toml").write_text("schema = 1\n")
    (tmp_path / "lab/kernel/disk.toml").write_text(VIRTIO_DISK)
    build = equipped(obtain(Lab.find(tmp_path / "lab"), "disk", progress=print), target)
    told: list[str] = []

    def copy(stack: ExitStack, name: str) -> Session:
        (tmp_path / name).mkdir()
        starter = WarmStart(lambda how, why: told.append(f"{how} {why}".strip()), kept)
        return stack.enter_context(Session(target, build, tmp_path / name, starter=starter))

    identity = "dd if=/dev/vda bs=1 skip=1128 count=16 2>/dev/null | od -An -tx1"  # the file system's, drawn when it was made
    with ExitStack() as stack:
        one, two = copy(stack, "one"), copy(stack, "two")
        assert len(set((made := one.run(identity).output).split())) > 4, "a random number"
        one.run("yes flushed | dd of=/dev/vda bs=1M seek=8 count=1 conv=fsync iflag=fullblock")
        one.run("yes cached | dd of=/dev/vda bs=1M seek=16 count=4 oflag=direct iflag=fullblock")
        one.cut_power()
        assert " sectors in the disk's cache " in (tmp_path / "one/console.marks.jsonl").read_text()
        assert two.run(identity).output == made, "not made anew"
        assert "flushed" not in two.run("dd if=/dev/vda bs=1M skip=8 count=1 2>/dev/null").output
        assert told == ["copy", "copy"]
        one.boot()
        assert one.run("dd if=/dev/vda bs=1M skip=8 count=1 2>/dev/null | sort -u").output == "flushed\n"


WARM = "schema = 1\nwarm = true\n"


def test_in_a_run(lab: TemporaryLab) -> None:
    """Cells start as copies; what fails only there is told apart; --cold boots; what needs a boot is refused before any power."""
    lab.write(f"targets/{lab.target}.toml", TARGET.replace("[drivers.console_shell]", '[drivers.agent]\nchannel = "serial"'))
    for name, code in {
        "well": """def test_well(shell, target, ktap):
    assert shell('echo hi') == 'hi'
    assert not ktap("printf 'TAP version 13\\\\n1..1\\\\nok 1 alive\\\\n'").wrong
    begins = "printf 'TAP version 13\\\\n1..2\\\\nok 1 alive\\\\n'; "
    own = ktap(begins + "kill -9 $$")
    assert [result.name for result in own.results] == ['alive']
    assert "no test failed, but the program was killed by signal 9" in own.wrong
    whole = ktap(begins + "sleep 1; kill -9 $(cut -d' ' -f4 /proc/$PPID/stat); sleep 9")
    assert [result.name for result in whole.results] == ['alive']
    assert "the shell that ran the program ended with 137" in whole.wrong
    assert target.copied
""",
        "only": "def test_only(shell, target):\n    assert not target.copied, 'a copy'\n",
    }.items():
        lab.suite(name, code)
        lab.write(f"suites/{name}/suite.toml", WARM)
    cells = lab.run("-n", "1").cells
    assert cells["debian/well"]["outcome"] == "pass", reasons(cells)
    assert cells["debian/only"]["outcome"] == "flaky"
    assert cells["debian/only"]["reason"] == "fails only on a copy, not when booted: AssertionError: a copy"
    events = {(path.parts[-3].split("~")[-1], path.parts[-2]): path.read_text() for path in lab.runs[-1].glob("cells/*/*/events.jsonl")}
    assert '"how":"copy"' in events["well", "attempt-1"]
    assert '"how":"copy"' in events["only", "attempt-1"]
    assert '"kind":"start"' not in events["only", "attempt-2"], "booted"

    cold = lab.run("--suite", "only", "--cold")
    assert cold.cells["debian/only"]["outcome"] == "pass"

    lab.suite("well", "def test_x(booted):\n    pass\n")
    lab.suite("only", "import pytest\n\n@pytest.mark.benchmark\ndef test_x(shell):\n    pass\n")
    refused = lab.run()
    assert refused.status == 2, refused.out
    assert "of a suite with warm = true, asks for 'booted': a copy has no boot" in refused.err
    assert "of a suite with warm = true, is a benchmark" in refused.err

    # No collection sees this one: the same verdict on a copy and booted, without a second attempt.
    lab.suite("only", "def test_x(shell, request):\n    request.getfixturevalue('booted')\n")
    for how in ((), ("--cold",)):
        late = lab.run("--suite", "only", "--fresh", *how)
        cell = late.cells["debian/only"]
        assert (cell["outcome"], cell["attempts"]) == ("error", 1), (how, reasons(late.cells))
        assert cell["reason"].startswith("suites/only/test_only.py::test_x, of a suite with warm = true, asks for 'booted'"), (
            how,
            cell["reason"],
        )

    # Nor this one: the same on a copy and booted, but for a boot that was asked for.
    lab.suite(
        "only", "def test_x(shell, target):\n    target.boot()\n    target.booted()\n\ndef test_y(shell, target):\n    target.booted()\n"
    )
    lab.suite("well", "def test_x(shell, target):\n    target.booted()\n")
    for how in ((), ("--cold",)):
        late = lab.run("--fresh", *how)
        assert late.cells["debian/only"]["outcome"] == "pass", reasons(late.cells)
        cell = late.cells["debian/well"]
        assert (cell["outcome"], cell["attempts"]) == ("error", 1), (how, reasons(late.cells))
        assert cell["reason"].startswith("suite.toml: warm = true: a test asks for the boot of a machine that is a copy"), (
            how,
            cell["reason"],
        )
