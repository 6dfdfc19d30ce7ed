"""A disk's cache against what it promises, whatever is asked of it and whenever the power goes; and the protocol, from a client's side."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labctl.machine.volatiledisk import LATE, MOST_CACHED, MOST_REQUEST, SECTOR, Cache, VolatileDisk

SECTORS = 16
Clock = list[float]


def block(value: int, sectors: int = 1) -> bytes:
    return bytes([value]) * SECTOR * sectors


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    handle = os.open(tmp_path / "disk", os.O_RDWR | os.O_CREAT)
    os.ftruncate(handle, SECTORS * SECTOR)
    yield handle
    os.close(handle)


def test_what_is_flushed_stays(file: int) -> None:
    cache = Cache(file, SECTORS * SECTOR)
    cache.write(0, block(1, 4))
    cache.flush()
    assert cache.cut().cached == 0
    assert os.pread(file, 4 * SECTOR, 0) == block(1, 4)


def test_what_is_not_flushed_is_there_or_not_sector_by_sector(file: int) -> None:
    cache = Cache(file, SECTORS * SECTOR, seed=3)
    cache.write(0, block(1, SECTORS))
    assert cache.read(0, SECTORS * SECTOR) == block(1, SECTORS), "the machine reads what it wrote"
    assert os.pread(file, SECTORS * SECTOR, 0) == block(0, SECTORS), "and none of it is in the file"
    loss = cache.cut()
    kept = os.pread(file, SECTORS * SECTOR, 0).count(block(1)[:1]) // SECTOR
    assert (loss.cached, loss.lost) == (SECTORS, SECTORS - kept)
    assert 0 < kept < SECTORS


def test_a_write_with_fua_stays_without_a_flush(file: int) -> None:
    cache = Cache(file, SECTORS * SECTOR)
    cache.write(0, block(1, 2))
    cache.write(SECTOR, block(2), through=True)
    assert os.pread(file, 2 * SECTOR, 0) == block(0) + block(2)
    assert cache.cut().cached == 1


def test_a_full_cache_is_written_back_oldest_first(tmp_path: Path) -> None:
    handle = os.open(tmp_path / "large", os.O_RDWR | os.O_CREAT)
    cache = Cache(handle, (MOST_CACHED + 1) * SECTOR)
    cache.write(0, block(1))
    cache.write(SECTOR, bytes(MOST_CACHED * SECTOR))
    assert os.pread(handle, SECTOR, 0) == block(1)
    assert cache.cut().cached == MOST_CACHED
    os.close(handle)


def test_a_lying_disk_loses_what_it_said_was_flushed(file: int) -> None:
    now = [100.0]
    cache = Cache(file, SECTORS * SECTOR, lies=True, seed=3, now=lambda: now[0])
    cache.write(0, block(1, 8))
    cache.flush()
    now[0] += LATE
    cache.write(8 * SECTOR, block(2, 8), through=True)
    cache.flush()
    loss = cache.cut()
    assert (loss.cached, loss.lost > 0) == (8, True), "the first eight are old enough to be there, the others are not"
    assert os.pread(file, 8 * SECTOR, 0) == block(1, 8)


_ACTS = st.one_of(
    st.tuples(st.just("write"), st.integers(0, SECTORS - 1), st.integers(1, 255), st.booleans()),
    st.tuples(st.just("flush"), st.just(0), st.just(0), st.just(False)),
)


@given(st.lists(_ACTS, max_size=40), st.integers(0, 99))
def test_an_honest_disk_keeps_its_promises(acts: list[tuple[str, int, int, bool]], seed: int) -> None:
    """After the cut each sector holds what was last promised, or something that was written after that."""
    handle = os.memfd_create("disk")
    try:
        os.ftruncate(handle, SECTORS * SECTOR)
        cache = Cache(handle, SECTORS * SECTOR, seed=seed)
        allowed = {sector: [0] for sector in range(SECTORS)}
        for verb, sector, value, through in acts:
            if verb == "flush":
                cache.flush()
                allowed = {sector: values[-1:] for sector, values in allowed.items()}
            else:
                cache.write(sector * SECTOR, block(value), through=through)
                allowed[sector] = [value] if through else [*allowed[sector], value]
            for each, values in allowed.items():
                assert cache.read(each * SECTOR, SECTOR) == block(values[-1])
        cache.cut()
        for each, values in allowed.items():
            assert os.pread(handle, SECTOR, each * SECTOR) in [block(value) for value in values]
    finally:
        os.close(handle)


class Client:
    """The other side of the protocol, as its specification has it."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sock.settimeout(20)

    def take(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = self.sock.recv(count - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    def greet(self) -> tuple[int, int]:
        assert self.take(18) == b"NBDMAGICIHAVEOPT\0\1"
        self.sock.sendall(struct.pack(">I", 1))
        self.option(8, b"")  # structured replies, which the disk does not have
        assert self.answer() == (8, (1 << 31) + 1, b"")
        self.option(7, struct.pack(">IH", 0, 0))
        _, kind, info = self.answer()
        assert kind == 3
        assert self.answer() == (7, 1, b"")
        _, size, flags = struct.unpack(">HQH", info)
        return size, flags

    def option(self, number: int, data: bytes) -> None:
        self.sock.sendall(b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data)

    def answer(self) -> tuple[int, int, bytes]:
        magic, option, kind, length = struct.unpack(">QIII", self.take(20))
        assert magic == 0x0003E889045565A9
        return option, kind, self.take(length)

    def ask(self, verb: int, offset: int, length: int, data: bytes = b"", flags: int = 0) -> tuple[int, bytes]:
        self.sock.sendall(struct.pack(">IHHQQI", 0x25609513, flags, verb, 77, offset, length) + data)
        magic, error, handle = struct.unpack(">IIQ", self.take(16))
        assert (magic, handle) == (0x67446698, 77)
        return error, self.take(length) if verb == 0 and not error else b""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[VolatileDisk, Client]]:
    served = VolatileDisk(tmp_path / "disk", SECTORS * SECTOR, lies=False, seed=1)
    client = Client(served.qemus.dup())
    served.start()
    yield served, client
    client.sock.close()


def test_the_protocol(disk: tuple[VolatileDisk, Client], tmp_path: Path) -> None:
    served, client = disk
    size, flags = client.greet()
    assert (size, flags & 0b1101) == (SECTORS * SECTOR, 0b1101)
    assert client.ask(1, SECTOR, SECTOR, block(7)) == (0, b"")
    assert client.ask(0, 0, 2 * SECTOR) == (0, block(0) + block(7))
    assert client.ask(3, 0, 0) == (0, b"")
    assert client.ask(1, 0, SECTOR, block(8)) == (0, b"")
    assert client.ask(0, SECTORS * SECTOR, SECTOR)[0] == 22, "behind the end"
    assert client.ask(0, 1, SECTOR)[0] == 22, "not on a sector"
    assert client.ask(4, 0, SECTOR)[0] == 22, "a verb that was not offered"
    assert served.cut().cached == 1
    assert (tmp_path / "disk").read_bytes()[SECTOR : 2 * SECTOR] == block(7)
    with pytest.raises((EOFError, OSError)):
        client.ask(0, 0, SECTOR)


@pytest.mark.parametrize(
    "spoiled",
    [
        b"\0" * 28,
        struct.pack(">IHHQQI", 0x25609513, 0, 1, 1, 0, MOST_REQUEST + SECTOR),
        struct.pack(">IHHQQI", 0x25609513, 0, 2, 1, 0, 0),
    ],
    ids=["no magic", "too long", "goodbye"],
)
def test_who_does_not_keep_to_it_is_left(disk: tuple[VolatileDisk, Client], spoiled: bytes) -> None:
    served, client = disk
    client.greet()
    client.sock.sendall(spoiled)
    assert client.sock.recv(1) == b""
    served.cut()


def test_cut_before_anybody_came(tmp_path: Path) -> None:
    served = VolatileDisk(tmp_path / "disk", SECTOR, lies=False, seed=1)
    assert served.cut().cached == 0
