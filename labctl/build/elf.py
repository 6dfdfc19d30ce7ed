"""What a program or library says of itself: which libraries it needs, by whom it is loaded, for which machine it is. Pure: bytes in,
values out.

Format: the System V ABI's chapters on object files and dynamic linking; ELF of 64 bits, little-endian, as on all machines of the lab.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

MACHINES = {"x86_64": 62, "aarch64": 183, "riscv64": 243}
"""ELF's numbers of the lab's architectures."""

_LOAD, _DYNAMIC, _INTERP = 1, 2, 3
_NEEDED, _STRTAB, _STRSZ = 1, 5, 10
_MOST_HEADERS = 256
_MOST_TAGS = 4096


@dataclass(frozen=True, slots=True)
class Elf:
    machine: int
    interpreter: str
    """Path of the loader that starts it; empty for a library and for a static program."""
    needed: tuple[str, ...]
    """Names of the libraries that it needs (DT_NEEDED), in its own order."""


class NotElf(ValueError):
    """The message says why not."""


def is_elf(data: bytes) -> bool:
    return data[:4] == b"\x7fELF"


def parse(data: bytes) -> Elf:
    """Read a whole file. Raises NotElf, also for one that is cut off or lies about its own layout."""
    if not is_elf(data):
        raise NotElf("is no ELF file")
    if data[4:6] != b"\x02\x01":
        raise NotElf("is not of 64 bits and little-endian")
    try:
        return _parse(data)
    except (struct.error, IndexError, ValueError) as error:
        raise NotElf(f"is cut off or damaged: {error}") from None


def _parse(data: bytes) -> Elf:
    (machine,) = struct.unpack_from("<H", data, 18)
    (table,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    if count > _MOST_HEADERS:
        raise ValueError(f"{count} program headers")
    loads: list[tuple[int, int, int]] = []
    interpreter, dynamic = "", b""
    for number in range(count):
        kind, _, offset, address, _, length = struct.unpack_from("<IIQQQQ", data, table + number * size)
        if kind == _LOAD:
            loads.append((address, offset, length))
        elif kind == _INTERP:
            interpreter = data[offset : offset + length].split(b"\0", 1)[0].decode()
        elif kind == _DYNAMIC:
            dynamic = data[offset : offset + length]
    tags = list(_tags(dynamic))
    places = dict(tags)
    if not any(tag == _NEEDED for tag, _ in tags):
        return Elf(machine, interpreter, ())
    strings = _at(places[_STRTAB], loads) if _STRTAB in places else None
    if strings is None:
        raise ValueError("its names are nowhere")
    names = data[strings : strings + places.get(_STRSZ, 0)]
    needed = tuple(names[at : names.index(b"\0", at)].decode() for tag, at in tags if tag == _NEEDED)
    return Elf(machine, interpreter, needed)


def _tags(dynamic: bytes) -> Iterator[tuple[int, int]]:
    for number in range(min(len(dynamic) // 16, _MOST_TAGS)):
        tag, value = struct.unpack_from("<QQ", dynamic, number * 16)
        if tag == 0:
            return
        yield tag, value


def _at(address: int, loads: list[tuple[int, int, int]]) -> int | None:
    """Where in the file lies what is loaded to an address."""
    return next((offset + address - start for start, offset, length in loads if start <= address < start + length), None)
