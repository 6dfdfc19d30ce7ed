"""How long a soak goes on: ``--soak 8h`` for one run. It travels to the workers as an environment variable, which each inherits."""

from __future__ import annotations

import os
import re

from labctl.errors import ConfigError

VARIABLE = "LABCTL_SOAK"
DEFAULT = "20s"
ALLOWED = "a time of 1s to 365d, such as 90s, 30m, 8h, 2d"
_FORM = re.compile(r"([0-9]{1,9})(s|m|h|d)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(text: str) -> float:
    """``8h`` → 28800. ConfigError."""
    found = _FORM.fullmatch(text.strip())
    length = int(found[1]) * _SECONDS[found[2]] if found else 0
    if not 1 <= length <= 365 * 86400:
        raise ConfigError(f"--soak (or ${VARIABLE}): found {text[:80]!r}; {ALLOWED}")
    return float(length)


def choose(text: str | None) -> None:
    """What the command line says, if anything; checked, wherever it comes from. ConfigError."""
    if text is not None:
        os.environ[VARIABLE] = text
    chosen()


def chosen() -> float:
    """Seconds of a soak in this run. ConfigError."""
    return seconds(os.environ.get(VARIABLE, DEFAULT))
