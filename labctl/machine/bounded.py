"""A log that takes only so much of the disk: its beginning and its end are kept, what lies between is given back as a hole.

Offsets stay what they were, for a hole reads as zero bytes; the first of them are replaced by words that say so (fallocate(2),
``FALLOC_FL_PUNCH_HOLE``). A file system that cannot do it keeps the whole log.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass, field
from functools import cache
from typing import Any

_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_STEP = 1 << 20
"""Bytes that are given back at a time."""
_BLOCK = 4096


@dataclass
class Bound:
    """``most``: bytes on disk, half of them of the beginning; some MiB more for a moment."""

    most: int

    _dropped_to: int = field(default=0, init=False)
    _impossible: bool = field(default=False, init=False)

    @property
    def head(self) -> int:
        return self.most // 2 // _BLOCK * _BLOCK

    @property
    def dropped(self) -> int:
        """Bytes that are no more."""
        return max(0, self._dropped_to - self.head)

    def keep(self, descriptor: int, size: int) -> bool:
        """Give back what is beyond the bound, of a log of that size; True for the first time that anything is."""
        until = (size - self.head) // _BLOCK * _BLOCK
        start = max(self.head, self._dropped_to)
        if self._impossible or until - start < _STEP:
            return False
        if not _punch(descriptor, start, until - start):
            self._impossible = True
            return False
        first, self._dropped_to = self._dropped_to == 0, until
        words = f"\r\n[labctl: {self.dropped} bytes were dropped here, for a log may have {self.most} on disk]\r\n".encode()
        writing = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_CLOEXEC)  # the log itself only appends
        try:
            os.pwrite(writing, words, self.head)
        finally:
            os.close(writing)
        return first


def _punch(descriptor: int, start: int, length: int) -> bool:
    found: int = _fallocate()(descriptor, _PUNCH_HOLE | _KEEP_SIZE, start, length)
    return found == 0


@cache
def _fallocate() -> Any:
    function = ctypes.CDLL(None, use_errno=True).fallocate64
    function.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    return function
