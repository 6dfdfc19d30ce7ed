"""A kernel's own report of its tests: what recorded consoles say, and what hostile ones try."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labctl.model import Outcome
from labctl.parsers import ktap
from labctl.parsers.ktap import NAME_WIDTH, Figure, Ktap, figures, parse

CONSOLES = Path(__file__).parents[1] / "data/ktap"


def outcomes(text: str) -> dict[str, str]:
    return {result.name: result.outcome.value for result in parse(text.encode()).results}


# The example of the specification, as it stands there.
EXAMPLE = """\
KTAP version 1
1..1
  KTAP version 1
  1..3
    KTAP version 1
    1..1
    # test_1: initializing test_1
    ok 1 test_1
  ok 1 example_test_1
    KTAP version 1
    1..2
    ok 1 test_1 # SKIP test_1 skipped
    ok 2 test_2
  ok 2 example_test_2
    KTAP version 1
    1..3
    ok 1 test_1
    # test_2: FAIL
    not ok 2 test_2
    ok 3 test_3 # SKIP test_3 skipped
  not ok 3 example_test_3
not ok 1 main_test
"""


def test_the_specifications_example() -> None:
    report = parse(EXAMPLE.encode())
    assert outcomes(EXAMPLE) == {
        "main_test/example_test_1/test_1": "pass",
        "main_test/example_test_2/test_1": "skip",
        "main_test/example_test_2/test_2": "pass",
        "main_test/example_test_3/test_1": "pass",
        "main_test/example_test_3/test_2": "fail",
        "main_test/example_test_3/test_3": "skip",
    }
    assert (report.complete, report.problems) == (True, ())
    failed = report.results[4]
    assert (failed.reason, failed.details) == ("test_2: FAIL", "# test_2: FAIL")
    assert report.results[1].reason == "test_1 skipped"
    assert EXAMPLE.encode()[: failed.end].endswith(b"not ok 2 test_2\n")


def test_lines_of_the_kernels_log_stand_between_and_before_the_report() -> None:
    text = (
        "Booting from ROM..KTAP version 1\r\n1..2\r\n[    0.1] INFO  memory: 3 pages\r\n[    0.123456] ok 1 pages\r\n"
        "[   12.000001][   T1] # found 3\r\n[    0.2] WARN  ok is no result here\r\nnot ok 2 - heap\r\n"
    )
    report = parse(text.encode())
    assert [(r.name, r.outcome.value) for r in report.results] == [("pages", "pass"), ("heap", "fail")]
    assert report.results[1].reason == "found 3"
    assert "WARN" in report.results[1].details


@pytest.mark.parametrize(
    ("line", "outcome", "reason"),
    [
        ("ok 1 a # SKIP no disk", Outcome.SKIP, "no disk"),
        ("ok 1 a # skip", Outcome.SKIP, "skipped by the kernel"),
        ("not ok 1 a # SKIP", Outcome.SKIP, "skipped by the kernel"),
        ("not ok 1 a # TODO not written yet", Outcome.SKIP, "fails as expected: not written yet"),
        ("ok 1 a # TODO not written yet", Outcome.PASS, ""),
        ("not ok 1 a # XFAIL", Outcome.SKIP, "fails as expected: XFAIL"),
        ("ok 1 a # XFAIL known", Outcome.SKIP, "fails as expected: known"),
        ("ok 1 a # XFAIL", Outcome.SKIP, "fails as expected: XFAIL"),
        ("not ok 1 a # TIMEOUT 45 seconds", Outcome.FAIL, "timeout: 45 seconds"),
        ("ok 1 a # ERROR no memory", Outcome.FAIL, "error: no memory"),
        ("not ok 1 a # expected 3, got 4", Outcome.FAIL, "expected 3, got 4"),
        ("ok 1 a # took 3 ms", Outcome.PASS, ""),
        ("not ok 1 - a", Outcome.FAIL, ""),
        ("not ok a", Outcome.FAIL, ""),
        ("ok 1 a # SKIPPED by hand", Outcome.PASS, ""),
    ],
)
def test_directives(line: str, outcome: Outcome, reason: str) -> None:
    (result,) = parse(f"KTAP version 1\n1..1\n{line}\n".encode()).results
    assert (result.name, result.outcome, result.reason) == ("a", outcome, reason)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("1..3\nok 1 a\nok 2 b\n", "3 tests planned, 2 reported"),
        ("1..3\nok 1 a\nok 2 b\n", "the report is cut off after b"),
        ("1..2\nok 1 a\nok 3 b\n", "b: has number 3 where 2 was to come"),
        ("1..1\n  KTAP version 1\n  1..2\n  ok 1 x\nok 1 group\n", "group: 2 tests planned, 1 reported"),
        ("1..1\n  KTAP version 1\n  # Subtest: group\n  1..2\n  ok 1 x\n", "group: 2 tests planned, 1 reported"),
        ("1..4\nok 1 a\nBail out! no such test: memori\n", "Bail out! no such test: memori"),
        ("1..2\nok 1 a\nKTAP version 1\n1..1\nok 1 a\n", "a second report begins before the first one ends"),
        ("", "the report is cut off"),
    ],
)
def test_a_report_that_is_not_whole_says_why(text: str, problem: str) -> None:
    assert problem in parse(f"KTAP version 1\n{text}".encode()).problems


def test_what_a_cut_off_group_reported_counts_under_its_own_name() -> None:
    assert outcomes("KTAP version 1\n1..2\nok 1 a\n  KTAP version 1\n  # Subtest: disk\n  1..3\n  ok 1 read\n  not ok 2 write\n") == {
        "a": "pass",
        "disk/read": "pass",
        "disk/write": "fail",
    }


def test_a_group_that_fails_by_itself_is_told() -> None:
    text = "KTAP version 1\n1..1\n  KTAP version 1\n  1..1\n  ok 1 x\nnot ok 1 group # 3 pages leaked\n"
    assert [(r.name, r.outcome.value, r.reason) for r in parse(text.encode()).results] == [
        ("group/x", "pass", ""),
        ("group", "fail", "3 pages leaked"),
    ]


def test_nothing_to_test() -> None:
    assert outcomes("KTAP version 1\n1..0 # SKIP no disk here\n") == {"all": "skip"}
    assert outcomes("KTAP version 1\n1..1\n  KTAP version 1\n  1..0 # SKIP no disk\nok 1 nvme\n") == {"nvme": "skip"}
    nothing = parse(b"QuetzalCore OS v1.0\nok 1 this is no report\n")
    assert (nothing.results, nothing.complete, nothing.problems) == ((), False, ("no KTAP report",))


def test_two_tests_of_one_name_are_two() -> None:
    assert list(outcomes("KTAP version 1\n1..3\nok 1 a\nnot ok 2 a\nok 3\n")) == ["a", "a#2", "test 3"]


def test_the_end_is_known_when_the_last_line_comes() -> None:
    reader = Ktap()
    whole = EXAMPLE.encode()
    for at in range(len(whole)):
        assert not reader.done
        assert reader.begun == (at >= len("KTAP version 1\n"))
        reader.feed(whole[at : at + 1])
    assert reader.done
    assert reader.report() == parse(whole)
    reader.feed(b"ok, all is well\n  ok 1 of somebody else's\n[    1.2] reboot: Power down\n")
    assert reader.report() == parse(whole)


@pytest.mark.parametrize(
    ("late", "problem"),
    [
        ("ok 3 c\n", "more than the 2 tests that are planned: ok 3 c"),
        ("not ok 3 c # why\n", "more than the 2 tests that are planned: not ok 3 c # why"),
        ("[    1.250000] Bail out! memory leaked", "after the last test: Bail out! memory leaked"),
        ("bye\nKTAP version 1\n1..1\nok 1 a\n", "a second report begins after the end of the first"),
    ],
)
def test_what_comes_after_the_last_planned_line_is_read_too(late: str, problem: str) -> None:
    report = parse(f"KTAP version 1\n1..2\nok 1 a\nok 2 b\n{late}".encode())
    assert problem in report.problems
    assert [result.name for result in report.results] == ["a", "b"]


def test_a_plan_of_nothing_needs_a_reason() -> None:
    assert parse(b"KTAP version 1\n1..0\n").problems == ("the plan is of no test, and gives no reason",)
    assert parse(b"KTAP version 1\n1..0 # SKIP no disk here\n").problems == ()


def test_a_test_tells_the_terminal_nothing() -> None:
    (result,) = parse(b"KTAP version 1\n1..1\n# \x1b]0;title\x07\nnot ok 1 \x1b[31mred\xe2\x80\xae\n").results
    assert "\x1b" not in result.name + result.reason + result.details
    assert "␛[31mred<U+202E>" in result.name


def test_floods_are_bounded() -> None:
    endless = b"KTAP version 1\n" + b"ok 1 a\n" * (ktap.MOST_RESULTS + 5)
    assert len(parse(endless).results) == ktap.MOST_RESULTS
    deep = b"KTAP version 1\n" + b"".join(b" " * indent + b"KTAP version 1\n" for indent in range(1, 900)) + b"ok 1 a\n"
    assert len(parse(deep).results) == 1
    wide = parse(b"KTAP version 1\n1..1\n" + b"# " + b"x" * 1_000_000 + b"\nnot ok 1 " + b"y" * 1_000_000 + b"\n")
    assert len(wide.results[0].name) <= ktap.NAME_WIDTH
    assert len(wide.results[0].details) <= ktap.DETAIL_WIDTH
    chatty = parse(b"KTAP version 1\n1..1\n" + b"# one more\n" * 100_000 + b"ok 1 a\n")
    assert len(chatty.results[0].details.splitlines()) == ktap.DETAIL_LINES


LINES = st.sampled_from(
    [
        "KTAP version 1",
        "1..2",
        "1..0",
        "ok 1 a",
        "not ok 2 b # SKIP x",
        "# Subtest: g",
        "  ---",
        "  message: |",
        "  ...",
        "# selftests: d: p",
        "# TAP version 13",
        "# 1..2",
        "# ok 1 a",
        "# Bail out!",
        "Bail out!",
        "ok",
        "noise",
        "not ok",
        "ok 99999999 z",
    ]
)


@given(st.lists(st.tuples(st.integers(0, 5), LINES | st.text(max_size=20)), max_size=30), st.integers(1, 40))
def test_whatever_comes_is_read_the_same_in_one_piece_and_in_many(lines: list[tuple[int, str]], step: int) -> None:
    data = "\n".join([" " * 2 * indent + text for indent, text in lines]).encode("utf-8", "surrogatepass")
    whole = parse(data)
    reader = Ktap()
    for at in range(0, len(data), step):
        reader.feed(data[at : at + step])
    assert reader.report() == whole
    assert len({result.path for result in whole.results}) == len(whole.results)
    assert [result.end for result in whole.results] == sorted(result.end for result in whole.results)


def test_a_recorded_console() -> None:
    report = parse(gzip.decompress((CONSOLES / "unknown-test.txt.gz").read_bytes()))
    (result,) = report.results
    assert (result.name, result.outcome, result.reason) == ("memori", Outcome.FAIL, "unknown test")


def test_figures_beside_results() -> None:
    report = parse(
        b"KTAP version 1\n1..2\n    KTAP version 1\n    1..1\n    # bench read_qd1=32619 IOPS\r\n    # bench time=0.25 s\r\n    ok 1 read\nok 1 iops\n"
        b"# bench bad=\n# bench =1 s\n# bench words=many s\n# bench nounit=1\n# benchmark x=1 s\n# bench big=9999999999999999999999 s\nok 2 other\n"
    )
    assert figures(report) == [Figure("iops/read", "read_qd1", 32619, "IOPS"), Figure("iops/read", "time", 0.25, "s")]


def test_a_recorded_console_with_groups_and_the_kernels_own_log_between() -> None:
    data = gzip.decompress((CONSOLES / "quetzalcore.txt.gz").read_bytes())
    report = parse(data)
    assert (report.complete, report.problems) == (True, ())
    found = {result.name: result for result in report.results}
    assert {name.split("/")[0] for name in found} == {"boot", "memory", "pci", "nvme"}
    assert [result.name for result in report.results if result.outcome is Outcome.FAIL] == [
        f"nvme/{name}" for name in ("identify", "write_and_read_back", "beyond_the_end", "deep_queue", "interrupts")
    ]
    assert found["nvme/identify"].reason == "nvme: there is no NVMe controller on the PCI bus"
    assert "ERROR nvme" in found["nvme/identify"].details
    assert found["memory/gigabyte"].reason == "less than 1 GiB is free"
    # The machine may go off at any byte of it: never a report that can be believed, never one that says less than was said.
    told = -1
    for at in range(0, len(data), 97):
        cut = parse(data[:at])
        assert cut.problems or cut.results == report.results
        assert len(cut.results) >= told
        told = len(cut.results)


def test_a_programs_own_output_may_lack_the_version_line() -> None:
    said = b"# Test configs:\n\tthreshold_mb=4\n\n1..3\nok 1 # XFAIL moved\n\tas expected\nok 2 8KB\nnot ok 3 2GB\n"
    report = parse(said, alone=True)
    assert [(r.name, r.outcome.value) for r in report.results] == [("test 1", "skip"), ("8KB", "pass"), ("2GB", "fail")]
    assert report.results[0].reason == "fails as expected: moved", "as ksft_test_result_xfail() of kselftest.h says it"
    assert (report.complete, report.problems) == (True, ())
    assert parse(said).problems == ("no KTAP report",), "on a console such lines may be anybody's"
    assert parse(b"ok 1 a\nok 2 b\n", alone=True).problems == ("the report is cut off after b",), "it never says how many there are"
    assert not parse(b"ok 1 a\nok 2 b\n1..2\n", alone=True).wrong


def test_what_is_wrong_in_a_line() -> None:
    report = parse(b"KTAP version 1\n1..4\nok 1 a\nnot ok 2 b # why\nnot ok 3 c\n")
    assert report.wrong == "2 of 3 failed: b: why; c; 4 tests planned, 3 reported; the report is cut off after c"
    assert parse(b"KTAP version 1\n1..1\nok 1 a\n").wrong == ""
    assert parse(b"KTAP version 1\n1..2\nok 1 a # SKIP no disk\nok 2 b # SKIP\n").skipped == "no disk"
    assert parse(b"KTAP version 1\n1..2\nok 1 a # SKIP no disk\nok 2 b\n").skipped == ""


def recorded(name: str, *, alone: bool = True) -> ktap.Report:
    return parse(gzip.decompress((CONSOLES / f"{name}.txt.gz").read_bytes()), alone=alone)


def test_kunit_on_a_console() -> None:
    report = recorded("kunit", alone=False)
    assert (report.complete, report.problems) == (True, ())
    told = {result.name: result for result in report.results}
    assert len(told) == 102
    assert [name for name, result in told.items() if result.outcome is Outcome.FAIL] == ["example/example_simple_test"]
    assert "Expected 1 + 1 == 3, but" in told["example/example_simple_test"].details
    skipped = told["example/example_mark_skipped_test"]
    assert (skipped.outcome, skipped.reason) == (Outcome.SKIP, "this test should be skipped")


def test_kselftests_as_they_are() -> None:
    whole = recorded("clone3")
    assert (len(whole.results), whole.wrong) == (17, "")
    assert recorded("mremap_test").wrong.startswith(
        "4 of 14 failed: 2GB mremap - Source PUD-aligned, Destination PTE-aligned: Failed to map"
    )
    mincore = recorded("mincore_selftest")
    assert [result.outcome.value for result in mincore.results] == ["pass", "pass", "skip", "fail", "fail"]
    assert mincore.results[2].reason == "No huge pages available."
    assert "No read-ahead pages found in memory" in mincore.results[3].details
    assert "Bail out! pidfd_poll check" in recorded("pidfd_test").wrong
    assert recorded("kcmp_test").wrong.startswith("3 tests planned, 0 reported"), "it says PASS where it should say ok"


def told(text: str, *, alone: bool = False) -> tuple[dict[str, str], tuple[str, ...]]:
    report = parse(text.encode(), alone=alone)
    return {result.name: result.outcome.value for result in report.results}, report.problems


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1..3\nok 1 a\nlogin: ok 2 b\nok 3 c\n", {"a": "pass", "b": "pass", "c": "pass"}),
        ("1..3\nok 1 a\nKillednot ok 2 b # why\nok 3 c\n", {"a": "pass", "b": "fail", "c": "pass"}),
        ("1..3\nok 1 a\n$ ok 2 b # SKIP no disk\nok 3 c\n", {"a": "pass", "b": "skip", "c": "pass"}),
        ("1..2\nok 1 a\nlogin: ok 2 b\n", {"a": "pass", "b": "pass"}),  # the last one: the plan says that it is missing
        ("1..2\nlogin: ok 1 a\nok 2 b\n", {"a": "pass", "b": "pass"}),
        ("1..2\nok 1Killed\nok 2 b\n", {"1Killed": "pass", "b": "pass"}),
        ("1..1\n  KTAP version 1\n  1..2\n  ok 1 x\nlogin:   ok 2 y\nok 1 g\n", {"g/x": "pass", "g/y": "pass"}),
        ("~ # 1..1\nok 1 a\n", {"a": "pass"}),
        ("1..2\nok 1 a[   12.345678] usb 1-1: new device\nok 2 b # SKIP no disk[    3.000001][   T12] random: crng init done\n",
         {"a": "pass", "b": "skip"}),
        # What only looks like one: the numbers do not need it.
        ("1..3\nok 1 a\na book 2 of mine\nok 2 b\nok 3 c\n", {"a": "pass", "b": "pass", "c": "pass"}),
        ("1..2\nok 1 a\nlook 3 times, 1..9\nok 2 b\n", {"a": "pass", "b": "pass"}),
    ],
)  # fmt: skip
def test_a_line_behind_what_others_left_unfinished(text: str, found: dict[str, str]) -> None:
    """It is one of the report where the numbers show that it is missing, and nowhere else."""
    assert told(f"KTAP version 1\n{text}") == (found, ())


def test_a_not_whose_it_is_nobody_knows_makes_no_pass() -> None:
    report = parse(b"KTAP version 1\n1..2\nok 1 a\nthe disk is not ok 2 b\n")
    assert [(result.name, result.outcome.value) for result in report.results] == [("a", "pass"), ("b", "fail")]
    assert report.results[1].reason == "as far as can be told from 'the disk is not ok 2 b'"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("1..3\nok 1 a\nloginok 4 b\nok 3 c\n", "c: has number 3 where 2 was to come"),
        ("1..3\nok 1 a\nlogin: ok b\nok 3 c\n", "c: has number 3 where 2 was to come"),
        ("1..2\nok 1 a\nlogin: ok b\n", "2 tests planned, 1 reported"),
        ("~ # 1..3\nok 1 a\n", "the report is cut off after a"),
        ("1..2\n  KTAP version 1\n  1..1\n  ok 1 x\nlogin: ok 1 g\nok 2 h\n", "h: has number 2 where 1 was to come"),
    ],
)
def test_what_cannot_be_recognised_is_missed(text: str, problem: str) -> None:
    assert problem in told(f"KTAP version 1\n{text}")[1]


def test_the_end_of_a_report_whose_last_line_is_glued_is_known() -> None:
    """Nobody waits for what has been said; and if it was not, the line that comes after it counts."""
    reader = Ktap()
    reader.feed(b"login: KTAP version 1\n1..2\nok 1 a\n")
    assert not reader.done
    reader.feed(b"a look 2 times\n")
    assert reader.done
    reader.feed(b"not ok 2 b\n")
    assert [(result.name, result.outcome.value) for result in reader.report().results] == [("a", "pass"), ("b", "fail")]
    assert reader.report().problems == ()


def test_kunit_with_parameters() -> None:
    """As lib/kunit of Linux 6.12 prints a test that is run once for each parameter: a group without a plan."""
    text = """\
