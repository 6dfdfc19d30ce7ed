"""What a QEMU on this host is able to be: its machines, its accelerator, and what a kernel must be told on each."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal

from labctl.config import nearest
from labctl.deadline import Deadline
from labctl.errors import HostToolMissing, ManagementError, Problem
from labctl.machine import qemu_network
from labctl.machine.accel import choose
from labctl.model import Target
from labctl.process import run
from labctl.size import format_size

BINARIES = {"x86_64": "qemu-system-x86_64", "aarch64": "qemu-system-aarch64", "riscv64": "qemu-system-riscv64"}
START_DEADLINE = 20.0
"""Seconds that QEMU may take to answer QMP, on a loaded host."""
MOST_DISK = 2048 << 40
"""Bytes of the largest qcow2 with clusters of 64 KiB, which are qemu-img's own choice."""
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


@cache
def virtualizes(binary: str, cpu: str) -> bool:
    """Whether an emulated CPU (``EPYC,svm=on``) has SVM or VMX, by QMP's ``query-cpu-model-expansion``; true if QEMU does not tell."""
    name, *words = cpu.split(",")
    properties = {word.lstrip("+-").partition("=")[0]: not (word.startswith("-") or word.endswith("=off")) for word in words if word}
    model = {"name": name, "props": {key: value for key, value in properties.items() if key in ("svm", "vmx")}}
    asked = (
        {"execute": "qmp_capabilities"},
        {"execute": "query-cpu-model-expansion", "arguments": {"type": "full", "model": model}},
        {"execute": "quit"},
    )
    with suppress(HostToolMissing, ManagementError, OSError, ValueError, KeyError, TypeError, StopIteration):
        said = run(
            [binary, "-machine", "none", "-accel", "tcg", "-nodefaults", "-display", "none", "-S", "-qmp", "stdio"],
            Deadline.after(START_DEADLINE),
            stdin="".join(json.dumps(each) for each in asked).encode(),
        )
        answers = [json.loads(line).get("return") for line in said.out.splitlines()]
        found = next(answer["model"]["props"] for answer in answers if isinstance(answer, dict) and "model" in answer)
        return bool(found.get("svm") or found.get("vmx"))
    return True


def refused(target: Target, options: Mapping[str, Any]) -> list[Problem]:
    """What QEMU would refuse. It is asked only about a machine that is not one of the usual."""
    where, config = f"targets/{target.name}.toml", target.config
    found = qemu_network.problems(target)
    if config.disk and config.disk > MOST_DISK and options.get("disk_bus") != "none":
        found.append(Problem(where, "disk", f"found {format_size(config.disk)}", f"at most {format_size(MOST_DISK)}: a qcow2 has no more"))
    name = str(options.get("machine", "q35")).partition(",")[0]
    extra = options.get("extra") or []
    if config.cpus <= USUAL_MACHINES.get(name, 0) or {"-M", "-machine", "--machine", "-smp", "--smp"}.intersection(extra):
        return found
    known = machines(str(options.get("binary") or BINARIES[config.arch]))
    if known and name not in known:
        found.append(
            Problem(where, "drivers.qemu.machine", f"found {name!r}", f"no machine of this QEMU; {nearest(name, without_version(known))}")
        )
    elif known and config.cpus > known[name]:
        found.append(Problem(where, "cpus", f"found {config.cpus}", f"at most {known[name]} on QEMU's machine {name}"))
    return found


def accelerator_of(target: Target, wanted: Literal["auto", "kvm", "tcg"]) -> Literal["kvm", "tcg"]:
    return choose(wanted).name if target.config.arch == "x86_64" else "tcg"


def clock_words(machine: str, accelerator: str) -> str:
    """What a kernel must be told to keep time.

    Linux on a PC panics where it sees no tick in a time that a busy host lets pass (``IO-APIC + timer doesn't work``), unless it is told
    not to look. Microvm has neither HPET nor PM timer to measure the TSC against: where a busy host lets that fail, the kernel waits for
    ever for a tick that it did not set up. An emulated TSC runs at the speed of the host's own.
    """
    if accelerator != "tcg":
        return ""
    if machine != "microvm":
        return " no_timer_check" if machine.split(",")[0] in ("q35", "pc") else ""
    speed = re.search(r"^cpu MHz\s*: ([0-9.]+)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return f" tsc_early_khz={float(speed[1]) * 1000:.0f}" if speed else ""


def counted_words(machine: str, disk: bool) -> str:
    """What a kernel must be told where instructions are counted, with a disk or without."""
    # The TSC counts virtual nanoseconds. A kernel at an address of its own choice has other cache lines and page tables each time.
    words = " nokaslr" + (" tsc_early_khz=1000000" if machine == "microvm" else "")
    # Virtual time jumps to the next alarm while the disk works: the reference kernel must not set one.
    return words + (" disk-timeout=0" if disk else "")


def last_words(log: Path) -> str:
    """Why QEMU has ended, as far as it says so."""
    with suppress(OSError):
        lines = log.read_bytes()[-4096:].decode(errors="replace").strip().splitlines()
        # QEMU's last line may be an advice; what it refuses stands where it says its own name.
        return next((line for line in reversed(lines) if line.startswith("qemu-")), lines[-1]) if lines else ""
    return ""
