"""Counted figures agree to the last digit, or they are no figure."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import pytest

from labctl.judge.exact import Agreement, reading, readings, to_ready
from labctl.judge.summary import summarise
from labctl.model import Channel
from labctl.parsers.icount import MAGIC, counts_at, loaded, snapshots
from labctl.report.figures import samples_chart
from labctl.report.text import as_json
from labctl.report.view import page
from labctl.result import RunResult
from tests.report_runs import failing_run

FOLDER = Path("/nowhere")


def test_two_that_agree_are_a_figure_and_two_that_differ_are_none() -> None:
    assert reading([7, 7]).value == 7
    assert reading([7, 7]).agreement is Agreement.EXACT
    assert reading([7]).agreement is Agreement.ONCE
    differing = reading([1_000_000_001, 1_000_000_000, 1_000_000_000])
    assert (differing.agreement, differing.value, differing.low, differing.high) == (Agreement.NONDETERMINISTIC, None, 1e9, 1e9 + 1)
    with pytest.raises(ValueError):
        reading([])


def counted(*values: int) -> RunResult:
    """A run whose last cell has counted these, of which the real run has one."""
    run = failing_run(FOLDER)
    cell = run.cells[-1]
    first = replace(cell.samples[0], params={"milestone": "ready"})
    samples = tuple(replace(first, value=float(value), index=i) for i, value in enumerate(values))
    return replace(run, cells=(*run.cells[:-1], replace(cell, attempts=(replace(cell.attempts[0], samples=samples),))))


def test_a_cell_reads_what_its_boots_say_together() -> None:
    assert to_ready(counted(5, 5).cells[-1]) == reading([5, 5])
    assert to_ready(counted(5, 6).cells[-1]) == reading([5, 6])
    assert to_ready(counted(5).cells[0]) is None
    assert all(result.cell.channel is Channel.ICOUNT for result in counted(5).cells if readings(result))


def test_reports_tell_counts_that_differ_and_never_average_them() -> None:
    run = counted(1_402_331_206, 1_402_331_208)
    cell = as_json(run, None)["cells"][-1]
    assert cell["readings"] == [
        {
            "metric": "boot.instructions",
            "params": {"milestone": "ready"},
            "agreement": "nondeterministic",
            "low": 1_402_331_206,
            "high": 1_402_331_208,
            "count": 2,
        }
    ]
    shown = page(run, FOLDER / "report.html", "")
    counts = next(table for table in shown["tables"].items if table["metric"] == "boot.instructions (icount)")
    rows = [row for row in counts["rows"].items if row["words"] == "milestone=ready"]
    assert [row["median"] for row in rows] == ["nondeterministic"]
    assert "1,402,331,207" not in repr(rows)
    group = next(g for g in summarise(run).groups if g.group.channel is Channel.ICOUNT and g.group.params)
    assert not any(1402331207 in trace["x"] for trace in samples_chart("x", [group], 100).figure["data"])


def test_counts_of_a_byte() -> None:
    memory = struct.pack("<4Q", MAGIC, 2, 3, 2) + bytes(32) + struct.pack("<6Q", 10, 1, 20, 2, 99, 99)
    assert loaded(memory)
    assert [counts_at(memory, offset) for offset in (-1, 0, 1, 2, 3)] == [None, (10, 1), (20, 2), None, None]
    assert not loaded(bytes(64))
    assert counts_at(bytes(64), 0) is None


def test_snapshots_of_a_trace() -> None:
    trace = struct.pack("<6Q", 100, 2, 0xFFFFFFFF81000000, 3, 0x1000, 1) + struct.pack("<2Q", 200, 0)
    first, second = snapshots(trace)
    assert (first.offset, dict(first.executed)) == (100, {0xFFFFFFFF81000000: 3, 0x1000: 1})
    assert (second.offset, dict(second.executed)) == (200, {})
    for torn in (trace[:-1], trace[:40], trace[:8]):
        with pytest.raises(ValueError, match="trace"):
            snapshots(torn)
