"""Guests that the suites of hypervisors start: one that is tiny and beats, and a Linux with a shell on its console."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

from labctl.deadline import Deadline
from labctl.hypervisor.protocols import Consoles, Heard, Hypervisor, VmSpec

TINY = "/usr/bin/tinyguest"
"""The tool ``tinyguest``."""
LINUX_KERNEL, LINUX_INITRD = "/usr/lib/labctl/linuxguest/kernel", "/usr/lib/labctl/linuxguest/initrd"
"""The tool ``linuxguest``."""
TOOLS = {TINY: "tinyguest", LINUX_KERNEL: "linuxguest", LINUX_INITRD: "linuxguest"}
"""By file the tool that a suite names to have it in the machine."""
MIB = 1 << 20
VERB_S = 120.0
"""Seconds for one verb under emulation, on a busy host: on a quiet one it is a second."""
LINUX_MEMORY = 160 * MIB
BEAT = "tiny: beat "


class HasConsoles(Hypervisor, Consoles, Protocol):
    """A hypervisor whose VMs' consoles can be read."""


def soon(seconds: float = VERB_S) -> Deadline:
    """Until when a verb is to have become true."""
    return Deadline.after(seconds)


def start_tiny(hypervisor: HasConsoles, name: str, append: str = "", **more: Any) -> str:
    """A tiny guest that runs and is ready; its name. Words: guest/tools/tinyguest/tiny.c. Raises as the verbs do."""
    hypervisor.create(VmSpec(name, TINY, append=append, **more), soon())
    hypervisor.start(name, soon())
    hypervisor.heard(name, "tiny: ready", soon())
    return name


def next_beat(hypervisor: HasConsoles, vm: str, seconds: float = VERB_S) -> Heard:
    """The first heartbeat that a tiny guest says from now on. VmFailed if none comes."""
    return hypervisor.heard(vm, BEAT, soon(seconds), len(hypervisor.said(vm, soon())))


def gaps(beats: Sequence[Heard]) -> Iterator[float]:
    """Seconds between heartbeats, as they arrived."""
    return (later.at - earlier.at for earlier, later in pairwise(beats))


def number(beat: Heard) -> int:
    """Of a heartbeat: how many ticks its guest's own timer has counted. ValueError for what is no beat."""
    return int(beat.text.removeprefix(BEAT).split()[0])


def start_linux(hypervisor: HasConsoles, name: str = "linux", **more: Any) -> LinuxGuest:
    """A Linux that runs and has a shell on its console; as it is if it runs already. Raises as the verbs do."""
    if name not in [vm.name for vm in hypervisor.list(soon()) if vm.state == "running"]:
        hypervisor.destroy(name, soon())
        console = getattr(hypervisor, "linux_console", "ttyS0")
        given: dict[str, Any] = {"append": f"console={console} quiet", "memory": LINUX_MEMORY} | more
        hypervisor.create(VmSpec(name, LINUX_KERNEL, LINUX_INITRD, **given), soon())
        hypervisor.start(name, soon())
        hypervisor.heard(name, "labctl-guest: ready", soon(3 * VERB_S))
    return LinuxGuest(hypervisor, name)


@dataclass(frozen=True)
class LinuxGuest:
    """Commands by its console. That echoes what is typed: an answer stands between two words which the command does not hold as such."""

    hypervisor: HasConsoles
    name: str

    def run(self, command: str, seconds: float = VERB_S) -> str:
        """Its output, stripped. VmFailed if it does not end in time."""
        since = len(self.hypervisor.said(self.name, soon()))
        self.hypervisor.type(self.name, f"echo lab-be''gin; {command}; echo lab-e''nd\n".encode(), soon())
        self.hypervisor.heard(self.name, "lab-end", soon(seconds), since)
        said = self.hypervisor.said(self.name, soon(), since).decode(errors="replace").replace("\r", "")
        return said.partition("lab-begin\n")[2].rpartition("lab-end")[0].strip()

    @contextmanager
    def busy(self, command: str) -> Iterator[None]:
        """It does this meanwhile, beside its shell; afterwards nothing of it runs any more. VmFailed as `run`."""
        self.run(f"{{ {command}; }} & true")
        try:
            yield
        finally:
            # Not Ctrl-C: that is lost on a program which is on its way out, and a loop around it goes on.
            self.run("kill -9 %%; wait")

    def disks(self) -> list[str]:
        """Its disks as its kernel names them, in the order of their names."""
        return self.run("ls /sys/block | grep -v -E '^(loop|ram|zram|sr|fd)[0-9]*$'").split()

    def address(self, address: str, card: int = 1) -> None:
        """Give its network card of that number, in the order of their names, an address with its prefix."""
        cards = "ls /sys/class/net | grep -v '^lo$'"
        self.awaits(f"[ $({cards} | wc -l) -ge {card} ]")
        self.run(f"d=$({cards} | sed -n {card}p); ip address add {address} dev $d; ip link set $d up")

    def awaits(self, command: str, seconds: int = 20) -> str:
        """Until a command succeeds in it, for at most so long by its own clock; its output."""
        return self.run(f"n=0; until {command}; do n=$((n+1)); [ $n -lt {seconds * 5} ] || break; usleep 200000; done")