KTAP version 1
1..1
    KTAP version 1
    # Subtest: example
    # module: kunit_example_test
    1..2
    # example_simple_test: initializing
    ok 1 example_simple_test
        KTAP version 1
        # Subtest: example_params_test
    # example_params_test: initializing
        ok 1 example value 3 # SKIP unsupported param value 3
        ok 2 example value 2
    # example_params_test: pass:1 fail:0 skip:1 total:2
    ok 2 example_params_test
# example: pass:2 fail:0 skip:1 total:3
# Totals: pass:2 fail:0 skip:1 total:3
ok 1 example
"""
    assert told(text) == (
        {
            "example/example_simple_test": "pass",
            "example/example_params_test/example value 3": "skip",
            "example/example_params_test/example value 2": "pass",
        },
        (),
    )


RUNNER = """\
TAP version 13
1..2
# timeout set to 45
# selftests: timers: posix_timers
# TAP version 13
# 1..2
# # Testing posix timers
# ok 1 ITIMER
# ok 2 PROF
# # Totals: pass:2 fail:0 xfail:0 xpass:0 skip:0 error:0
ok 1 selftests: timers: posix_timers
# timeout set to 45
# selftests: timers: nanosleep
# TAP version 13
# 1..1
# ok 1 nanosleep
ok 2 selftests: timers: nanosleep
"""
"""As tools/testing/selftests/kselftest/runner.sh of Linux prints two programs."""


def test_kselftests_runner() -> None:
    passed = {
        "selftests: timers: posix_timers/ITIMER": "pass",
        "selftests: timers: posix_timers/PROF": "pass",
        "selftests: timers: nanosleep/nanosleep": "pass",
    }
    assert told(RUNNER) == told(RUNNER, alone=True) == (passed, ())
    assert parse(RUNNER.encode()).complete

    failed = RUNNER.replace("# ok 2 PROF", "# # 3 is not 4\n# not ok 2 PROF").replace(
        ": posix_timers\n# timeout", ": posix_timers # exit=1\n# timeout"
    )
    report = parse(failed.replace("\nok 1 self", "\nnot ok 1 self").encode())
    assert report.wrong == "1 of 3 failed: selftests: timers: posix_timers/PROF: 3 is not 4"

    # Cut off anywhere before the last result it is no pass, and what came until then has the name that it has in the whole.
    assert all(parse(RUNNER[:at].encode()).wrong for at in range(RUNNER.rindex("ok 2") + len("ok")))
    assert list(told(RUNNER[: RUNNER.index("# ok 2 PROF")])[0]) == ["selftests: timers: posix_timers/ITIMER"]


def run_by_kselftest(lines: str, result: str) -> ktap.Report:
    quoted = "".join(f"# {line}\n" for line in lines.splitlines())
    return parse(f"TAP version 13\n1..1\n# selftests: timers: p\n{quoted}{result}\n".encode(), alone=True)


@pytest.mark.parametrize(
    ("lines", "result", "found", "wrong"),
    [
        ("1..2\nok 1 a\nok 2 b # SKIP no disk\n", "ok 1 p", {"p/a": "pass", "p/b": "skip"}, ""),  # no version line
        ("TAP version 13\n1..0 # SKIP no disk\n", "ok 1 p # SKIP", {"p": "skip"}, ""),
        ("ok, that went well\n# ok 1 of many\n", "ok 1 p", {"p": "pass"}, ""),
        ("TAP version 13\n1..2\nok 1 a\n", "ok 1 p", {"p/a": "pass"}, "p: 2 tests planned, 1 reported"),
        ("TAP version 13\n1..1\nnot ok 1 a\n", "ok 1 p", {"p/a": "fail"}, "1 of 1 failed: p/a"),
        ("TAP version 13\n1..1\nok 1 a\n", "not ok 1 p # exit=1", {"p/a": "pass", "p": "fail"}, "1 of 2 failed: p: exit=1"),
        ("TAP version 13\n1..2\nlogin: ok 1 a\nok 2 b\n", "ok 1 p", {"p/b": "pass"}, "b: has number 2 where 1 was to come"),
        ("TAP version 13\nBail out! no root\n", "not ok 1 p # exit=1", {"p": "fail"}, "1 of 1 failed: p: exit=1; p: Bail out! no root"),
        ("Segmentation fault\n", "not ok 1 p", {"p": "fail"}, "1 of 1 failed: p: Segmentation fault"),
        ("TAP version 13\n1..1\n  TAP version 13\n  1..1\n  ok 1 x\nok 1 a\n", "ok 1 p", {"p/a/x": "pass"}, ""),
    ],
)
def test_what_kselftests_runner_quotes(lines: str, result: str, found: dict[str, str], wrong: str) -> None:
    report = run_by_kselftest(lines, result)
    assert {each.name: each.outcome.value for each in report.results} == found
    assert report.wrong == wrong
    assert report.complete


def test_a_program_that_gives_up_does_not_end_those_of_the_runner() -> None:
    text = RUNNER.replace("# ok 2 PROF", "# Bail out! no clock").replace(
        "\nok 1 selftests: timers: posix_timers", "\nnot ok 1 selftests: timers: posix_timers # exit=1"
    )
    report = parse(text.encode())
    assert report.results[-1].name == "selftests: timers: nanosleep/nanosleep"
    assert report.problems == (
        "selftests: timers: posix_timers: 2 tests planned, 1 reported",
        "selftests: timers: posix_timers: Bail out! no clock",
    )


@pytest.mark.parametrize("before", ["", "ok 1 a\n", "# selftests: timers: p\n", "# selftests: timers: p\n# TAP version 13\n"])
def test_a_second_report_behind_a_prompt_is_no_quoted_one(before: str) -> None:
    """`# ` is the prompt of root's shell, too."""
    text = f"TAP version 13\n1..2\n{before}# TAP version 13\n1..2\nok 1 a\nok 2 b\n"
    assert "a second report begins before the first one ends" in told(text, alone=True)[1]


