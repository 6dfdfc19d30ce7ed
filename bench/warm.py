"""Functional cells on one build and target, started warm against booted (reach: 0.25 of the time). Each way is a whole run of its own, the
warm one from an empty cache of machines: it boots the one that the others are copies of. In turn, as a host is noisy: the figure is the
median of the pairs. Prints one JSON object. ``--cells N --rounds K``."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from labctl.build.obtain import obtain
from labctl.config import Lab, cache_folder
from labctl.run.equip import equipped

REACH = 0.25
SUITE = """def test_it_works(shell):
    assert shell("uname -s") == "Linux"


def test_files(shell):
    shell.put(b"x", "/tmp/x")
    assert shell.get("/tmp/x") == b"x"
"""


def run(lab: Path, *more: str) -> tuple[float, list[str]]:
    """Seconds of a whole run, and how each attempt's machine was started."""
    results = Path(tempfile.mkdtemp(dir=lab))
    began = time.monotonic()
    command = [Path(sys.executable).parent / "labctl", "run", "matrix", "--json", "--fresh", "-n", "1", "--results", results, *more]
    done = subprocess.run(command, cwd=lab, capture_output=True, text=True, check=False)
    took = time.monotonic() - began
    assert done.returncode == 0, done.stderr + done.stdout[-2000:]
    events = [json.loads(line) for path in results.glob("[0-9]*/cells/*/*/events.jsonl") for line in path.read_text().splitlines()]
    waited = sum(e["why"].startswith("waits for") for e in events if e["kind"] == "status" and e.get("why"))
    if waited:
        print(f"{waited} times a cell waited for the host: others use it", file=sys.stderr)
    return took, [e["how"] for e in events if e["kind"] == "start"]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cells", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--build", default="debian-cloud")
    parser.add_argument("--target", default="agent-1c-512m")
    given = parser.parse_args()
    here = Lab.find(Path(__file__).parents[1])
    equipped(obtain(here, given.build), here.target(given.target))  # downloads and compilers are no part of it
    with tempfile.TemporaryDirectory() as folder:
        lab = Path(folder)
        for name in ("lab.toml", "conftest.py"):
            shutil.copy(here.root / name, lab / name)
        for kind, name in (("kernel", given.build), ("targets", given.target)):
            (lab / kind).mkdir()
            shutil.copy(here.root / kind / f"{name}.toml", lab / kind)
        (lab / "matrix").mkdir()
        (lab / "matrix" / "default.toml").write_text('schema = 1\nbuilds = ["*"]\ntargets = ["*"]\nsuites = ["*"]\n')
        for number in range(given.cells):
            suite = lab / "suites" / f"functional-{number:02}"
            suite.mkdir(parents=True)
            (suite / f"test_functional_{number:02}.py").write_text(SUITE)
            (suite / "suite.toml").write_text("schema = 1\nwarm = true\n")
        cold, warm, again, starts = [], [], [], []
        for _ in range(given.rounds):
            cold.append(run(lab, "--cold")[0])
            shutil.rmtree(cache_folder() / "warm", ignore_errors=True)
            took, how = run(lab)
            warm.append(took)
            starts += how
            again.append(run(lab)[0])
    ratios = [one / other for one, other in zip(warm, cold, strict=True)]
    copies = starts.count("copy")
    figures = {
        "bench": "warm",
        "cells": given.cells,
        "cold_s": [round(each, 1) for each in cold],
        "warm_s": [round(each, 1) for each in warm],
        "warm_again_s": [round(each, 1) for each in again],
        "ratios": [round(each, 3) for each in ratios],
        "ratio": round(statistics.median(ratios), 3),
        "ratio_again": round(statistics.median(one / other for one, other in zip(again, cold, strict=True)), 3),
        "copies": copies,
        "reach": REACH,
        "load": round(os.getloadavg()[0], 1),
        "pass": statistics.median(ratios) <= REACH and copies == given.cells * given.rounds,
    }
    print(json.dumps(figures))
    return 0 if figures["pass"] else 1


if __name__ == "__main__":
    sys.exit(main())
