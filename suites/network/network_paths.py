"""What the tests of this suite share: addresses, both ends of a measurement, and what its failure means."""

from __future__ import annotations

from ipaddress import ip_interface

from labctl.errors import CommandFailed, MeasurementInvalid
from labctl.parsers.netperf import Pings, Transfer, Unreadable, pings, transfer

PORT = 7000
RATE_PORT = 7001
OVERHEAD = 30.0
"""Seconds that a command may take beside what it measures, under emulation on a busy host."""


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
