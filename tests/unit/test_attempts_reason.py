"""What an attempt's one line says beside its cause."""

from __future__ import annotations

from labctl.errors import LeftOn, PowerError
from labctl.model import Outcome
from labctl.result import TestResult
from labctl.run.attempt import _besides, _Failure

FIXTURE = _Failure(TestResult("a.py::test_fixture", Outcome.ERROR, 0.0, "KeyError: 'nokey'"), KeyError("nokey"), "")
BROKEN = _Failure(TestResult("a.py::test_echo", Outcome.FAIL, 0.0, "AssertionError: the kernel is broken"), AssertionError(), "")


def off(error: PowerError) -> _Failure:
    return _Failure(TestResult("power off", Outcome.ERROR, 0.0, error.title), error, "")


def test_what_the_build_failed_by_is_told_behind_what_decides() -> None:
    told = _besides(1, FIXTURE, [FIXTURE, BROKEN], None)
    assert told == " (and 1 more, test_echo failed: AssertionError: the kernel is broken)"
    assert _besides(1, BROKEN, [BROKEN, BROKEN], None) == " (and 1 more)"
    assert _besides(0, BROKEN, [BROKEN], None) == ""


def test_a_machine_that_was_left_on_is_named_once() -> None:
    left_on = LeftOn("rack1 may still be on: no answer")
    assert _besides(1, BROKEN, [BROKEN, off(left_on)], left_on) == "; and rack1 may still be on: no answer"
    assert _besides(2, BROKEN, [BROKEN, BROKEN, off(left_on)], left_on) == " (and 1 more); and rack1 may still be on: no answer"
    assert _besides(0, off(left_on), [off(left_on)], left_on) == ""
