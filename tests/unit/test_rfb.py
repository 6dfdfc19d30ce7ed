"""The remote framebuffer protocol: what QEMU really says, and what no server may say."""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labctl.display.canvas import Box, Canvas
from labctl.parsers import rfb

RECORDED = gzip.decompress((Path(__file__).parents[1] / "data/rfb/qemu-7.2.bin.gz").read_bytes())


class Ended(Exception):
    """More was wanted than was said."""


def said(data: bytes) -> rfb.Take:
    stream = io.BytesIO(data)

    def take(count: int) -> bytes:
        found = stream.read(count)
        if len(found) < count:
            raise Ended
        return found

    return take


def update(*rectangles: bytes, count: int | None = None) -> bytes:
    return struct.pack(">BxH", 0, len(rectangles) if count is None else count) + b"".join(rectangles)


def rectangle(x: int, y: int, width: int, height: int, encoding: int, data: bytes = b"") -> bytes:
    return struct.pack(">HHHHi", x, y, width, height, encoding) + data


def clipboard(flags: int, data: bytes = b"") -> bytes:
    return struct.pack(">BxxxiI", 3, -4 - len(data), flags) + data


def text_of_a_clipboard(text: bytes, size: int | None = None) -> bytes:
    return zlib.compress(struct.pack(">I", len(text) if size is None else size) + text)


def test_a_conversation_with_qemu() -> None:
    take = said(RECORDED)
    rfb.version(take)
    rfb.security(take)
    rfb.security_result(take)
    assert rfb.screen(take) == rfb.Screen(720, 400, "QEMU")
    canvas, extended, last = Canvas(720, 400), False, []
    while True:
        try:
            message = rfb.message(take, canvas.width, canvas.height)
        except Ended:
            break
        extended = extended or message == rfb.ClipboardExtended()
        if isinstance(message, rfb.Update):
            last = canvas.apply(message)
    assert extended
    (typed,) = last  # an h where the first character stands: nine pixels wide, sixteen high, its own are seven and eleven at most
    assert typed.touches(Box(0, 0, 9, 16))
    assert typed.around(Box(0, 0, 9, 16)) == Box(0, 0, 9, 16)
    ready = canvas.crop(Box(0, 24 * 16, 9, 16))
    assert set(ready) == {0, 0xA8}, "grey on black"
    assert not any(canvas.crop(Box(0, 16, 720, 22 * 16)))


@pytest.mark.parametrize("greeting", [b"RFB 003.003\n", b"RFB 003.00a\n", b"SSH-2.0-Open", b"RFB 003-008\n", b"HTTP/1.1 400"])
def test_who_greets_otherwise_is_no_server(greeting: bytes) -> None:
    with pytest.raises(rfb.Unreadable):
        rfb.version(said(greeting))


def test_who_lets_nobody_in() -> None:
    rfb.security(said(b"\x02\x02\x01"))
    with pytest.raises(rfb.Unreadable, match="refuses: too many"):
        rfb.security(said(b"\0\0\0\0\x08too many"))
    with pytest.raises(rfb.Unreadable, match=r"a password \(security types 2, 16\)"):
        rfb.security(said(b"\x02\x02\x10"))
    with pytest.raises(rfb.Unreadable, match="refuses: no"):
        rfb.security_result(said(b"\0\0\0\x01\0\0\0\x02no"))


def test_what_an_update_draws() -> None:
    canvas = Canvas(4, 2)
    red, blue = bytes([0, 0, 255, 0]), bytes([255, 0, 0, 0])
    parts = update(rectangle(1, 0, 2, 1, rfb.RAW, red + blue), rectangle(0, 1, 2, 1, rfb.COPY, struct.pack(">HH", 1, 0)))
    message = rfb.message(said(parts), 4, 2)
    assert isinstance(message, rfb.Update)
    assert canvas.apply(message) == [Box(1, 0, 2, 1), Box(0, 1, 2, 1)]
    assert canvas.crop(canvas.whole) == bytes(4) + red + blue + bytes(4) + red + blue + bytes(8)
    assert canvas.apply(message) == [], "what is drawn as it was is no change"


