"""Whole processes of the command line: ``labctl --help`` (reach: 150 ms) and ``labctl targets list`` (300 ms). Prints one JSON object."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

RUNS = 15
VERBS = {"labctl --help": (["--help"], 150), "labctl targets list": (["targets", "list"], 300)}


def milliseconds(arguments: list[str]) -> float:
    began = time.monotonic()
    subprocess.run([Path(sys.executable).parent / "labctl", *arguments], check=True, capture_output=True)
    return (time.monotonic() - began) * 1000


def main() -> None:
    result = {}
    for name, (arguments, reach) in VERBS.items():
        milliseconds(arguments)
        taken = [milliseconds(arguments) for _ in range(RUNS)]
        result[name] = {"median_ms": round(statistics.median(taken), 1), "worst_ms": round(max(taken), 1), "reach_ms": reach}
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
