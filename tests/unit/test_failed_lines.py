"""Which lines of a suite a test failed in: found whatever it failed by, and told where the failure is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from labctl.errors import KernelCrash, VmFailed
from labctl.report.html import write_html
from labctl.report.junit import write_junit
from labctl.report.order import BAD
from labctl.report.text import as_json, show_failures
from labctl.run.lines import MOST_LINES, failed_at, told_of
from labctl.store.records import test as read_test
from labctl.store.records import test_record as recorded
from tests.report_runs import failing_run

CODE = """\
def deeper(fail, depth):
    if depth:
        return deeper(fail, depth - 1)
    fail()


def test_it(fail):
    deeper(fail, 0)
"""


def fail() -> None:
    raise VmFailed("VM one: is off")


@pytest.fixture
def suite(tmp_path: Path) -> Callable[..., BaseException]:
    """Run something of a suite's file; what it raised."""
    file = tmp_path / "suites" / "mine" / "test_mine.py"
    file.parent.mkdir(parents=True)
    file.write_text(CODE)
    names: dict[str, Callable[..., None]] = {}
    exec(compile(CODE, str(file), "exec"), names)

    def run(name: str, *arguments: object) -> BaseException:
        with pytest.raises(Exception) as raised:
            names[name](*arguments)
        return raised.value

    return run


def test_of_what_a_driver_raises_the_suites_lines_are_known(suite: Callable[..., BaseException], tmp_path: Path) -> None:
    error = suite("test_it", fail)
    where = failed_at(error, tmp_path / "suites")
    assert where == ("test_mine.py:8: deeper(fail, 0)", "test_mine.py:4: fail()")
    assert told_of(VmFailed("VM one: is off"), where).splitlines() == [*where, "VmFailed: VM one: is off"]


def test_a_cause_that_took_anothers_place_has_the_others_lines(suite: Callable[..., BaseException], tmp_path: Path) -> None:
    error = suite("test_it", fail)
    with pytest.raises(KernelCrash) as raised:
        raise KernelCrash("Oops") from error
    assert failed_at(raised.value, tmp_path / "suites")[-1] == "test_mine.py:4: fail()"


def test_a_deep_call_is_told_by_its_ends(suite: Callable[..., BaseException], tmp_path: Path) -> None:
    where = failed_at(suite("deeper", fail, 50), tmp_path / "suites")
    assert len(where) == MOST_LINES + 1
    assert (where[0], where[-1]) == ("test_mine.py:3: return deeper(fail, depth - 1)", "test_mine.py:4: fail()")


def test_what_fails_outside_has_no_lines(tmp_path: Path) -> None:
    with pytest.raises(VmFailed) as raised:
        fail()
    assert failed_at(raised.value, tmp_path / "suites") == ()


def test_they_are_kept_and_told_in_the_terminal_on_the_page_and_to_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = failing_run(tmp_path / "run")
    number = next(
        n for n, result in enumerate(run.cells) if result.attempts and any(test.outcome in BAD for test in result.attempts[-1].tests)
    )
    result = run.cells[number]
    attempt = result.attempts[-1]
    lines = ("test_boot.py:12: assert_well(booted)", "test_boot.py:31: assert '<b>' in said")
    tests = tuple(replace(test, where=lines) if test.outcome in BAD else test for test in attempt.tests)
    reason = next(test.reason for test in tests if test.outcome in BAD)
    assert [read_test(recorded(test)) for test in tests] == list(tests)
    told = replace(result, attempts=(*result.attempts[:-1], replace(attempt, tests=tests, reason=reason)))
    run = replace(run, cells=(*run.cells[:number], told, *run.cells[number + 1 :]))

    with (tmp_path / "said").open("w") as file:
        show_failures(run, file=file)
    said = (tmp_path / "said").read_text().splitlines()
    at = said.index(f"    {lines[0]}")
    assert said[at - 1].strip().startswith("in test_")
    assert said[at + 1] == f"    {lines[1]}"
    failed = as_json(run, None)["cells"][number]["failed"]
    assert failed[0]["where"] == list(lines)
    page = tmp_path / "report.html"
    write_html(run, page)
    assert "test_boot.py:31: assert &#39;&lt;b&gt;&#39; in said" in page.read_text()
    junit = tmp_path / "junit.xml"
    write_junit(run, junit)
    assert reason[:20] in junit.read_text()
