"""Files that look like kernels, for tests that do not boot them."""

from __future__ import annotations

import struct


def bzimage(release: str = "6.1.0-1-test", filling: bytes = b"") -> bytes:
    """The head of an x86 bzImage as the boot protocol describes it, with its version text."""
    head = bytearray(0x1000)
    head[0x1FE:0x200] = b"\x55\xaa"
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", head, 0x206, 0x20F)
    text = f"{release} (builder@test) #1 SMP".encode() + b"\0" if release else b""
    struct.pack_into("<H", head, 0x20E, 0x400 if release else 0)
    head[0x600 : 0x600 + len(text)] = text
    return bytes(head) + filling


def arm64_image() -> bytes:
    head = bytearray(64)
    head[0x38:0x3C] = b"ARM\x64"
    return bytes(head)


def elf(machine: int = 62, kind: int = 2, interpreter: bool = False) -> bytes:
    """A 64-bit ELF header with one program header."""
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", kind, machine, 1, 0x1000000, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return header + struct.pack("<I", 3 if interpreter else 1) + bytes(52)
