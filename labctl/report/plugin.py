"""Writes the reports when a run under plain pytest has ended. A pytest plugin by its hook's name alone."""

from __future__ import annotations

from pathlib import Path

from labctl.report.write import write_reports
from labctl.result import RunResult


def pytest_labctl_finished(run: RunResult) -> Path:
    """The path of the HTML report. StorageError if it, or another report, could not be written."""
    return write_reports(run)
