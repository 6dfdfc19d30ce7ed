"""The serial port of a QEMU machine, as the host has it: a pipe each way, so that QEMU need not wait for whoever reads.

Linux's console waits for a port that is full at most 10 ms (before its clock is calibrated: next to nothing), and then writes over what
is in it. QEMU's port is full when what it is connected to takes no more. A socket takes some 280 bytes, for QEMU gives them one by one and
each counts as a packet; a pipe puts them side by side, and holds 1 MiB. On a busy host, where its reader has to wait for a CPU, that
decides whether the log of a boot is whole.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

HOLDS = 1 << 20
"""Bytes: what Linux lets any user have (``/proc/sys/fs/pipe-max-size``)."""


@dataclass
class SerialLine:
    """Of one life of the machine. Descriptors; QEMU's are inherited by it, and closed here once it has started."""

    reads: int
    """What the machine says; ends when QEMU has gone."""
    writes: int
    """What is typed at it."""
    arguments: Sequence[str]
    """Of QEMU: the character device ``console``."""
    stdin: int | None = None
    """What QEMU is to be started with; None: nothing."""
    stdout: int | None = None
    shared: list[int] = field(default_factory=list)
    """More descriptors that it is to inherit."""

    def handed_over(self) -> None:
        for end in {self.stdin, self.stdout, *self.shared} - {None}:
            with suppress(OSError):
                os.close(end)  # type: ignore[arg-type]
        self.stdin = self.stdout = None
        self.shared = []

    def close(self) -> None:
        self.handed_over()
        for end in {self.reads, self.writes}:
            with suppress(OSError):
                os.close(end)
        self.reads = self.writes = -1


def by_pipes() -> SerialLine:
    reads, says = os.pipe()
    hears, writes = os.pipe()
    with suppress(OSError):  # EPERM where a user has many: it holds 64 KiB then
        fcntl.fcntl(reads, fcntl.F_SETPIPE_SZ, HOLDS)
    os.set_blocking(writes, False)
    return SerialLine(reads, writes, ["-chardev", "stdio,id=console,signal=off"], hears, says)


def by_socket() -> SerialLine:
    """For a machine whose instructions are counted: the counter hooks into the calls of a socket, and waits where it takes no more."""
    ours, its = (end.detach() for end in socket.socketpair())
    os.set_blocking(ours, False)
    return SerialLine(ours, ours, ["-chardev", f"socket,id=console,fd={its}"], shared=[its])
