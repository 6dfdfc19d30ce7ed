"""What Xen's xl prints → values. It is for people, and names in it are what somebody called a VM: strict, and ValueError for all else."""

from __future__ import annotations

import re
from dataclasses import dataclass

FIRST = "Domain-0"
"""The machine itself, as Xen sees it."""
_LISTED = re.compile(r"(\S{1,256}) +([0-9]{1,5}) +([0-9]{1,9}) +([0-9]{1,4})\s+([r-][b-][p-][s-][c-][d-]) +([0-9]{1,12}\.[0-9])")
_LIST_HEAD = re.compile(r"Name +ID +Mem +VCPUs\s+State\s+Time\(s\)")
_VCPU = re.compile(r"(\S{1,256}) +([0-9]{1,5}) +([0-9]{1,4}) +([0-9]{1,4}|-) +\S{3} +[0-9]{1,12}\.[0-9] +(\S+) / \S+ *")
_VCPU_HEAD = re.compile(r"Name +ID +VCPU +CPU +State +Time\(s\) +Affinity \(Hard / Soft\)")
_ENDED = re.compile(r"Domain ([0-9]{1,5}) has shut down, reason code ([0-9]{1,10}) ")
_REASONS = {
    0: "",
    1: "its guest has reset itself, or lost its way (a triple fault is a reset)",
    2: "its guest was suspended and not resumed",
    3: "its guest has crashed",
    4: "its guest's watchdog has bitten",
}
"""SHUTDOWN_* of Xen's public/sched.h; what is no fault has no word."""


@dataclass(frozen=True, slots=True)
class Domain:
    name: str
    id: int
    memory: int
    """MiB."""
    cpus: int
    paused: bool
    ending: bool
    """Shut down, crashed or dying: not an instruction of it runs any more."""


def domains(text: str) -> dict[str, Domain]:
    """``xl list`` without the machine itself."""
    head, *lines = text.splitlines() or [""]
    if not _LIST_HEAD.fullmatch(head.strip()):
        raise ValueError(f"no list of VMs: {head[:200]!r}")
    found: dict[str, Domain] = {}
    for line in lines:
        if (match := _LISTED.fullmatch(line.strip())) is None:
            raise ValueError(f"no VM in a list: {line[:200]!r}")
        name, number, memory, cpus, flags, _ = match.groups()
        if name != FIRST:
            found[name] = Domain(name, int(number), int(memory), int(cpus), flags[2] == "p", flags[3:] != "---")
    return found


def affinities(text: str, machine_cpus: int) -> tuple[tuple[int, ...], ...]:
    """``xl vcpu-list NAME``: of each of its CPUs those of the machine on which it may run."""
    head, *lines = text.splitlines() or [""]
    if not _VCPU_HEAD.fullmatch(head.strip()):
        raise ValueError(f"no list of a VM's CPUs: {head[:200]!r}")
    found = {}
    for line in lines:
        if (match := _VCPU.fullmatch(line.strip() + " ")) is None:
            raise ValueError(f"no CPU in a list: {line[:200]!r}")
        found[int(match[3])] = _cpus(match[5], machine_cpus)
    return tuple(cpus for _, cpus in sorted(found.items()))


def _cpus(text: str, most: int) -> tuple[int, ...]:
    if text == "all":
        return tuple(range(most))
    numbers: list[int] = []
    for part in text.split(","):
        if (match := re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", part)) is None:
            raise ValueError(f"no list of CPUs: {text[:200]!r}")
        numbers += range(int(match[1]), int(match[2] or match[1]) + 1)
    return tuple(numbers)


def ending(log: str) -> str:
    """The log that xl writes of a VM → how it ended by itself; empty where its guest has powered it off."""
    found = list(_ENDED.finditer(log))
    if not found:
        return "it is gone, and Xen's toolstack has not seen its guest end: somebody destroyed it"
    code = int(found[-1][2])
    return _REASONS.get(code, f"its guest has ended for the reason {code} of Xen's")
