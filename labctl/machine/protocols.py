"""The roles that a target's drivers fill: four that nearly every target has, and those after them.

Each verb returns only when it is true, takes one Deadline, and raises an `InfraError` of its kind when it can't be made true.
A driver is a frozen-looking dataclass: its fields are its options; a field typed as one of these roles, as `Transcript` or as
`DriverContext` is injected from the same target.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal, Protocol, runtime_checkable

from labctl.deadline import Deadline
from labctl.machine.hosttime import Given
from labctl.machine.wires import Wire
from labctl.model import Build, PowerState, Target


@dataclass(frozen=True)
class DriverContext:
    """What surrounds a driver: its target, a folder of its own for this attempt, the host CPUs it may use (empty: any), and the cables
    of its network cards, by card, that lead to emulated machines."""

    target: Target
    workdir: Path
    cpus: tuple[int, ...] = ()
    wires: Mapping[str, Wire] = field(default_factory=dict)


@runtime_checkable
class Power(Protocol):
    """Off, on, warm reset, state. A power cycle is off, seen to be off, then on: `labctl.machine.power.power_cycle`."""

    def on(self, deadline: Deadline) -> int:
        """Apply power. Returns time zero of the boot: monotonic ns just before the first instruction could run. PowerError."""

    def off(self, deadline: Deadline) -> None:
        """Hard power-off; returns when the machine is seen to be off. Off already is no error. PowerError."""

    def reset(self, deadline: Deadline) -> int:
        """Warm reset of a machine that is on; returns time zero of the new boot. PowerError if it is off."""

    def state(self, deadline: Deadline) -> PowerState:
        """What the management interface says now."""


@runtime_checkable
class Ends(Protocol):
    """A machine whose guest can end it with a status: a Power driver has it where that is seen (`isinstance` tells)."""

    def ended_badly(self) -> str:
        """By what the guest said, in ending the machine, that it failed; empty while the machine is on, and if it did not."""


@runtime_checkable
class Unplugs(Protocol):
    """A machine whose disk can be taken out while it is on: a Power driver has it where the lab can do that (`isinstance` tells)."""

    def unplug_disk(self, deadline: Deadline) -> None:
        """Until the machine has let go of it; it is back at the next power-on. ManagementError."""


@runtime_checkable
class Starves(Protocol):
    """A machine that lives on its host's resources: a Power driver has it where the host may run out of them (`isinstance` tells)."""

    def starved(self, deadline: Deadline) -> str:
        """What the host has failed to give it while it is on; empty if nothing."""


@runtime_checkable
class HostTimed(Protocol):
    """A machine that lives on its host's CPUs, one instruction after another: a Power driver has it where the lab emulates the machine
    (`isinstance` tells)."""

    def host_time(self, since_ns: int, until_ns: int) -> Given | None:
        """What the host gave it between two moments of this life, on the monotonic clock. None if that was not looked at."""


@runtime_checkable
class Together(Protocol):
    """A Power driver that sets something up for each verb, such as a session with a BMC, and can keep it for several in a row."""

    def together(self) -> AbstractContextManager[None]:
        """Verbs that this thread gives within this block may share it. What one of them breaks, the next one sets up anew."""


@runtime_checkable
class BootDevice(Protocol):
    """What a machine boots from next: a Power driver has it where its management interface can say so (`isinstance` tells)."""

    def boot_next(self, device: Literal["network", "disk"], deadline: Deadline) -> None:
        """For the next boot only; returns when it has been read back. ManagementError if it is refused, or reads otherwise."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a sensor says: ``unit`` is degC, V, A, W or rpm."""

    name: str
    value: float
    unit: str


@dataclass(frozen=True, slots=True)
class HealthEvent:
    """An entry of the machine's own event log; ``at`` in seconds since the Unix epoch by the machine's clock, 0 where it says none."""

    number: int
    at: float
    text: str


