"""Guest bytes made printable: nothing that acts on a terminal or hides gets through."""

from __future__ import annotations

import sys
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labctl.parsers.text import LINE_LIMIT, last_lines, visible


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"plain\ttext\n", "plain\ttext\n"),
        (b"one\r\ntwo\r\r\n", "one\ntwo\n"),
        (b"over\rwrite", "over␍write"),
        (b"\x1b[31mred\x1b]0;title\x07", "␛[31mred␛]0;title␇"),
        (b"\x00\x08\x7f", "␀␈␡"),
        (b"\xff\xfe ok", "�� ok"),
        ("c1 \x9b31m", "c1 <U+009B>31m"),
        ("abc\u202edcba", "abc<U+202E>dcba"),
        ("ze\u200bro \ufeff", "ze<U+200B>ro <U+FEFF>"),
        ("\ud800", "<U+D800>"),
        ("äöü 漢字 🙂".encode(), "äöü 漢字 🙂"),
    ],
)
def test_visible(data: bytes | str, expected: str) -> None:
    assert visible(data) == expected


def test_every_character_that_unicode_calls_control_format_or_separator_is_shown() -> None:
    unseen = ("Cc", "Cf", "Cs", "Zl", "Zp")
    suspects = [chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)) in unseen]
    assert [hex(ord(c)) for c in suspects if c not in "\n\t" and visible(f"a{c}b") == f"a{c}b"] == []


@settings(deadline=None)
@given(st.one_of(st.binary(), st.text()))
def test_visible_applied_twice_changes_nothing_more(data: bytes | str) -> None:
    once = visible(data)
    assert visible(once) == once
    assert all(c.isprintable() or c in "\n\t" or unicodedata.category(c) in ("Zs", "Co", "Cn") for c in once)


def test_last_lines_leaves_out_blank_ones_and_cuts_long_ones() -> None:
    assert last_lines(b"a\n\nb\r\n\r\n  \nc", 2) == "b\nc"
    cut = last_lines(b"x" * (LINE_LIMIT + 7))
    assert cut.startswith("x" * LINE_LIMIT)
    assert cut.endswith("… (7 more)")
    assert last_lines(b"a\nb", 0) == ""
    assert last_lines(b"") == ""
