"""A hundred power cuts under write load on one file system. Reach: no block that was fsync'd is lost; on a disk that lies, some are.

.venv/bin/python -m bench powercuts --cuts 100 --filesystem ext4
"""

from __future__ import annotations

import argparse
import json
import sys
import time

from bench.storage.cell import run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuts", type=int, default=100)
    parser.add_argument("--filesystem", default="ext4", choices=["ext4", "xfs"])
    options = parser.parse_args()
    began = time.monotonic()
    tests = f"test_power_cuts and {options.filesystem}"
    honest = run(tests, "--build", "debian-cloud", "--target", "storage-powercut", STORAGE_CUTS=str(options.cuts))
    lying = run(tests, "--build", "debian-cloud", "--target", "storage-powercut-lying", STORAGE_CUTS="1")
    promised = [sample.value for sample in honest.samples if sample.metric == "storage.promised_blocks"]
    lost = [sample.value for sample in honest.samples if sample.metric == "storage.lost_blocks"]
    planted = [sample.value for sample in lying.samples if sample.metric == "storage.lost_blocks"]
    # A lost journal or superblock is a loss that is seen before any block can be counted.
    found = not lying.passed and (sum(planted) > 0 or "mount" in lying.said)
    figures = {
        "bench": "powercuts",
        "filesystem": options.filesystem,
        "cuts": len(lost),
        "promised_blocks": int(sum(promised)),
        "lost_blocks": int(sum(lost)),
        "reach_lost_blocks": 0,
        "planted_lost_blocks": int(sum(planted)),
        "planted_found": found,
        "seconds": round(time.monotonic() - began),
        "pass": honest.passed and len(lost) == options.cuts and sum(lost) == 0 and found,
    }
    print(json.dumps(figures, indent=2))
    if not honest.passed:
        print(honest.said, file=sys.stderr)
    return 0 if figures["pass"] else 1


if __name__ == "__main__":
    sys.exit(main())
