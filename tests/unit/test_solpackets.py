"""Which packets of a SOL were lost, by what ipmitool tells of those that came."""

from __future__ import annotations

import pytest

from labctl.machine.solpackets import Packets


def told(number: int, overrun: str = "false") -> bytes:
    """As ipmitool 1.8.19 tells of a packet."""
    return (
        b"<<<<<<<<<< RECV FROM BMC <<<<<<<<<<<\n"
        + f"< SOL sequence number     : {number:#04x}\n".encode()
        + b"< SOL acked packet        : 0x00\n< SOL accepted char count : 0x00\n< SOL is nack             : false\n"
        + b"< SOL xfer unavailable    : false\n< SOL inactive            : false\n"
        + f"< SOL transmit overrun    : {overrun}\n".encode()
        + b"< SOL break detected      : false\n<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<<\n"
        + b"> SOL sequence number     : 0x09\n"
    )


@pytest.mark.parametrize(
    ("numbers", "lost"),
    [
        ([1, 2, 3], ""),
        ([7, 8], ""),
        ([13, 14, 15, 1, 2], ""),
        ([4, 0, 0, 5], ""),
        ([4, 4, 5], ""),
        ([1, 3], "1 or more packets"),
        ([14, 2], "2 or more packets"),
        ([15, 2], "1 or more packets"),
        ([9, 200, 10], ""),
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [7, 10_000])
def test_a_number_that_is_skipped_is_lost(numbers: list[int], lost: str, size: int) -> None:
    packets = Packets()
    stream = b"".join(map(told, numbers))
    found = [packets.feed(stream[at : at + size]) for at in range(0, len(stream), size)]
    assert next(filter(None, found), "").startswith(lost)
    assert any(found) == bool(lost)


def test_a_bmc_that_is_too_slow_says_so() -> None:
    assert Packets().feed(told(1, "true")) == "the BMC could not send as fast as the machine spoke"


def test_what_is_no_line_is_not_kept_for_ever() -> None:
    packets = Packets()
    for _ in range(100):
        assert packets.feed(b"x" * 65536) == ""
    assert packets.feed(b"\n" + told(1)) == ""
    assert packets.feed(told(3))
