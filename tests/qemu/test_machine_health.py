"""What a server says of itself, in the report of a run on it: an event while it ran, temperature and draw beside a benchmark."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from pathlib import Path

import pytest

from bench.faults.run import make_lab
from labctl.virtualserver import bmc
from tests.temporary_lab import LABCTL
from tests.virtual_servers import virtual_server

pytestmark = pytest.mark.qemu
SUITE = """import pytest
from labctl.model import Direction, Metric

BEATS = Metric("beats", "1", Direction.HIGHER, "lines heard")


@pytest.mark.benchmark
def test_it_beats(console, record):
    for _ in range(4):
        console.expect(rb"beat \\w{4}\\r")
    record(BEATS, 4)
"""


def test_it_is_in_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABCTL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LABCTL_LOCKS", str(tmp_path / "cache" / "locks"))
    root = tmp_path / "lab"
    make_lab(root)
    (root / "suites" / "beats" / "test_beats.py").write_text(SUITE)
    with virtual_server(root) as server:

        def overheat() -> None:
            """Once it runs: what was logged before belongs to nobody."""
            log = server.files.serial_log
            end = time.monotonic() + 200
            while not (log.exists() and b"beat 0001" in log.read_bytes()) and time.monotonic() < end:
                time.sleep(0.05)
            bmc.tell_simulator(server.settings, [bmc._EVENT.format(time="0x10 0x20 0x30 0x64", number=1)])

        heating = threading.Thread(target=overheat)
        heating.start()
        words = [LABCTL, "run", "matrix", "--target", server.name, "--json"]
        done = subprocess.run(words, cwd=root, capture_output=True, text=True, check=False, timeout=300)
        heating.join()
        assert done.returncode == 0, done.stdout + done.stderr
        told = json.loads(done.stdout)
        (cell,) = told["cells"]
        (event,) = cell["machine_events"]
        assert event["text"] == "temperature, sensor 1: asserted, event 59 64 5a"
        (sample,) = (s for s in cell["samples"] if s["metric"] == "beats")
        assert sample["machine"] == {"machine_degc": 45.0, "machine_watts": 180.0}
        page = Path(told["report"]).read_text()
        assert event["text"] in page
        (arrival,) = cell["arrived"]  # what booted is what every byte was checked of
        assert arrival["digest"].startswith("sha256:")
        assert arrival["digest"] in page
        assert "45 °C" in page
        assert "180 W" in page
        text = subprocess.run([LABCTL, "runs", "show", told["run"]], cwd=root, capture_output=True, text=True, check=True).stdout
        assert f"{cell['id']}: " in text
        assert event["text"] in text
