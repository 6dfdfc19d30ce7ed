"""The host's CPUs and memory, shared by all labctl processes on it. First come, first served; a dead owner's share is free at once.

One lock file is a map of the host: a byte for each CPU, a byte for each byte of memory, and a queue in which each waiter holds the
byte of the time at which it came. The kernel lets go of all of them when their owner ends.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from labctl.deadline import Deadline
from labctl.errors import ConfigError, InfraError, Problem
from labctl.machine.lockfile import LockFile, attempts, open_lock_file, printable, user_name
from labctl.size import format_size

_CPUS_ENV = "LABCTL_CPUS"
_FILE_NAME = "host-budget.lock"

# The map's regions of locked bytes. CPU n of the k-th round (k > 0 only where CPUs are oversubscribed) is _CPUS + k * _ROUND + n.
_GATE = 0
_CPUS, _CPUS_END = 1 << 20, 1 << 26
_ROUND = 1 << 13
_MEMORY, _MEMORY_END = 1 << 40, 1 << 52
_QUEUE = 1 << 53

_MAX_CPUS = 4096
_LOOK_AGAIN_S = 1.0


@dataclass(frozen=True)
class Capacity:
    """What labctl may use of this host."""

    cpus: tuple[int, ...]
    """Kernel numbers of the CPUs. With LABCTL_CPUS above the real number they repeat: those are oversubscribed."""
    memory: int
    """Bytes: what the host or the control group has, minus a reserve for everything else."""


@dataclass(frozen=True)
class Share:
    """A part of the host that nobody else in labctl uses."""

    cpus: tuple[int, ...]
    """Kernel numbers, fit for pinning."""
    memory: int
    """Bytes."""


@dataclass(frozen=True)
class _Owner:
    """What is told of a share to those who wait for it."""

    user: str
    pid: int
    cpus: int
    memory: int
    why: str

    def sign(self, file: LockFile, places: Sequence[int]) -> None:
        for place in places:
            file.write_record(place - _CPUS, {**asdict(self), "since": time.time()})


def capacity() -> Capacity:
    """CPUs that this process may run on, cut to its control group's quota, or LABCTL_CPUS many; memory of the host minus a reserve,
    or the control group's limit. Read anew at each call. ConfigError if LABCTL_CPUS is no number from 1 to 4096."""
    own = sorted(os.sched_getaffinity(0))
    quota, limit = _cgroup_limits(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
    count = _asked_cpus() or max(1, math.floor(min(len(own), quota)))
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Capacity(tuple(own[i % len(own)] for i in range(count)), min(total - _reserve(total), limit))


def fits(cpus: int, memory: int) -> str:
    """Why a share can never be had on this host; empty if it can. CPUs always can: more than the host has are cut to all."""
    return _misfit(capacity(), cpus, memory)


def _misfit(host: Capacity, cpus: int, memory: int) -> str:
    if cpus < 0 or memory < 0:
        return f"{cpus} CPUs and {memory} bytes: a share cannot be negative"
    if memory <= host.memory:
        return ""
    return f"needs {format_size(memory)} of memory, the host has {_brief(host.memory)} for labctl"


@contextmanager
def take(
    cpus: int,
    memory: int,
    *,
    exclusive: bool = False,
    why: str = "",
    deadline: Deadline,
    on_wait: Callable[[str], None] | None = None,
) -> Iterator[Share]:
    """Own a part of the host for this block; waits for it until the deadline, behind those who came first.

    ``exclusive`` waits until nobody else has a share, and gives the whole host. ``on_wait`` is told what is waited for, once and
    whenever the owners change. Raises InfraError when the deadline has passed, or at once if the host has not that much memory.
    """
    host = capacity()
    if reason := _misfit(host, cpus, memory):
        raise InfraError(reason, remedy="a smaller target, or a larger host")
    wanted = min(cpus, len(host.cpus))
    asked = "the whole host" if exclusive else f"{_count(wanted)} and {format_size(memory)}"
    with open_lock_file(_FILE_NAME, deadline) as file:
        ticket = _queue_up(file, deadline)
        size = (len(host.cpus), host.memory) if exclusive else (wanted, memory)
        us = _Owner(user_name(), os.getpid(), *size, printable(why))
        told: list[str] | None = None
        began, look_at = time.monotonic(), 0.0
        for _ in attempts(deadline):
            if not file.is_held(_QUEUE, ticket - _QUEUE):
                with file.locked(_GATE, _in_any_case(deadline)):
                    bytes_of_cpus = _try_take(file, host, wanted, memory, exclusive, us)
                if bytes_of_cpus is not None:
                    break
            if on_wait is not None and (now := time.monotonic()) >= look_at:
                owners = _owners(file)
                if not owners and now - began < _LOOK_AGAIN_S:
                    continue  # whoever is before us is about to take his share
                look_at = now + _LOOK_AGAIN_S
                if owners != told:
                    told = owners
                    on_wait(f"waits for {asked}: {_in_use(file, owners, ticket)}")
        else:
            raise InfraError(
                f"no room on the host for {asked} within {deadline.seconds:g} s: {_in_use(file, _owners(file), ticket)}",
                remedy="run fewer at once (-n), or wait until the others have ended",
            )
        file.unlock(ticket)
        yield Share(host.cpus, host.memory) if exclusive else Share(tuple(_cpu(b) for b in bytes_of_cpus), memory)


def _queue_up(file: LockFile, deadline: Deadline) -> int:
    """The byte that is our place in the queue. Places are moments of the host's monotonic clock, given out one at a time."""
    with file.locked(_GATE, _in_any_case(deadline)):
        ticket = _QUEUE + time.monotonic_ns()
        while not file.try_lock(ticket):
            ticket += 1
    return ticket


def _in_any_case(deadline: Deadline) -> Deadline:
    """For the gate, which is held for microseconds: a deadline that has passed must not turn away who could be served at once."""
    return deadline if deadline.left > 1.0 else Deadline.after(1.0)


def _try_take(file: LockFile, host: Capacity, cpus: int, memory: int, exclusive: bool, us: _Owner) -> list[int] | None:
    """Lock a share, behind the gate; the bytes of its CPUs, or None if there is not enough. Who has it is written before it is had: whoever
    finds a byte held finds the name."""
    places = _places(host.cpus)
    if exclusive:
        regions = ((_CPUS, _CPUS_END), (_MEMORY, _MEMORY_END))
        if any(file.held(*region) for region in regions):
            return None
        us.sign(file, places)
        return places if _lock_all(file, [(start, end - start) for start, end in regions]) else None
    busy = file.held(_CPUS, _CPUS_END)
    free = [p for p in places if not any(start <= p < end for start, end in busy)]
    pieces = _free_pieces(file.held(_MEMORY, _MEMORY + host.memory), _MEMORY + host.memory, memory)
    if len(free) < cpus or pieces is None:
        return None
    us.sign(file, free[:cpus])
    return free[:cpus] if _lock_all(file, [*((p, 1) for p in free[:cpus]), *pieces]) else None


def _lock_all(file: LockFile, ranges: Sequence[tuple[int, int]]) -> bool:
    for index, (start, length) in enumerate(ranges):
        if not file.try_lock(start, length):
            for taken in ranges[:index]:
                file.unlock(*taken)
            return False
    return True


def _free_pieces(held: Sequence[tuple[int, int]], end: int, wanted: int) -> list[tuple[int, int]] | None:
    """Ranges ``(start, length)`` between the held ones that sum up to what is wanted; None if there is less. Memory need not be
    in one piece: the map says how much, not where."""
    pieces: list[tuple[int, int]] = []
    at = _MEMORY
    for low, high in (*held, (end, end)):
        length = min(low - at, wanted)
        if length > 0:
            pieces.append((at, length))
            wanted -= length
        at = max(at, high)
    return None if wanted else pieces


def _places(cpus: Sequence[int]) -> list[int]:
    """Bytes of the CPUs on the map; a CPU that comes again has a byte in the next round."""
    rounds: dict[int, int] = {}
    places = []
    for cpu in cpus:
        rounds[cpu] = rounds.get(cpu, -1) + 1
        places.append(_CPUS + rounds[cpu] * _ROUND + cpu)
    return places


def _cpu(place: int) -> int:
    return (place - _CPUS) % _ROUND


def _owners(file: LockFile) -> list[str]:
    """Who has a share, each once. An owner without a CPU leaves no name."""
    owners: dict[str, None] = {}
    for start, end in file.held(_CPUS, _CPUS_END):
        for place in range(start, min(end, start + _MAX_CPUS)):
            match file.read_record(place - _CPUS):
                case {"user": str(user), "pid": int(pid), "cpus": int(cpus), "memory": int(memory), "why": str(why)}:
                    text = f"{user} (pid {pid}) has {_count(cpus)} and {_brief(memory)}"
                    owners[printable(f"{text}: {why}" if why else text)] = None
    return list(owners)


def _in_use(file: LockFile, owners: Sequence[str], ticket: int, most: int = 8) -> str:
    before = len(file.held(_QUEUE, ticket))
    said = list(owners[:most])
    if not owners and any(file.held(*region) for region in ((_CPUS, _CPUS_END), (_MEMORY, _MEMORY_END))):
        said.append("in use by somebody who left no name")
    if len(owners) > most:
        said.append(f"… {len(owners) - most} more")
    if before:
        said.append(f"{before} waiting before this one")
    return "; ".join(said) or "free just now"


def _brief(memory: int) -> str:
    """As a target's file has it; what no file would say, such as all of the host's, to a tenth of a gigabyte."""
    exact = format_size(memory)
    if exact[-1] in "TGM":
        return exact
    return f"{memory / (1 << 30):.1f}G" if memory >= 1 << 30 else f"{memory / (1 << 20):.1f}M"


def _count(cpus: int) -> str:
    return f"{cpus} CPU" if cpus == 1 else f"{cpus} CPUs"


def _asked_cpus() -> int:
    """LABCTL_CPUS, 0 if it is not set."""
    text = os.environ.get(_CPUS_ENV, "")
    if not text:
        return 0
    if text.isascii() and text.isdigit() and 1 <= int(text) <= _MAX_CPUS:
        return int(text)
    raise ConfigError([Problem("environment", _CPUS_ENV, f"found {text!r}", f"a number from 1 to {_MAX_CPUS}")])


def _reserve(total: int) -> int:
    """Left to the system and to labctl itself: a sixteenth, from 256M to 2G."""
    return min(max(total >> 4, 256 << 20), 2 << 30)


def _cgroup_limits(membership: Path, root: Path) -> tuple[float, int]:
    """CPUs and bytes that the control groups of this process allow, version 2 or 1; infinite and very much where they do not say.

    A limit of any ancestor holds. In a container the path may not exist below ``root``, which then is the group itself.
    """
    quota, memory = math.inf, 1 << 62
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return quota, memory
    for line in lines:
        _, controllers, path = line.split(":", 2)
        names = controllers.split(",")
        base = root if not controllers else root / controllers
        for folder in _ancestors(base, path):
            if not controllers:
                memory = min(memory, _number(folder / "memory.max"))
                quota = min(quota, _ratio(*_words(folder / "cpu.max", 2)))
            if "memory" in names:
                memory = min(memory, _number(folder / "memory.limit_in_bytes"))
            if "cpu" in names:
                quota = min(quota, _ratio(_words(folder / "cpu.cfs_quota_us", 1)[0], _words(folder / "cpu.cfs_period_us", 1)[0]))
    return quota, memory


def _ancestors(base: Path, path: str) -> Iterator[Path]:
    folder = base / path.lstrip("/")
    if ".." in folder.parts:  # a group outside of what this namespace shows
        folder = base
    while folder != base:
        yield folder
        folder = folder.parent
    yield base


def _words(file: Path, count: int) -> list[str]:
    try:
        words = file.read_text().split()
    except OSError:
        words = []
    return (words + [""] * count)[:count]


def _number(file: Path) -> int:
    (word,) = _words(file, 1)
    return int(word) if word.isdigit() else 1 << 62


def _ratio(quota: str, period: str) -> float:
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else math.inf
