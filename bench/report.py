"""How long the report of 10,000 cells and 100,000 samples takes, and how large it is. Prints one JSON object. Limits: 5 s, 3 MB.

Of the page alone, and of all that is written beside it; also of the 8 cells of a small run, imports included, in a fresh process.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the made-up runs are the tests' own

from labctl.report.html import write_html  # noqa: E402
from labctl.report.write import write_reports  # noqa: E402
from tests.report_runs import large_run  # noqa: E402

LIMIT_S = 5.0
LIMIT_BYTES = 3_000_000
ROUNDS = 3
SMALL = """
import sys, time
from pathlib import Path
from tests.report_runs import ordinary_run
run = ordinary_run(Path(sys.argv[1]))
start = time.perf_counter()
from labctl.report.write import write_reports
write_reports(run)
print(time.perf_counter() - start)
"""


def small(folder: Path) -> float:
    done = subprocess.run([sys.executable, "-c", SMALL, str(folder)], cwd=ROOT, capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = large_run(folder / "large")
        page_s, all_s = [], []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            page = write_html(run, folder / "report.html")
            page_s.append(time.perf_counter() - start)
            start = time.perf_counter()
            write_reports(run)
            all_s.append(time.perf_counter() - start)
        size = page.stat().st_size
        passed = max(page_s) <= LIMIT_S and size <= LIMIT_BYTES
        figures = {
            "bench": "report",
            "cells": len(run.cells),
            "samples": sum(len(result.samples) for result in run.cells),
            "page_median_s": round(statistics.median(page_s), 3),
            "page_max_s": round(max(page_s), 3),
            "page_mb": round(size / 1e6, 3),
            "all_median_s": round(statistics.median(all_s), 3),
            "small_median_s": round(statistics.median(small(folder / "small") for _ in range(ROUNDS)), 3),
            "limit_s": LIMIT_S,
            "limit_mb": LIMIT_BYTES / 1e6,
            "pass": passed,
        }
    print(json.dumps(figures))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
