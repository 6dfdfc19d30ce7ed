"""A run in a terminal, and as one JSON object."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from labctl.errors import KernelCrash
from labctl.judge.density import curves
from labctl.judge.exact import Agreement, Reading, readings, to_ready
from labctl.judge.promise import judge
from labctl.model import SCHEMA, Milestone, Outcome
from labctl.parsers.crash import BEFORE_LINES
from labctl.parsers.text import visible
from labctl.report import machine
from labctl.report.density_text import density_json, density_table
from labctl.report.order import BAD, INTERRUPTED, RUNNING, failing_attempt, failures, sentence, speaking_test, unended
from labctl.report.past import Past
from labctl.report.printable import excerpt, one_line
from labctl.report.promises_text import promises_json, promises_table
from labctl.report.quantity import number
from labctl.report.stories_text import stories_json, stories_table
from labctl.result import Attempt, CellResult, RunResult, TestResult

_LOOKS = {
    Outcome.PASS: ("✓", "green"),
    Outcome.FLAKY: ("≈", "yellow"),
    Outcome.SKIP: ("–", "dim"),
    Outcome.INVALID: ("?", "magenta"),
    Outcome.FAIL: ("✗", "bold red"),
    Outcome.ERROR: ("!", "bold yellow"),
}
MOST_CELLS = 100
"""Cells in the table; of more, those that passed are only counted."""
MOST_FAILURES = 20
"""Failures told at length."""
EXCERPT_LINES = 10
MOST_EVENTS = 10
"""Entries of the machines' own event logs."""

_COLUMNS = ("OUTCOME", "BUILD", "TARGET", "SUITE", "READY", "TIME", "TRIES", "WHY")
_NUMBERS = ("READY", "TIME", "TRIES")
_WHY = 120
"""Characters of a reason in the table."""
_FOLDERS = re.compile(r"(?<!\S)/(?:[^\s/:]+/)+(?=[^\s/:])")
_GAP = "  "
_INDENT = 4
"""Of a reason beneath its row."""
_LONGEST_NAME = 64
"""What a name may have: a longer one comes from a damaged file."""


def show(run: RunResult, report: Path | None, *, file: TextIO | None = None) -> None:
    """Print a run: `cells_table`, and where the page is (without one, where the results are) in the last line. ``file``: standard output.

    On a terminal text is wrapped at its width; anywhere else each line comes whole. A console's line or a command is never broken or cut.
    """
    stream = sys.stdout if file is None else file
    console = Console(file=stream, highlight=False)
    console.print(cells_table(run), crop=False, soft_wrap=not stream.isatty())
    where = f"results: {run.folder}" if report is None else f"report: {report}"
    console.print(Text(visible(where)), soft_wrap=True)


def show_failures(run: RunResult, *, file: TextIO) -> None:
    """What `cells_table` says of each failure, for whoever gets the run itself as JSON. As `show` does it."""
    console = Console(file=file, highlight=False)
    past = Past.of(run)
    for result in _told(run)[:MOST_FAILURES]:
        console.print(Group(Text(""), failure(result, past)), crop=False, soft_wrap=not file.isatty())


def _told(run: RunResult) -> tuple[CellResult, ...]:
    """The cells that did not pass, the worst first."""
    return failures(run)


def cells_table(run: RunResult) -> RenderableType:
    """A line for each cell, then each failure: its cause, ten lines of the console, the command that reproduces it.

    `show` prints it as it must be: a command that is cut at the terminal's edge can't be pasted.
    """
    worst_first = _told(run)
    past = Past.of(run)
    shown = run.cells
    if len(run.cells) > MOST_CELLS:
        told = {result.cell for result in worst_first}
        shown = (worst_first + tuple(c for c in run.cells if c.cell not in told))[:MOST_CELLS]
    parts: list[RenderableType] = [_Rows([_row(run, result) for result in shown])]
    if len(shown) < len(run.cells):
        parts.append(Text(f"… and {len(run.cells) - len(shown):,} cells more: see the report", style="dim"))
    if run.left_out:
        parts.append(
            Text(f"{len(run.left_out):,} left out, as {_plain(run.left_out[0].cell.id)}: {one_line(run.left_out[0].reason)}", "dim")
        )
    for result in worst_first[:MOST_FAILURES]:
        parts += [Text(""), failure(result, past)]
    if len(worst_first) > MOST_FAILURES:
        parts.append(Text(f"\n… and {len(worst_first) - MOST_FAILURES:,} failures more: see the report", style="dim"))
    parts += promises_table(judge([run]))
    parts += stories_table(past.proofs, run.stories)
    parts += density_table(run, curves([run]))
    parts += _machines(run)
    parts += [Text(""), Text.assemble(_verdict(run), f"  {sentence(run)}")]
    return Group(*parts)


