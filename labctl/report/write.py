"""All reports of a run, into one folder."""

from __future__ import annotations

import os
from pathlib import Path

from labctl.report.html import write_html
from labctl.report.junit import write_junit
from labctl.report.samples_csv import write_csv, write_histograms_csv
from labctl.result import RunResult


def write_reports(run: RunResult, folder: Path | None = None) -> Path:
    """``report.html``, ``junit.xml``, ``samples.csv`` and, if there are any, ``histograms.csv`` in ``folder``, the run's own if not given.

    The page's path. StorageError."""
    place = run.folder if folder is None else folder
    write_junit(run, place / "junit.xml")
    write_csv(run, place / "samples.csv")
    if any(attempt.distributions for cell in run.cells for attempt in cell.attempts):
        write_histograms_csv(run, place / "histograms.csv")
    # The page comes last: it links to what is there.
    return write_html(run, place / "report.html", raw_base=Path(os.path.relpath(run.folder, place)).as_posix())
