"""One owner for each target, or ``instances`` of it, across processes and users of one host. A dead owner frees it at once.

A machine that drivers reach at an address (a BMC, an outlet, a serial port) is owned by that address besides, so that two labs which
describe it under different names exclude each other.

A lease is (target, slot, fence): the fence grows with each owner of the target, so that whoever keeps state beside the target can
refuse a former owner.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path

from labctl.deadline import Deadline
from labctl.errors import TargetBusy
from labctl.machine import registry, standing
from labctl.machine.lockfile import LockFile, attempts, open_lock_file, peek, printable, user_name
from labctl.model import Target

# Locked bytes and records: 0 is the fence, 1 + slot an owner, and one is held by whoever gathers several slots.
_FENCE = 0
_GATHERING = 1 << 16
_LOOK_AGAIN_S = 1.0


@dataclass(frozen=True)
class Holder:
    """Who holds one instance of a target, as they said it themselves; ``user`` is ``unknown`` if what they said cannot be read."""

    user: str
    pid: int
    since: float
    """Seconds since the Unix epoch."""
    why: str
    slot: int

    def __str__(self) -> str:
        if not self.pid:
            return "somebody who left no name"
        since = time.strftime("%H:%M:%S", time.localtime(self.since))
        text = f"{self.user} (pid {self.pid}) since {since} ({_age(time.time() - self.since)})"
        return f"{text}: {self.why}" if self.why else text


@dataclass(frozen=True)
class Lease:
    """The right to use one instance of a target, as long as the block of `hold` lasts."""

    target: str
    slot: int
    """0 … instances - 1; no two leases of one target have the same at a time."""
    fence: int
    """Larger than that of every earlier lease of this target."""
    holder: Holder


@contextmanager
def hold(
    target: Target,
    lab_root: Path,
    *,
    why: str,
    deadline: Deadline,
    on_wait: Callable[[str], None] | None = None,
) -> Iterator[Lease]:
    """Own the target for this block; waits for it until the deadline. A free target is had even if the deadline has passed.

    ``on_wait`` is told who holds it, once and whenever that changes. Raises TargetBusy with who, since when and why.
    """
    standing.check_free(lab_root, target.name)
    instances = target.config.instances
    with open_lock_file(_file_name(target.name, lab_root), deadline) as file:
        slot = _wait_for_slot(file, target.name, instances, deadline, on_wait)
        holder = Holder(user_name(), os.getpid(), time.time(), printable(why), slot)
        file.write_record(1 + slot, asdict(holder))
        try:
            with ExitStack() as stack:
                for address in registry.occupied(target):  # in one order everywhere, so that no two wait for each other
                    stack.enter_context(_address(address, target.name, lab_root, holder, deadline, on_wait))
                yield Lease(target.name, slot, _next_fence(file, deadline), holder)
        finally:
            file.clear_record(1 + slot)


@contextmanager
def hold_all(
    targets: Sequence[Target],
    lab_root: Path,
    *,
    why: str,
    deadline: Deadline,
    on_wait: Callable[[str], None] | None = None,
) -> Iterator[tuple[Lease, ...]]:
    """Own several targets for this block, one of them perhaps several times; the leases in the order of their names.

    Nobody waits in a circle: everybody takes them in that one order, and of those who need several instances of one target only one
    gathers them at a time. TargetBusy as `hold`.
    """
    wanted = sorted(targets, key=lambda target: target.name)
    for name in dict.fromkeys(target.name for target in wanted):
        standing.check_free(lab_root, name)  # before anything is waited for
    with ExitStack() as held:
        leases: list[Lease] = []
        for name, group in groupby(wanted, key=lambda target: target.name):
            same = list(group)
            with ExitStack() as gathering:
                if len(same) > 1:
                    file = gathering.enter_context(open_lock_file(_file_name(name, lab_root), deadline))
                    gathering.enter_context(file.locked(_GATHERING, deadline))
                leases += [held.enter_context(hold(target, lab_root, why=why, deadline=deadline, on_wait=on_wait)) for target in same]
        yield tuple(leases)


@contextmanager
def _address(
    address: str, target: str, lab_root: Path, holder: Holder, deadline: Deadline, on_wait: Callable[[str], None] | None
) -> Iterator[None]:
    """Own what stands at an address of this host or network, whatever lab names it."""
    with open_lock_file(_address_file(address), deadline) as file:
        _wait_for_slot(file, f"{target} ({address})", 1, deadline, on_wait)
        why = printable(f"{holder.why} (target {target} of {os.path.realpath(lab_root)})")
        file.write_record(1, asdict(replace(holder, slot=0, why=why)))
        try:
            yield
        finally:
            file.clear_record(1)


def holders(target: Target, lab_root: Path) -> list[Holder]:
    """Who holds the target now, by slot, then who holds its machine as a target of another name or lab; only the living. Takes no lock,
    disturbs no one."""
    with peek(_file_name(target.name, lab_root)) as file:
        found = [] if file is None else _living(file, target.config.instances)
    ours = {holder.pid for holder in found}
    for address in registry.occupied(target):
        with peek(_address_file(address)) as file:
            found += [] if file is None else [other for other in _living(file, 1) if other.pid not in ours]
            ours |= {holder.pid for holder in found}
    return found


def _wait_for_slot(file: LockFile, name: str, instances: int, deadline: Deadline, on_wait: Callable[[str], None] | None) -> int:
    told: list[Holder] | None = None
    look_at = 0.0
    for _ in attempts(deadline):
        for slot in range(instances):
            if file.try_lock(1 + slot):
                return slot
        if on_wait is not None and time.monotonic() >= look_at:
            look_at = time.monotonic() + _LOOK_AGAIN_S
            if (living := _living(file, instances)) and living != told:
                told = living
                on_wait(_busy(name, living))
    living = _living(file, instances)
    pids = ", ".join(str(h.pid) for h in living if h.pid)
    raise TargetBusy(
        _busy(name, living),
        target=name,
        remedy=f"wait until it is free, or end what holds it (pid {pids})" if pids else "try again, or wait longer",
    )


def _next_fence(file: LockFile, deadline: Deadline) -> int:
    # The owner of a slot is not turned away for a deadline that passed while it waited.
    with file.locked(_FENCE, deadline if deadline.left > 1.0 else Deadline.after(1.0)):
        last = file.read_record(_FENCE).get("fence", 0)
        if not isinstance(last, int) or last < 0 or last.bit_length() > 62:
            last = int(time.time())  # spoilt: go on from where no count of owners has come to
        file.write_record(_FENCE, {"schema": 1, "fence": last + 1})
    return last + 1


def _living(file: LockFile, instances: int) -> list[Holder]:
    found = file.held(1, 1 + instances)
    return [_read_holder(file, byte - 1) for start, end in found for byte in range(start, end)]


def _read_holder(file: LockFile, slot: int) -> Holder:
    said = file.read_record(1 + slot)
    match said:
        case {"user": str(user), "pid": int(pid), "since": int() | float() as since, "why": str(why)} if 0 <= since < 1 << 40:
            return Holder(printable(user), pid, float(since), printable(why), slot)
    return Holder("unknown", 0, 0.0, "", slot)


def _busy(name: str, living: list[Holder]) -> str:
    match living:
        case []:
            return f"target {name} was held until just now"
        case [one]:
            return f"target {name} is held by {one}"
    return f"all {len(living)} instances of target {name} are held: by " + "; by ".join(map(str, living))


def _age(seconds: float) -> str:
    if seconds < 90:
        return f"{max(0.0, seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.0f} h"


def _address_file(address: str) -> str:
    digest = hashlib.sha256(os.fsencode(address)).hexdigest()[:16]
    return f"{re.sub(r'[^A-Za-z0-9._+-]', '_', address)[:48]}-{digest}.machine.lock"


def _file_name(target: str, lab_root: Path) -> str:
    """Two labs may each have a target of one name: the lab's real path is part of it."""
    lab = os.path.realpath(lab_root)
    digest = hashlib.sha256(os.fsencode(f"{lab}\0{target}")).hexdigest()[:12]
    return f"{re.sub(r'[^A-Za-z0-9._+-]', '_', target)[:64]}-{digest}.lock"