def _machines(run: RunResult) -> list[RenderableType]:
    """What the machines' own event logs gained."""
    rows = list(machine.event_rows(run))
    parts: list[RenderableType] = [Text("\nnew in the machines' own event logs:")] if rows else []
    parts += [_unbroken(Text(f"  {_plain(row['cell'])}: {' '.join(filter(None, (row['at'], row['text'])))}")) for row in rows[:MOST_EVENTS]]
    return parts + ([Text(f"  … and {len(rows) - MOST_EVENTS:,} more: see the report", style="dim")] if len(rows) > MOST_EVENTS else [])


def failure(result: CellResult, past: Past) -> RenderableType:
    """One cell that did not pass: cause, since when, ten lines of the console (of a crash, those before it too), how to see it by hand."""
    glyph, style = _LOOKS[result.outcome]
    title = Text.assemble((f"{glyph} {result.outcome} ", style), (_plain(result.cell.id), "bold"), (" ──", "dim"))
    parts: list[RenderableType] = [_unbroken(title), Text(f"  {one_line(result.reason) or 'no reason given'}")]
    if since := past.told(result.cell.id):
        parts.append(_unbroken(Text(f"  {since}", "dim")))
    attempt = failing_attempt(result)
    if attempt is not None:
        if attempt.remedy and attempt.remedy not in attempt.reproduce:
            parts.append(_unbroken(Text(f"  try: {one_line(attempt.remedy)}")))
        parts += [*_lines_of_the_suite(attempt), *_evidence(attempt)]
    return Group(*parts)


def _lines_of_the_suite(attempt: Attempt) -> Iterator[RenderableType]:
    test = speaking_test(attempt)
    if test is not None:
        yield _unbroken(Text(f"  in {one_line(test.name, 160)}", "dim"))
        for line in test.where:
            yield _unbroken(Text(f"    {one_line(line, 200)}"))


def _evidence(attempt: Attempt) -> list[RenderableType]:
    parts: list[RenderableType] = []
    if attempt.excerpt.strip():
        # A crash's report begins with its cause, and with what was said before it, and ends with what everybody's ends with; any other
        # story ends with its cause.
        crashed = attempt.error == KernelCrash.__name__
        count = EXCERPT_LINES + (BEFORE_LINES if crashed else 0)
        lines = excerpt(attempt.excerpt, count, cause=attempt.reason, from_cause=crashed).split("\n")
        parts.append(_raw("\n".join(f"  │ {line}" for line in lines), "dim"))
    if attempt.reproduce.strip():
        parts.append(Text("  by hand:", style="dim"))
        parts.append(_raw(visible(attempt.reproduce.strip())))
    return parts


def _raw(text: str, style: str = "") -> Text:
    """Lines that are there to be pasted: as they are, whatever the terminal's width."""
    return _unbroken(Text(text, style))


def _unbroken(text: Text) -> Text:
    text.no_wrap, text.overflow = True, "ignore"
    return text


