"""A network card as the booted machine has it: known by its hardware address, given its own, its link awaited.

For machines whose base is a busybox, or more; nothing in them gives addresses by itself.
"""

from __future__ import annotations

import re
from ipaddress import ip_interface

from labctl.errors import CommandFailed
from labctl.machine.session import Session

OVERHEAD = 30.0
"""Seconds that a command may take beside what it waits for, under emulation on a busy host."""


def device(session: Session, card: str) -> str:
    """The name that the machine's kernel has given to a card of the target. CommandFailed if the machine has no such card."""
    found = session.run(f"grep -il {session.mac(card)} /sys/class/net/*/address", check=False).output
    if not (name := re.search(r"/sys/class/net/([a-z0-9]+)/address", found)):
        there = session.run("grep . /sys/class/net/*/address", check=False).output.strip()
        raise CommandFailed(f"the machine has no network card {session.mac(card)} ({card}); it has {there}", target=session.name)
    return name[1]


def bring_up(session: Session, card: str, address: str) -> str:
    """Give a card its address, with its prefix, and wait until it has a carrier. Returns the card's name in the machine."""
    name = device(session, card)
    session.run(f"ip link set {name} up && ip address replace {ip_interface(address)} dev {name}")
    await_carrier(session, name)
    return name


def await_carrier(session: Session, name: str, seconds: int = 10) -> None:
    """Until a card has a carrier. CommandFailed if it gets none: its link never came up."""
    there = f'[ "$(cat /sys/class/net/{name}/carrier)" = 1 ]'
    wait = f"n=0; until {there}; do n=$((n+1)); [ $n -lt {seconds * 10} ] || exit 9; usleep 100000; done"
    if session.run(f"({wait})", check=False, deadline=seconds + OVERHEAD).status != 0:
        raise CommandFailed(f"{name} has no carrier after {seconds} s: its link never came up", target=session.name)
