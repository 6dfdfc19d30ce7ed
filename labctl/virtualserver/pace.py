"""How fast the BMC's simulator is told what the machine says: no faster than its SOL is listened to.

With a history (without one it never recovers from a listener that dies in a flood) the simulator reads its serial port at any speed, and
what does not fit into its 16 KiB of SOL is lost without a word (OpenIPMI 2.0.33, lanserv/sol.c, sol_data_ready). What it has sent on is
seen on its cable: the lengths of packets are not encrypted. So it is told a piece only where there is room for it, as if it had the flow
control of a serial port.

Formats: IPMI 2.0, 13.6 (RMCP+ session header), 13.29 (AES-CBC-128 payload), 15.9 (SOL payload).
"""

from __future__ import annotations

import asyncio
import time

WINDOW = 8192
"""Bytes that may be on their way: half of what the simulator's SOL holds, for the count is not exact."""
SILENT = 3.0
"""Seconds without a packet after which nobody is waited for: to a listener that is there the simulator repeats itself each second."""
_ABANDONED = 1.5
"""Seconds without a packet of the listener's after which it is taken to be gone when the machine's next life begins: one that is there
answers the simulator, which repeats itself each second."""
_RMCP_PLUS = 6
_SOL = 1
_ENCRYPTED = 0x80
_HEADER = 16
_SOL_HEADER = 4
_VECTOR = 16
_MOST = 255
"""Characters of a packet of SOL."""


def is_sol(packet: bytes) -> bool:
    return len(packet) > 5 and packet[4] == _RMCP_PLUS and packet[5] & 0x3F == _SOL


def characters(packet: bytes) -> int:
    """How many characters a packet of SOL has at most; exact where it is full, up to 15 too many where it is encrypted and is not."""
    if len(packet) < _HEADER:
        return 0
    length = int.from_bytes(packet[14:16], "little") - _SOL_HEADER
    if packet[5] & _ENCRYPTED:
        length -= _VECTOR + 1  # a byte says how much padding there is
    return max(0, min(_MOST, length))


class Pace:
    """Belongs to one event loop."""

    def __init__(self) -> None:
        self._untold = 0
        """Bytes that the simulator was told and has not sent on yet."""
        self._listening = False
        """Somebody takes the SOL, as far as is known: else what is said is lost to nobody."""
        self._answered = False
        """The listener has said something since the simulator's last packet."""
        self._last = b""
        self._seen = 0.0
        """When the last packet of SOL passed, either way."""
        self._heard = 0.0
        """When the listener's last one did."""
        self._room = asyncio.Event()

    def heard(self, packet: bytes) -> None:
        """From the listener, to the simulator."""
        if not is_sol(packet):
            return
        if not self._listening:
            self._listening, self._untold = True, 0
        self._answered = True
        self._seen = self._heard = time.monotonic()

    def said(self, packet: bytes) -> None:
        """By the simulator, to the listener."""
        if not is_sol(packet):
            return
        count = characters(packet)
        # What is said again because nobody has answered yet is not counted twice.
        if self._answered or count != characters(self._last):
            self._untold = max(0, self._untold - count)
        self._answered, self._last = False, packet
        self._seen = time.monotonic()
        self._room.set()

    @property
    def abandoned(self) -> bool:
        """The simulator has not sent on what it was told, and nobody has answered it for long."""
        return self._untold > 0 and time.monotonic() - self._heard > _ABANDONED

    def forget(self) -> None:
        """Nobody listens, and nobody is waited for, until somebody is heard."""
        self._listening, self._untold = False, 0
        self._room.set()

    async def take(self, count: int) -> None:
        """Wait until the simulator has room for ``count`` bytes, which it is told next."""
        began = time.monotonic()
        while self._listening and self._untold + count > WINDOW:
            left = max(began, self._seen) + SILENT - time.monotonic()
            if left <= 0:
                self._listening = False
                break
            self._room.clear()
            try:
                await asyncio.wait_for(self._room.wait(), left)
            except TimeoutError:
                continue
        self._untold += count
