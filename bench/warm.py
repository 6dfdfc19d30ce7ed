"""Functional cells on one build and target, started warm against booted (reach: 0.25 of the time). Each way is a whole run of its own, the
warm one from an empty cache of machines: it boots the one that the others are copies of. Prints one JSON object. ``--cells N``."""

from __future__ import annotations

import argparse
import json
import os
import shutil
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
        cold, _ = run(lab, "--cold")
        shutil.rmtree(cache_folder() / "warm", ignore_errors=True)
        first, starts = run(lab)
        again, _ = run(lab)
    figures = {
        "bench": "warm",
        "cells": given.cells,
        "cold_s": round(cold, 1),
        "warm_s": round(first, 1),
        "warm_again_s": round(again, 1),
        "ratio": round(first / cold, 3),
        "ratio_again": round(again / cold, 3),
        "copies": starts.count("copy"),
        "reach": REACH,
        "load": round(os.getloadavg()[0], 1),
        "pass": first / cold <= REACH and starts.count("copy") == given.cells,
    }
    print(json.dumps(figures))
    return 0 if figures["pass"] else 1


if __name__ == "__main__":
    sys.exit(main())
