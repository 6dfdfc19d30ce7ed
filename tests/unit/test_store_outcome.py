"""From the outcomes of tests to those of attempts, cells and runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from labctl.model import Outcome
from labctl.result import Attempt, TestResult
from labctl.store.outcome import NEVER_STARTED, attempt_outcome, cell_outcome, run_outcome

PASS, FLAKY, SKIP, INVALID, FAIL, ERROR = Outcome


def attempt(number: int, outcome: Outcome, reason: str = "", **tests: Outcome) -> Attempt:
    results = tuple(TestResult(name, result, 1.0, f"{name} {result}") for name, result in tests.items())
    return Attempt(number, "gw0", outcome, 0.0, 1.0, reason, "", results, (), {}, (), "", "", Path(), True)


@pytest.mark.parametrize(
    ("tests", "wanted"),
    [
        ([PASS, PASS], PASS),
        ([PASS, SKIP], PASS),
        ([SKIP, SKIP], SKIP),
        ([PASS, INVALID, SKIP], INVALID),
        ([PASS, INVALID, FAIL], FAIL),
        ([FAIL, ERROR, INVALID], ERROR),
        ([], ERROR),
    ],
)
def test_the_gravest_test_decides_an_attempt(tests: list[Outcome], wanted: Outcome) -> None:
    assert attempt_outcome(tests) is wanted
    assert attempt_outcome(reversed(tests)) is wanted


@pytest.mark.parametrize(
    ("cells", "wanted"),
    [
        ([PASS, FLAKY, SKIP], PASS),
        ([SKIP], PASS),
        ([PASS, ERROR], ERROR),
        ([ERROR, FAIL], FAIL),
        ([PASS, INVALID], FAIL),
        ([], ERROR),
    ],
)
def test_a_run_fails_rather_than_errs(cells: list[Outcome], wanted: Outcome) -> None:
    assert run_outcome(cells) is wanted


def test_a_cell_without_an_attempt_never_started() -> None:
    assert cell_outcome([]) == (ERROR, NEVER_STARTED)


def test_a_single_attempt_speaks_for_the_cell() -> None:
    for outcome in (PASS, SKIP, INVALID, FAIL, ERROR):
        assert cell_outcome([attempt(1, outcome, "why")]) == (outcome, "why")


@pytest.mark.parametrize("before", [FAIL, ERROR, INVALID])
def test_a_pass_after_trouble_is_flaky_and_says_which(before: Outcome) -> None:
    assert cell_outcome([attempt(1, before, "lost console"), attempt(2, PASS)]) == (FLAKY, "attempt 1: lost console")


def test_the_last_attempt_decides() -> None:
    assert cell_outcome([attempt(1, PASS), attempt(2, FAIL, "hung")]) == (FAIL, "hung")
    assert cell_outcome([attempt(1, ERROR, "busy"), attempt(2, ERROR, "still")]) == (ERROR, "still")


def test_a_failure_that_was_not_run_again_stands() -> None:
    first = attempt(1, ERROR, "the worker died", a=FAIL, b=PASS)
    assert cell_outcome([first, attempt(2, PASS, c=PASS)]) == (FAIL, "a fail")


def test_a_test_run_again_replaces_its_earlier_result() -> None:
    first = attempt(1, ERROR, "lost console", a=PASS, b=ERROR)
    assert cell_outcome([first, attempt(2, PASS, b=PASS)])[0] is FLAKY
    assert cell_outcome([first, attempt(2, FAIL, "b fail", b=FAIL)]) == (FAIL, "b fail")


def test_skipping_what_was_left_does_not_hide_what_passed() -> None:
    first = attempt(1, ERROR, "lost console", a=PASS)
    assert cell_outcome([first, attempt(2, SKIP, b=SKIP)])[0] is FLAKY
