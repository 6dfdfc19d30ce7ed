"""A disk with a cache that loses its contents with the power: what a machine wrote and did not flush may be gone after a power cut.

QEMU's own files cannot show that: what a guest has written is in the host's page cache at once, and outlives QEMU. So this is a disk of
the lab's, which QEMU reaches by the NBD protocol over a socket pair (https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md,
the newstyle handshake with NBD_OPT_GO and simple replies: what QEMU's client needs). A write is acknowledged when it is in the cache; a
flush, or a write with FUA, when it is in the file. At a power cut each sector that was not flushed is in the file or is not, by the
toss of a coin, whatever was written first: a disk may write its cache back at any time, in any order, and stop anywhere between sectors.

A disk that lies acknowledges a flush at once and does it `LATE` seconds later. What a power cut takes from it was promised to be there.
"""

from __future__ import annotations

import os
import random
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

SECTOR = 512
LATE = 1.0
"""Seconds that the flushes of a lying disk come too late."""
MOST_CACHED = (64 << 20) // SECTOR
"""Sectors that the cache holds: what is over that is written back, oldest first, as disks do."""
MOST_REQUEST = 32 << 20
"""Bytes of one request: NBD's own limit for clients that were told of none."""

_OPTIONS_MAGIC = b"IHAVEOPT"
_REPLY_MAGIC = 0x0003E889045565A9
_OPT_EXPORT_NAME, _OPT_ABORT, _OPT_GO = 1, 2, 7
_REP_ACK, _REP_INFO, _REP_ERR_UNSUP = 1, 3, (1 << 31) + 1
_FLAGS = 1 | 1 << 2 | 1 << 3  # flags are given, takes flushes, takes FUA
_REQUEST = struct.Struct(">IHHQQI")
_REPLY = struct.Struct(">IIQ")
_READ, _WRITE, _DISCONNECT, _FLUSH = range(4)
_FUA = 1
_EIO, _EINVAL, _ENOSPC = 5, 22, 28


@dataclass
class Loss:
    """What a power cut did to the cache, in sectors."""

    cached: int
    """Not flushed when the power went."""
    lost: int
    """Of these, not in the file."""


