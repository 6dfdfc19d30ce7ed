"""The remote framebuffer protocol (RFC 6143, RFB 3.8) as its client speaks it, without a socket: what a server says becomes messages,
what is to be said becomes bytes. The extended clipboard is that of the community's rfbproto.rst, pseudo-encoding 0xC0A1E5CE.

A server is a part of the machine under test, and nothing of what it says is believed before it is checked: sizes have bounds, a
rectangle lies inside the screen. Pixels are always asked for, and come, as 32 bits each, little-endian ``0x00RRGGBB``.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

Take = Callable[[int], bytes]
"""Gives exactly so many of the server's next bytes."""

VERSION = b"RFB 003.008\n"
MOST_SIDE = 8192
"""Pixels of a screen's longest side that is believed."""
MOST_RECTANGLES = 65535
MOST_TEXT = 1 << 20
"""Bytes of a name, a reason or a clipboard."""
PIXEL = 4
"""Bytes of one."""

RAW, COPY, DESKTOP_SIZE, LAST_RECTANGLE, EXTENDED_CLIPBOARD = 0, 1, -223, -224, 0xC0A1E5CE - (1 << 32)
ENCODINGS = (RAW, COPY, DESKTOP_SIZE, LAST_RECTANGLE, EXTENDED_CLIPBOARD)
"""What `message` reads."""
NO_SECURITY = 1

_FORMAT = struct.Struct(">BBBBHHHBBB3x")
_WANTED_FORMAT = _FORMAT.pack(32, 24, 0, 1, 255, 255, 255, 16, 8, 0)
_RECTANGLE = struct.Struct(">HHHHi")
_TEXT_FORMAT = 1
_CAPS, _REQUEST, _PEEK, _NOTIFY, _PROVIDE = (1 << bit for bit in range(24, 29))


class Unreadable(ValueError):
    """This is not what a server of that protocol says."""


@dataclass(frozen=True, slots=True)
class Screen:
    """Size in pixels, and what the server calls itself."""

    width: int
    height: int
    name: str


@dataclass(frozen=True, slots=True)
class Pixels:
    """A rectangle anew: ``data`` row after row."""

    x: int
    y: int
    width: int
    height: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Copied:
    """A rectangle that stood at (from_x, from_y)."""

    x: int
    y: int
    width: int
    height: int
    from_x: int
    from_y: int


@dataclass(frozen=True, slots=True)
class Resized:
    """The screen has another size from here on, and its contents will be sent."""

    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Update:
    """A framebuffer update, in the order in which its parts apply."""

    parts: tuple[Pixels | Copied | Resized, ...]


@dataclass(frozen=True, slots=True)
class CutText:
    """The clipboard, whole."""

    text: str


@dataclass(frozen=True, slots=True)
class ClipboardOffered:
    """The other side has something on its clipboard; ``text`` whether that is text."""

    text: bool


@dataclass(frozen=True, slots=True)
class ClipboardAsked:
    """The other side wants what is on ours."""


@dataclass(frozen=True, slots=True)
class ClipboardExtended:
    """The server understands the extended clipboard."""


@dataclass(frozen=True, slots=True)
class Other:
    """A message that says nothing about screen or clipboard."""

    kind: int


Message = Update | CutText | ClipboardOffered | ClipboardAsked | ClipboardExtended | Other


# --- what a server says


def version(take: Take) -> None:
    """The greeting. Unreadable for anything older than 3.8, or else."""
    said = take(12)
    if not (said[:4] == b"RFB " and said[7:8] == b"." and said[11:] == b"\n" and said[4:7].isdigit() and said[8:11].isdigit()):
        raise Unreadable(f"greets with {said!r}")
    if (int(said[4:7]), int(said[8:11])) < (3, 8):
        raise Unreadable(f"speaks version {said[4:11].decode()} of the protocol, older than 3.8")


def security(take: Take) -> None:
    """That it lets everybody in. Unreadable if it does not: a display of the lab's own VMs has no password."""
    if (count := take(1)[0]) == 0:
        raise Unreadable(f"refuses: {_text(take)}")
    if NO_SECURITY not in (kinds := take(count)):
        raise Unreadable(f"wants a password (security types {', '.join(map(str, kinds))})")


def security_result(take: Take) -> None:
    if int.from_bytes(take(4), "big") != 0:
        raise Unreadable(f"refuses: {_text(take)}")


def screen(take: Take) -> Screen:
    """ServerInit."""
    width, height = struct.unpack(">HH", take(4))
    _check_size(width, height)
    take(_FORMAT.size)
    return Screen(width, height, _text(take))


def message(take: Take, width: int, height: int) -> Message:
    """The next message, of a server whose screen has that size. Unreadable."""
    kind = take(1)[0]
    if kind == 0:
        return _update(take, width, height)
    if kind == 1:  # colours of a palette: never asked for
        take(1)
        _, count = struct.unpack(">HH", take(4))
        take(6 * count)
        return Other(kind)
    if kind == 2:
        return Other(kind)
    if kind == 3:
        take(3)
        return _cut_text(take)
    raise Unreadable(f"sends a message of the unknown kind {kind}")


