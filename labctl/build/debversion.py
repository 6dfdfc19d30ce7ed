"""Debian's order of versions, as deb-version(7) defines it. Pure."""

from __future__ import annotations

import re

_PARTS = re.compile(r"([^0-9]*)([0-9]*)")
_Run = tuple[tuple[int, ...], int]
_END: _Run = ((0,), 0)


def sort_key(version: str) -> tuple[int, tuple[_Run, ...], tuple[_Run, ...]]:
    """A key by which versions sort as ``dpkg --compare-versions`` orders them: ``epoch:upstream-revision``."""
    epoch, colon, rest = version.partition(":")
    if not colon or not epoch.isdecimal():
        epoch, rest = "0", version
    upstream, dash, revision = rest.rpartition("-")
    if not dash:
        upstream, revision = rest, ""
    return int(epoch), part_key(upstream), part_key(revision)


def part_key(text: str) -> tuple[_Run, ...]:
    """Key of one part: runs of non-digits (``~`` before the end, the end before letters, letters before the rest) and numbers in turn."""
    runs: list[_Run] = [((*(_weight(c) for c in words), 0), int(number or "0")) for words, number in _PARTS.findall(text)]
    while runs and runs[-1] == _END:
        runs.pop()
    # A version goes on for ever with empty runs and zeros. Two of them decide, since only the first run can be empty itself.
    return (*runs, _END, _END)


def _weight(character: str) -> int:
    if character == "~":
        return -1
    return ord(character) if character.isalpha() else ord(character) + 256
