"""Real processes that write a run and are killed with -9 at any instant: nothing that a call acknowledged is lost."""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from labctl.model import Cell, Outcome
from labctl.store.reader import list_runs, read_run
from labctl.store.writer import RunWriter

# Says on a pipe, by one write each, what was acknowledged: an attempt's folder, then each sample's number.
WRITER = """
import os, sys
from pathlib import Path
from labctl.model import Cell, Channel, Direction, Outcome
from labctl.result import Sample, TestResult
from labctl.store.writer import RunWriter
folder, name = Path(sys.argv[1]), sys.argv[2]
run = RunWriter.open(folder)
number = 0
while True:
    with run.attempt(Cell("b", "t", "boot"), worker=name) as attempt:
        os.write(1, f"attempt {attempt.number}\\n".encode())
        for _ in range(50):
            number += 1
            attempt.sample(Sample("m", float(number), "s", Direction.LOWER, Channel.WALL, "test_x", {"pad": "x" * (number * 37 % 9000)}))
            os.write(1, f"sample {attempt.number} {number}\\n".encode())
            run.event("beat", worker=name, number=number, pad="y" * (number * 91 % 5000))
        attempt.test(TestResult("test_x", Outcome.PASS, 1.0))
        attempt.finish(Outcome.PASS)
        os.write(1, f"end {attempt.number}\\n".encode())
"""


def acknowledged(said: bytes) -> list[list[str]]:
    return [line.split() for line in said.decode().split("\n")[:-1]]


def read_for(processes: list[subprocess.Popen[bytes]], seconds: float) -> list[bytes]:
    """What each says meanwhile, so that no pipe fills; then they are killed."""
    said = {process.stdout.fileno(): b"" for process in processes if process.stdout}
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        for fd in select.select(list(said), [], [], left)[0]:
            said[fd] += os.read(fd, 1 << 16)
    for process in processes:
        process.send_signal(signal.SIGKILL)
    for process in processes:
        process.wait()
        assert process.stdout
        said[process.stdout.fileno()] += process.stdout.read()
        process.stdout.close()
    return list(said.values())


def test_nothing_acknowledged_is_lost_at_kill_9(tmp_path: Path) -> None:
    chance = random.Random()
    total = torn = 0
    for _ in range(6):
        run = RunWriter.create(tmp_path, matrix="m", argv=[], version="1", host={}, builds={}, targets={}, cells=[Cell("b", "t", "boot")])
        command = [sys.executable, "-c", WRITER, str(run.folder)]
        writers = [subprocess.Popen([*command, f"gw{n}"], stdout=subprocess.PIPE) for n in range(4)]
        for writer in writers:
            assert writer.stdout
            select.select([writer.stdout], [], [], 30)
        said = [acknowledged(words) for words in read_for(writers, chance.uniform(0.05, 0.4))]

        read = read_run(run.folder)
        attempts = {a.number: a for a in read.cells[0].attempts}
        torn += read.skipped_lines
        # Each killed writer may leave one torn line in its attempt's file and one in the run's.
        assert read.skipped_lines <= 2 * len(writers)
        for words in said:
            for what, number, *more in words:
                attempt = attempts[int(number)]
                if what == "sample":
                    total += 1
                    assert float(more[0]) in {s.value for s in attempt.samples}
                if what == "end":
                    assert attempt.complete
                    assert len(attempt.samples) == 50
        assert sum(not a.complete for a in attempts.values()) <= len(writers)
        # The next one goes on where they were killed.
        again = RunWriter.open(run.folder)
        with again.attempt(Cell("b", "t", "boot"), worker="gw9") as attempt_writer:
            attempt_writer.finish(Outcome.PASS)
        assert again.finish(Outcome.PASS).cells[0].attempts[-1].complete
    assert total > 500
    assert len(list_runs(tmp_path)) == 6


ENDING = """
import sys
from pathlib import Path
from labctl.model import Outcome
from labctl.store.writer import RunWriter, warm_up
warm_up()
run = RunWriter.open(Path(sys.argv[1]))
print("ready", flush=True)
while True:
    run.finish(Outcome.PASS)
    run = RunWriter.open(Path(sys.argv[1]))
"""


def test_a_run_killed_while_it_ends_is_whole_or_not_ended(tmp_path: Path) -> None:
    from labctl.store.query import samples_frame

    chance = random.Random()
    run = RunWriter.create(tmp_path, matrix="m", argv=[], version="1", host={}, builds={}, targets={}, cells=[Cell("b", "t", "boot")])
    filler = subprocess.Popen([sys.executable, "-c", WRITER, str(run.folder), "gw0"], stdout=subprocess.PIPE)
    assert filler.stdout
    select.select([filler.stdout], [], [], 30)  # a slow host takes its time to begin
    read_for([filler], 0.3)
    wanted = sum(len(a.samples) for a in read_run(run.folder).cells[0].attempts)
    assert wanted > 0
    for _ in range(6):
        for name in ("end.json", "samples.parquet"):
            (run.folder / name).unlink(missing_ok=True)
        ending = subprocess.Popen([sys.executable, "-c", ENDING, str(run.folder)], stdout=subprocess.PIPE)
        assert ending.stdout
        assert ending.stdout.readline() == b"ready\n"
        read_for([ending], chance.uniform(0.0, 0.08))
        read = read_run(run.folder)
        assert read.finished == (run.folder / "end.json").exists()
        if read.finished:
            assert (run.folder / "samples.parquet").exists()
        assert len(samples_frame(run.folder)) == wanted
