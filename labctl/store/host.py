"""The host that figures were taken on: what it is, and in what state it is right now."""

from __future__ import annotations

import os
import platform
import re
from functools import cache
from pathlib import Path

import labctl
from labctl.deadline import Deadline
from labctl.errors import InfraError
from labctl.process import run

_PROC = Path("/proc")
_QEMU = "qemu-system-x86_64"
_FREQUENCY = re.compile(rb"^cpu MHz\s*:\s*([\d.]+)", re.MULTILINE)
_MODEL = re.compile(rb"^(?:model name|Model|Hardware)\s*:\s*(.+)$", re.MULTILINE)
_PRESSURE = re.compile(rb"^some avg10=([\d.]+)", re.MULTILINE)
# The first processors' part of /proc/cpuinfo, which the kernel makes as it is read: the whole is dear on a large machine.
_CPUINFO_BYTES = 16 << 10

_last_ticks: tuple[int, int] | None = None


def identity() -> dict[str, str]:
    """What makes figures of two hosts incomparable: CPU model, cores, memory in bytes, versions.

    QEMU's version is asked for once in a process (30 ms); it reads ``none`` where there is no QEMU.
    """
    memory = re.search(rb"^MemTotal:\s*(\d+) kB", _read("meminfo"), re.MULTILINE)
    model = _MODEL.search(_read("cpuinfo"))
    return {
        "cpu": model[1].decode(errors="replace").strip() if model else platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": str(int(memory[1]) * 1024 if memory else 0),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "qemu": _qemu_version(),
        "labctl": labctl.__version__,
    }


def conditions() -> dict[str, float]:
    """The host's state now; under 1 ms. What the kernel does not tell is left out.

    ``load1`` (runnable tasks, 1 minute), ``steal`` (share 0 to 1 of the CPU time since the last call, or since the host's
    start, that a hypervisor below took away), ``cpu_pressure``, ``memory_pressure``, ``io_pressure`` (percent of the last
    10 s in which some task waited) and ``mhz`` (of the first CPUs). Sources: proc(5), Documentation/accounting/psi.rst.
    """
    found: dict[str, float] = {}
    if load := _read("loadavg").split():
        found["load1"] = float(load[0])
    if (steal := _steal()) is not None:
        found["steal"] = steal
    for resource in ("cpu", "memory", "io"):
        if pressure := _PRESSURE.search(_read(f"pressure/{resource}")):
            found[f"{resource}_pressure"] = float(pressure[1])
    if frequencies := _FREQUENCY.findall(_read("cpuinfo")):
        found["mhz"] = round(sum(map(float, frequencies)) / len(frequencies), 1)
    return found


def _steal() -> float | None:
    global _last_ticks
    # cpu user nice system idle iowait irq softirq steal guest guest_nice; the guests' share is in user and nice already.
    ticks = [int(word) for word in _read("stat").split(b"\n", 1)[0].split()[1:9]]
    if len(ticks) < 8:
        return None
    now = (ticks[7], sum(ticks))
    before = _last_ticks or (0, 0)
    _last_ticks = now
    passed = now[1] - before[1]
    return round((now[0] - before[0]) / passed, 4) if passed > 0 else 0.0


@cache
def _qemu_version() -> str:
    try:
        said = run([_QEMU, "--version"], Deadline.after(10))
    except InfraError:
        return "none"
    found = re.search(r"version (\S+)", said.out)
    return found[1] if found else "unknown"


def _read(name: str) -> bytes:
    """The beginning of a file of /proc; empty if this kernel has none."""
    try:
        with (_PROC / name).open("rb", buffering=0) as file:
            return file.read(_CPUINFO_BYTES)
    except OSError:
        return b""
