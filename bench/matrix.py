"""How long the expansion of 100,000 cells takes, excludes and include among them. Prints one JSON object. Limit: 1 s."""

from __future__ import annotations

import json
import statistics
import sys
import time

from labctl.model import MatrixConfig
from labctl.run.matrix import Plan, expand

LIMIT_S = 1.0
ROUNDS = 5


def expand_100k() -> Plan:
    builds = [f"debian-{i}" for i in range(58)]
    targets = [f"qemu-{i}" for i in range(50)]
    suites = [f"suite-{i}" for i in range(40)]
    matrix = MatrixConfig.model_validate(
        {
            "schema": 1,
            "builds": [f"debian-{i}" for i in range(56)],
            "targets": ["qemu-*"],
            "suites": ["suite-*"],
            "exclude": [{"builds": [f"debian-{i}"], "suites": ["suite-3*"], "reason": "a long one"} for i in range(20)],
            "include": [{"builds": ["debian-56", "debian-57"]}, {"builds": ["debian-1"], "suites": ["*"]}],
        }
    )
    return expand(
        matrix,
        builds=builds,
        targets=targets,
        suites=suites,
        arch_of_build=dict.fromkeys(builds, "x86_64"),
        arch_of_target=dict.fromkeys(targets, "x86_64"),
    )


def main() -> int:
    seconds: list[float] = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        plan = expand_100k()
        seconds.append(time.perf_counter() - start)
    worst = max(seconds)
    figures = {
        "bench": "matrix",
        "cells": len(plan.cells),
        "left_out": len(plan.left_out),
        "median_s": round(statistics.median(seconds), 4),
        "max_s": round(worst, 4),
        "limit_s": LIMIT_S,
        "pass": worst <= LIMIT_S,
    }
    print(json.dumps(figures))
    return 0 if worst <= LIMIT_S else 1


if __name__ == "__main__":
    sys.exit(main())
