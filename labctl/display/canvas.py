"""A screen as its client has it: pixels, what an update changes of them, and a picture for people."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from labctl.parsers.rfb import PIXEL, Copied, Pixels, Resized, Update


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in pixels."""

    x: int
    y: int
    width: int
    height: int

    def touches(self, other: Box) -> bool:
        """Whether the two have a pixel in common."""
        across = self.x < other.x + other.width and other.x < self.x + self.width
        return across and self.y < other.y + other.height and other.y < self.y + self.height

    def around(self, other: Box) -> Box:
        """The smallest one that holds both."""
        x, y = min(self.x, other.x), min(self.y, other.y)
        right = max(self.x + self.width, other.x + other.width)
        bottom = max(self.y + self.height, other.y + other.height)
        return Box(x, y, right - x, bottom - y)


class Canvas:
    """32 bits a pixel, little-endian ``0x00RRGGBB``, row after row."""

    def __init__(self, width: int, height: int) -> None:
        self._resize(width, height)

    def _resize(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._pixels = bytearray(width * height * PIXEL)

    def apply(self, update: Update) -> list[Box]:
        """Draw it. Returns where a pixel is another than before, a box for each part of the update that changed one."""
        changed: list[Box] = []
        for part in update.parts:
            if isinstance(part, Resized):
                if (part.width, part.height) != (self.width, self.height):
                    self._resize(part.width, part.height)
                    changed.append(Box(0, 0, part.width, part.height))
                continue
            data = part.data if isinstance(part, Pixels) else self.crop(Box(part.from_x, part.from_y, part.width, part.height))
            if (box := self._draw(part, data)) is not None:
                changed.append(box)
        return changed

    def _draw(self, part: Pixels | Copied, data: bytes) -> Box | None:
        row, found = part.width * PIXEL, None
        for line in range(part.height):
            at = ((part.y + line) * self.width + part.x) * PIXEL
            new, old = data[line * row : (line + 1) * row], self._pixels[at : at + row]
            if new != old:
                self._pixels[at : at + row] = new
                differs = int.from_bytes(new, "little") ^ int.from_bytes(old, "little")
                first, last = ((differs & -differs).bit_length() - 1) // (8 * PIXEL), (differs.bit_length() - 1) // (8 * PIXEL)
                here = Box(part.x + first, part.y + line, last - first + 1, 1)
                found = here if found is None else found.around(here)
        return found

    def crop(self, box: Box) -> bytes:
        """The pixels of a part of it."""
        width = box.width * PIXEL
        starts = (((box.y + line) * self.width + box.x) * PIXEL for line in range(box.height))
        return b"".join(self._pixels[at : at + width] for at in starts)

    @property
    def whole(self) -> Box:
        return Box(0, 0, self.width, self.height)

    def png(self) -> bytes:
        """A picture of it (PNG, ISO/IEC 15948: true colour, eight bits)."""
        pixels = self._pixels
        colours = bytearray(self.width * self.height * 3)
        colours[0::3], colours[1::3], colours[2::3] = pixels[2::PIXEL], pixels[1::PIXEL], pixels[0::PIXEL]
        row = self.width * 3
        lines = b"".join(b"\0" + colours[at : at + row] for at in range(0, len(colours), row))
        header = struct.pack(">IIBBBBB", self.width, self.height, 8, 2, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(lines, 6)) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
