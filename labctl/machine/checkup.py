"""Is a real target there, do its credentials work, can its console be had: found out without switching it.

Only what a run in progress would not notice: a target that somebody holds has its console left alone.
"""

from __future__ import annotations

import queue
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from labctl.deadline import Deadline
from labctl.errors import ConsoleLost, LabctlError
from labctl.machine import lease, standing
from labctl.machine.protocols import Console, Deploy, DriverContext, FetchesFromLab, Health, HealthEvent, Power, Reading
from labctl.machine.registry import Machine, assemble
from labctl.machine.transcript import ConsoleEnded, Transcript
from labctl.model import PowerState, Target

PATIENCE = 20.0
"""Seconds for all questions to one target."""
AT_A_TIME = 64
_QUIET, _ECHO = 0.5, 1.5
"""Seconds of silence before anything is typed, and for what was typed to be seen again."""
_ERASE = b"\x7f"
_FAREWELL = 2.0
"""Seconds that checks in progress have to let go of a console when all is broken off."""
EVENTS = 20
"""How many of its log's last entries are shown."""


@dataclass
class Found:
    """What a check of one target found. ``wrong`` is empty where all is well."""

    target: str
    power: str = ""
    console: str = ""
    """``echoes``: what was typed came back; ``speaks``: it was saying something; ``silent``: it is on and gave no echo; ``connects``: the
    machine is off, so more cannot be known; ``in use``: somebody holds it."""
    boot_server: str = ""
    """Where it answered, asked from this host: whether the machine reaches it, only a boot tells."""
    readings: tuple[Reading, ...] = ()
    events: tuple[HealthEvent, ...] = ()
    inventory: dict[str, str] = field(default_factory=dict)
    wrong: list[LabctlError] = field(default_factory=list)


def check_all(targets: Sequence[Target], lab_root: Path) -> list[Found]:
    """In the targets' order, many at a time. An interrupt is not held up by a BMC that does not answer."""
    found: list[Future[Found]] = [Future() for _ in targets]
    waiting: queue.SimpleQueue[tuple[Target, Future[Found]]] = queue.SimpleQueue()
    for each in zip(targets, found, strict=True):
        waiting.put(each)
    # Not of an executor: the interpreter waits for its threads at exit.
    threads = [
        threading.Thread(target=_check_waiting, args=(waiting, lab_root), name="check", daemon=True)
        for _ in range(min(AT_A_TIME, len(targets)))
    ]
    for thread in threads:
        thread.start()
    try:
        return [future.result() for future in found]
    except BaseException:
        limit = Deadline.after(_FAREWELL)
        with suppress(queue.Empty):
            while True:
                waiting.get_nowait()
        for thread in threads:
            thread.join(limit.left)
        raise


def _check_waiting(waiting: queue.SimpleQueue[tuple[Target, Future[Found]]], lab_root: Path) -> None:
    with suppress(queue.Empty):
        while True:
            target, future = waiting.get_nowait()
            try:
                future.set_result(check(target, lab_root))
            except LabctlError as error:
                future.set_exception(error)
            except BaseException as error:
                future.set_exception(error)  # else it would be waited for without end
                raise


def check(target: Target, lab_root: Path) -> Found:
    found, deadline = Found(target.name), Deadline.after(PATIENCE)
    with tempfile.TemporaryDirectory(prefix="labctl-check-") as folder, Transcript() as transcript:
        machine = assemble(DriverContext(target, Path(folder)), transcript)
        _try(found, lambda: _power(machine, found, deadline))
        if not found.wrong:  # one unreachable BMC is one mistake
            _try(found, lambda: _console(machine, found, lab_root, deadline))
            _try(found, lambda: _boot_server(machine, found, lab_root, deadline))
            _try(found, lambda: _health(machine, found, deadline))
    return found


def _try(found: Found, question: Callable[[], None]) -> None:
    try:
        question()
    except LabctlError as error:
        found.wrong.append(error)


def _power(machine: Machine, found: Found, deadline: Deadline) -> None:
    if getattr(machine.roles.get(Power), "asks_a_person", False):
        found.power = "asks a person"  # a check is not worth their time, and at night nobody is there
    elif machine.has(Power):
        found.power = machine.power.state(deadline).value


def _console(machine: Machine, found: Found, lab_root: Path, deadline: Deadline) -> None:
    if not machine.has(Console):
        return
    if _held(machine, lab_root):
        found.console = "in use"  # taking it would take it from them
        return
    try:
        machine.console.attach(deadline)
        found.console = _echo(machine, deadline) if found.power == PowerState.ON.value else "connects"
    finally:
        machine.console.detach()


def _echo(machine: Machine, deadline: Deadline) -> str:
    """Types a blank, which no prompt acts on, and takes it back. Nothing is typed while the machine speaks."""
    transcript, before = machine.transcript, machine.transcript.size
    try:
        if transcript.wait_beyond(before, deadline.sooner(_QUIET)):
            return "speaks"
        machine.console.write(b" ")
        echoes = transcript.wait_beyond(before, deadline.sooner(_ECHO))
        machine.console.write(_ERASE)
    except ConsoleEnded as ended:
        raise ConsoleLost(f"the console ended: {ended.reason}", target=machine.target.name) from None
    return "echoes" if echoes else "silent"


def _boot_server(machine: Machine, found: Found, lab_root: Path, deadline: Deadline) -> None:
    deploy = machine.roles.get(Deploy)
    if isinstance(deploy, FetchesFromLab):
        # Whoever holds the target serves at its address himself.
        found.boot_server = "in use" if _held(machine, lab_root) else deploy.boot_server(deadline)


def _held(machine: Machine, lab_root: Path) -> bool:
    owner = standing.reservation(lab_root, machine.target.name)
    return bool(lease.holders(machine.target, lab_root)) or (owner is not None and not owner.ours)


def _health(machine: Machine, found: Found, deadline: Deadline) -> None:
    power = machine.roles.get(Power)
    if isinstance(power, Health):
        found.events = power.events(max(0, power.latest_event(deadline) - EVENTS), deadline)
        found.inventory = dict(power.inventory(deadline))
        found.readings = power.readings(deadline)
