"""What a host gave an emulated machine of its CPUs' time: taken down once a second, to be asked for when the machine stood still.

The kernel counts for each thread for how long it ran, and for how long it was ready to run and had no CPU
(``/proc/PID/task/TID/schedstat``: Documentation/scheduler/sched-stats.rst), and of the host itself what a hypervisor below took away
(``steal`` in ``/proc/stat``).
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

EVERY_S = 1.0
_KEPT = 1800
"""Looks: half an hour."""
MOST_WAITED = 0.5
"""Of the time for which a machine wanted a CPU of its host's: the share that it may have waited for one, and what it did still tells."""
MOST_STOLEN = 0.3
"""Of all time of the host's CPUs."""
LEAST_WANTED = 0.25
"""CPUs that a machine wanted on average: one that wanted less did not stand still for want of them."""
LEAST_S = 5.0
"""Seconds: of a shorter time nothing is said."""


@dataclass(frozen=True, slots=True)
class Given:
    """Of one stretch of time, in seconds."""

    seconds: float
    ran: float
    """By all threads of the machine."""
    waited: float
    """Ready to run, without a CPU; by all of them."""
    stolen: float
    """Share of the host's own CPUs that was taken away below it."""
    load: float
    """Of the host, the highest that was seen."""

    def starved(self) -> str:
        """What shows that the machine could not get on for want of its host's time; empty where it could, or where too little is known."""
        wanted = self.ran + self.waited
        if self.seconds < LEAST_S:
            return ""
        if wanted >= LEAST_WANTED * self.seconds and self.waited > MOST_WAITED * wanted:
            told = f"it waited for a CPU for {self.waited:.1f} of the {wanted:.1f} s for which it wanted one"
        elif self.stolen > MOST_STOLEN:
            told = f"{self.stolen:.0%} of the host's CPUs was taken by other virtual machines"
        else:
            return ""
        return f"in {self.seconds:.0f} s {told}, load {self.load:.1f}"


@dataclass(frozen=True, slots=True)
class _Look:
    t_ns: int
    ran_ns: int
    waited_ns: int
    stolen: int
    ticks: int
    load: float


class HostTime:
    """Looks at a process until `stop`, in a thread of its own."""

    def __init__(self, pid: int, proc: Path = Path("/proc")) -> None:
        self._pid, self._proc = pid, proc
        self._threads: dict[str, tuple[int, int]] = {}
        """Of each thread that there was, what it had when it was seen last: one that has ended is not forgotten."""
        self._looks: deque[_Look] = deque(maxlen=_KEPT)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"host time of {pid}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def given(self, since_ns: int, until_ns: int) -> Given | None:
        """Between two moments on the monotonic clock, as far as it was looked at then. None if it was not."""
        looks = [*self._looks]
        before = next((look for look in reversed(looks) if look.t_ns <= since_ns), looks[0] if looks else None)
        after = next((look for look in looks if look.t_ns >= until_ns), looks[-1] if looks else None)
        if before is None or after is None or after.t_ns <= before.t_ns:
            return None
        return Given(
            (after.t_ns - before.t_ns) / 1e9,
            (after.ran_ns - before.ran_ns) / 1e9,
            (after.waited_ns - before.waited_ns) / 1e9,
            (after.stolen - before.stolen) / max(1, after.ticks - before.ticks),
            max(look.load for look in looks if before.t_ns <= look.t_ns <= after.t_ns),
        )

    def _watch(self) -> None:
        self.look()
        while not self._ended.wait(EVERY_S):
            self.look()

    def look(self) -> None:
        """Now. What this kernel does not tell counts as nothing."""
        with suppress(OSError):
            for task in (self._proc / str(self._pid) / "task").iterdir():
                with suppress(OSError, ValueError, IndexError):
                    words = (task / "schedstat").read_text().split()
                    self._threads[task.name] = (int(words[0]), int(words[1]))
        stolen = ticks = 0
        with suppress(OSError, ValueError):
            counts = [int(word) for word in (self._proc / "stat").read_text().split("\n", 1)[0].split()[1:9]]
            stolen, ticks = (counts[7] if len(counts) > 7 else 0), sum(counts)
        ran, waited = (sum(each[i] for each in self._threads.values()) for i in (0, 1))
        self._looks.append(_Look(time.monotonic_ns(), ran, waited, stolen, ticks, os.getloadavg()[0]))
