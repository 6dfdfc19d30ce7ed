"""The role Hypervisor: what runs VMs on the machine under test, and what each hypervisor can do beyond that.

Each verb returns only when it is true, takes one Deadline, and raises VmFailed (of the VM or its toolstack; the machine is well) or
whatever became of the machine itself. What a driver can do besides it *declares* by having the methods of one of the protocols below:
`isinstance` tells. Paths are those of the machine under test unless they are said to be the host's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, Protocol, runtime_checkable

from labctl.deadline import Deadline
from labctl.errors import ConfigError

NAME_PATTERN = r"^[a-z][a-z0-9-]{0,30}$"
"""Of VMs, disks, cards, networks and templates: safe as a file name, a shell word, a host name and the id of a device."""
PCI_PATTERN = r"^[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$"
_MAC = re.compile(r"^[0-9a-f]{2}(:[0-9a-f]{2}){5}$")


class VmState(StrEnum):
    """Of a VM that exists. What ends by itself, or is killed, is ``failed`` if its end tells a fault, else ``off``."""

    OFF = "off"
    RUNNING = "running"
    PAUSED = "paused"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class VmDisk:
    """``file`` is used as it is, raw; without one there is a new one of ``size`` bytes, which is gone when the VM is destroyed."""

    name: str
    size: int = 0
    file: str = ""


@dataclass(frozen=True, slots=True)
class VmNic:
    """A card on a network of the hypervisor's by name: VMs on one network reach each other, and nobody else's network."""

    name: str
    network: str
    mac: str = ""
    """Empty: one that is made from the names of VM and card."""


@dataclass(frozen=True, slots=True)
class VmDisplay:
    """A screen, keyboard and pointer, by VNC: at ``port`` of the machine, and as a web socket at ``websocket`` (0: none)."""

    port: int = 5900
    websocket: int = 5700
    address: str = "0.0.0.0"  # noqa: S104  # on the machine under test, whose network is the lab's own
    adapter: Literal["vga", "virtio"] = "vga"
    clipboard: bool = False
    """The guest may take part in the clipboard of those who look at the display, by a port ``com.redhat.spice.0`` for an agent in it."""


@dataclass(frozen=True, slots=True)
class VmSpec:
    """What a VM is to be. ConfigError for one that no hypervisor can make."""

    name: str
    kernel: str
    """A file of the machine: a Linux, or an ELF with a PVH note."""
    initrd: str = ""
    append: str = ""
    memory: int = 16 << 20
    """Bytes."""
    cpus: int = 1
    disks: tuple[VmDisk, ...] = ()
    nics: tuple[VmNic, ...] = ()
    display: VmDisplay | None = None
    pinned: tuple[int, ...] = ()
    """CPUs of the machine on which its own may run; empty: any."""
    devices: tuple[str, ...] = ()
    """PCI devices of the machine that it is given, such as ``0000:00:04.0``."""
    restarts: int = 0
    """How often it is started again when it ends by a fault."""
    paused: bool = False
    """Started, but not an instruction of it is run."""

    def __post_init__(self) -> None:
        for what, names in (
            ("name", [self.name]),
            ("disks", [disk.name for disk in self.disks]),
            ("nics", [nic.name for nic in self.nics] + [nic.network for nic in self.nics]),
        ):
            for name in names:
                _need(re.fullmatch(NAME_PATTERN, name) is not None, what, name, "a-z, 0-9 and -, at most 31, a letter first")
        _need(self.kernel.startswith("/"), "kernel", self.kernel, "the whole path of a file of the machine")
        _need(self.memory >= 1 << 20, "memory", self.memory, "at least 1M, in bytes")
        _need(1 <= self.cpus <= 255, "cpus", self.cpus, "1 to 255")
        _need(all(0 <= cpu < 4096 for cpu in self.pinned), "pinned", self.pinned, "numbers of the machine's CPUs")
        _need(0 <= self.restarts <= 1000, "restarts", self.restarts, "0 to 1000")
        for device in self.devices:
            _need(re.fullmatch(PCI_PATTERN, device) is not None, "devices", device, "DOMAIN:BUS:DEVICE.FUNCTION, such as 0000:00:04.0")
        for nic in self.nics:
            _need(not nic.mac or _MAC.match(nic.mac) is not None, "nics", nic.mac, "six bytes in hex with : between them")
        for disk in self.disks:
            _need(disk.size > 0 or disk.file.startswith("/"), "disks", disk, "a size in bytes, or the whole path of a file of the machine")
        for each in (*self.append, *self.kernel, *self.initrd):
            _need(each.isprintable(), "append", repr(each), "words without control characters")


def _need(true: bool, key: str, found: object, allowed: str) -> None:
    if not true:
        raise ConfigError(f"VmSpec.{key}: found {found!r}; allowed: {allowed}")


@dataclass(frozen=True, slots=True)
class Vm:
    """A VM as the hypervisor lists it."""

    name: str
    state: VmState
    cpus: int
    memory: int
    """Bytes."""
    why: str = ""
    """How one that has failed ended."""


@dataclass(frozen=True, slots=True)
class Heard:
    """A piece of a console: the offset behind its last byte, and when that arrived, on the machine's monotonic clock in seconds."""

    offset: int
    at: float
    text: str = ""


