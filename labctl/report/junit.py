"""JUnit XML as CI systems read it: a suite is a cell, a case the latest result of a test there.

The dialect is the one of Maven's surefire, which Jenkins and GitLab read: an earlier attempt that failed where the last one passed is
a ``flakyFailure``. A cell that failed outside any test, as a kernel that does not boot, gets a case of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from xml.sax.saxutils import escape

from labctl.model import Outcome
from labctl.report.output import replacing
from labctl.report.printable import excerpt, one_line
from labctl.result import Attempt, CellResult, LeftOut, RunResult, TestResult

_BAD = (Outcome.FAIL, Outcome.ERROR, Outcome.INVALID)
_DETAIL_LINES = 200
# `visible` leaves these two, which show as boxes; XML has no way to hold them.
_NO_XML = {0xFFFE: "\ufffd", 0xFFFF: "\ufffd"}


def write_junit(run: RunResult, out: Path) -> None:
    """Seconds in ``time``, UTC in ``timestamp``. StorageError."""
    with replacing(out) as stream:
        stream.write('<?xml version="1.0" encoding="UTF-8"?>\n')
        cases = [_cases(result) for result in run.cells]
        total = [*(c for suite in cases for c in suite)]
        stream.write(f"<testsuites{_attributes(name=run.id, **_counts(total, len(run.left_out)), time=run.duration_s)}>\n")
        for result, suite in zip(run.cells, cases, strict=True):
            stream.writelines(_suite(result, suite))
        stream.writelines(_left_out(cell) for cell in run.left_out)
        stream.write("</testsuites>\n")


def _cases(result: CellResult) -> list[TestResult]:
    cases = list(result.tests)
    if (result.outcome in _BAD and not any(t.outcome in _BAD for t in cases)) or not cases:
        name = f"(reused from {result.reused.run})" if result.reused else "(cell)"
        cases.append(TestResult(name, result.outcome, 0.0 if cases else result.duration_s, result.reason))
    return cases


def _counts(cases: list[TestResult], left_out: int = 0) -> dict[str, int]:
    outcomes = [c.outcome for c in cases]
    return {
        "tests": len(cases) + left_out,
        "failures": outcomes.count(Outcome.FAIL),
        "errors": outcomes.count(Outcome.ERROR) + outcomes.count(Outcome.INVALID),
        "skipped": outcomes.count(Outcome.SKIP) + left_out,
    }


def _suite(result: CellResult, cases: list[TestResult]) -> Iterator[str]:
    cell = result.cell
    began = result.attempts[0].started_at if result.attempts else 0.0
    stamp = datetime.fromtimestamp(began, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    yield f"  <testsuite{_attributes(name=cell.id, **_counts(cases), time=result.duration_s, timestamp=stamp)}>\n    <properties>\n"
    about = {"build": cell.build, "target": cell.target, "suite": cell.suite, "channel": cell.channel, "repeat": cell.repeat,
             "attempts": len(result.attempts), "outcome": result.outcome}  # fmt: skip
    for name, value in about.items():
        yield f"      <property{_attributes(name=name, value=value)}/>\n"
    yield "    </properties>\n"
    classname = f"{cell.suite}.{cell.build}.{cell.target}"
    for case in cases:
        inside = "".join(_inside(case, result))
        head = f"    <testcase{_attributes(classname=classname, name=case.name, time=case.duration_s)}"
        yield f"{head}>{inside}\n    </testcase>\n" if inside else f"{head}/>\n"
    if result.outcome in _BAD and result.attempts and result.attempts[-1].excerpt:
        yield f"    <system-out>{_body(result.attempts[-1].excerpt)}</system-out>\n"
    yield "  </testsuite>\n"


def _inside(case: TestResult, result: CellResult) -> Iterator[str]:
    if case.stories:
        each = "".join(f"\n        <property{_attributes(name='story', value=story)}/>" for story in case.stories)
        yield f"\n      <properties>{each}\n      </properties>"
    message = case.reason or result.reason
    last = result.attempts[-1] if result.attempts else None
    match case.outcome:
        case Outcome.FAIL:
            yield _element("failure", message, _kind(case, last, "TargetFailure"), case.details)
        case Outcome.ERROR:
            yield _element("error", message, _kind(case, last, "InfraError"), case.details)
        case Outcome.INVALID:
            yield _element("error", message, "MeasurementInvalid", case.details)
        case Outcome.SKIP:
            yield f"\n      <skipped{_attributes(message=message)}/>"
        case _:
            for attempt in result.attempts[:-1]:
                failed = _failed(attempt, case.name)
                if failed is not None:
                    yield _element("flakyFailure", failed.reason, _kind(failed, attempt, "TargetFailure"), failed.details)


def _failed(attempt: Attempt, name: str) -> TestResult | None:
    """That test in an earlier attempt, if it failed there; the attempt itself, if it failed before any test was run."""
    if not attempt.tests and attempt.outcome in _BAD:
        return TestResult(name, attempt.outcome, 0.0, attempt.reason, attempt.excerpt)
    return next((t for t in attempt.tests if t.name == name and t.outcome in _BAD), None)


def _kind(case: TestResult, attempt: Attempt | None, usual: str) -> str:
    """Of which class its error was. The attempt knows that of the test that speaks for it: the only bad one, or that of its reason."""
    if attempt is None or not attempt.error:
        return usual
    alone = sum(test.outcome in _BAD for test in attempt.tests) <= 1
    return attempt.error if alone or (case.reason and case.reason in attempt.reason) else usual


def _left_out(left: LeftOut) -> str:
    cell = left.cell
    return (
        f"  <testsuite{_attributes(name=cell.id, tests=1, failures=0, errors=0, skipped=1)}>\n"
        f"    <testcase{_attributes(classname=f'{cell.suite}.{cell.build}.{cell.target}', name='(left out)', time=0.0)}>\n"
        f"      <skipped{_attributes(message=left.reason)}/>\n    </testcase>\n  </testsuite>\n"
    )


def _element(tag: str, message: str, kind: str, body: str) -> str:
    return f"\n      <{tag}{_attributes(message=message, type=kind)}>{_body(body)}</{tag}>"


def _body(text: str) -> str:
    return _escaped(excerpt(text, _DETAIL_LINES, 2000)) if text else ""


def _attributes(**values: object) -> str:
    return "".join(f' {name}="{_quoted(value)}"' for name, value in values.items())


def _quoted(value: object) -> str:
    text = f"{value:.3f}" if isinstance(value, float) else one_line(str(value), 1000)
    return _escaped(text).replace('"', "&quot;")


def _escaped(text: str) -> str:
    return escape(text) if text.isascii() else escape(text).translate(_NO_XML)
