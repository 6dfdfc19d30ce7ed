"""Figures with their units, as people read them. Prefixes of 1000 for seconds and rates, of 1024 for bytes."""

from __future__ import annotations

import math
import re

_SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
_BYTES = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"), (1, "B"))
_RATES = tuple((by, f"{name}/s") for by, name in _BYTES)


def scale(largest: float, unit: str) -> tuple[float, str]:
    """What to divide by, and the unit that the result has, so that the largest value reads well."""
    steps: tuple[tuple[float, str], ...] = {"s": _SECONDS, "B": _BYTES, "B/s": _RATES}.get(unit, ())
    size = abs(largest)
    if not steps or not size:
        return 1.0, "" if unit == "1" else unit
    return next((step for step in steps if size >= step[0]), steps[-1])


def quantity(value: float, unit: str) -> str:
    """``2.403 s``, ``640 ms``, ``1.5 GiB``, ``1,402,331,207``."""
    by, name = scale(value, unit)
    return f"{number(value / by)} {name}".rstrip()


def number(value: float) -> str:
    """Four significant digits and no exponent where that is readable; whole numbers whole, since a count must be exact."""
    size = abs(value)
    if size < 1e15 and value == int(value):
        return f"{int(value):,}"
    if not 1e-4 <= size < 1e15:
        return f"{value:.4g}"
    digits = max(0, 4 - len(str(int(size)))) if size >= 1 else 4
    return f"{value:,.{digits}f}"


def natural(name: str) -> tuple[tuple[int, str], ...]:
    """Sort key by which ``qemu-2c`` comes before ``qemu-16c``."""
    return tuple((int(part), "") if part.isascii() and part.isdigit() else (-1, part) for part in re.split(r"([0-9]{1,18})", name) if part)


def percent(part: float) -> str:
    """``99.99 %``; near a hundred with three digits of what is missing, so that 99.9899 does not read 99.99, nor anything less 100."""
    missing = 100 * (1 - part)
    if not missing or abs(missing) < 1e-9:
        return f"{100 * part:g} %"
    digits = max(1, 2 - math.floor(math.log10(abs(missing))))
    return f"{100 * part:.{digits}f}".rstrip("0").rstrip(".") + " %"