@dataclass(frozen=True, slots=True)
class VmMetrics:
    """What a VM takes of the machine now. Seconds and bytes since its start, bytes of memory as they are."""

    cpu_s: float
    memory: int
    """Bytes of the machine's memory that are its own, without what it shares."""
    read: int = 0
    written: int = 0
    """Bytes of its disks."""
    received: int = 0
    sent: int = 0
    """Bytes of its network cards."""


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One verb in the audit log: seconds since the Unix epoch by the machine's clock, who, what, to which VM, and how that ended."""

    at: float
    who: str
    verb: str
    vm: str
    result: str
    """``ok``, or why not."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One that came to its end. Seconds; ``downtime`` as the hypervisor itself says, 0 if it does not."""

    total: float
    downtime: float = 0.0


@runtime_checkable
class Hypervisor(Protocol):
    """VMs of one machine. A VM is known by its name, and exists from `create` to `destroy`."""

    def create(self, spec: VmSpec, deadline: Deadline) -> None:
        """The VM exists and is off. VmFailed if there is one of that name, or if what it needs is not there."""

    def start(self, vm: str, deadline: Deadline) -> None:
        """Its CPUs run, unless the spec says ``paused``; what its guest makes of that its console tells."""

    def stop(self, vm: str, deadline: Deadline) -> None:
        """Off, seen to be off; it still exists, and so do its disks. Off already is no error."""

    def list(self, deadline: Deadline) -> tuple[Vm, ...]:
        """Every VM that exists, by name."""

    def destroy(self, vm: str, deadline: Deadline) -> None:
        """Off, and everything of it gone: no process, no file, no network device. One that does not exist is no error."""


@runtime_checkable
class Consoles(Protocol):
    def heard(self, vm: str, text: str, deadline: Deadline, since: int = 0) -> Heard:
        """Until its console says ``text`` in or behind that offset. VmFailed with the last lines if it ends, or does not in time."""

    def said(self, vm: str, deadline: Deadline, since: int = 0) -> bytes:
        """What its console said from that offset on, since the VM was started first. What is long ago may be lost."""

    def lines(self, vm: str, prefix: str, deadline: Deadline, since: int = 0) -> tuple[Heard, ...]:
        """Whole lines of its console that begin so."""

    def type(self, vm: str, data: bytes, deadline: Deadline) -> None:
        """Bytes to its console."""

    def began(self, vm: str, deadline: Deadline) -> float:
        """When it was started last, on the clock of `Heard.at`."""


@runtime_checkable
class Pauses(Protocol):
    def pause(self, vm: str, deadline: Deadline) -> None:
        """Not an instruction of it runs; nothing of it changes any more."""

    def resume(self, vm: str, deadline: Deadline) -> None:
        """Its CPUs run."""


@runtime_checkable
class Digests(Protocol):
    def memory_digest(self, vm: str, deadline: Deadline) -> str:
        """SHA-256 over all its memory; of a VM that is paused, for of one that runs it says nothing."""

    def memory_holds(self, vm: str, text: str, deadline: Deadline) -> bool:
        """Whether these bytes are anywhere in its memory."""


@runtime_checkable
class Snapshots(Protocol):
    def snapshot(self, vm: str, name: str, deadline: Deadline) -> None:
        """Memory, devices and disks of a VM as they are now, kept under that name; it goes on as it was."""

    def restore(self, vm: str, name: str, deadline: Deadline) -> None:
        """The VM is as it was then, and paused. VmFailed if the snapshot is not whole."""


@runtime_checkable
class Templates(Protocol):
    def template(self, vm: str, name: str, deadline: Deadline) -> None:
        """What a VM that is off is, and what its disks hold, kept under that name with a digest over all of it."""

    def clone(self, template: str, vm: str, deadline: Deadline) -> None:
        """A new VM like the template, with disks and addresses of its own; it is off. VmFailed if the template is not what was kept."""

    def forget(self, template: str, deadline: Deadline) -> None:
        """The template is gone. One that does not exist is no error."""


