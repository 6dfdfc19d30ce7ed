"""Record what QEMU's VNC server says: python tests/data/rfb/record.py, in the folder of the project, with QEMU and binutils there.

``qemu-7.2.bin.gz`` is a whole conversation: greeting, first screen of tests/data/desktop/screen.S, and the update that a typed h makes.
"""

from __future__ import annotations

import gzip
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from labctl.deadline import Deadline
from labctl.display.vnc import Vnc
from tests.screens import screen


class Recorded(Vnc):
    heard = b""

    def _take(self, count: int) -> bytes:
        data = super()._take(count)
        self.heard += data
        return data


with tempfile.TemporaryDirectory() as folder, screen(Path(folder)) as where, Recorded(*where.vnc, Deadline.after(20)) as vnc:
    vnc.settle(1.0, Deadline.after(30))
    vnc.press("h")
    vnc.next_change(Deadline.after(10))
    (Path(__file__).parent / "qemu-7.2.bin.gz").write_bytes(gzip.compress(vnc.heard, 9, mtime=0))
