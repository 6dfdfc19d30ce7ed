"""What the tests of this suite share: cards, addresses, both ends of a measurement, and what its failure means."""

from __future__ import annotations

import re
from ipaddress import ip_interface

from labctl.errors import CommandFailed, MeasurementInvalid
from labctl.parsers.netperf import Pings, Transfer, Unreadable, pings, transfer

PORT = 7000
RATE_PORT = 7001
OVERHEAD = 30.0
"""Seconds that a command may take beside what it measures, under emulation on a busy host."""


def card(session, shell, name):
    """The name that the machine's kernel has given to a network card: it is known by its hardware address."""
    found = shell.run(f"grep -il {session.mac(name)} /sys/class/net/*/address", check=False).output
    if not (device := re.search(r"/sys/class/net/([a-z0-9]+)/address", found)):
        there = shell("grep . /sys/class/net/*/address")
        raise CommandFailed(f"the machine has no network card {session.mac(name)} ({name}); it has {there}", target=session.name)
    return device[1]


def up(session, shell, name, address):
    """Give a card its address and wait until it has a carrier. Returns the card's name in the machine."""
    device = card(session, shell, name)
    shell(f"ip link set {device} up && ip address replace {address} dev {device}")
    carrier(session, shell, device)
    return device


def carrier(session, shell, device, deadline=10):
    """Until a card has a carrier. CommandFailed if it gets none: its link never came up."""
    there = f'[ "$(cat /sys/class/net/{device}/carrier)" = 1 ]'
    wait = f"n=0; until {there}; do n=$((n+1)); [ $n -lt {deadline * 10} ] || exit 9; usleep 100000; done"
    if shell.run(f"({wait})", check=False, deadline=deadline + OVERHEAD).status != 0:
        raise CommandFailed(f"{device} has no carrier after {deadline} s: its link never came up", target=session.name)


def ping(session, shell, peer, count, *, size=64, interval_us=0, timeout_ms=1000, silent_ms=10_000, port=PORT) -> Pings:
    """Measure round trips to ``peer`` from a machine. MeasurementInvalid if what it prints cannot be read.

    ``interval_us`` 0: each ping waits for the answer to the one before. After ``silent_ms`` without an answer the peer is given up.
    """
    longest = count * (interval_us / 1e6 if interval_us else 0.05) + (timeout_ms + silent_ms) / 1e3
    told = shell(f"udpping ping {ip(peer)} {port} {count} {size} {interval_us} {timeout_ms} {silent_ms}", deadline=longest + OVERHEAD)
    return _read(pings, told, session)


def rate(session, shell, peer, direction, seconds, *, port=RATE_PORT) -> Transfer:
    """Measure the throughput of a TCP connection; ``direction`` is ``send`` or ``receive``, as the machine sees it."""
    told = shell(f"tcprate {direction} {ip(peer)} {port} {int(seconds * 1000)}", deadline=seconds + OVERHEAD)
    return _read(transfer, told, session)


def _read(parser, told, session):
    try:
        return parser(told)
    except Unreadable as error:
        raise MeasurementInvalid(f"what was measured cannot be read: it {error}", target=session.name) from None


def ip(address):
    return str(ip_interface(address).ip)


def require(path, found):
    """CommandFailed if a peer did not answer to the end."""
    if found.end != "complete" or not found.received:
        refused = f", {found.refused} refused" if found.refused else ""
        why = f"{found.received} of {found.sent} pings to {path.name} ({path.peer}) were answered{refused}"
        raise CommandFailed(f"the peer fell silent: {why}", target=path.session.name)
