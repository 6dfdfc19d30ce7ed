"""A framed reply comes out whole however the kernel talks in between, and a broken one is known to be broken."""

from __future__ import annotations

import base64
import hashlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labctl.machine.drivers import console_shell
from labctl.machine.drivers.console_shell import parse_reply, parse_short, strip

BEGIN, END = b"labctl<0a1b2c3d", b"labctl>0a1b2c3d"
MESSAGES = [b"[    1.234567] hi there\r\n", b"[12345.000001] BUG: labctl<0a1b2c3d [x] :1:ab\r\n", b"[    0.000000] \r\n"]


def reply(output: bytes, status: int = 0) -> bytes:
    """What a guest sends: as busybox prints it through a terminal."""
    encoded = base64.encodebytes(output).replace(b"\n", b"\r\n")
    digest = hashlib.sha256(output).hexdigest().encode()
    return BEGIN + b"\r\n" + encoded + b":%d:%s  -\r\n" % (status, digest) + END + b"\r\n"


@given(output=st.binary(max_size=400), status=st.integers(0, 255), cuts=st.lists(st.tuples(st.floats(0, 1), st.sampled_from(MESSAGES))))
def test_kernel_messages_anywhere_do_not_change_a_reply(output: bytes, status: int, cuts: list[tuple[float, bytes]]) -> None:
    data = whole = reply(output, status)
    for place, message in sorted(cuts, reverse=True):  # from the end on: a message never breaks into another
        at = int(place * len(whole))
        data = data[:at] + message + data[at:]
    assert parse_reply(strip(b'echo "lab""ctl<0a1b2c3d"\r\n' + data), BEGIN, END) == (status, output)


@given(output=st.binary(min_size=1, max_size=200), place=st.floats(0, 1), junk=st.sampled_from([b"A", b"\0", b"zz", b"="]))
def test_a_changed_byte_is_never_taken_for_a_reply(output: bytes, place: float, junk: bytes) -> None:
    data = reply(output)
    start = len(BEGIN) + 2
    at = start + int(place * (len(data) - start - len(END) - 80))
    assert parse_reply(strip(data[:at] + junk + data[at + len(junk) :]), BEGIN, END) in (None, (0, output))


def test_an_unfinished_reply_is_none() -> None:
    data = strip(reply(b"hello"))
    for cut in range(len(data) - 2):
        assert parse_reply(data[:cut], BEGIN, END) is None


def short(output: bytes, status: int = 0) -> bytes:
    """What a guest sends of a short text: as its shell says it, through a terminal."""
    said = b"%s:%d:1:%d:%s:%d:%s\n" % (BEGIN, status, len(output), output.replace(b" ", b"^"), status, END)
    return said.replace(b"\n", b"\r\n")


SAID = st.text("abcXYZ019 -+._/:,;=()%#@!\n", max_size=300).map(str.encode)


@given(output=SAID, status=st.integers(0, 255), cuts=st.lists(st.tuples(st.floats(0, 1), st.sampled_from(MESSAGES))))
def test_kernel_messages_anywhere_do_not_change_a_short_reply(output: bytes, status: int, cuts: list[tuple[float, bytes]]) -> None:
    data = whole = short(output, status)
    for place, message in sorted(cuts, reverse=True):
        at = int(place * len(whole))
        data = data[:at] + message + data[at:]
    assert parse_short(strip(data), BEGIN, END) == (status, output)


@given(output=SAID, place=st.floats(0, 1), junk=st.sampled_from([b"x", b"a message without a stamp\r\n", b"0"]))
def test_what_else_breaks_into_a_short_reply_is_known(output: bytes, place: float, junk: bytes) -> None:
    data = short(output)
    at = len(BEGIN) + int(place * (len(data) - 2 - len(BEGIN)))
    assert parse_short(strip(data[:at] + junk + data[at:]), BEGIN, END) in (None, (0, output))


def test_a_short_reply_that_is_cut_or_kept_back_is_none() -> None:
    data = strip(short(b"hello"))
    assert all(parse_short(data[:cut], BEGIN, END) is None for cut in range(len(data) - 2))
    assert parse_short(BEGIN + b":0:0:0::0:" + END + b"\n", BEGIN, END) is None


def test_no_crash_is_told_without_a_blank() -> None:
    """So that a short reply, whose blanks are written otherwise, is never taken for a crash of the kernel's."""
    assert all(b" " in literal for _, literal in console_shell.CRASHES)


@pytest.mark.parametrize(
    ("said", "prompts"),
    [
        (b"labctl-guest: ready\r\nlabctl# ", True),
        (b"\r\nlabctl# \x1b[6n", True),
        (b"\r\nroot@box:/home# ", True),
        (b"\r\n$ ", True),
        (b"labctl-guest: ready\r\n", False),
        (b"labctl# [    1.234567] random: crng init done\r\n", False),
        (b"box login: ", False),
    ],
)
def test_a_prompt_is_the_last_word(said: bytes, prompts: bool) -> None:
    assert bool(re.search(console_shell.PROMPT, said)) is prompts
