"""One deadline, passed through, instead of nested timeouts."""

from __future__ import annotations

import time
from dataclasses import dataclass


class DeadlineExpired(Exception):
    """Raised inside the lab when a Deadline ran out; the caller that knows the cause turns it into an error of the taxonomy."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """A point on the monotonic clock, in seconds."""

    at: float
    seconds: float
    """What was asked for; for messages."""

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        return cls(time.monotonic() + seconds, seconds)

    @property
    def left(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self.at - time.monotonic())

    @property
    def expired(self) -> bool:
        return time.monotonic() >= self.at

    def sooner(self, seconds: float) -> Deadline:
        """The earlier of this one and one ``seconds`` from now."""
        other = time.monotonic() + seconds
        return self if self.at <= other else Deadline(other, seconds)