@runtime_checkable
class Health(Protocol):
    """What a management interface knows of its machine: a Power driver has it where there is one that does (`isinstance` tells)."""

    def readings(self, deadline: Deadline) -> tuple[Reading, ...]:
        """Of every sensor that has a value now. A BMC takes seconds for all. ManagementError."""

    def sample(self, deadline: Deadline) -> Mapping[str, float]:
        """``machine_degc``, the sensor that was hottest at the first call, and ``machine_watts``: quick from the second call on, for
        beside a measurement. ManagementError."""

    def latest_event(self, deadline: Deadline) -> int:
        """Number of the event log's last entry, 0 if it is empty. ManagementError."""

    def events(self, after: int, deadline: Deadline) -> tuple[HealthEvent, ...]:
        """What was logged after that entry, oldest first. ManagementError."""

    def log_is_full(self, deadline: Deadline) -> bool:
        """What happens from now on is not logged. ManagementError."""

    def inventory(self, deadline: Deadline) -> Mapping[str, str]:
        """``manufacturer``, ``product``, ``serial``: those that it tells. ManagementError."""


@runtime_checkable
class Console(Protocol):
    """Bytes in and out. What comes in is fed to the target's Transcript by one always-on reader."""

    def attach(self, deadline: Deadline) -> None:
        """Begin reading, before the machine can say anything. Attached already is no error. ConsoleLost."""

    def write(self, data: bytes) -> None:
        """Type. ConsoleLost if nothing is there to take it."""

    def detach(self) -> None:
        """Stop reading; everything read is in the transcript."""


@runtime_checkable
class Proves(Protocol):
    """A Console that may have gone deaf without a word, and can be asked (`isinstance` tells)."""

    def prove(self, deadline: Deadline) -> None:
        """Type a NUL, which means nothing to a terminal: if that is not taken, there is a gap in the transcript afterwards. For a machine
        from which something was expected in vain."""


@runtime_checkable
class Deploy(Protocol):
    def put(self, build: Build, append: str, deadline: Deadline) -> str:
        """Make ``build`` what the next power-on boots, or the driver's own `start` where it is one that `Carries`, with ``append`` as its
        command line. Returns its digest. DeployError."""

    def reproduce(self, build: Build, append: str) -> str:
        """A shell command that shows the same boot by hand on a terminal, runnable as pasted; empty if there is none."""


@runtime_checkable
class Carries(Protocol):
    """What a Deploy driver has besides where the build travels to the machine, and may not arrive (`isinstance` tells)."""

    def start(self, warm: bool, deadline: Deadline) -> int:
        """Boot what was put, by a power cycle or by a warm reset; returns time zero of the boot. PowerError, DeployError."""

    def check(self) -> None:
        """Asked now and then while it boots. DeployError as soon as it is known that the build will not arrive whole."""

    def arrived(self, ready: bool) -> str:
        """The digest that was seen to arrive, once the boot has ended: at ``ready``, or not. DeployError if something else arrived."""

    def release(self) -> None:
        """The machine is off: nothing is offered to it any more. Released already is no error."""


@runtime_checkable
class FetchesFromLab(Protocol):
    """What a Deploy driver has besides where the machine fetches the build from the lab's boot server (`isinstance` tells)."""

    def boot_server(self, deadline: Deadline) -> str:
        """Ask it, from here: where it answered, empty if the driver needs none. DeployError if it does not, or cannot be had."""


@runtime_checkable
class StartsFromWithin(Protocol):
    """What a Deploy driver has besides `Carries` where another system boots first, and that one starts the build (`isinstance` tells)."""

    def began(self) -> int:
        """Where in the transcript the build's own boot began: what was said before is the other system's."""


@dataclass(frozen=True, slots=True)
class CommandResult:
    """A command's end in the machine: exit status, output (stdout and stderr mixed where the channel has one stream), seconds."""

    command: str
    status: int
    output: str
    duration_s: float
    stderr: str = ""
    """What it said there, where the channel keeps the two apart."""


@runtime_checkable
class Shell(Protocol):
    def open(self, deadline: Deadline) -> None:
        """Until a command can be run. ConsoleLost, TargetHung."""

    def run(self, command: str, deadline: Deadline) -> CommandResult:
        """Run a command to its end. Any exit status is a result; TargetHung if it never ends, a crash if there is one."""

    def close(self) -> None:
        """Let go of the channel; the machine stays as it is."""


