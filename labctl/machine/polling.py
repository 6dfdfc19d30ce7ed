"""Ask until it is true: for interfaces that say yes before anything has happened."""

from __future__ import annotations

import time
from collections.abc import Callable

from labctl.deadline import Deadline

FIRST, LONGEST = 0.01, 0.5
"""Seconds between two questions: few at first, so that a fast machine is not waited for; a BMC is no place for hundreds."""


def until(true: Callable[[], bool], deadline: Deadline) -> bool:
    """Whether it became true in time. It is asked once even if the deadline has passed."""
    pause = FIRST
    while not true():
        if deadline.expired:
            return False
        time.sleep(min(pause, deadline.left))
        pause = min(pause * 2, LONGEST)
    return True
