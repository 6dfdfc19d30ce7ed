"""The frames that the agent in the machine and the host speak (docs/agent-protocol.md). Pure: bytes in, frames out.

What comes from the machine is hostile: nothing of it can make this raise, or keep more than one frame of the largest size.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

MAX_PAYLOAD = 65536
"""Bytes; a header that says more is none."""
CHUNK = 32768 - 48
"""Bytes of a file in one frame: with its header it is what a virtio port takes at once."""
_MARK = b"LABCTL "
_LONGEST_HEADER = 48
_HEADER = re.compile(rb"LABCTL (([0-9a-f]{1,8}) ([a-z]{1,8}) ([0-9]{1,5})) ([0-9a-f]{8})\n")


@dataclass(frozen=True, slots=True)
class Frame:
    id: int
    """Of the request that it is part of, or answers; 0 for what answers none."""
    kind: str
    payload: bytes

    @property
    def text(self) -> str:
        """The payload for people; what is no UTF-8 in it is shown as such."""
        return self.payload.decode(errors="replace")


def encode(id: int, kind: str, payload: bytes = b"") -> bytes:  # noqa: A002  # the field's name
    """A frame's bytes. ValueError if the payload is larger than a frame may be."""
    if len(payload) > MAX_PAYLOAD:
        raise ValueError(f"a frame holds {MAX_PAYLOAD} bytes, not {len(payload)}")
    fields = f"{id:x} {kind} {len(payload)}".encode()
    return b"%s%s %08x\n%s" % (_MARK, fields, zlib.crc32(payload, zlib.crc32(fields)), payload)


@dataclass
class Decoder:
    """Bytes of a stream as they come → the frames in them. What is no frame is left out, and counted."""

    skipped: int = field(default=0, init=False)
    """Bytes so far that were part of no frame."""
    _buffer: bytearray = field(default_factory=bytearray, init=False)

    @property
    def partial(self) -> bool:
        """Whether a frame may have begun whose rest has not come."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that are whole now. Run it to its end."""
        self._buffer += data
        return self._take(stalled=False)

    def give_up(self) -> Iterator[Frame]:
        """The rest of what has begun will not come: the frames that are whole behind its header."""
        return self._take(stalled=True)

    def _take(self, *, stalled: bool) -> Iterator[Frame]:
        buffer, at = self._buffer, 0
        try:
            while True:
                start = buffer.find(_MARK, at)
                if start < 0:
                    end = len(buffer) if stalled else max(at, len(buffer) - len(_MARK) + 1)  # it may end in the start of one
                    self.skipped += end - at
                    at = end
                    return
                self.skipped += start - at
                at = start
                header = _HEADER.match(buffer, start, start + _LONGEST_HEADER)
                size = int(header[4]) if header else 0
                if header is None:
                    coming = len(buffer) < start + _LONGEST_HEADER and b"\n" not in buffer[start:]
                else:
                    coming = size <= MAX_PAYLOAD and header.end() + size > len(buffer)
                if coming and not stalled:
                    return
                if header and not coming and size <= MAX_PAYLOAD:
                    payload = bytes(buffer[header.end() : header.end() + size])
                    if zlib.crc32(payload, zlib.crc32(header[1])) == int(header[5], 16):
                        at = header.end() + size
                        yield Frame(int(header[2], 16), header[3].decode(), payload)
                        continue
                at += len(_MARK)
                self.skipped += len(_MARK)
        finally:
            del buffer[:at]
