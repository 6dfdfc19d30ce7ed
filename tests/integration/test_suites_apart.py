"""Suites of one run may have Python files of the same names: each reads its own."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.temporary_lab import LABCTL, TemporaryLab

CONFTEST = """import pytest
from settings import WHO

@pytest.fixture
def who():
    return WHO
"""
TESTS = """import settings
from helping.deep import WHO

def test_its_own(cell, who):
    import lazily
    assert (settings.WHO, WHO, who, lazily.WHO) == (cell.suite,) * 4
    assert settings.WHO is who
"""


@pytest.fixture
def lab(new_lab: Callable[[], TemporaryLab]) -> TemporaryLab:
    lab = new_lab()
    for name in ("one", "two", "three"):
        own = f"WHO = {name!r}\n"
        files = {"conftest.py": CONFTEST, "test_it.py": TESTS, "settings.py": own, "lazily.py": own, "helping/deep.py": own}
        for file, text in {**files, "helping/__init__.py": ""}.items():
            lab.write(f"suites/{name}/{file}", text)
    return lab


@pytest.mark.parametrize("workers", ["1", "2"])
def test_in_a_run(lab: TemporaryLab, workers: str) -> None:
    assert lab.run("--dry-run").status == 0
    ran = lab.run("-n", workers)
    assert ran.status == 0, ran.err + ran.out[-2000:]
    assert {cell["outcome"] for cell in ran.cells.values()} == {"pass"}


def test_under_pytest(lab: TemporaryLab) -> None:
    lab.write("conftest.py", 'pytest_plugins = ("labctl.run.plugin",)\n')
    done = subprocess.run(
        [LABCTL.with_name("pytest"), "suites", "--matrix", "default", "-q"],
        cwd=lab.root,
        env=lab.environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "3 passed" in done.stdout


def test_those_of_this_lab(tmp_path: Path) -> None:
    """Two of them have a `test_speed.py`."""
    lab = Path(__file__).parents[2]
    names = [path.parent.name for path in lab.glob("suites/*/test_speed.py")]
    assert len(names) > 1
    command = [LABCTL.with_name("pytest"), *(f"suites/{name}" for name in names), "--build", "debian-cloud", "--target", "storage-*"]
    done = subprocess.run(
        [*command, "--results", tmp_path, "--collect-only", "-q"], cwd=lab, capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stdout[-3000:]
