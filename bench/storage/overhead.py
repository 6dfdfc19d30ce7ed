"""What the lab adds to a job of fio's that runs 10 s: from the test's begin to its end, fio's own start in the machine, the transfer of its
report, its parsing and the records included. Reach: 5 % of the job's time.

    .venv/bin/python -m bench storage-overhead --target storage-virtio-null
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys

from bench.storage.cell import run

REACH = 5.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", default="storage-virtio-null")
    parser.add_argument("--seconds", type=float, default=10)
    options = parser.parse_args()
    cell = run(
        "test_speed and (randread-1 or randread-8 or randread-32 or randwrite-8)",
        *("--build", "debian-cloud", "--target", options.target),
        STORAGE_SECONDS=str(options.seconds),
    )
    # The machine boots in the first.
    names = list(cell.seconds)[1:]
    added = {name.partition("[")[2].rstrip("]"): cell.seconds[name] - options.seconds for name in names}
    percent = round(100 * statistics.median(added.values()) / options.seconds, 2) if added else None
    figures = {
        "bench": "storage-overhead",
        "load": round(os.getloadavg()[0], 1),
        "added_s": {name: round(value, 3) for name, value in added.items()},
        "median_percent": percent,
        "reach_percent": REACH,
        "pass": cell.passed and percent is not None and percent <= REACH,
    }
    print(json.dumps(figures, indent=2))
    if not cell.passed:
        print(cell.said, file=sys.stderr)
    return 0 if figures["pass"] else 1


if __name__ == "__main__":
    sys.exit(main())
