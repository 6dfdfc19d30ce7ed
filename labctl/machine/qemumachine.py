"""What a QEMU on this host is able to be: its machines, its accelerator, and what a kernel must be told on each."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Literal

from labctl.deadline import Deadline
from labctl.errors import HostToolMissing, ManagementError
from labctl.machine.accel import choose
from labctl.model import Target
from labctl.process import run

BINARIES = {"x86_64": "qemu-system-x86_64", "aarch64": "qemu-system-aarch64", "riscv64": "qemu-system-riscv64"}
START_DEADLINE = 20.0
"""Seconds that QEMU may take to answer QMP, on a loaded host."""
USUAL_MACHINES = {"q35": 255, "microvm": 255, "pc": 255, "virt": 8}
"""Machines that every QEMU has for the architectures that they are of, and how many CPUs it has given each for many years."""


def without_version(machines: Iterable[str]) -> list[str]:
    return [name for name in machines if not re.search(r"-\d+\.\d+$", name)]


@cache
def machines(binary: str) -> Mapping[str, int]:
    """The machines that a QEMU has, aliases too, and the most CPUs of each, by QMP's ``query-machines``; empty if it does not tell."""
    asked = "".join(json.dumps({"execute": command}) for command in ("qmp_capabilities", "query-machines", "quit"))
    with suppress(HostToolMissing, ManagementError, OSError, ValueError, KeyError, TypeError):
        said = run(
            [binary, "-machine", "none", "-nodefaults", "-display", "none", "-S", "-qmp", "stdio"],
            Deadline.after(START_DEADLINE),
            stdin=asked.encode(),
        )
        answers = [json.loads(line).get("return") for line in said.out.splitlines()]
        found = next(answer for answer in answers if isinstance(answer, list))
        return {name: each["cpu-max"] for each in found for name in (each["name"], each.get("alias")) if name}
    return {}


def accelerator_of(target: Target, wanted: Literal["auto", "kvm", "tcg"]) -> Literal["kvm", "tcg"]:
    return choose(wanted).name if target.config.arch == "x86_64" else "tcg"


def clock_words(machine: str, accelerator: str) -> str:
    """What a kernel must be told to keep time. Microvm has neither HPET nor PM timer to measure the TSC against: where a busy host lets
    that fail, the kernel waits for ever for a tick that it did not set up. An emulated TSC runs at the speed of the host's own."""
    if machine != "microvm" or accelerator != "tcg":
        return ""
    speed = re.search(r"^cpu MHz\s*: ([0-9.]+)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return f" tsc_early_khz={float(speed[1]) * 1000:.0f}" if speed else ""
