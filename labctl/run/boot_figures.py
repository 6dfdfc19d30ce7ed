"""What a boot measures, on either channel: the same figures under the same names in every suite that boots."""

from __future__ import annotations

from collections.abc import Callable

from labctl.judge.exact import INSTRUCTIONS as INSTRUCTIONS_NAME
from labctl.machine.boot import Boot
from labctl.model import Channel, Direction, Metric, Milestone

READY = Metric("boot.ready", "s", Direction.LOWER, "from power-on to ready")
MILESTONE = Metric("boot.milestone", "s", Direction.LOWER, "from power-on to a milestone")
INSTRUCTIONS = Metric(INSTRUCTIONS_NAME, "1", Direction.LOWER, "from power-on to a milestone", Channel.ICOUNT)
KERNEL_CLOCK = Metric("boot.kernel_clock", "s", Direction.LOWER, "the kernel's own clock at a milestone", Channel.ICOUNT)


def record_figures(boot: Boot, record: Callable[..., None]) -> None:
    """Seconds to each milestone; of a boot that was counted its instructions, and the kernel's clock."""
    record(READY, boot.milestones[Milestone.READY])
    for name, seconds in boot.milestones.items():
        record(MILESTONE, seconds, milestone=name)
    for name, count in boot.instructions.items():
        record(INSTRUCTIONS, count, milestone=name)
        if name in boot.kernel_clock:
            record(KERNEL_CLOCK, boot.kernel_clock[name], milestone=name)
