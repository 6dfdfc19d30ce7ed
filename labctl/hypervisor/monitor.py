"""Speaks QMP to a QEMU that runs on the machine under test, through ``qmp`` (guest/tools/qmp.c): several steps over one command.

Protocol: QEMU's docs/interop/qmp-spec.rst.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from labctl.deadline import Deadline
from labctl.errors import TargetHung, VmFailed
from labctl.hypervisor.keeper import Keeper
from labctl.parsers.text import visible

MIGRATED = 'MIGRATION".*"(completed|failed)"|"(completed|failed)".*"MIGRATION"'
"""Event that a migration has come to an end, however its keys are ordered; only where the capability ``events`` is on."""
ENDING_S = 5.0
"""Seconds in which a QEMU whose monitor is gone is to have ended."""
_GONE, _OFF = 3, 9
EVENTS_ON: Mapping[str, Any] = {
    "execute": "migrate-set-capabilities",
    "arguments": {"capabilities": [{"capability": "events", "state": True}]},
}


class VmOff(VmFailed):
    """Nobody is there to be asked."""


@dataclass(frozen=True)
class Told:
    """What QEMU said to a list of steps: what each command returned, every event, and the error that ended it, if one did."""

    returned: list[Any] = field(default_factory=list)
    events: list[Mapping[str, Any]] = field(default_factory=list)
    error: str = ""


def told(lines: str) -> Told:
    """The lines of ``qmp``. ValueError for what is no message of QMP."""
    returned: list[Any] = []
    events: list[Mapping[str, Any]] = []
    error = ""
    for line in lines.splitlines():
        try:
            message = json.loads(line)
        except ValueError:
            raise ValueError(f"no JSON: {line[:200]!r}") from None
        if not isinstance(message, dict):
            raise ValueError(f"no object: {line[:200]!r}")
        if "event" in message:
            events.append(message)
        elif "return" in message:
            returned.append(message["return"])
        elif "error" in message:
            described = message["error"]
            error = str(described.get("desc", described) if isinstance(described, dict) else described)
        else:
            raise ValueError(f"neither answer nor event: {line[:200]!r}")
    return Told(returned, events, error)


def command(name: str, **arguments: Any) -> Mapping[str, Any]:
    """A step. ``_`` in the name of an argument stands for ``-``, as QMP writes them."""
    given = {key.replace("_", "-"): value for key, value in arguments.items()}
    return {"execute": name, "arguments": given} if given else {"execute": name}


@dataclass
class Monitor:
    """The monitors of the QEMUs of one machine."""

    keeper: Keeper

    def run(self, vm: str, socket: str, steps: Sequence[Mapping[str, Any] | str], deadline: Deadline) -> Told:
        """Commands, and regular expressions of events to wait for. VmFailed if QEMU refuses one or is gone; TargetHung, which names it, if
        it does not answer in time."""
        words = [f"wait:{step}" if isinstance(step, str) else json.dumps(step) for step in steps]
        # Whether it runs is looked at first: qmp waits for a socket that is not there yet, as that of a QEMU that has just been started.
        runs = f"case $(vmkeeper status {PurePosixPath(socket).parent}) in *state=running*) ;; *) exit {_OFF} ;; esac"
        asks = f"qmp {socket} {max(1, int(deadline.left * 1000))} {shlex.join(words)}"
        done = self.keeper.shell(f"{runs}; {asks}", deadline, check=False)
        target = self.keeper.session.name
        if done.status == _OFF:
            raise VmOff(f"QEMU of {vm} does not run", target=target)
        if done.status == 4:
            asked = steps[0] if isinstance(steps[0], str) else steps[0]["execute"]
            raise TargetHung(f"the toolstack hangs: QEMU of {vm} has not answered {asked} within {deadline.seconds:g} s", target=target)
        if done.status == _GONE:
            # Its socket closes a while before its process has ended: who asks at once how that was is told that it runs.
            self.keeper.ended(str(PurePosixPath(socket).parent), Deadline.after(ENDING_S))
        if done.status not in (0, 1):
            raise VmFailed(f"QEMU of {vm}: {visible(done.stderr.strip())[-300:] or f'status {done.status}'}", target=target)
        try:
            found = told(done.output)
        except ValueError as error:
            raise VmFailed(f"QEMU of {vm} does not speak QMP: {error}", target=target) from None
        if found.error:
            raise VmFailed(f"QEMU of {vm} refuses: {visible(found.error)[:300]}", target=target)
        return found
