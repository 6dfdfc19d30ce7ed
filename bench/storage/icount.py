"""Requests a second in virtual time, 32 on their way, five runs beside busy loops. Reach: a coefficient of variation of 2 % at most.

.venv/bin/python -m bench storage-icount --runs 5 --busy 2
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from contextlib import ExitStack

from bench.storage.cell import run

REACH = 2.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--busy", type=int, default=2, help="loops that keep the host busy meanwhile")
    parser.add_argument("--seconds", default="1", help="virtual seconds of each job")
    options = parser.parse_args()
    with ExitStack() as busy:
        for _ in range(options.busy):
            loop = busy.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            busy.callback(loop.kill)
        cell = run(
            "test_speed and 32 and (randread or randwrite or randrw)",
            *("--build", "debian-cloud", "--target", "storage-virtio-icount", "--repeat", str(options.runs)),
            STORAGE_SECONDS=options.seconds,
        )
        load = os.getloadavg()[0]
    found: dict[str, list[float]] = defaultdict(list)
    for sample in cell.samples:
        if sample.metric == "storage.iops" and sample.channel == "icount":
            found[f"{sample.params['pattern']} qd{sample.params['qd']}"].append(sample.value)
    spread = {name: round(100 * statistics.stdev(each) / statistics.mean(each), 2) for name, each in found.items() if len(each) > 1}
    worst = max(spread.values(), default=None)
    complete = cell.passed and all(len(each) == options.runs for each in found.values()) and worst is not None
    figures = {
        "bench": "storage-icount",
        "load": round(load, 1),
        "iops": {name: [round(value) for value in each] for name, each in found.items()},
        "cv_percent": spread,
        "worst_cv_percent": worst,
        "reach_percent": REACH,
        "pass": complete and worst is not None and worst <= REACH,
    }
    print(json.dumps(figures, indent=2))
    if not cell.passed:
        print(cell.said, file=sys.stderr)
    return 0 if figures["pass"] else 1


if __name__ == "__main__":
    sys.exit(main())
