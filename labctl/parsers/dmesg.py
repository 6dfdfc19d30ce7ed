"""What a Linux kernel says of itself while it boots: console bytes → version, CPUs, memory, and where the time went.

Pure. The bytes are a guest's: anything may stand in them, and what does not parse is left out.
"""

from __future__ import annotations

import re
from itertools import pairwise

from labctl.parsers.text import visible

# Anywhere in a line: firmware and programs leave lines unfinished, and the kernel writes on behind them.
_STAMP = rb"\[ *([0-9]{1,7}\.[0-9]{6})\](?:\[ *[TC][0-9]+\])? "
_MESSAGE = re.compile(_STAMP + rb"([^\r\n]{0,400})")
_VERSION = re.compile(rb"(?:^|" + _STAMP + rb")Linux version ([^\s\x00-\x20]{1,128})", re.MULTILINE)
_CPUS = re.compile(rb"smp: Brought up [0-9]{1,6} nodes?, ([0-9]{1,6}) CPUs?\b|SMP: Total of ([0-9]{1,6}) processors activated")
_MEMORY = re.compile(rb"Memory: [0-9]{1,15}[kK]/([0-9]{1,15})[kK] available")

MESSAGE_WIDTH = 120
"""Characters of a message that `slow_phases` quotes."""


def stamps(data: bytes) -> list[tuple[float, str]]:
    """Kernel messages in the order of the console: (seconds since kernel entry, text that is safe to print)."""
    return [(float(stamp), _text(message)) for stamp, message in _MESSAGE.findall(data)]


def slow_phases(messages: list[tuple[float, str]], count: int = 6) -> tuple[tuple[float, str], ...]:
    """The longest silences of the kernel, longest first: (seconds, ``at 1.291 s, before: MESSAGE``), where MESSAGE is the one that ended
    it and 1.291 its stamp. A stamp that goes back (a new boot, two CPUs at once) ends no silence."""
    gaps = [(after - before, after, message) for (before, _), (after, message) in pairwise(messages) if after > before]
    longest = sorted(gaps, key=lambda gap: (-gap[0], gap[1]))[: max(0, count)]
    return tuple((round(gap, 6), f"at {at:.3f} s, before: {message[:MESSAGE_WIDTH]}") for gap, at, message in longest)


def kernel_version(data: bytes) -> str | None:
    """What ``uname -r`` will say: X of the first ``Linux version X``."""
    found = _VERSION.search(data)
    return _text(found[2]) if found else None


def cpus_brought_up(data: bytes) -> int | None:
    """CPUs that the kernel runs on, by ``smp: Brought up 1 node, 4 CPUs``."""
    found = _CPUS.search(data)
    return int(found[1] or found[2]) if found else None


def memory_kib(data: bytes) -> int | None:
    """Memory that the kernel was given, in KiB: the total of ``Memory: 460160K/523768K available``."""
    found = _MEMORY.search(data)
    return int(found[1]) if found else None


def _text(message: bytes) -> str:
    text = message.decode("utf-8", "replace")
    return text.rstrip() if text.isascii() and text.isprintable() else visible(text).rstrip()