@runtime_checkable
class Pins(Protocol):
    def pin(self, vm: str, cpus: Sequence[int], deadline: Deadline) -> None:
        """Its CPUs run on those of the machine only, from now on."""

    def pinned(self, vm: str, deadline: Deadline) -> tuple[tuple[int, ...], ...]:
        """Of each of its CPUs those of the machine on which it may run, as the machine's kernel says."""


@runtime_checkable
class AttachesDisks(Protocol):
    def attach_disk(self, vm: str, disk: VmDisk, deadline: Deadline) -> None:
        """While it runs."""

    def detach_disk(self, vm: str, name: str, deadline: Deadline) -> None:
        """While it runs; until the guest has let go of it."""


@runtime_checkable
class AttachesNics(Protocol):
    def attach_nic(self, vm: str, nic: VmNic, deadline: Deadline) -> None:
        """While it runs."""

    def detach_nic(self, vm: str, name: str, deadline: Deadline) -> None:
        """While it runs; until the guest has let go of it."""


@runtime_checkable
class Networks(Protocol):
    def address(self, network: str, address: str, deadline: Deadline) -> str:
        """The machine itself takes part in a network of VMs, by that address with its prefix. Returns its device's name."""


@runtime_checkable
class AttachesUsb(Protocol):
    def attach_usb(self, vm: str, name: str, kind: Literal["keyboard", "tablet", "storage"], deadline: Deadline) -> None:
        """A USB device, emulated, while it runs. A storage device is of 1 MiB, and empty."""

    def detach_usb(self, vm: str, name: str, deadline: Deadline) -> None:
        """While it runs."""


@runtime_checkable
class PassesDevices(Protocol):
    def group(self, device: str, deadline: Deadline) -> tuple[str, ...]:
        """The PCI devices that a device of the machine can only be passed through with. VmFailed if it is in no IOMMU group."""

    def give(self, device: str, deadline: Deadline) -> None:
        """A device of the machine is free to be passed through: no driver of the machine holds it. VmFailed, with the reason."""

    def take_back(self, device: str, deadline: Deadline) -> None:
        """The machine may use it again."""


@runtime_checkable
class Meters(Protocol):
    def metrics(self, vm: str, deadline: Deadline) -> VmMetrics:
        """What a VM that runs takes of the machine."""


@runtime_checkable
class Restarts(Protocol):
    def kill(self, vm: str, deadline: Deadline) -> float:
        """End it as a fault would, without a word to the hypervisor. Returns when, on the clock of `Heard.at`."""

    def starts(self, vm: str, deadline: Deadline) -> int:
        """How often it was started since it was made: 1 until it was started again after a fault."""


@runtime_checkable
class Migrates(Protocol):
    def receive(self, spec: VmSpec, source: str, deadline: Deadline) -> str:
        """Wait for a VM like this one, which comes over the network from that address; returns where it is to be sent."""

    def clock(self, deadline: Deadline) -> tuple[float, float]:
        """The machine's monotonic clock, that of `Heard.at`, and its real-time clock at the same moment, in seconds."""

    def migrate(self, vm: str, to: str, deadline: Deadline) -> Migration:
        """The VM runs at the other end, and is off here, where it can still be read what its console said.
        VmFailed if not, and then it runs here as before."""


@runtime_checkable
class BacksUp(Protocol):
    def backup(self, vm: str, disk: str, file: str, deadline: Deadline) -> str:
        """The disk of a VM that runs, as it is at one moment, into a file of the machine. Returns its SHA-256."""

    def restore_backup(self, vm: str, disk: str, file: str, digest: str, deadline: Deadline) -> None:
        """The disk of a VM that is off holds again what was backed up. VmFailed if the file is not what was written then."""


@runtime_checkable
class Audits(Protocol):
    def audit(self, deadline: Deadline) -> tuple[AuditEntry, ...]:
        """Every verb of this role since the machine was booted, oldest first."""


@runtime_checkable
class Displays(Protocol):
    def press(self, vm: str, keys: Sequence[str], deadline: Deadline) -> None:
        """Press these keys (QEMU's names: ``a``, ``shift``, ``ret``) together and let go of them, as a keyboard of the VM's would."""

    def screen(self, vm: str, deadline: Deadline) -> bytes:
        """What its screen shows now, as a PPM."""


CAPABILITIES: Mapping[str, type] = {
    each.__name__: each
    for each in (
        *(Consoles, Pauses, Digests, Snapshots, Templates, Pins, AttachesDisks, AttachesNics, Networks, AttachesUsb, PassesDevices),
        *(Meters, Restarts, Migrates, BacksUp, Audits, Displays),
    )
}
"""What a driver may declare, by name."""
