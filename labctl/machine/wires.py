"""Cables between emulated machines: each end is a datagram socket of the host, and a frame is a datagram.

What a machine sends goes to a name of its own (``a.lan.out``), a symbolic link to the socket at which the other end listens. Who stands
in the way (`labctl.machine.impairment`) points it to a socket of their own, and back: a machine may be off or on meanwhile, and there is
no order in which they must start.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from labctl.model import Link

MOST_PATH = 107
"""Bytes of a socket's path (unix(7))."""


@dataclass(frozen=True)
class Wire:
    """One end of a cable, for the driver of an emulator."""

    local: Path
    """Where the machine is to listen; it makes that socket."""
    out: Path
    """Where it sends to."""


@dataclass(frozen=True)
class Cable:
    """A link with its two ends, by MACHINE.CARD."""

    ends: Mapping[str, Wire]

    def lead(self, end: str, to: Path | None) -> None:
        """What the machine at ``end`` sends goes to the socket ``to`` from now on; None: to the other end."""
        other = next(wire for name, wire in self.ends.items() if name != end)
        link = self.ends[end].out
        temporary = link.with_suffix(".new")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to((to or other.local).name)
        temporary.replace(link)


@contextmanager
def laid(links: Sequence[Link]) -> Iterator[tuple[Cable, ...]]:
    """The cables of a target of several machines, for this block."""
    with tempfile.TemporaryDirectory(prefix="labctl-wires-") as name:
        folder = Path(name)
        cables = tuple(Cable({end: Wire(folder / f"{end}.in", folder / f"{end}.out") for end in link.between}) for link in links)
        for cable in cables:
            for end in cable.ends:
                cable.lead(end, None)
        yield cables