def test_the_last_test_is_named_with_its_groups() -> None:
    reader = Ktap()
    reader.feed(b"KTAP version 1\n1..2\n")
    assert reader.last == ""
    reader.feed(b"    KTAP version 1\n    # Subtest: list\n    1..2\n    ok 1 add\n")
    assert reader.last == "list/add"
    reader.feed(b"    ok 2 del\nok 1 list\n    KTAP version 1\n    # Subtest: cut\n    1..3\n")
    assert reader.last == "list/del"
    assert "the report is cut off after list/del" in reader.report().problems


def described(yaml: str, line: str = "not ok 1 a") -> ktap.Result:
    report = parse(f"TAP version 13\n1..2\n# begins\n{line}\n{yaml}ok 2 b\n".encode())
    assert (report.complete, report.problems, report.results[-1].details) == (True, (), "")
    return report.results[0]


@pytest.mark.parametrize(
    ("yaml", "reason"),
    [
        ('  ---\n  message: "bad thing"\n  severity: fail\n  ...\n', "bad thing"),
        ("  ---\n  message: 'bad thing'\n", "bad thing"),  # its end is missing
        ("    ---\n    at:\n      line: 3\n\n    message: bad thing\n    ...\n", "bad thing"),
        ("  ---\n  message: |\n    bad thing\n    and more\n  ...\n", "bad thing"),
        ("  ---\n  message: \x1b[31mbad\n  ...\n", "␛[31mbad"),
        ("  ---\n  severity: fail\n  ...\n", "begins"),
        ("  ---\n  message:\n  ...\n", "begins"),
    ],
)
def test_what_tap_13_says_in_yaml_of_a_failure(yaml: str, reason: str) -> None:
    result = described(yaml)
    assert result.reason == reason
    assert result.details.startswith("# begins\n---\n")


