"""Mistakes of a suite that show before any machine has power."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.temporary_lab import TemporaryLab, reasons

SUITES = Path(__file__).parents[2] / "suites"
WARM = "schema = 1\nwarm = true\n"


def test_a_setting_that_is_none(lab: TemporaryLab) -> None:
    """As the user's shell has it: the suite's own conftest reads it. Lines, and no trace into the suite."""
    lab.suite("storage", "def test_nothing(fio):\n    pass\n")
    for name in ("conftest.py", "storage_settings.py"):
        shutil.copy(SUITES / "storage" / name, lab.root / "suites/storage" / name)
    ran = lab.labctl("run", "matrix", STORAGE_SECONDS="abc", STORAGE_SIZE="0", STORAGE_CUTS="-3")
    assert ran.status == 2, ran.err
    assert ran.err.splitlines()[-3:] == [
        "labctl: environment: STORAGE_SECONDS: found 'abc'; a number of seconds, from 1 to 86400",
        "environment: STORAGE_SIZE: found '0'; a size such as 512M or 4G, at least 1M",
        "environment: STORAGE_CUTS: found '-3'; a whole number of power cuts, from 1 to 1000",
    ]
    assert "Traceback" not in ran.err
    assert "conftest" not in ran.err
    assert (lab.runs[-1] / "end.json").exists(), "no run that seems to go on"


@pytest.mark.parametrize("fixture", ["booted", "record_boot", "console", "selftests"])
def test_asking_for_a_boot_at_run_time_in_a_suite_of_copies(lab: TemporaryLab, fixture: str) -> None:
    """Refused whether or not the machine would be a copy (here none has power yet), and not tried again."""
    lab.suite("only", f"def test_x(request):\n    request.getfixturevalue({fixture!r})\n")
    lab.write("suites/only/suite.toml", WARM)
    ran = lab.run("--cold")
    cell = ran.cells["debian/only"]
    assert (cell["outcome"], cell["attempts"]) == ("error", 1), reasons(ran.cells)
    named = "booted" if fixture == "console" else fixture  # which it asks for itself
    assert cell["reason"].startswith(f"suites/only/test_only.py::test_x, of a suite with warm = true, asks for '{named}'"), cell["reason"]
    assert ran.status == 3
