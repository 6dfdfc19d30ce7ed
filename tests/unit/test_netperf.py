"""What the network tools print: read when it is whole, refused when it is anything else."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labctl.histogram import bin_of
from labctl.parsers.netperf import Unreadable, pings, transfer

TIMES = (400_000, 400_000, 2_000_000)
BINS = {bin_of(time): TIMES.count(time) for time in sorted(TIMES)}
PINGS = "\n".join(
    [
        "udpping 1",
        *("sent 5", "received 3", "late 1", "doubled 0", "reordered 0", "refused 0", "foreign 0"),
        *(f"min {min(TIMES)}", f"max {max(TIMES)}", f"sum {sum(TIMES)}"),
        *(f"bin {index} {count}" for index, count in BINS.items()),
        "end complete\n",
    ]
)
TRANSFER = "tcprate 1\nbytes 3000\nnanoseconds 1500000\nend complete\n"


def test_pings() -> None:
    found = pings(PINGS)
    assert (found.sent, found.received, found.late, found.end) == (5, 3, 1, "complete")
    assert found.loss == pytest.approx(0.4)
    assert found.round_trips is not None
    assert found.round_trips.count == 3
    assert found.round_trips.quantile(0.5) == pytest.approx(400e-6, rel=1 / 128)


def test_no_answer_at_all_is_a_result() -> None:
    text = "udpping 1\nsent 10\nreceived 0\nlate 0\ndoubled 0\nreordered 0\nrefused 10\nforeign 0\nend silent\n"
    found = pings(text)
    assert (found.round_trips, found.loss, found.refused, found.end) == (None, 1.0, 10, "silent")


def test_transfer() -> None:
    assert transfer(TRANSFER).rate == pytest.approx(2e6)
    assert transfer("tcprate 1\nbytes 0\nnanoseconds 0\nend refused\n").rate == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: "", "nothing at all"),
        (lambda text: text.replace("udpping 1", "udpping: not found"), "does not begin with 'udpping 1'"),
        (lambda text: text[: text.index("end")], "is cut off"),
        (lambda text: text[: len(text) // 2], "is cut off"),
        (lambda text: text.replace("late 1\n", ""), "does not say 'late'"),
        (lambda text: text.replace("late 1\n", "late 1\nlate 1\n"), "does not print: 'late 1'"),
        (lambda text: text.replace("late 1\n", "late 1\n[   12.3] oops\n"), "does not print: '[   12.3] oops'"),
        (lambda text: text.replace("late 1\n", "late 9\n"), "9 late ones to 5 pings"),
        (lambda text: text.replace("received 3", "received 4"), "3 round trips"),
        (lambda text: text.replace("min 400000", "min 4"), "smallest"),
        (lambda text: text.replace("late 1\n", "late 1\nwrong 7\n"), "says 'wrong'"),
        (lambda text: text + "\x1b[2J", "is cut off"),
    ],
)
def test_garbage_is_refused(change, said: str) -> None:
    with pytest.raises(Unreadable, match=re.escape(said)):
        pings(change(PINGS))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tcprate 1\nend complete\n",
        TRANSFER.replace("1500000", "0"),
        TRANSFER + "bin 1 1\nend complete\n",
        TRANSFER.replace("3000", "3" * 30),
    ],
)
def test_a_transfer_that_contradicts_itself_is_refused(text: str) -> None:
    with pytest.raises(Unreadable):
        transfer(text)


@given(st.lists(st.sampled_from([*PINGS.splitlines(), "", "bin 1 1", "bin 99999 1", "end silent", "\0"]), max_size=20).map("\n".join))
def test_whatever_is_said_it_is_read_or_refused(text: str) -> None:
    try:
        found = pings(text)
    except Unreadable:
        return
    assert 0 <= found.received <= found.sent
