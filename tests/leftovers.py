"""Which emulated machines of these tests are running: told apart from everybody else's on the host by their names."""

from __future__ import annotations

import secrets
import time
from pathlib import Path

_TOKEN = secrets.token_hex(4)


def machine_name(purpose: str) -> str:
    """A target's name that nothing else on this host has; it stands on its QEMU's command line."""
    return f"{purpose}-{_TOKEN}{secrets.token_hex(2)}"


def our_machines(name: str = _TOKEN) -> list[int]:
    """Process ids of QEMUs whose command line holds ``name``. Zombies have none."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                words = (folder / "cmdline").read_bytes()
            except OSError:
                continue  # it has ended
            if Path(words.partition(b"\0")[0].decode(errors="replace")).name.startswith("qemu-system") and name.encode() in words:
                found.append(int(folder.name))
    return found


def gone_within(seconds: float, name: str) -> bool:
    """Wait until no machine of that name runs; False if one still does after ``seconds``."""
    end = time.monotonic() + seconds
    while our_machines(name):
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True
