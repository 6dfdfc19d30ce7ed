"""What the plugin `labctl/machine/icount.c` writes: instructions by byte of the console, and by address.

All words are of 64 bits, little-endian. The counts begin with a magic word, the number of CPUs, the number of rows and the number of
bytes sent so far; from word 8 on comes a row for each byte of the console, of a word for each CPU. A trace is a list of snapshots: the
byte at which each was taken, how many addresses follow, then pairs of an address and how often the instruction there began since the
snapshot before.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from mmap import mmap

MAGIC = 0x31544E554F43424C
_HEAD = struct.Struct("<4Q")
_ROWS_AT = 64
"""Bytes before the first row."""


@dataclass(frozen=True)
class Snapshot:
    """What ran between two bytes of the console."""

    offset: int
    """The byte at which it was taken, from power-on."""
    executed: Mapping[int, int]
    """Address → how often the instruction there began."""


def loaded(counts: bytes | mmap) -> bool:
    """Whether a plugin counts there."""
    return int(_HEAD.unpack_from(counts)[0]) == MAGIC


def counts_at(counts: bytes | mmap, offset: int) -> tuple[int, ...] | None:
    """Instructions of each CPU when byte ``offset`` since power-on was sent; None if it was not, or lies beyond the last row."""
    magic, cpus, rows, written = _HEAD.unpack_from(counts)
    if magic != MAGIC or not 0 <= offset < min(rows, written):
        return None
    return struct.unpack_from(f"<{cpus}Q", counts, _ROWS_AT + 8 * cpus * offset)


def snapshots(trace: bytes) -> list[Snapshot]:
    """The snapshots of a trace. ValueError if it ends in the middle of one."""
    if len(trace) % 8:
        raise ValueError(f"a trace of {len(trace)} bytes, which are no whole words")
    words = array("Q", trace)
    if sys.byteorder == "big":
        words.byteswap()
    found: list[Snapshot] = []
    at = 0
    while at < len(words):
        if at + 2 > len(words) or at + 2 + 2 * words[at + 1] > len(words):
            raise ValueError("a trace that ends in the middle of a snapshot")
        offset, pairs = words[at], words[at + 1]
        body = words[at + 2 : at + 2 + 2 * pairs]
        found.append(Snapshot(offset, dict(zip(body[::2], body[1::2], strict=True))))
        at += 2 + 2 * pairs
    return found
