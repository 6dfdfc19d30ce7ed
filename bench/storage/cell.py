"""One cell of the suite `storage` or `integrity`, run as a user does, and what it left."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Sample:
    metric: str
    channel: str
    params: dict[str, str]
    value: float


@dataclass(frozen=True)
class Cell:
    passed: bool
    said: str
    """pytest's own words."""
    samples: list[Sample]
    seconds: dict[str, float]
    """Of each test, by name."""


def run(tests: str, *arguments: str, **settings: str) -> Cell:
    """``tests``: an expression for pytest's ``-k``; ``settings``: the suite's environment variables."""
    with tempfile.TemporaryDirectory(prefix="labctl-bench-") as results:
        suites = ["suites/storage", "suites/integrity"]
        command = [sys.executable, "-m", "pytest", "-q", *suites, "-k", tests, "--results", results, *arguments]
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, **settings}, capture_output=True, text=True, check=False)
        samples = []
        for table in Path(results).rglob("samples.csv"):
            with table.open(newline="") as file:
                samples += [
                    Sample(row["metric"], row["channel"], json.loads(row["params"]), float(row["value"])) for row in csv.DictReader(file)
                ]
        seconds = {}
        for events in Path(results).glob("*/cells/*/*/events.jsonl"):
            for line in events.read_text().splitlines():
                event = json.loads(line)
                if "duration_s" in event and "name" in event:
                    seconds[event["name"]] = float(event["duration_s"])
    return Cell(done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:], samples, seconds)
