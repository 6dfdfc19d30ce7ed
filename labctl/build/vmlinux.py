"""The kernel inside a bzImage: an ELF that boots without being inflated first. Under emulation inflating 30 MB of xz costs seconds.

The place of the payload is that of the boot protocol 2.08 and later (``Documentation/arch/x86/boot.rst``: ``payload_offset``,
``payload_length``, counted from the end of the setup code); behind it stands its size, which a decompressor passes over.
"""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable

MOST_BYTES = 256 << 20
"""Of a kernel, inflated."""

_SETUP_SECTORS = 0x1F1
_VERSION = 0x206
_PAYLOAD = 0x248
_PROTOCOL_WITH_PAYLOAD = 0x0208


def inflated(bzimage: bytes) -> bytes | None:
    """The ELF; None for what is no such image, or is compressed in a way that is not known here. Pure."""
    if bzimage[0x202:0x206] != b"HdrS" or len(bzimage) < 0x250:
        return None
    (version,) = struct.unpack_from("<H", bzimage, _VERSION)
    offset, length = struct.unpack_from("<II", bzimage, _PAYLOAD)
    if version < _PROTOCOL_WITH_PAYLOAD or not length:
        return None
    begin = ((bzimage[_SETUP_SECTORS] or 4) + 1) * 512 + offset
    payload = bzimage[begin : begin + length]
    inflate = next((inflate for magic, inflate in _WAYS.items() if payload.startswith(magic)), None)
    if inflate is None:
        return None
    try:
        found = inflate(payload)
    except (lzma.LZMAError, zlib.error, OSError, EOFError):
        return None
    return found if found.startswith(b"\x7fELF") else None


_WAYS: dict[bytes, Callable[[bytes], bytes]] = {
    b"\xfd7zXZ\0": lambda data: lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(data, MOST_BYTES),
    b"\x1f\x8b": lambda data: zlib.decompressobj(wbits=31).decompress(data, MOST_BYTES),
    b"BZh": lambda data: bz2.BZ2Decompressor().decompress(data, MOST_BYTES),
}