def test_yaml_takes_no_reason_from_a_line_that_has_one_and_gives_a_pass_none() -> None:
    yaml = "  ---\n  message: other\n  ...\n"
    assert described(yaml, "not ok 1 a # why").reason == "why"
    assert described(yaml, "ok 1 a").reason == ""
    assert "message: other" in described(yaml, "ok 1 a").details


def test_yaml_of_the_last_test_and_of_one_that_a_runner_quotes() -> None:
    yaml = "  ---\n  message: bad thing\n  ...\n"
    assert parse(f"TAP version 13\n1..1\nnot ok 1 a\n{yaml}".encode()).wrong == "1 of 1 failed: a: bad thing"
    assert run_by_kselftest(f"TAP version 13\n1..1\nnot ok 1 a\n{yaml}", "not ok 1 p # exit=1").wrong == "1 of 1 failed: p/a: bad thing"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("1..2\nok 1 a\n  ---\nnot ok 2 b\n  ---\nok 3 c\n", "more than the 2 tests that are planned: ok 3 c"),
        ("1..2\nok 1 a\n  ---\n  Bail out! no root\n", "Bail out! no root"),
        ("1..2\nok 1 a\n  ---\nTAP version 13\n1..2\nok 1 a\nok 2 b\n", "a second report begins before the first one ends"),
        ("1..2\nok 1 a\n  ---\n  message: x\n", "the report is cut off after a"),
        ("1..2\nok 1 a\n  ---\n  1..2\n  ok 1 x\nok 2 g\n", "g: 2 tests planned, 1 reported"),
    ],
)
def test_yaml_hides_no_line_of_a_report(text: str, problem: str) -> None:
    assert problem in told(f"TAP version 13\n{text}")[1]