@runtime_checkable
class Files(Protocol):
    """Files to and from the booted machine: a Shell driver has it where its channel can carry them (`isinstance` tells)."""

    def put(self, content: IO[bytes], path: str, deadline: Deadline, mode: int = 0o644) -> None:
        """Write a file there, whole or not at all, compared by its digest where the channel has no check of its own. CommandFailed if
        the machine does not take it, TargetHung, ConsoleLost."""

    def get(self, path: str, into: IO[bytes], deadline: Deadline) -> None:
        """Read a file from there. CommandFailed if the machine does not give it, TargetHung, ConsoleLost."""


@runtime_checkable
class Ports(Protocol):
    """Byte streams into the machine beside its console: a sixth role, of machines that the lab itself makes."""

    def want_port(self, name: str, kind: Literal["virtio", "serial"]) -> None:
        """The machine is to have a port of that name: a virtio-serial port, or its second ISA serial port. Before the first power-on."""

    def port(self, name: str) -> socket.socket:
        """The host's end of it in this life of the machine, which closes it. ConsoleLost if the machine is off."""

    def held(self, name: str) -> bool | None:
        """Whether a process in the machine has it open; None where that is not known."""


@runtime_checkable
class Forwards(Protocol):
    """A machine whose network is the lab's own, out of reach but for ports of the host: a Power driver has it (`isinstance` tells)."""

    def forwarded(self, card: str, port: int, deadline: Deadline) -> tuple[str, int]:
        """Address and TCP port of the host that lead to that port of the machine in this life of it. ConsoleLost if the machine is off,
        ManagementError."""


@runtime_checkable
class Copies(Protocol):
    """A machine that can be kept in files, and started as a copy of one that was: a Power driver has it (`isinstance` tells)."""

    def why_not(self) -> str:
        """Why this machine cannot be copied, as far as that is known beforehand; empty if nothing speaks against it."""

    def identity(self, build: Build, append: str) -> str:
        """Everything about the machine that a copy must have in common with what it is a copy of."""

    def keep(self, folder: Path) -> None:
        """At the next power-on its memory is a file in that folder."""

    def freeze(self, deadline: Deadline) -> None:
        """Write all else of it to the same folder, as it is now; it is off then, and the folder does not change any more. ManagementError,
        PowerError."""

    def wake(self, folder: Path, deadline: Deadline) -> int:
        """Instead of a power-on: go on where what is kept there stopped. The build was put on it as always. Returns the time of its
        first instruction. PowerError, DeployError."""

    def give_up(self, deadline: Deadline) -> None:
        """Off, and nothing of the last `wake` is left: what is kept may be removed, and a power-on begins as if there had been none."""


@runtime_checkable
class Renews(Protocol):
    """What makes one copy of a machine differ from the others: a Shell driver has it where it can (`isinstance` tells)."""

    def set_clock(self, deadline: Deadline) -> None:
        """The machine's clock becomes the host's. CommandFailed, TargetHung, ConsoleLost."""

    def reseed(self, entropy: bytes, deadline: Deadline) -> None:
        """Random numbers that no copy of the machine has: 16 to 512 bytes that nobody else was given. Raises as `set_clock` does."""


@runtime_checkable
class Counter(Protocol):
    """Counts the machine's instructions, where something can: a fifth role that few targets have, for the channel ``icount``."""

    def instructions(self, offset: int) -> tuple[int, ...] | None:
        """Of each CPU, from power-on until the byte at ``offset`` of the transcript was said, while the machine is on. None if that byte
        was not counted: it was said on another channel, before the last power-on, or too late to be kept."""

    def trace(self, offsets: Sequence[int]) -> None:
        """In the next life of the machine count by address too, with a snapshot at each of these bytes after power-on (ascending)."""

    def traced(self) -> bytes:
        """The snapshots so far; `labctl.parsers.icount.snapshots` reads them."""


ROLES: tuple[type, ...] = (Power, Console, Deploy, Shell, Counter, Ports)
