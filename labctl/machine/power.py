"""The power cycle: what every owner of a machine, and every driver that boots one, means by it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from labctl.deadline import Deadline
from labctl.errors import PowerError
from labctl.machine.protocols import Power, Together
from labctl.model import PowerState


def together(power: Power) -> AbstractContextManager[None]:
    """Within this block several verbs are given in a row."""
    return power.together() if isinstance(power, Together) else nullcontext()


def power_cycle(power: Power, deadline: Deadline) -> int:
    """Off, seen to be off, then on. Returns time zero of the new boot. PowerError if it is not seen to be off."""
    with together(power):
        power.off(deadline)
        if (state := power.state(deadline)) is not PowerState.OFF:
            raise PowerError(f"the machine was powered off and still reads {state}")
        return power.on(deadline)
