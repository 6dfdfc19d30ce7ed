"""Is a real target there, do its credentials work, can its console be had: found out without switching it.

Only what a run in progress would not notice: a target that somebody holds has its console left alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from labctl.deadline import Deadline
from labctl.errors import LabctlError
from labctl.machine import lease, standing
from labctl.machine.protocols import Console, DriverContext, Health, HealthEvent, Power, Reading
from labctl.machine.registry import Machine, assemble, load
from labctl.machine.transcript import Transcript
from labctl.model import Target

PATIENCE = 20.0
"""Seconds for all questions to one target."""
AT_A_TIME = 64
EVENTS = 20
"""How many of its log's last entries are shown."""


@dataclass
class Found:
    """What a check of one target found. ``wrong`` is empty where all is well."""

    target: str
    power: str = ""
    console: str = ""
    readings: tuple[Reading, ...] = ()
    events: tuple[HealthEvent, ...] = ()
    inventory: dict[str, str] = field(default_factory=dict)
    wrong: list[LabctlError] = field(default_factory=list)


def is_real(target: Target) -> bool:
    """Whether it is there without its owner: an emulator that fills all roles itself is not."""
    return "qemu" not in target.config.drivers and any(callable(getattr(load(name), "state", None)) for name in target.config.drivers)


def check_all(targets: Sequence[Target], lab_root: Path) -> list[Found]:
    """In the targets' order, many at a time."""
    with ThreadPoolExecutor(max(1, min(AT_A_TIME, len(targets))), "check") as pool:
        return list(pool.map(lambda target: check(target, lab_root), targets))


def check(target: Target, lab_root: Path) -> Found:
    found, deadline = Found(target.name), Deadline.after(PATIENCE)
    with tempfile.TemporaryDirectory(prefix="labctl-check-") as folder, Transcript() as transcript:
        machine = assemble(DriverContext(target, Path(folder)), transcript)
        _try(found, lambda: _power(machine, found, deadline))
        if not found.wrong:  # one unreachable BMC is one mistake
            _try(found, lambda: _console(machine, found, lab_root, deadline))
            _try(found, lambda: _health(machine, found, deadline))
    return found


def _try(found: Found, question: Callable[[], None]) -> None:
    try:
        question()
    except LabctlError as error:
        found.wrong.append(error)


def _power(machine: Machine, found: Found, deadline: Deadline) -> None:
    if machine.has(Power):
        found.power = machine.power.state(deadline).value


def _console(machine: Machine, found: Found, lab_root: Path, deadline: Deadline) -> None:
    if not machine.has(Console):
        return
    owner = standing.reservation(lab_root, machine.target.name)
    if lease.holders(machine.target, lab_root) or (owner is not None and not owner.ours):
        found.console = "in use"  # taking it would take it from them
        return
    try:
        machine.console.attach(deadline)
    finally:
        machine.console.detach()
    found.console = "connects"


def _health(machine: Machine, found: Found, deadline: Deadline) -> None:
    power = machine.roles.get(Power)
    if isinstance(power, Health):
        found.readings = power.readings(deadline)
        found.events = power.events(max(0, power.latest_event(deadline) - EVENTS), deadline)
        found.inventory = dict(power.inventory(deadline))