def test_a_flood_of_yaml_is_bounded() -> None:
    (result, _) = parse(
        b"TAP version 13\n1..2\nnot ok 1 a\n  ---\n" + b"  message: " + b"x" * 9999 + b"\n" + b"  y\n" * 9999 + b"ok 2 b\n"
    ).results
    assert len(result.reason) == ktap.DETAIL_WIDTH
    assert len(result.details.splitlines()) == ktap.DETAIL_LINES


def test_a_number_that_nothing_has_is_out_of_order() -> None:
    report = parse(b"TAP version 13\n1..1\nok " + b"9" * 26 + b" x\n", alone=True)
    assert report.problems[0] == "x: has a number of 26 digits where 1 was to come"
    assert not [problem for problem in report.problems if "10000" in problem], "it says nothing of how many came"
    assert parse(b"1..99999999999999\nok 1 a\n", alone=True).problems[0] == "99999999999999 tests planned, 1 reported"
    report = parse(b"1..1\nok " + b"9" * 5000 + b"\n", alone=True)
    assert report.problems
    assert all(len(result.name) <= NAME_WIDTH for result in report.results)


def test_a_failure_after_the_last_test_counts_without_its_number() -> None:
    report = parse(b"1..1\nok 1 a\nnot ok late\nok, that was it\n", alone=True)
    assert report.problems == ("more than the 1 tests that are planned: not ok late",)


def test_a_test_has_one_name_in_whatever_process_it_runs() -> None:
    one, other = (parse(b"1..2\nok 1 [%d] Result (0)\nok 2 [%d]\n" % (pid, pid), alone=True) for pid in (89, 4321))
    assert [result.name for result in one.results] == ["Result (0)", "[89]"]
    assert [result.name for result in other.results] == ["Result (0)", "[4321]"]
    assert {"[" in result.name for result in recorded("clone3").results} == {False}