@dataclass
class Cache:
    """The disk's contents: a file, and before it what was not flushed."""

    file: int
    """An open file descriptor, the owner's to close."""
    size: int
    lies: bool = False
    seed: int = 0
    now: Callable[[], float] = time.monotonic

    _waiting: dict[int, tuple[bytes, float | None]] = field(default_factory=dict, init=False)
    """Sector → its bytes, and when a flush that was acknowledged is to take effect; oldest first."""

    def read(self, offset: int, length: int) -> bytes:
        data = bytearray(os.pread(self.file, length, offset).ljust(length, b"\0"))
        if self._waiting:
            for at in range(0, length, SECTOR):
                if (found := self._waiting.get((offset + at) // SECTOR)) is not None:
                    data[at : at + SECTOR] = found[0]
        return bytes(data)

    def write(self, offset: int, data: bytes, *, through: bool = False) -> None:
        """OSError if the file takes no more."""
        due = self.now() + LATE if through and self.lies else None
        for at in range(0, len(data), SECTOR):
            sector = (offset + at) // SECTOR
            self._waiting.pop(sector, None)
            if not through or self.lies:
                self._waiting[sector] = (data[at : at + SECTOR], due)
        if through and not self.lies:
            self._keep(offset, data)
        while len(self._waiting) > MOST_CACHED:
            oldest = next(iter(self._waiting))
            self._keep(oldest * SECTOR, self._waiting.pop(oldest)[0])

    def flush(self) -> None:
        """Everything written before it is in the file, or will be, if the disk lies. OSError."""
        if not self.lies:
            self._write_back(lambda due: True)
            return
        self._write_back(self._is_due)
        due = self.now() + LATE
        self._waiting = {sector: (data, due if at is None else at) for sector, (data, at) in self._waiting.items()}

    def cut(self) -> Loss:
        """The power goes."""
        self._write_back(self._is_due)
        coin = random.Random(self.seed)  # noqa: S311  # the same cut again for the same seed
        cached = len(self._waiting)
        lost = [sector for sector in self._waiting if coin.random() < 0.5]
        for sector in lost:
            del self._waiting[sector]
        self._write_back(lambda due: True)
        return Loss(cached, len(lost))

    def _is_due(self, due: float | None) -> bool:
        return due is not None and due <= self.now()

    def _write_back(self, wanted: Callable[[float | None], bool]) -> None:
        for sector in sorted(sector for sector, (_, due) in self._waiting.items() if wanted(due)):
            self._keep(sector * SECTOR, self._waiting[sector][0])
            del self._waiting[sector]

    def _keep(self, offset: int, data: bytes) -> None:
        while data:
            written = os.pwrite(self.file, data, offset)
            offset, data = offset + written, data[written:]


class VolatileDisk:
    """Serves one QEMU in a thread, from `start` until `cut`. The file is made, sparse, if it is not there."""

    def __init__(self, path: Path, size: int, *, lies: bool, seed: int) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        os.ftruncate(self._file, size)
        self._cache = Cache(self._file, size, lies, seed)
        self._socket, self.qemus = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, name=f"disk {path.name}", daemon=True)

    def start(self) -> None:
        """QEMU has its end now."""
        self.qemus.close()
        self._thread.start()

    def cut(self) -> Loss:
        """QEMU is gone: what becomes of its last writes. OSError if the file takes no more."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self.qemus.close()
        if self._thread.ident is not None:
            self._thread.join()
        self._socket.close()
        try:
            return self._cache.cut()
        finally:
            os.close(self._file)

    # --- the protocol

    def _serve(self) -> None:
        with suppress(EOFError, OSError):
            if self._greet():
                while self._answer():
                    pass
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # whoever still asks is to hear that nobody answers

    def _greet(self) -> bool:
        """The handshake. Whether requests follow."""
        self._socket.sendall(b"NBDMAGIC" + _OPTIONS_MAGIC + struct.pack(">H", 1))  # fixed newstyle
        self._take(4)
        while True:
            magic, option, length = struct.unpack(">8sII", self._take(16))
            if magic != _OPTIONS_MAGIC or length > 1 << 16:
                return False
            self._take(length)
            if option == _OPT_GO:
                self._reply_option(option, _REP_INFO, struct.pack(">HQH", 0, self._cache.size, _FLAGS))
                self._reply_option(option, _REP_ACK)
                return True
            if option == _OPT_EXPORT_NAME:
                self._socket.sendall(struct.pack(">QH", self._cache.size, _FLAGS) + b"\0" * 124)
                return True
            self._reply_option(option, _REP_ACK if option == _OPT_ABORT else _REP_ERR_UNSUP)
            if option == _OPT_ABORT:
                return False

    def _reply_option(self, option: int, kind: int, data: bytes = b"") -> None:
        self._socket.sendall(struct.pack(">QIII", _REPLY_MAGIC, option, kind, len(data)) + data)

    def _answer(self) -> bool:
        """One request. Whether another one may follow."""
        magic, flags, verb, handle, offset, length = _REQUEST.unpack(self._take(_REQUEST.size))
        if magic != 0x25609513 or verb == _DISCONNECT or (verb in (_READ, _WRITE) and length > MOST_REQUEST):
            return False
        given = self._take(length) if verb == _WRITE else b""
        error, found = 0, b""
        try:
            if verb in (_READ, _WRITE) and (offset % SECTOR or length % SECTOR or offset + length > self._cache.size):
                error = _EINVAL
            elif verb == _READ:
                found = self._cache.read(offset, length)
            elif verb == _WRITE:
                self._cache.write(offset, given, through=bool(flags & _FUA))
            elif verb == _FLUSH:
                self._cache.flush()
            else:
                error = _EINVAL
        except OSError as fault:
            error = _ENOSPC if fault.errno == _ENOSPC else _EIO
        self._socket.sendall(_REPLY.pack(0x67446698, error, handle) + found)
        return True

    def _take(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            part = self._socket.recv(min(count - len(data), 1 << 20))
            if not part:
                raise EOFError
            data += part
        return bytes(data)
