"""What a suite that says ``warm = true`` cannot ask for: its machines are copies of one that was booted, and have no boot of their own."""

from __future__ import annotations

from collections.abc import Collection

_OF_A_BOOT = ("booted", "record_boot", "console", "selftests")


def asks_too_much(fixtures: Collection[str], *, benchmark: bool) -> str:
    """Why a test with these fixtures does not belong in such a suite; empty if it does."""
    if benchmark:
        return "is a benchmark: what is timed is booted"
    found = [name for name in _OF_A_BOOT if name in fixtures]
    return f"asks for {', '.join(map(repr, found))}: a copy has no boot to look at (target.boot() makes one)" if found else ""
