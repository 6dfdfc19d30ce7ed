"""What the host says about itself."""

from __future__ import annotations

import math
import os
import platform
import time
from pathlib import Path

import pytest

from labctl.store import host


def test_the_identity_tells_what_makes_figures_comparable() -> None:
    found = host.identity()
    assert set(found) == {"cpu", "cores", "memory", "kernel", "python", "qemu", "labctl"}
    assert found["kernel"] == os.uname().release
    assert found["python"] == platform.python_version()
    assert int(found["memory"]) == pytest.approx(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), rel=0.01)
    assert all(found.values())


def test_qemu_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    host.identity()
    monkeypatch.setenv("PATH", "")
    before = time.perf_counter()
    assert host.identity()["qemu"]
    assert time.perf_counter() - before < 0.02


def test_without_qemu_it_says_none(monkeypatch: pytest.MonkeyPatch) -> None:
    host._qemu_version.cache_clear()
    monkeypatch.setenv("PATH", "")
    assert host.identity()["qemu"] == "none"
    host._qemu_version.cache_clear()


def test_conditions_are_numbers_and_cheap() -> None:
    found = host.conditions()
    assert {"load1", "steal"} <= set(found)
    assert set(found) <= {"load1", "steal", "cpu_pressure", "memory_pressure", "io_pressure", "mhz"}
    assert all(math.isfinite(value) and value >= 0 for value in found.values())
    best = min(_seconds_of_a_call() for _ in range(20))
    assert best < 0.001


def _seconds_of_a_call() -> float:
    before = time.perf_counter()
    host.conditions()
    return time.perf_counter() - before


def test_conditions_read_a_known_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pressure").mkdir()
    (tmp_path / "loadavg").write_text("1.25 0.50 0.10 2/100 4242\n")
    (tmp_path / "stat").write_text("cpu  100 0 100 700 0 0 0 100 0 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n")
    (tmp_path / "pressure/cpu").write_text("some avg10=12.50 avg60=0.00 avg300=0.00 total=1\nfull avg10=7.00 avg60=0 avg300=0 total=0\n")
    (tmp_path / "cpuinfo").write_text("processor : 0\ncpu MHz\t\t: 1000.0\nprocessor : 1\ncpu MHz\t\t: 3000.0\n")
    monkeypatch.setattr(host, "_PROC", tmp_path)
    monkeypatch.setattr(host, "_last_ticks", None)
    assert host.conditions() == {"load1": 1.25, "steal": 0.1, "cpu_pressure": 12.5, "mhz": 2000.0}
    (tmp_path / "stat").write_text("cpu  150 0 100 700 0 0 0 150 40 0\n")
    assert host.conditions()["steal"] == 0.5
    assert host.conditions()["steal"] == 0.0


def test_a_kernel_that_tells_nothing_is_borne(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_PROC", tmp_path)
    assert host.conditions() == {}
    assert host.identity()["cpu"]
