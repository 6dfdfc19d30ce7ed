"""Frames of the agent's protocol: whatever stands between them, however they arrive, whoever wrote them."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from labctl.machine.agentframe import MAX_PAYLOAD, Decoder, Frame, encode

frames = st.builds(Frame, st.integers(0, 0xFFFFFFFF), st.from_regex(r"[a-z]{1,8}", fullmatch=True), st.binary(max_size=300))
noise = st.one_of(st.binary(max_size=60), st.sampled_from([b"LABCTL ", b"LABCTL 1 out 9", b"LABCTL 1 out 99999 00000000\n", b"\n"]))


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    pieces = []
    for size in sizes:
        pieces.append(data[:size])
        data = data[size:]
    return [*pieces, data]


def decode(pieces: list[bytes], decoder: Decoder | None = None) -> list[Frame]:
    decoder = decoder or Decoder()
    return [frame for piece in pieces for frame in decoder.feed(piece)]


def test_the_bytes_are_those_of_the_document() -> None:
    assert encode(0x1F, "ping", b"hi") == b"LABCTL 1f ping 2 %08x\nhi" % zlib.crc32(b"1f ping 2hi")
    with pytest.raises(ValueError, match="65536"):
        encode(1, "data", bytes(MAX_PAYLOAD + 1))


@given(st.lists(frames, max_size=6), st.lists(st.integers(1, 80), max_size=40))
def test_frames_come_whole_however_they_are_cut(sent: list[Frame], sizes: list[int]) -> None:
    decoder = Decoder()
    assert decode(cut(b"".join(encode(f.id, f.kind, f.payload) for f in sent), sizes), decoder) == sent
    assert (decoder.skipped, decoder.partial) == (0, False)


@given(st.lists(st.tuples(noise, frames), max_size=5), st.lists(st.integers(1, 80), max_size=20))
def test_noise_between_frames_costs_no_frame(sent: list[tuple[bytes, Frame]], sizes: list[int]) -> None:
    """But for noise that begins a frame: what is whole behind that is found when its rest does not come."""
    stream = b"".join(before + encode(f.id, f.kind, f.payload) for before, f in sent)
    decoder = Decoder()
    got = decode(cut(stream, sizes), decoder)
    got += list(decoder.give_up())
    assert [frame for frame in got if frame in [f for _, f in sent]] == [f for _, f in sent]


@given(frames, st.integers(0, 400), frames)
@example(Frame(0, "a", b"L"), 22, Frame(0, "a", b""))
def test_a_frame_that_is_cut_off_costs_none_behind_it(lost: Frame, keep: int, whole: Frame) -> None:
    first, second = encode(lost.id, lost.kind, lost.payload), encode(whole.id, whole.kind, whole.payload)
    kept = first[: min(keep, len(first) - 1)]
    decoder = Decoder()
    got = decode([kept + second], decoder)
    got += list(decoder.give_up())
    # Where what was lost is what the next frame begins with, the stream is that of a whole first frame and a second one cut off.
    the_same_bytes = second.startswith(first[len(kept) :])
    assert got == [lost if the_same_bytes else whole]


@given(frames, st.data())
def test_a_changed_byte_is_no_frame(frame: Frame, data: st.DataObject) -> None:
    sent = bytearray(encode(frame.id, frame.kind, frame.payload))
    at = data.draw(st.integers(0, len(sent) - 1))
    sent[at] ^= data.draw(st.integers(1, 255))
    decoder = Decoder()
    assert frame not in [*decoder.feed(bytes(sent)), *decoder.give_up()]


@settings(deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=5000), noise), max_size=30))
def test_hostile_bytes_are_passed_over_and_little_of_them_is_kept(pieces: list[bytes]) -> None:
    decoder = Decoder()
    for piece in pieces:
        for frame in decoder.feed(piece):
            assert len(frame.payload) <= MAX_PAYLOAD
        assert len(decoder._buffer) <= MAX_PAYLOAD + 64
    list(decoder.give_up())
    assert not decoder.partial
    assert decode([encode(1, "pong")], decoder) == [Frame(1, "pong", b"")]
