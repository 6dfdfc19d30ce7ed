"""Live progress of a run, read from its own files: what each worker does, since when, against what is expected.

A live table where there is a terminal, plain lines elsewhere and in CI. Everything goes to stderr.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from labctl.model import Outcome
from labctl.parsers.text import visible
from labctl.run.prepare import Prepared
from labctl.store.follow import Follower

STYLES = {
    Outcome.PASS: "green",
    Outcome.FLAKY: "yellow",
    Outcome.SKIP: "dim",
    Outcome.INVALID: "magenta",
    Outcome.FAIL: "bold red",
    Outcome.ERROR: "bold yellow",
}
REFRESH = 0.125
"""Seconds between two looks at the files."""


@dataclass
class _Active:
    """An attempt that has begun and not ended."""

    worker: str
    since: float
    attempt: int
    held: bool = False
    state: str = ""
    milestone: str = ""
    tests: int = 0


@dataclass
class Progress:
    """A ``with`` block around a run."""

    prepared: Prepared
    workers: int
    console: Console = field(default_factory=lambda: Console(stderr=True))
    meanwhile: Callable[[], None] = lambda: None
    """Done once, when the first cell has begun: what would otherwise be waited for at the end."""

    _meanwhile_done: bool = field(default=False, init=False)
    _active: dict[str, _Active] = field(default_factory=dict, init=False)
    _done: dict[str, Outcome] = field(default_factory=dict, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def __enter__(self) -> Self:
        self._follower = Follower(self.prepared.writer.folder)
        self._began = time.monotonic()
        self._stop = threading.Event()
        self._live: Live | None = None
        if self.console.is_terminal and not os.environ.get("CI"):
            self._live = Live(console=self.console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False)
            self._live.start()
        self._thread = threading.Thread(target=self._watch, name="labctl-progress", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        self._look()
        if self._live is not None:
            self._live.stop()

    def _watch(self) -> None:
        while not self._stop.wait(REFRESH):
            self._look()

    def _look(self) -> None:
        with self._lock:
            for cell, attempt, event in self._follower.poll():
                self._take(cell, attempt, event)
            if self._live is not None:
                self._live.update(self._table(), refresh=True)
        if self._active and not self._meanwhile_done:
            self._meanwhile_done = True
            self.meanwhile()

    def _take(self, cell: str, attempt: int, event: dict[str, Any]) -> None:
        match event.get("kind"):
            case "begin":
                self._done.pop(cell, None)  # tried again
                self._active[cell] = _Active(str(event.get("worker", "")), time.monotonic(), attempt)
            case "status" if active := self._active.get(cell):
                why = event.get("why")
                if not active.held and event.get("state") == "deploying":
                    active.held, active.since = True, time.monotonic()  # what went before was waiting for others
                active.state = f"{event.get('state', '')}: {visible(str(why))}" if why else str(event.get("state", ""))
                if why and self._live is None:
                    self.console.print(Text(f"{cell} {visible(str(why))}", style="dim"), soft_wrap=True)
                active.milestone = "" if active.state == "booting" else active.milestone
            case "milestone" if active := self._active.get(cell):
                active.milestone = str(event.get("name", ""))
            case "test" if active := self._active.get(cell):
                active.tests += 1
            case "end":
                self._ended(cell, attempt, event)

    def _ended(self, cell: str, attempt: int, event: dict[str, Any]) -> None:
        began = self._active.pop(cell, None)
        outcome = Outcome(event.get("outcome", "error"))
        if outcome is Outcome.PASS and attempt > 1:
            outcome = Outcome.FLAKY
        self._done[cell] = outcome
        took = time.monotonic() - began.since if began else 0.0
        line = Text.assemble(
            (f"[{len(self._done)}/{len(self.prepared.cells)}] ", "dim"),
            (f"{outcome:<7}", STYLES[outcome]),
            (f" {cell} ", ""),
            (f"{took:.1f} s", "dim"),
        )
        if outcome not in (Outcome.PASS, Outcome.SKIP) and (reason := str(event.get("reason", ""))):
            line.append(f"  {visible(reason)}", style=STYLES[outcome])
        if self._live is None or outcome not in (Outcome.PASS, Outcome.SKIP):
            self.console.print(line, soft_wrap=True)

    def _table(self) -> Group:
        now = time.monotonic()
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=bool(self._active), header_style="dim")
        widths = {"worker": 6, "cell": max((len(cell) for cell in self._active), default=4), "milestone": 12, "elapsed": 8, "expected": 8}
        widths["cell"] = min(widths["cell"], max(20, self.console.width - 60))
        widths["doing"] = max(8, self.console.width - sum(widths.values()) - 2 * 6)
        for head in ("worker", "cell", "doing", "milestone", "elapsed", "expected"):
            side: Literal["left", "right"] = "right" if head in ("elapsed", "expected") else "left"
            table.add_column(head, no_wrap=True, overflow="ellipsis", justify=side, width=widths[head])
        costs = self.prepared.planned.costs
        for cell, active in sorted(self._active.items(), key=lambda pair: pair[1].worker):
            cost = costs.get(cell)
            late = cost is not None and now - active.since > 1.5 * cost
            table.add_row(
                active.worker,
                cell,
                active.state + (f" (attempt {active.attempt})" if active.attempt > 1 else ""),
                active.milestone,
                Text(f"{now - active.since:.1f} s", style="yellow" if late else ""),
                f"{cost:.1f} s" if cost is not None else "?",
            )
        return Group(table, self._summary(now))

    def _summary(self, now: float) -> Text:
        counts = {outcome: list(self._done.values()).count(outcome) for outcome in STYLES}
        line = Text(f"{len(self._done)} of {len(self.prepared.cells)} cells", style="bold")
        for outcome, count in counts.items():
            if count:
                line.append(f"  {count} {outcome}", style=STYLES[outcome])
        line.append(f"   {now - self._began:.0f} s", style="dim")
        if (left := self._left(now)) is not None:
            line.append(f", about {left:.0f} s left", style="dim")
        return line

    def _left(self, now: float) -> float | None:
        """Seconds that the rest is expected to take; None where a cell has no history."""
        total = 0.0
        for cell in self.prepared.cells:
            if cell.id in self._done:
                continue
            cost = self.prepared.planned.costs.get(cell.id)
            if cost is None:
                return None
            active = self._active.get(cell.id)
            total += max(0.0, cost - (now - active.since)) if active else cost
        return total / max(1, self.workers)
