"""Whether packets of a SOL were lost, by what ipmitool tells of them when it is asked to tell much (``-v -v``).

Packets from a BMC that carry characters are numbered 1 to 15, then 1 again; 0 is a mere acknowledgement (IPMI 2.0, 15.9). A BMC sends one
again until it is acknowledged, but not for ever, and then goes on with the next: so a number that is skipped is lost. A BMC also says
where characters of the machine's came faster than it could send them (15.11, transmit overrun).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_NUMBERS = 15
_LINE = re.compile(rb"^< SOL (sequence number|transmit overrun) *: (0x[0-9a-f]{2}|true)", re.MULTILINE)
_LONGEST = 4096


@dataclass
class Packets:
    """One activation of a SOL."""

    _rest: bytes = field(default=b"", init=False)
    _last: int = field(default=0, init=False)
    """Number of the last packet that carried characters; 0 before the first."""

    def feed(self, told: bytes) -> str:
        """More of what ipmitool told. Returns why characters may be missing, empty if none are."""
        lines, _, rest = (self._rest + told).rpartition(b"\n")
        self._rest = rest[-_LONGEST:]
        why = ""
        for found in _LINE.finditer(lines):
            if found[1] != b"sequence number":
                why = "the BMC could not send as fast as the machine spoke"
            elif (number := int(found[2], 16)) and number <= _NUMBERS:
                if self._last and (skipped := (number - self._last) % _NUMBERS) > 1:
                    why = f"{skipped - 1} or more packets of the SOL were lost"
                self._last = number
        return why
