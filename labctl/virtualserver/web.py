"""The machine's way to the boot server: a TCP relay in which the network is lost after so many bytes, or one byte of a file is changed.

What passes is passed on as it is, whatever it is; HTTP is looked at only to find the byte to change: responses with a Content-Length,
one after another on a connection (RFC 9112, 6.3).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from labctl.virtualserver.relay import CHUNK, listen

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,18})[ \t]*\r\n", re.IGNORECASE)


@dataclass
class Wire:
    """What happens to bytes on their way to the machine."""

    on_limit: Callable[[], None] = lambda: None
    """Called once when `limit` bytes have passed."""
    limit: int | None = None
    """Bytes after which nothing passes any more."""
    corrupt: int | None = None
    """Change this byte of the next file that is long enough."""
    fetched: int = field(default=0, init=False)
    """Bytes since the machine's power came on."""
    corrupted: int = field(default=0, init=False)
    """How many bytes were changed."""

    @property
    def cut(self) -> bool:
        return self.limit is not None and self.fetched >= self.limit

    def allowed(self, size: int) -> int:
        """How many of so many bytes may pass."""
        return size if self.limit is None else max(0, min(size, self.limit - self.fetched))

    def count(self, size: int) -> None:
        was_cut = self.cut
        self.fetched += size
        if self.cut and not was_cut:
            self.on_limit()


class _Bodies:
    """Follows the responses on one connection, to change a byte of a body."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._head = b""
        self._size = 0
        self._at = 0
        """Of the current body: its length, and how much of it has passed. Equal: a head is expected."""

    def pass_through(self, data: bytes) -> bytes:
        out = bytearray(data)
        at = 0
        while at < len(out):
            if self._at < self._size:
                step = min(self._size - self._at, len(out) - at)
                target = self._wire.corrupt
                if target is not None and target < self._size and self._at <= target < self._at + step:
                    out[at + target - self._at] ^= 0x01
                    self._wire.corrupt = None
                    self._wire.corrupted += 1
                self._at += step
                at += step
                continue
            self._head += out[at : at + 1]
            at += 1
            if self._head.endswith(b"\r\n\r\n"):
                found = _LENGTH.search(self._head)
                self._size, self._at, self._head = int(found[1]) if found else 0, 0, b""
            elif len(self._head) > CHUNK:
                return bytes(out)  # this is no HTTP
        return bytes(out)


async def relay(wire: Wire, port: int, boot_server_port: int) -> asyncio.Server:
    async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        bodies = _Bodies(wire)
        while data := await reader.read(CHUNK):
            data = bodies.pass_through(data)
            data = data[: wire.allowed(len(data))]
            writer.write(data)
            await writer.drain()
            wire.count(len(data))
            while wire.cut:  # the connection stays, as one does whose cable is out
                await asyncio.sleep(0.1)

    return await listen(port, boot_server_port, ask, answer)
