"""Patterns over a stream are found the same however the stream was cut."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labctl.machine.matching import PIECE, Pattern, PatternLike, Scanner, plain

TOKENS = st.sampled_from(
    [
        b"\n",
        b"\r\n",
        b"a",
        b"ab",
        b"aba",
        b"login: ",
        b"version 6.1-x",
        b"panic: ",
        b" ",
        b"\xff",
        b"x" * 700,
        b"x" * PIECE,
        b"y" * (PIECE // 2),
    ]
)
STREAMS = st.lists(TOKENS, max_size=40).map(b"".join)
PATTERNS: list[PatternLike] = [
    b"ab",
    b"aba",
    b"\nlogin: ",
    re.compile(rb"login: $"),
    re.compile(rb"^a+"),
    Pattern(re.compile(rb"version (\S+)"), b"version"),
    Pattern(re.compile(rb"panic: (.*)"), b"panic"),
    re.compile(rb"x+y?"),
    Pattern(re.compile(rb"panic: "), b"panic"),
    re.compile(rb"b*"),
]
Found = list[tuple[int, int, bytes, tuple[bytes | None, ...]]]


def search(chunks: list[bytes], patterns: list[PatternLike], since: int = 0) -> Found:
    """Feed chunk by chunk, then take the last line as it is."""
    scanner = Scanner(patterns, since)
    stream = b""
    found: Found = []
    for chunk in chunks:
        stream += chunk
        if len(stream) > scanner.searched:
            found += [(h.pattern, h.offset, h.text, h.groups) for h in scanner.scan(stream[scanner.needs :])]
    if stream[scanner.needs :]:
        found += [(h.pattern, h.offset, h.text, h.groups) for h in scanner.scan(stream[scanner.needs :], as_it_is=True)]
    return found


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted({p % (len(stream) + 1) for p in places}), len(stream)]
    return [stream[a:b] for a, b in itertools.pairwise(edges)]


@settings(deadline=None)
@given(STREAMS, st.lists(st.integers(0, 1 << 20), max_size=30))
def test_matches_do_not_depend_on_the_chunks(stream: bytes, places: list[int]) -> None:
    assert search(cut(stream, places), PATTERNS) == search([stream], PATTERNS)


@settings(deadline=None)
@given(STREAMS.filter(lambda s: len(s) < PIECE))
def test_matches_are_those_of_a_plain_search_line_by_line(stream: bytes) -> None:
    rest = len(stream) if not stream.endswith(b"\n") else -1
    expected = []
    for number, pattern in enumerate(PATTERNS):
        regex = pattern.regex if isinstance(pattern, Pattern) else pattern
        literal = regex if isinstance(regex, bytes) else plain(regex)
        if literal is not None:
            found = [(m.end(), m.start(), number, m[0], m.groups()) for m in re.finditer(re.escape(literal), stream)]
        else:
            assert isinstance(regex, re.Pattern)
            found, start = [], 0
            for line in re.findall(rb"[^\n]*\n|[^\n]+", stream):
                end = start + len(line)
                found += [(end + (end == rest), start + m.start(), number, m[0], m.groups()) for m in regex.finditer(line) if m[0]]
                start = end
        expected += found
    assert search([stream], PATTERNS) == [(n, offset, text, groups) for _, offset, n, text, groups in sorted(expected)]


@pytest.mark.parametrize("size", [1, 7, 1000, PIECE, 1 << 20])
def test_a_match_in_a_huge_line_is_found_once(size: int) -> None:
    needle = b"panic: deep inside"
    stream = b"x" * 10_000 + needle + b"." * 10_000
    chunks = [stream[i : i + size] for i in range(0, len(stream), size)]
    found = search(chunks, [Pattern(re.compile(rb"panic: [a-z ]+"), b"panic"), b"panic"])
    assert sorted((n, offset, text) for n, offset, text, _ in found) == [(0, 10_000, needle), (1, 10_000, b"panic")]


@pytest.mark.parametrize("size", [100, 1 << 20])
def test_where_a_huge_line_is_cut_is_neither_its_beginning_nor_the_end_of_a_word(size: int) -> None:
    stream = b"." * 3000 + b"x" * 2000 + b"." * 9000 + b"\n"
    chunks = [stream[i : i + size] for i in range(0, len(stream), size)]
    found = search(chunks, [re.compile(rb"^\.{3}"), re.compile(rb"x+")])
    assert sorted((n, offset, len(text)) for n, offset, text, _ in found) == [(0, 0, 3), (1, 3000, 2000)]


def test_what_is_kept_of_a_line_without_end_is_bounded() -> None:
    scanner = Scanner([re.compile(rb"^never$"), b"nor this"], 0)
    stream = b"z" * 300_000
    for end in range(1000, len(stream), 1000):
        assert list(scanner.scan(stream[scanner.needs : end])) == []
        assert end - scanner.needs <= PIECE + 1


def test_a_word_is_not_found_by_halves_but_a_literal_at_once() -> None:
    scanner = Scanner([re.compile(rb"version (\S+)"), b"version"], 0)
    stream = b"Linux version 6."
    assert [h.pattern for h in scanner.scan(stream)] == [1]
    stream += b"1.0-56\r\n"
    assert [(h.pattern, h.groups) for h in scanner.scan(stream[scanner.needs :])] == [(0, (b"6.1.0-56",))]


def test_a_line_taken_as_it_is_gives_its_match_once_when_it_goes_on() -> None:
    scanner = Scanner([re.compile(rb"login: ?")], 0)
    assert list(scanner.scan(b"login: ")) == []
    assert [h.text for h in scanner.scan(b"login: ", as_it_is=True)] == [b"login: "]
    assert list(scanner.scan(b"login: root\r\n"[scanner.needs :])) == []


def test_nothing_before_since_is_found() -> None:
    assert [(n, offset) for n, offset, _, _ in search([b"ready ready\n"], [b"ready", re.compile(rb"r\w+y")], since=1)] == [(0, 6), (1, 6)]


def test_an_empty_pattern_is_refused() -> None:
    with pytest.raises(ValueError, match="empty pattern"):
        Scanner([b""], 0)


def test_a_flood_of_matches_is_lazy() -> None:
    hits = Scanner([b"x", re.compile(rb"x+?")], 0).scan(b"x" * 200_000 + b"\n")
    assert [next(hits).offset for _ in range(3)] == [0, 1, 2]
