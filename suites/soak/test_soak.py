"""Does the machine stay up under mixed load? For the time that ``--soak`` says; each run adds to what is known of its availability."""

import pytest

from labctl.errors import TargetFailure, TargetHung
from labctl.machine.heartbeat import watch
from labctl.model import Direction, Metric

UPTIME = Metric("uptime.seconds", "s", Direction.NONE, "watched, and up")
FAILURES = Metric("uptime.failures", "1", Direction.LOWER, "crashes, hangs, losses of power, and pauses like a hang, in that time")
GAP = Metric("uptime.gap", "s", Direction.LOWER, "the longest pause between two beats of 0.1 s, since the one before")

DOWN = 5.0
"""Seconds: to those who use it a machine that does nothing for so long is down."""
DISKS = "/dev/nvme0n1 /dev/vda /dev/sda"


def answers(shell):
    """A heartbeat that somebody has killed is no failure of the machine that it ran on."""
    try:
        return shell("echo there", deadline=DOWN) == "there"
    except TargetFailure:
        return False


@pytest.mark.requires(channel="wall")
def test_stays_up(target, shell, record, soak):
    """Heartbeat and load to their ends, the load's own checks passed, and no pause longer than DOWN."""
    said_every = max(1.0, min(10.0, soak / 30))
    # Empty ones only: the load leaves a disk alone that holds something.
    disk = shell(f"for d in {DISKS}; do [ -b $d ] && echo $d && break; done; true") if target.config.disk else ""
    began = target.transcript.size
    in_background = ">/tmp/{0} 2>&1 </dev/null; echo $? >/tmp/{0}.status; }} &"
    shell(f"{{ load {soak:g} {target.config.memory // 8} {disk} " + in_background.format("load"))
    shell(f"{{ heartbeat {soak:g} {said_every * 1000:.0f} " + in_background.format("heartbeat"))
    up = worst = 0.0
    pauses = 0
    try:
        for beat in watch(target, began, patience=said_every + target.config.boot.silence):
            up, worst = beat.up, max(worst, beat.gap)
            if not beat.first and not beat.last:
                record(GAP, beat.gap)
                pauses += beat.gap > DOWN
    except TargetFailure as error:
        alive = isinstance(error, TargetHung) and answers(shell)
        record(UPTIME, up)
        record(FAILURES, pauses + (not alive))
        if alive:
            pytest.fail(f"{error}; the machine answers: what beat there was killed")
        raise
    record(UPTIME, up)
    record(FAILURES, pauses)
    # Its last round may still be going on.
    shell("n=0; while [ ! -s /tmp/load.status ] && [ $n -lt 60 ]; do sleep 1; n=$((n+1)); done", deadline=120)
    told = shell("cat /tmp/load; cat /tmp/load.status").splitlines()
    assert told[-1] == "0", f"the load: {' '.join(told)}"
    idle = [line for line in told if line.endswith("=0") and not (line == "disk=0" and any("it is left alone" in each for each in told))]
    assert not idle, f"the load did nothing of {', '.join(idle)}"
    assert beat.missed < beat.beats, f"{beat.missed} beats missed, {beat.beats} there"
    assert worst <= DOWN, f"nothing for {worst:.1f} s, with the console silent and the machine on"