@dataclass(frozen=True)
class _Rows:
    """The cells in columns that keep their words. Where the reasons do not fit beside them, each stands beneath its row."""

    rows: list[tuple[Text, ...]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        heads = tuple(Text(name, "bold") for name in _COLUMNS)
        widths = [max(row[i].cell_len for row in (heads, *self.rows)) for i in range(len(_COLUMNS))]
        beside = options.no_wrap or sum(widths) + len(_GAP) * (len(widths) - 1) <= options.max_width
        for row in (heads, *self.rows):
            *columns, why = row
            if not beside and row is heads:
                why = Text()
            line = Text(_GAP).join(
                Text(" " * (width - cell.cell_len)) + cell if name in _NUMBERS else cell + Text(" " * (width - cell.cell_len))
                for name, cell, width in zip(_COLUMNS, columns, widths, strict=False)
            )
            if beside and why.plain:
                line += Text(_GAP) + why
            line.rstrip()
            yield _unbroken(line)
            if not beside and why.plain:
                indent = Text(" " * _INDENT)
                for part in why.wrap(console, max(20, options.max_width - _INDENT)):
                    yield _unbroken(indent + part)


def as_json(run: RunResult, report: Path | None) -> dict[str, Any]:
    """The object that ``--json`` prints. A sample that is not a finite number, which JSON lacks, has the value null."""
    past = Past.of(run)
    return {
        "schema": SCHEMA,
        "run": run.id,
        "outcome": run.outcome.value,
        "results": str(run.folder),
        "report": None if report is None else str(report),
        "cells": [
            {
                "id": result.cell.id,
                "build": result.cell.build,
                "target": result.cell.target,
                "suite": result.cell.suite,
                "channel": result.cell.channel.value,
                "outcome": result.outcome.value,
                "attempts": len(result.attempts),
                "duration_s": round(result.duration_s, 6),
                "reason": result.reason,
                "remedy": attempt.remedy if (attempt := failing_attempt(result)) else "",
                "red_since": past.record(result.cell.id),
                "failed": [{"test": t.name, "reason": t.reason, "where": list(t.where)} for t in _failed_tests(result)],
                "reused_from": result.reused.run if result.reused else None,
                "samples": [
                    {
                        "metric": s.metric,
                        "value": s.value if math.isfinite(s.value) else None,
                        "unit": s.unit,
                        "channel": s.channel.value,
                        **({"machine": told} if (told := {n: s.conditions[n] for n in machine.READINGS if n in s.conditions}) else {}),
                    }
                    for s in result.samples
                ],
                "readings": [
                    {"metric": metric, "params": dict(params), **_reading(found)} for (metric, params), found in readings(result).items()
                ],
                "arrived": [{"attempt": a.number, "digest": digest} for a in result.attempts for digest in a.arrived],
                "machine_events": [
                    {"attempt": a.number, "number": e.number, "at": e.at, "text": e.text} for a in result.attempts for e in a.machine_events
                ],
            }
            for result in run.cells
        ],
        "promises": promises_json(judge([run])),
        "density": density_json(curves([run])),
        "stories": stories_json(past.proofs, run.stories),
    }


def _failed_tests(result: CellResult) -> list[TestResult]:
    attempt = failing_attempt(result)
    return [test for test in attempt.tests if test.outcome in BAD] if attempt is not None else []


def _reading(found: Reading) -> dict[str, Any]:
    values = {"low": found.low, "high": found.high} if found.value is None else {"value": found.value}
    whole = {name: int(value) if value == int(value) else value for name, value in values.items()}
    return {"agreement": found.agreement.value, **whole, "count": found.count}


def _ready(result: CellResult) -> str:
    """When the cell was ready: seconds, or on the channel icount how many instructions that took."""
    if (counted := to_ready(result)) is not None:
        return Agreement.NONDETERMINISTIC.value if counted.value is None else f"{number(counted.value)} instr."
    ready = next((a.milestones[Milestone.READY] for a in reversed(result.attempts) if Milestone.READY in a.milestones), None)
    return "–" if ready is None else f"{ready:.2f} s"


def _row(run: RunResult, result: CellResult) -> tuple[Text, ...]:
    cell = result.cell
    glyph, style = _LOOKS[result.outcome]
    word = unended(run, result)
    outcome = Text(f"· {word}", style="cyan" if word == RUNNING else "dim") if word else Text(f"{glyph} {result.outcome}", style=style)
    repeat = f" #{cell.repeat}" if cell.repeat > 1 else ""
    return (
        outcome,
        Text(_name(cell.build)),
        Text(_name(cell.target)),
        Text(_name(cell.suite) + repeat + ("" if cell.channel == "wall" else f" @{cell.channel}")),
        Text(_ready(result)),
        Text(f"{result.duration_s:.1f} s"),
        Text(str(len(result.attempts))),
        Text(
            f"reused: {one_line(result.reused.run)}" if result.reused else "" if word else _why(result.reason),
            style="" if result.outcome in BAD else "dim",
        ),
    )


def _verdict(run: RunResult) -> tuple[str, str]:
    if run.running:
        return f"· {RUNNING}", "cyan"
    if run.interrupted and run.outcome is Outcome.ERROR:
        return f"· {INTERRUPTED}", "bold yellow"
    glyph, style = _LOOKS[run.outcome]
    return f"{glyph} {run.outcome}", style


def _why(reason: str) -> str:
    """A reason for the table. Where it is too long for that, files are named without their folders: the cause may stand behind a path."""
    return one_line(reason if len(reason) <= _WHY else _FOLDERS.sub("…/", reason), _WHY)


def _name(name: str) -> str:
    return one_line(name, _LONGEST_NAME)


def _plain(name: str) -> str:
    return one_line(name, 200)
