"""The power cycle: what every owner of a machine, and every driver that boots one, means by it."""

from __future__ import annotations

from labctl.deadline import Deadline
from labctl.errors import PowerError
from labctl.machine.protocols import Power
from labctl.model import PowerState


def power_cycle(power: Power, deadline: Deadline) -> int:
    """Off, seen to be off, then on. Returns time zero of the new boot. PowerError if it is not seen to be off."""
    power.off(deadline)
    if (state := power.state(deadline)) is not PowerState.OFF:
        raise PowerError(f"the machine was powered off and still reads {state}")
    return power.on(deadline)
