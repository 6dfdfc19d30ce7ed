"""The virtual server's proxy DHCP: what it says, byte by byte, and to whom it says nothing."""

from __future__ import annotations

import socket
import struct

import pytest

from labctl.virtualserver.proxydhcp import ProxyDhcp

MACHINE = bytes.fromhex("525400123456")
PROXY = ProxyDhcp("10.0.2.4", "10.0.2.2", "http://10.0.2.2:8069/boot.ipxe")
IPXE = {53: b"\x01", 60: b"PXEClient:Arch:00000:UNDI:002001", 97: b"\x00" + bytes(16)}


def asked(options: dict[int, bytes], cookie: bytes = b"\x63\x82\x53\x63") -> bytes:
    """A frame as iPXE broadcasts it."""
    bootp = struct.pack("!BBBBIHH16s16s64s128s", 1, 1, 6, 0, 0xC0FFEE, 0, 0, b"", MACHINE, b"", b"")
    words = b"".join(bytes([number, len(value)]) + value for number, value in options.items())
    datagram = bootp + cookie + words + b"\xff"
    udp = struct.pack("!HHHH", 68, 67, 8 + len(datagram), 0) + datagram
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, bytes(4), b"\xff" * 4)
    return b"\xff" * 6 + MACHINE + b"\x08\x00" + ip + udp


def test_what_a_machine_is_told() -> None:
    frame = PROXY.answer(asked(IPXE))
    assert frame is not None
    assert frame[:6] == MACHINE
    ip, udp, bootp = frame[14:34], frame[34:42], frame[42:]
    assert sum(struct.unpack("!10H", ip)) % 0xFFFF == 0  # a right checksum (RFC 1071)
    assert struct.unpack("!HHH", udp[:6]) == (67, 68, len(bootp) + 8)
    assert struct.unpack("!H", ip[2:4])[0] == len(frame) - 14
    assert (bootp[0], bootp[4:8], bootp[28:34]) == (2, (0xC0FFEE).to_bytes(4, "big"), MACHINE)
    assert bootp[16:20] == bytes(4)  # no address: that is the other server's
    assert socket.inet_ntoa(bootp[20:24]) == "10.0.2.2"
    assert bootp[236:].startswith(b"\x63\x82\x53\x63\x35\x01\x02\x36\x04\x0a\x00\x02\x04\x3c\x09PXEClient\x43\x1e" + PROXY.url.encode())
    assert bootp.endswith(b"\x61\x11" + bytes(17) + b"\xff")


@pytest.mark.parametrize(
    "frame",
    [
        asked({**IPXE, 53: b"\x03"}),  # a request is for whoever gave the address
        asked({53: b"\x01"}),  # an installed system, which does not boot
        asked(IPXE, cookie=b"\0\0\0\0"),
        asked(IPXE)[:60],
        asked(IPXE)[:283],  # cut in the middle of an option
        b"\0",
        b"",
    ],
)
def test_who_is_told_nothing(frame: bytes) -> None:
    assert PROXY.answer(frame) is None
