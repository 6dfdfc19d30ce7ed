"""When each byte of a console was read: ``console.idx``, beside ``console.log``.

The file is a header (magic, schema, size of a record, and one moment on both clocks: monotonic ns and ns since the epoch), then one
record a chunk: monotonic ns, offset after the chunk; both unsigned 64 bit, little endian. A record torn by a kill is ignored.
"""

from __future__ import annotations

import os
import struct
import tempfile
import time
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from labctl.errors import StorageError
from labctl.model import SCHEMA

RECORD = struct.Struct("<QQ")
_HEADER = struct.Struct("<8sHH4xQQ")
_MAGIC = b"LABCTIDX"


@dataclass(frozen=True, slots=True)
class Anchor:
    """One moment on both clocks."""

    monotonic_ns: int
    epoch_ns: int

    @classmethod
    def now(cls) -> Anchor:
        return cls(time.monotonic_ns(), time.time_ns())

    def pack(self) -> bytes:
        return _HEADER.pack(_MAGIC, SCHEMA, RECORD.size, self.monotonic_ns, self.epoch_ns)

    @classmethod
    def unpack(cls, head: bytes, where: object) -> Anchor:
        """Raises StorageError if ``head`` is not the start of an index of this schema."""
        if len(head) < _HEADER.size:
            raise StorageError(f"{where}: the time index ends within its header")
        magic, schema, record, monotonic_ns, epoch_ns = _HEADER.unpack(head[: _HEADER.size])
        if magic != _MAGIC or schema != SCHEMA or record != RECORD.size:
            raise StorageError(f"{where}: not a time index of schema {SCHEMA}")
        return cls(monotonic_ns, epoch_ns)


def read_index(path: Path) -> tuple[Anchor, Iterator[tuple[int, int]]]:
    """The anchor and (monotonic ns, offset after the chunk) of each chunk. Raises StorageError, OSError."""
    file = path.open("rb")
    try:
        anchor = Anchor.unpack(file.read(_HEADER.size), path)
    except StorageError:
        file.close()
        raise
    return anchor, _records(file)


def _records(file: BinaryIO) -> Iterator[tuple[int, int]]:
    with file:
        while block := file.read(RECORD.size * 4096):
            yield from RECORD.iter_unpack(block[: len(block) - len(block) % RECORD.size])


class TimeIndex:
    """The records of a running console: the newest in memory, all in the file once there is one. The caller locks."""

    def __init__(self, *, keep: int = 1 << 15) -> None:
        self.anchor = Anchor.now()
        self._keep = keep
        self._times = array("Q")
        self._ends = array("Q")
        self._file: FileIO | None = None
        self._earlier = False
        """The file has records that are not in memory."""

    def open(self, path: Path, log_size: int) -> int:
        """Begin the file, or go on with one that an earlier process left; returns the time of its last record, 0 if it has none.

        A torn record is cut off, and so is what lies past the end of the log. Raises StorageError, OSError.
        """
        last, count = (0, 0), 0
        self._file = FileIO(path, "a+")
        if os.fstat(self._file.fileno()).st_size < _HEADER.size:  # new, or torn in its first moment
            self._file.truncate(0)
            write_all(self._file, self.anchor.pack())
        else:
            self.anchor, records = read_index(path)
            for record in records:
                if record[1] > log_size:
                    break
                last, count = record, count + 1
            self._file.truncate(_HEADER.size + count * RECORD.size)
        if last[1] < log_size:  # the log is written first, so that a kill may leave it longer
            self.store(last[0], log_size)
        self._earlier = log_size > 0
        return last[0]

    def open_nameless(self) -> None:
        """Move to a temporary file that nobody else sees. Raises OSError."""
        self._file = nameless()
        write_all(self._file, self.anchor.pack() + b"".join(map(RECORD.pack, self._times, self._ends)))

    def add(self, t_ns: int, end: int) -> None:
        """Into memory; `store` puts it into the file."""
        self._times.append(t_ns)
        self._ends.append(end)

    def store(self, t_ns: int, end: int) -> None:
        if self._file is not None:
            write_all(self._file, RECORD.pack(t_ns, end))

    @property
    def crowded(self) -> bool:
        return len(self._ends) > 2 * self._keep

    def forget(self) -> None:
        """Drop all but the newest records from memory."""
        drop = len(self._ends) - self._keep
        if drop > 0:
            del self._times[:drop], self._ends[:drop]
            self._earlier = True

    def find(self, offset: int) -> int:
        """Time of the chunk that holds the byte at ``offset``; past the end: the last chunk's; 0 without any. OSError."""
        at = bisect_right(self._ends, offset)
        if at == 0 and self._earlier and self._file is not None and not self._file.closed:
            return self._find_in_file(self._file.fileno(), offset)
        return self._times[min(at, len(self._times) - 1)] if self._times else 0

    @staticmethod
    def _find_in_file(fd: int, offset: int) -> int:
        def record(number: int) -> tuple[int, int]:
            t_ns, end = RECORD.unpack(os.pread(fd, RECORD.size, _HEADER.size + number * RECORD.size))
            return t_ns, end

        count = (os.fstat(fd).st_size - _HEADER.size) // RECORD.size
        at = bisect_right(range(count), offset, key=lambda number: record(number)[1])
        return record(min(at, count - 1))[0] if count > 0 else 0

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def nameless() -> FileIO:
    """A temporary file without a name, for reading and appending. Raises OSError."""
    with tempfile.TemporaryFile(buffering=0) as file:
        return FileIO(os.dup(file.fileno()), "a+")


def write_all(file: FileIO, data: bytes) -> None:
    """All of it, though the disk takes a part at a time. Raises OSError."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]
