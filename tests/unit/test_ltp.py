"""What programs of the Linux Test Project print: of today's library, of the one before, of its shell library, cut off, and hostile."""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labctl.model import Outcome
from labctl.parsers import ktap, ltp

TODAY = b"""\
tst_test.c:1560: TINFO: Timeout per run is 0h 00m 30s
getpid01.c:38: TPASS: getpid() returns 4711
getpid01.c:38: TPASS: getpid() returns 4712
getpid02.c:45: \x1b[1;31mTFAIL: \x1b[0mgetpid() returned 0: ENOSYS (38)
getpid02.c:52: TCONF: CONFIG_PID_NS is not set
tst_test.c:1612: TBROK: fork() failed: ENOMEM (12)

Summary:
passed   2
failed   1
broken   1
skipped  1
warnings 0
"""


def test_the_library_of_today() -> None:
    report = ltp.parse(TODAY)
    assert [(result.name, result.outcome.value, result.reason) for result in report.results] == [
        ("getpid01.c:38", "pass", ""),
        ("getpid01.c:38#2", "pass", ""),
        ("getpid02.c:45", "fail", "getpid() returned 0: ENOSYS (38)"),
        ("getpid02.c:52", "skip", "CONFIG_PID_NS is not set"),
        ("tst_test.c:1612", "fail", "broken: fork() failed: ENOMEM (12)"),
    ]
    assert (report.complete, report.problems) == (True, ())
    assert "Timeout per run" in report.results[0].details
    assert TODAY[: report.results[2].end].endswith(b"ENOSYS (38)\n")


def test_the_libraries_before_it() -> None:
    report = ltp.parse(
        b"abort01     1  TPASS  :  abort() raised SIGABRT\ncpuset_syscall 2 TFAIL: no such cpuset\nmem 3 TWARN: left behind\n"
    )
    assert [(result.name, result.outcome.value, result.reason) for result in report.results] == [
        ("abort01 1", "pass", ""),
        ("cpuset_syscall 2", "fail", "no such cpuset"),
        ("mem 3", "fail", "warnings: left behind"),
    ]
    assert (report.complete, report.problems) == (True, ())


# Of the libraries' own formats: tst_vbrk_() of lib/tst_test.c before setup_ipc(), tst_print() and tst_brk__() of lib/tst_res.c.
NOT_BUILT = b"tst_test.c:1415: TCONF: test requires libnuma development packages with LIBNUMA_API_VERSION >= 2\n"
OLD_NOT_HERE = b"""\
signal06    0  TINFO  :  begins
signal06    1  TCONF  :  signal06.c:146: Only test on x86_64.
signal06    2  TCONF  :  signal06.c:146: Remaining cases not appropriate for configuration
"""


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (NOT_BUILT, "test requires libnuma development packages with LIBNUMA_API_VERSION >= 2"),
        (b"tst_test.c:9: TINFO: begins\n" + NOT_BUILT, "test requires libnuma development packages with LIBNUMA_API_VERSION >= 2"),
        (OLD_NOT_HERE, "Only test on x86_64."),
        (b"fork_exec 1 TCONF: 'ip' not found\n\nSummary:\npassed   0\nfailed   0\nskipped  1\nwarnings 0\n", "'ip' not found"),
        (b"a.c:7: TCONF: no SMEP here\n\nSummary:\npassed   0\nfailed   0\nbroken   0\nskipped  1\nwarnings 0\n", "no SMEP here"),
    ],
)
def test_what_is_not_for_this_machine_is_skipped_with_its_reason(data: bytes, reason: str) -> None:
    report = ltp.parse(data, 32)
    assert (report.skipped, report.wrong, report.complete) == (reason, "", True)


def test_an_end_without_a_summary_is_believed_only_where_the_exit_status_is_that_of_the_last_line() -> None:
    for status in (None, 0, 1, 2, 34, 137):
        assert ltp.parse(NOT_BUILT, status).problems == ("the report is cut off after tst_test.c:1415: it has no summary",), status
    broken = ltp.parse(b"tst_tmpdir.c:88: TBROK: mkdtemp() failed: EROFS (30)\n", 2)
    assert broken.wrong == "1 of 1 failed: tst_tmpdir.c:88: broken: mkdtemp() failed: EROFS (30)"
    assert "no summary" in ltp.parse(b"a.c:1: TPASS: one\n" + NOT_BUILT, 32).wrong, "something was tested: its library was up"
    assert "no summary" in ltp.parse(NOT_BUILT + b"\nSummary:\npassed   0\n", 32).wrong


def test_what_an_exit_status_tells() -> None:
    assert [ltp.words(status) for status in (0, 2, 36, 8, 64, 137)] == ["", "TBROK", "TWARN, TCONF", "", "", ""]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "no result of an LTP test"),
        (b"tst_test.c:1: TINFO: begins\n", "no result of an LTP test"),
        (TODAY[: TODAY.index(b"Summary")], "the report is cut off after tst_test.c:1612: it has no summary"),
        (TODAY[: TODAY.index(b"broken")], "the report is cut off after tst_test.c:1612: it has no summary"),
        (TODAY.replace(b"passed   2", b"passed   3"), "the summary says passed 3, 2 reported"),
    ],
)
def test_what_is_not_whole_says_why(data: bytes, problem: str) -> None:
    report = ltp.parse(data)
    assert report.problems == (problem,)
    assert problem in report.wrong


def test_cut_off_anywhere_it_is_no_pass() -> None:
    healthy = b"a.c:1: TPASS: one\na.c:2: TPASS: two\n\nSummary:\npassed   2\nfailed   0\nbroken   0\nskipped  0\nwarnings 0\n"
    assert not ltp.parse(healthy).wrong
    for at in range(healthy.index(b"skipped") + len("skipped  ")):
        assert ltp.parse(healthy[:at]).wrong


def test_floods_are_bounded_and_safe_to_print() -> None:
    flood = ltp.parse(b"a.c:1: TPASS: \x1b]0;x\x07\n" * (ktap.MOST_RESULTS + 5))
    assert len(flood.results) == ktap.MOST_RESULTS
    assert "\x1b" not in flood.results[0].details
    assert len(ltp.parse(b"a.c:1: TFAIL: " + b"x" * 1_000_000).results[0].reason) <= ktap.DETAIL_WIDTH


@given(st.lists(st.sampled_from(TODAY.splitlines()) | st.binary(max_size=30), max_size=30))
def test_whatever_comes_is_read(lines: list[bytes]) -> None:
    report = ltp.parse(b"\n".join(lines))
    assert report.problems or report.complete
    assert all(result.outcome in (Outcome.PASS, Outcome.FAIL, Outcome.SKIP) for result in report.results)


def test_a_recorded_one() -> None:
    said = gzip.decompress((Path(__file__).parents[1] / "data/ltp/madvise02.txt.gz").read_bytes())
    report = ltp.parse(said)
    assert (len(report.results), report.complete, report.wrong) == (13, True, "")
    assert Counter(result.outcome.value for result in report.results) == {"pass": 10, "skip": 3}
    assert report.results[4].reason == "MADV_MERGEABLE is not supported"