def test_a_screen_that_gets_another_size() -> None:
    parts = update(
        rectangle(0, 0, 3, 1, rfb.DESKTOP_SIZE),
        rectangle(2, 0, 1, 1, rfb.RAW, b"abcd"),
        rectangle(0, 0, 0, 0, rfb.LAST_RECTANGLE),
        count=65535,
    )
    message = rfb.message(said(parts), 1, 1)
    assert isinstance(message, rfb.Update)
    canvas = Canvas(1, 1)
    assert canvas.apply(message) == [Box(0, 0, 3, 1), Box(2, 0, 1, 1)]
    assert (canvas.width, canvas.crop(canvas.whole)) == (3, bytes(8) + b"abcd")


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (b"\x09", "unknown kind 9"),
        (update(rectangle(0, 0, 5, 1, rfb.RAW)), "outside its screen"),
        (update(rectangle(3, 1, 1, 2, rfb.RAW)), "outside its screen"),
        (update(rectangle(0, 0, 1, 1, rfb.COPY, struct.pack(">HH", 4, 0))), "outside its screen"),
        (update(rectangle(0, 0, 1, 1, 16)), "encoding 16, which nobody asked for"),
        (update(rectangle(0, 0, 65535, 65535, rfb.DESKTOP_SIZE)), "a screen of 65535 x 65535"),
        (update(rectangle(0, 0, 0, 5, rfb.DESKTOP_SIZE)), "a screen of 0 x 5"),
        (update(*[rectangle(0, 0, 4, 2, rfb.RAW, bytes(32))] * 5), "many times over"),
        (struct.pack(">Bxxxi", 3, rfb.MOST_TEXT + 1), "bytes on its clipboard"),
        (struct.pack(">Bxxxi", 3, -(1 << 31)), "bytes on its clipboard"),
        (struct.pack(">Bxxxi", 3, -3), "without flags"),
        (clipboard(1 << 28 | 1, b"no zlib"), "cannot be unpacked"),
        (clipboard(1 << 28 | 1, text_of_a_clipboard(b"short", 6)), "shorter than it says"),
        (clipboard(1 << 28 | 1, text_of_a_clipboard(bytes(2 * rfb.MOST_TEXT))), "longer than is taken"),
        (clipboard(1 << 28 | 1, text_of_a_clipboard(b"\xff\xfe")), "no UTF-8"),
    ],
)
def test_what_no_server_may_say(message: bytes, words: str) -> None:
    with pytest.raises(rfb.Unreadable, match=words):
        rfb.message(said(message), 4, 2)


@given(st.binary(max_size=200), st.sampled_from([0, 1, 2, 3]))
def test_noise_is_refused_or_too_short_or_some_message(noise: bytes, kind: int) -> None:
    try:
        message = rfb.message(said(bytes([kind]) + noise), 16, 16)
    except (rfb.Unreadable, Ended):
        return
    if isinstance(message, rfb.Update):
        Canvas(16, 16).apply(message)


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=300))
def test_text_for_the_clipboard_comes_back(text: str) -> None:
    sent = rfb.provide_clipboard(text)
    assert sent[0] == 6
    assert rfb.message(said(b"\x03" + sent[1:]), 1, 1) == rfb.CutText(text)


@pytest.mark.parametrize(
    ("sent", "meant"),
    [
        (rfb.offer_clipboard, rfb.ClipboardOffered(True)),
        (rfb.ask_clipboard, rfb.ClipboardAsked()),
        (rfb.clipboard_caps, rfb.ClipboardExtended()),
        (lambda: rfb.cut_text("Grüße"), rfb.CutText("Grüße")),
    ],
)
def test_both_ends_mean_the_same(sent: Callable[[], bytes], meant: rfb.Message) -> None:
    assert rfb.message(said(b"\x03" + sent()[1:]), 1, 1) == meant


def test_what_is_not_text_is_let_by() -> None:
    assert rfb.message(said(clipboard(1 << 27 | 1 << 3)), 1, 1) == rfb.ClipboardOffered(False)
    assert rfb.message(said(clipboard(1 << 28 | 1 << 3, b"picture")), 1, 1) == rfb.Other(3)
    assert rfb.message(said(b"\x02"), 1, 1) == rfb.Other(2)
    assert rfb.message(said(b"\x01\0\0\0\0\x01abcdef"), 1, 1) == rfb.Other(1)


def test_a_picture_of_the_screen() -> None:
    canvas = Canvas(2, 1)
    canvas.apply(rfb.Update((rfb.Pixels(0, 0, 2, 1, bytes([3, 2, 1, 0, 6, 5, 4, 0])),)))
    png = canvas.png()
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    at = png.index(b"IDAT")
    size = int.from_bytes(png[at - 4 : at], "big")
    assert zlib.decompress(png[at + 4 : at + 4 + size]) == b"\0\x01\x02\x03\x04\x05\x06"
