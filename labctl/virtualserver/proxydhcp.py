"""A proxy DHCP on the machine's network: says from where to boot, and leaves addresses to the DHCP server that is there (QEMU's).

As `labctl boot-server` does beside a DHCP server that stays. An iPXE that has no answer of a proxy waits for one for 3 s at each boot.
Formats: RFC 2131 (DHCP), 951 (BOOTP); PXE specification 2.1, 2.2.3 (an offer without an address, of class PXEClient). iPXE asks no further
where such an offer names the file already.
"""

from __future__ import annotations

import asyncio
import ctypes
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass, field

_SERVER_PORT, _CLIENT_PORT = 67, 68
_FRAME = 1514
_ETHERNET, _IPV4, _UDP = 14, 0x0800, 17
_COOKIE = b"\x63\x82\x53\x63"
_DISCOVER, _OFFER = 1, 2
_CLASS = b"PXEClient"
_ATTACH_FILTER = 26
"""SO_ATTACH_FILTER of asm-generic/socket.h, which Python does not name."""
_TO_A_DHCP_SERVER = (
    (0x28, 0, 0, 12),  # the frame's type
    (0x15, 0, 8, _IPV4),
    (0x30, 0, 0, 23),  # the packet's protocol
    (0x15, 0, 6, _UDP),
    (0x28, 0, 0, 20),
    (0x45, 4, 0, 0x1FFF),  # a later fragment has no port
    (0xB1, 0, 0, _ETHERNET),  # the header's length
    (0x48, 0, 0, _ETHERNET + 2),  # the port
    (0x15, 0, 1, _SERVER_PORT),
    (0x06, 0, 0, 0xFFFF),
    (0x06, 0, 0, 0),
)
"""Classic BPF, as ``tcpdump -dd udp dst port 67`` has it: what the machine downloads never reaches this process."""


@dataclass
class ProxyDhcp:
    """``address``: ours on that network, which nobody else has; ``next_server`` and ``url``: what the machine is told."""

    address: str
    next_server: str
    url: str
    _line: socket.socket | None = field(default=None, init=False)

    def attach(self, line: socket.socket) -> None:
        """Answer on a machine's network: a datagram socket that carries its frames. In the event loop's thread."""
        self.detach()
        _keep_only(line, _TO_A_DHCP_SERVER)
        line.setblocking(False)
        self._line = line
        asyncio.get_running_loop().add_reader(line.fileno(), self._answer)

    def detach(self) -> None:
        if self._line is not None:
            asyncio.get_running_loop().remove_reader(self._line.fileno())
            self._line.close()
            self._line = None

    def _answer(self) -> None:
        assert self._line is not None  # noqa: S101  # for the type checker
        try:
            frame = self._line.recv(_FRAME)
        except BlockingIOError:
            return
        except OSError:
            frame = b""
        if not frame:  # the machine has gone
            self.detach()
            return
        if (answer := self.answer(frame)) is not None:
            with suppress(OSError):
                self._line.send(answer)

    def answer(self, frame: bytes) -> bytes | None:
        """The frame to say to one that asks from where to boot; None to any other."""
        header = (frame[_ETHERNET] & 0x0F) * 4 if len(frame) > _ETHERNET else 0
        asked = frame[_ETHERNET + header + 8 :]
        options = _options(asked)
        if asked[:1] != b"\x01" or options.get(53) != bytes([_DISCOVER]) or not options.get(60, b"").startswith(_CLASS):
            return None
        ours = socket.inet_aton(self.address)
        file = self.url.encode()
        said = {53: bytes([_OFFER]), 54: ours, 60: _CLASS, 67: file}
        if 97 in options:  # the client's own name, which a PXE server repeats
            said[97] = options[97]
        bootp = struct.pack(
            "!BBBBIHH4s4s4s4s16s64s128s",
            *(2, asked[1], asked[2], 0, int.from_bytes(asked[4:8], "big"), 0, 0x8000),
            *(b"", b"", socket.inet_aton(self.next_server), b"", asked[28:44], b"", file[:127]),
        )
        words = b"".join(bytes([number, len(value)]) + value for number, value in said.items())
        return _frame(ours, frame[6:12], bootp + _COOKIE + words + b"\xff")


def _options(bootp: bytes) -> dict[int, bytes]:
    """RFC 2132: of what is no DHCP, none."""
    found: dict[int, bytes] = {}
    if len(bootp) < 240 or bootp[236:240] != _COOKIE:
        return found
    at = 240
    while at + 1 < len(bootp) and bootp[at] != 255:
        if bootp[at] == 0:
            at += 1
            continue
        size = bootp[at + 1]
        found[bootp[at]] = bootp[at + 2 : at + 2 + size]
        at += 2 + size
    return found


def _frame(ours: bytes, client: bytes, payload: bytes) -> bytes:
    """Broadcast, for the client has no address yet. A UDP checksum of 0 is none (RFC 768)."""
    datagram = struct.pack("!HHHH", _SERVER_PORT, _CLIENT_PORT, 8 + len(payload), 0) + payload
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(datagram), 0, 0, 64, _UDP, 0, ours, b"\xff" * 4)
    head = head[:10] + struct.pack("!H", _checksum(head)) + head[12:]
    ethernet = client + b"\x52\x55" + ours + struct.pack("!H", _IPV4)
    return ethernet + head + datagram


def _checksum(head: bytes) -> int:
    """RFC 791, 3.1."""
    total = sum(int.from_bytes(head[at : at + 2], "big") for at in range(0, len(head), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _keep_only(line: socket.socket, program: tuple[tuple[int, int, int, int], ...]) -> None:
    """Have the kernel drop every datagram that the program refuses."""
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
    held = ctypes.create_string_buffer(code)
    line.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, struct.pack("HxxxxxxP", len(program), ctypes.addressof(held)))
