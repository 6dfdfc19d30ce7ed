"""A disk that is full, a limit that is reached: said at once, with the file and the space; what was written stays readable."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from labctl.errors import StorageError
from labctl.model import Cell, Channel, Direction, Outcome
from labctl.result import Sample
from labctl.store.reader import read_run
from labctl.store.writer import AttemptWriter, RunWriter

CELL = Cell("b", "t", "boot")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real filesystem of 256 KiB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small filesystem")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(tmp_path)], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def begin(results: Path, cells: int = 1) -> RunWriter:
    return RunWriter.create(
        results,
        matrix="m",
        argv=[],
        version="1",
        host={},
        builds={},
        targets={},
        cells=[CELL, *(Cell("b", "t", "boot", repeat=n) for n in range(2, cells + 1))],
    )


def sample(value: float, pad: int = 3000) -> Sample:
    return Sample("m", value, "s", Direction.LOWER, Channel.WALL, "test_x", {"pad": "x" * pad})


def write_until_refused(attempt: AttemptWriter) -> tuple[int, StorageError]:
    """How many samples were taken, and what was said to the first that was not."""
    for number in range(10_000):
        try:
            attempt.sample(sample(float(number)))
        except StorageError as error:
            return number, error
    raise AssertionError("the disk never got full")


def test_a_full_disk_is_named_and_loses_nothing_that_was_written(small_disk: Path) -> None:
    run = begin(small_disk)
    attempt = run.attempt(CELL, worker="gw0")
    written, error = write_until_refused(attempt)
    said = str(error)
    assert f"{attempt.folder}/events.jsonl" in said
    assert "No space left on device (0.0 MiB free there)" in said
    assert "free some space" in error.remedy
    assert written > 20
    read = read_run(run.folder)
    assert [s.value for s in read.cells[0].attempts[0].samples] == [float(n) for n in range(written)]
    with pytest.raises(StorageError, match=r"events\.jsonl: No space left"):
        run.event("pad", pad="x" * 10_000)
    with pytest.raises(StorageError, match="No space left"):
        run.finish(Outcome.PASS)
    assert not read_run(run.folder).finished


def test_when_there_is_space_again_the_next_line_is_whole(small_disk: Path) -> None:
    run = begin(small_disk)
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 150_000)
    attempt = run.attempt(CELL, worker="gw0")
    written, _ = write_until_refused(attempt)
    ballast.unlink()
    attempt.sample(sample(1e6))
    attempt.finish(Outcome.PASS)
    found = run.finish(Outcome.PASS)
    assert [s.value for s in found.cells[0].attempts[0].samples] == [*map(float, range(written)), 1e6]
    assert found.cells[0].attempts[0].complete
    assert found.skipped_lines <= 1


def test_no_space_for_the_file_of_samples_leaves_no_half_of_it(small_disk: Path) -> None:
    run = begin(small_disk)
    with run.attempt(CELL, worker="gw0") as attempt:
        for index in range(20):
            attempt.sample(Sample("m", float(index), "s", Direction.LOWER, Channel.WALL, "t", {"chance": os.urandom(1500).hex()}))
        attempt.finish(Outcome.PASS)
    free = os.statvfs(small_disk)
    (small_disk / "ballast").write_bytes(b"x" * (free.f_bavail * free.f_frsize - 8192))
    with pytest.raises(StorageError, match=r"cannot write .*samples\.parquet.*free there"):
        run.finish(Outcome.PASS)
    assert not list(run.folder.glob("*.parquet*"))
    assert not list(run.folder.glob(".*"))
    assert len(read_run(run.folder).cells[0].attempts[0].samples) == 20


def test_no_space_for_a_new_run_or_attempt_is_said(small_disk: Path) -> None:
    run = begin(small_disk)
    free = os.statvfs(small_disk)
    (small_disk / "ballast").write_bytes(b"x" * (free.f_bavail * free.f_frsize))
    with pytest.raises(StorageError, match="No space left on device"):
        begin(small_disk, cells=500)
    with pytest.raises(StorageError, match="No space left on device"):
        run.attempt(CELL, worker="gw0")


LIMITED = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import resource
from test_store_disk_full import CELL, begin, write_until_refused
run = begin(Path({results!r}))
attempt = run.attempt(CELL, worker="gw0")
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
written, error = write_until_refused(attempt)
print(written, error.message)
"""


def test_a_limit_of_the_file_s_size_is_named(tmp_path: Path) -> None:
    code = LIMITED.format(tests=str(Path(__file__).parent), results=str(tmp_path))
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    written, _, message = ran.stdout.partition(" ")
    assert "events.jsonl: File too large" in message
    read = read_run(tmp_path / "latest")
    assert [s.value for s in read.cells[0].attempts[0].samples] == [float(n) for n in range(int(written))]
    assert read.skipped_lines == 1


def test_a_folder_without_the_right_to_write_is_named(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("nothing is forbidden to root")
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="Permission denied"):
        begin(tmp_path / "results")
