"""All benchmarks, by hand: ``make bench``, or ``make bench ARGS='boots --rounds 5 --labgrid'`` for one of them.

They compare in turn within one run, for a host is noisy; a quiet host gives the figures of docs/performance.md.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
BENCHES = {
    "cli": ["cli.py"],
    "matrix": ["matrix.py"],
    "transcript": ["transcript.py"],
    "report": ["report.py"],
    "boots": ["boots/compare.py"],
    "agent": ["agent.py"],
    "warm": ["warm.py"],
    "netboot": ["netboot.py"],
    "servers": ["servers.py"],
    "storage-icount": ["storage/icount.py"],
    "storage-overhead": ["storage/overhead.py"],
    "powercuts": ["storage/powercuts.py"],
    "faults": ["faults/run.py"],
}

LONG = ("faults",)
"""Only where it is asked for by name: hours."""


def main() -> int:
    wanted, options = (sys.argv[1:2], sys.argv[2:]) if sys.argv[1:] else ([name for name in BENCHES if name not in LONG], [])
    for name in wanted:
        if name not in BENCHES:
            print(f"no benchmark {name!r}; there are: {', '.join(BENCHES)}", file=sys.stderr)
            return 2
        print(f"\n== {name}", flush=True)
        # As a user's: with PYTHONDONTWRITEBYTECODE each start would compile what pip has not compiled when it installed.
        environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        status = _ended(subprocess.Popen([sys.executable, HERE / BENCHES[name][0], *options], env=environment))
        if status != 0:
            return status
    return 0


def _ended(bench: subprocess.Popen[bytes]) -> int:
    """Its status. Ctrl-C reaches it too, and it has machines to switch off then."""
    while True:
        try:
            return bench.wait()
        except KeyboardInterrupt:
            print("ending", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