def _update(take: Take, width: int, height: int) -> Update:
    take(1)
    (count,) = struct.unpack(">H", take(2))
    parts: list[Pixels | Copied | Resized] = []
    left = _most_pixels(width, height)
    for _ in range(count):
        x, y, wide, high, encoding = _RECTANGLE.unpack(take(_RECTANGLE.size))
        if encoding == LAST_RECTANGLE:
            break
        if encoding == DESKTOP_SIZE:
            _check_size(wide, high)
            width, height, left = wide, high, _most_pixels(wide, high)
            parts.append(Resized(wide, high))
            continue
        if encoding not in (RAW, COPY):
            raise Unreadable(f"sends the encoding {encoding}, which nobody asked for")
        if x + wide > width or y + high > height:
            raise Unreadable(f"draws {wide} x {high} at {x}, {y}, outside its screen of {width} x {height}")
        if (left := left - wide * high) < 0:
            raise Unreadable("draws its screen many times over in one update")
        if encoding == RAW:
            parts.append(Pixels(x, y, wide, high, take(wide * high * PIXEL)))
            continue
        from_x, from_y = struct.unpack(">HH", take(4))
        if from_x + wide > width or from_y + high > height:
            raise Unreadable(f"copies {wide} x {high} from {from_x}, {from_y}, outside its screen of {width} x {height}")
        parts.append(Copied(x, y, wide, high, from_x, from_y))
    return Update(tuple(parts))


def _most_pixels(width: int, height: int) -> int:
    """Of one update: a screen drawn whole a few times over is clumsy, more is an attack on the reader's memory."""
    return 4 * width * height


def _cut_text(take: Take) -> Message:
    (length,) = struct.unpack(">i", take(4))
    if abs(length) > MOST_TEXT:
        raise Unreadable(f"has {abs(length)} bytes on its clipboard, more than the {MOST_TEXT} that are taken")
    if length >= 0:
        return CutText(take(length).decode("latin-1"))
    if length > -4:
        raise Unreadable("sends an extended clipboard without flags")
    (flags,) = struct.unpack(">I", take(4))
    data = take(-length - 4)
    if flags & _CAPS:
        return ClipboardExtended()
    if flags & _NOTIFY:
        return ClipboardOffered(bool(flags & _TEXT_FORMAT))
    if flags & _REQUEST:
        return ClipboardAsked()
    if flags & _PROVIDE and flags & _TEXT_FORMAT:
        return CutText(_provided(data))
    return Other(3)


def _provided(data: bytes) -> str:
    unpacking = zlib.decompressobj()
    try:
        plain = unpacking.decompress(data, MOST_TEXT + 4)
    except zlib.error as error:
        raise Unreadable(f"sends a clipboard that cannot be unpacked: {error}") from None
    if len(plain) < 4 or (size := int.from_bytes(plain[:4], "big")) > len(plain) - 4:
        raise Unreadable("sends a clipboard that is shorter than it says, or longer than is taken")
    try:
        return plain[4 : 4 + size].rstrip(b"\0").decode().replace("\r\n", "\n")
    except UnicodeDecodeError:
        raise Unreadable("sends a clipboard that is no UTF-8") from None


def _text(take: Take) -> str:
    (length,) = struct.unpack(">I", take(4))
    if length > MOST_TEXT:
        raise Unreadable(f"says a text of {length} bytes, more than the {MOST_TEXT} that are taken")
    return take(length).decode(errors="replace")


def _check_size(width: int, height: int) -> None:
    if not (0 < width <= MOST_SIDE and 0 < height <= MOST_SIDE):
        raise Unreadable(f"has a screen of {width} x {height} pixels")


# --- what a client says

CHOOSE_NO_SECURITY = bytes([NO_SECURITY])
SHARED = b"\x01"
"""ClientInit: other clients stay."""


def pixel_format() -> bytes:
    """SetPixelFormat: the one that `message` reads."""
    return b"\0\0\0\0" + _WANTED_FORMAT


def encodings(wanted: Iterable[int] = ENCODINGS) -> bytes:
    """SetEncodings."""
    listed = tuple(wanted)
    return struct.pack(f">BxH{len(listed)}i", 2, len(listed), *listed)


def request(width: int, height: int, *, incremental: bool) -> bytes:
    """FramebufferUpdateRequest for the whole screen: what has changed (incremental), or all of it."""
    return struct.pack(">BBHHHH", 3, incremental, 0, 0, width, height)


def key(keysym: int, *, down: bool) -> bytes:
    """KeyEvent. ``keysym`` as X has it; of a character in Latin-1 its own number."""
    return struct.pack(">BBxxI", 4, down, keysym)


def clipboard_caps() -> bytes:
    """That we take text of the extended clipboard, asked for or offered, but none unasked."""
    return _extended(_CAPS | _REQUEST | _NOTIFY | _PROVIDE | _TEXT_FORMAT, struct.pack(">I", 0))


def offer_clipboard() -> bytes:
    """That there is text on ours."""
    return _extended(_NOTIFY | _TEXT_FORMAT)


def ask_clipboard() -> bytes:
    """For the text on the other side's."""
    return _extended(_REQUEST | _TEXT_FORMAT)


def provide_clipboard(text: str) -> bytes:
    """The text on ours."""
    data = text.replace("\n", "\r\n").encode() + b"\0"
    return _extended(_PROVIDE | _TEXT_FORMAT, zlib.compress(struct.pack(">I", len(data)) + data))


def cut_text(text: str) -> bytes:
    """The text on ours, for a server without the extended clipboard. UnicodeEncodeError for what is not Latin-1."""
    data = text.encode("latin-1")
    return struct.pack(">Bxxxi", 6, len(data)) + data


def _extended(flags: int, data: bytes = b"") -> bytes:
    return struct.pack(">BxxxiI", 6, -(4 + len(data)), flags) + data
