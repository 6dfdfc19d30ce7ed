"""What density runners say on the console: lines, and an account of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labctl.parsers.density import Account, Begin, Check, Contradiction, End, Lost, Started, lines

SAID = (
    b"labctl# [    9.1] density: begin runner=kvm vms=12 memory=4194304 beat=1.000 late=3.000 ready=10.000 reserve=33554432 available=902496256\r\n"
    b"[   10.6] density: vm 1 start=1.512946\r\nlabctl<a1:0:1:0::0:labctl>a1\r\n"
    b"[   11.6] density: vm 2 start=1.013391\r\n"
    b"[   19.1] density: check 2 gap=1.155176 pss=3235840 available=871124992 cpu=0.4917\r\n"
    b'[   25.2] density: end limit=start-failed healthy=2 started=2 seconds=15.060 why="VM 3: KVM_CREATE_VM: Cannot allocate memory"\r\n'
)
BEGIN = Begin("kvm", 12, 4 << 20, 1.0, 3.0, 10.0, 32 << 20, 902496256)


def test_lines_are_found_between_others() -> None:
    found = lines(SAID)
    assert found == [
        BEGIN,
        Started(1, 1.512946),
        Started(2, 1.013391),
        Check(2, 1.155176, 3235840, 871124992, 0.4917),
        End("start-failed", 2, 2, 15.06, "VM 3: KVM_CREATE_VM: Cannot allocate memory"),
    ]
    assert [line.last for line in found] == [False, False, False, False, True]
    assert lines(b'density: lost why="the runner was killed by signal 9"\n') == [Lost("the runner was killed by signal 9")]
    # As Xen's first machine says it: its kernel ends a line by \\r\\n, and Xen adds a \\r of its own.
    of_xen = b"\x1b[6n[    9.1] density: vm 1 start=1.245920\r\r\n[   11.5] density: vm 2 start=1.027348\r\r\n"
    assert [line.number for line in lines(of_xen) if isinstance(line, Started)] == [1, 2]
    assert lines(of_xen)[-1].end == len(of_xen)


def test_a_line_counts_when_it_is_whole() -> None:
    whole = lines(SAID)
    for at in range(len(SAID)):
        assert [line.end for line in lines(SAID[:at])] == [line.end for line in whole if line.end <= at]


@pytest.mark.parametrize(
    "line",
    [
        b"density: vm 1 start=nan\n",
        b"density: vm -1 start=1.0\n",
        b"density: vm 99999999999999999999 start=1.0\n",
        b"density: check 2 gap=1.0 pss=1 available=1 cpu=7.0\n",
        b'density: end limit=target healthy=1 started=1 seconds=1.0 why="a " b"\n',
        b'density: lost why="\x1b[2J"\n',
        b'density: lost why="' + b"a" * 300 + b'"\n',
    ],
)
def test_what_only_looks_like_one_is_none(line: bytes) -> None:
    assert lines(line) == []


@given(st.binary(max_size=300))
def test_any_bytes_can_be_read(data: bytes) -> None:
    assert all(0 < line.end <= len(data) for line in lines(data))


LINES = st.one_of(
    st.just(BEGIN),
    st.builds(Started, st.integers(0, 4), st.floats(0, 10)),
    st.builds(Check, st.integers(0, 4), st.just(1.0), st.just(0), st.just(0), st.floats(0, 2)),
    st.builds(End, st.sampled_from(["target", "start-late", "bored"]), st.integers(0, 4), st.integers(0, 4), st.just(1.0), st.just("")),
    st.just(Lost("")),
)


@given(st.lists(LINES, max_size=12))
def test_what_an_account_takes_agrees_with_itself(said: list[Begin | Started | Check | End | Lost]) -> None:
    account, taken = Account(), []
    for line in said:
        try:
            account.take(line)
        except Contradiction:
            break
        taken.append(line)
    assert [type(line) for line in taken[:1]] in ([], [Begin])
    assert [line.number for line in taken if isinstance(line, Started)] == list(range(1, account.started + 1))
    assert account.checked <= account.started <= 12
    for line in taken:
        if isinstance(line, End):
            assert line.limit != "bored"
            assert line.healthy <= line.started


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (Started(2, 1.0), "after 0 VMs: Started"),
        (Check(1, 1.0, 0, 0, 0.5), "after 0 VMs: Check"),
        (End("target", 0, 0, 1.0, ""), "after 0 VMs: End"),
        (BEGIN, "after 0 VMs: Begin"),
    ],
)
def test_a_contradiction_is_told(line: Started | Check | End | Begin, said: str) -> None:
    account = Account()
    with pytest.raises(Contradiction, match="does not say how it begins"):
        account.take(Started(1, 1.0))
    account.take(BEGIN)
    with pytest.raises(Contradiction, match=said):
        account.take(line)
