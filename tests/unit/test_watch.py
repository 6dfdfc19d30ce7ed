"""What `labctl watch` looks at, what it takes for a change, and the difference between two runs."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from labctl.config import Lab
from labctl.judge.difference import difference
from labctl.model import Outcome
from labctl.report.difference import show
from labctl.result import TestResult
from labctl.run.watch import Watcher, sources
from tests.report_runs import ordinary_run


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    for folder in ("kernel", "suites/boot/__pycache__", "results", "sources/deep"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("lab.toml", "sources/deep/main.rs", "suites/boot/test_boot.py", "one.config"):
        (tmp_path / file).write_text("schema = 1\n")
    (tmp_path / "kernel/mine.toml").write_text(
        'schema = 1\nbuilder = "make"\n[make]\nsource = "sources"\nfragments = ["one.config", "none.config"]\n'
    )
    return Lab.find(tmp_path)


def looks(rounds: int) -> Callable[[float], bool]:
    """Ends after so many looks, without a pause."""
    left = [rounds]

    def ended(pause: float) -> bool:
        left[0] -= 1
        return left[0] < 0

    return ended


def changed(watcher: Watcher, rounds: int = 3) -> list[str]:
    return [Path(name).name for name in watcher.wait(looks(rounds))]


def test_the_labs_files_and_what_the_recipes_name(lab: Lab) -> None:
    found = sources(lab, ["mine"])
    assert {lab.root / name for name in ("lab.toml", "suites", "kernel", "sources", "one.config")} <= set(found)
    assert lab.root / "results" not in found
    watcher = Watcher.of(found)
    assert {Path(name).name for name in watcher.taken} == {"lab.toml", "main.rs", "test_boot.py", "one.config", "mine.toml"}


def test_a_kernels_file_is_watched_by_its_path(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert tmp_path / "bzImage" in sources(lab, ["./bzImage"])


def test_changes_are_seen_and_what_does_not_count_is_not(lab: Lab) -> None:
    watcher = Watcher.of(sources(lab, ["mine"]))
    for file in ("results/run.json", "suites/boot/__pycache__/x.pyc", "suites/boot/.test_boot.py.swp", "suites/boot/test_boot.py~"):
        (lab.root / file).write_text("x")
    assert changed(watcher) == []
    (lab.root / "sources/deep/main.rs").write_text("longer than before\n")
    assert changed(watcher) == ["main.rs"]
    assert changed(watcher) == ["main.rs"], "until it is taken as it is"
    watcher.take()
    assert changed(watcher) == []
    (lab.root / "sources/deep/new.rs").write_text("")
    (lab.root / "one.config").unlink()
    assert changed(watcher) == ["one.config", "new.rs"]
    watcher.take()
    os.utime(lab.root / "sources/deep/main.rs", ns=(1, 1))
    assert changed(watcher) == ["main.rs"]


def test_a_file_that_is_still_being_written_is_waited_for(lab: Lab) -> None:
    watcher = Watcher.of(sources(lab, ["mine"]))
    file = lab.root / "sources/deep/main.rs"
    sizes: list[int] = []

    def writes_on(pause: float) -> bool:
        sizes.append(file.stat().st_size)
        if len(sizes) < 5:
            file.write_text("x" * 100 * len(sizes))
        return len(sizes) > 20

    assert watcher.wait(writes_on)
    assert sizes[-1] == 400, "the last of it was there"


def test_the_difference_between_two_runs(tmp_path: Path) -> None:
    before = ordinary_run(tmp_path)
    first = before.cells[0]
    attempt = first.attempts[-1]
    tests = (*attempt.tests[1:], TestResult("new", Outcome.FAIL, 0.1, "three pages are missing"))
    worse = replace(first, outcome=Outcome.FAIL, attempts=(replace(attempt, tests=tests, milestones={"ready": 9.0}),))
    after = replace(before, cells=(worse, *before.cells[1:]))
    found = difference(before, after)
    assert [cell.id for cell in found] == [cell.cell.id for cell in after.cells]
    assert (found[0].before, found[0].after, found[0].ready_after) == (first.outcome, Outcome.FAIL, 9.0)
    changes = {test.name: (test.before, test.after) for test in found[0].tests}
    assert changes["new"] == (None, Outcome.FAIL)
    assert changes[attempt.tests[0].name] == (attempt.tests[0].outcome, None)
    assert [cell.changed for cell in found[1:]] == [False] * (len(found) - 1)
    assert not any(cell.changed for cell in difference(None, after)), "nothing to compare with is no change"

    told = io.StringIO()
    show(after, found, file=told)
    assert "three pages are missing" in told.getvalue()
    assert "1 changed" in told.getvalue()
