"""The hardware address of a network card: what the target's file says, or one that the lab makes."""

from __future__ import annotations

import hashlib

from labctl.model import Nic


def mac(target: str, card: str, nic: Nic) -> str:
    """Its own, else one of those that are given out locally (the 2 in ``52``): the same at each boot, another for each card of the lab."""
    if nic.mac:
        return nic.mac
    digest = hashlib.sha256(f"{target}\0{card}".encode()).digest()
    return ":".join(f"{byte:02x}" for byte in (0x52, 0x54, 0x00, *digest[:3]))
