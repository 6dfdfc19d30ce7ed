"""A run beside the one before, in a terminal: a line for each cell, what changed beneath it, the causes of what is newly red."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TextIO

from rich.console import Console
from rich.text import Text

from labctl.judge.difference import CellDifference, TestChange
from labctl.model import Outcome
from labctl.report.order import BAD, sentence
from labctl.report.past import Past
from labctl.report.printable import one_line
from labctl.report.quantity import quantity
from labctl.report.text import failure
from labctl.result import RunResult

MOST_CHANGES = 12
"""Tests that are named beneath a cell."""
MOST_FAILURES = 5
"""Failures that are told at length: the whole is in the report."""

_LOOKS = {Outcome.PASS: "green", Outcome.SKIP: "dim", Outcome.FLAKY: "yellow"}


def show(run: RunResult, cells: Sequence[CellDifference], *, file: TextIO | None = None) -> None:
    """Print it. ``file``: standard output."""
    console = Console(file=sys.stdout if file is None else file, highlight=False)
    width = max((len(cell.id) for cell in cells), default=0)
    for cell in cells:
        line = Text.assemble(f"{one_line(cell.id):{width}}  ", _outcomes(cell.before, cell.after), f"  {_ready(cell)}")
        console.print(line, soft_wrap=True)
        told = [test for test in cell.tests if not _quiet(test)]
        for test in told[:MOST_CHANGES]:
            console.print(Text.assemble("    ", _test(test)), soft_wrap=True)
        if more := len(told[MOST_CHANGES:]):
            console.print(Text(f"    … and {more} tests more", "dim"))
        if new := len(cell.tests) - len(told):
            console.print(Text(f"    {new} new test{'s' * (new > 1)}, passed or skipped", "dim"))
    newly = {cell.id for cell in cells if cell.after in BAD and cell.before is not cell.after}
    past = Past.of(run)
    for result in [result for result in run.cells if result.cell.id in newly][:MOST_FAILURES]:
        console.print()
        console.print(failure(result, past), crop=False, soft_wrap=True)
    changed = sum(cell.changed for cell in cells)
    console.print(f"{sentence(run)} {f'{changed} changed' if changed else 'Nothing changed'}.", soft_wrap=True)


def _quiet(test: TestChange) -> bool:
    """New and well: counted, not named."""
    return test.before is None and test.after in (Outcome.PASS, Outcome.SKIP)


def _outcomes(before: Outcome | None, after: Outcome | None) -> Text:
    now = Text(str(after) if after is not None else "gone", _LOOKS.get(after, "bold red") if after is not None else "dim")
    return now if before is None or before is after else Text.assemble(f"{before} → ", now)


def _ready(cell: CellDifference) -> str:
    if cell.ready_after is None:
        return "not ready" if cell.ready_before is None else f"ready: {quantity(cell.ready_before, 's')} → never"
    if cell.ready_before is None:
        return f"ready in {quantity(cell.ready_after, 's')}"
    more = cell.ready_after - cell.ready_before
    return f"ready in {quantity(cell.ready_after, 's')} ({'+' if more >= 0 else '-'}{quantity(abs(more), 's')})"


def _test(test: TestChange) -> Text:
    new = Text(" (new)", "dim") if test.before is None and test.after is not None else Text()
    reason = Text(f": {one_line(test.reason)}" if test.reason else "")
    return Text.assemble(f"{one_line(test.name)}  ", _outcomes(test.before, test.after), new, reason)
