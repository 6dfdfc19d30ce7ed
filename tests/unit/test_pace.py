"""How fast the BMC's simulator is told what a machine says: by the packets that it sends on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import pytest

from labctl.virtualserver import pace as pace_module
from labctl.virtualserver.pace import WINDOW, Pace, characters, is_sol


def packet(said: int, *, encrypted: bool = True) -> bytes:
    """As RMCP+ carries SOL: a header, IPMI 2.0, 13.6; what is encrypted has a vector before it and is filled to blocks of 16."""
    length = 4 + said
    if encrypted:
        length = 16 + (length + 1 + 15) // 16 * 16
    kind = 1 | 0x40 | (0x80 if encrypted else 0)
    return bytes([6, 0, 0xFF, 7, 6, kind, *bytes(8)]) + length.to_bytes(2, "little") + bytes(length)


LISTENS = packet(0)


async def waits(taking: Awaitable[None]) -> bool:
    try:
        await asyncio.wait_for(asyncio.shield(asyncio.ensure_future(taking)), 0.05)
    except TimeoutError:
        return True
    return False


@pytest.mark.parametrize("encrypted", [False, True])
def test_characters_are_never_counted_too_low_and_a_full_packet_exactly(encrypted: bool) -> None:
    for said in range(256):
        counted = characters(packet(said, encrypted=encrypted))
        assert said <= counted <= min(255, said + (15 if encrypted else 0))


@pytest.mark.parametrize(
    "other", [b"", bytes(5), bytes(40), packet(9)[:5] + bytes([0]) + bytes(40), bytes.fromhex("0600ff06000011be80000000")]
)
def test_what_is_no_sol(other: bytes) -> None:
    assert not is_sol(other)
    assert is_sol(packet(9))
    assert characters(packet(9)[:15]) == 0


def test_whoever_nobody_listens_to_is_told_at_once() -> None:
    async def run() -> None:
        pace = Pace()
        for _ in range(100):
            assert not await waits(pace.take(4096))

    asyncio.run(run())


def test_a_listener_gets_as_much_as_it_takes() -> None:
    async def run() -> None:
        pace = Pace()
        pace.heard(LISTENS)
        await pace.take(WINDOW)
        more = asyncio.ensure_future(pace.take(255))
        assert await waits(more)
        pace.said(packet(255))
        await asyncio.wait_for(more, 1)
        more = asyncio.ensure_future(pace.take(255))
        pace.said(packet(255))  # the same again: nobody has answered
        assert await waits(more)
        pace.heard(LISTENS)
        pace.said(packet(255))
        await asyncio.wait_for(more, 1)

    asyncio.run(run())


def test_a_listener_that_is_gone_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace_module, "SILENT", 0.2)

    async def run() -> None:
        pace = Pace()
        pace.heard(LISTENS)
        await pace.take(WINDOW)
        more = asyncio.ensure_future(pace.take(4096))
        assert await waits(more)
        await asyncio.wait_for(more, 2)
        assert not await waits(pace.take(4096))  # nor is the next piece kept
        pace.heard(LISTENS)  # somebody is there again
        assert not await waits(pace.take(WINDOW))
        assert await waits(pace.take(1))

    asyncio.run(run())
