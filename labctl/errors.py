"""Every error labctl raises on purpose, named by whose fault it is.

::

    LabctlError
    ├── ConfigError          the author's file or command line; exit 2, before any power is applied
    ├── InfraError           the lab's own fault; retried at most twice, never a verdict; exit 3
    │   ├── TargetBusy         somebody else holds the target
    │   ├── HostToolMissing    a program or a right that the host lacks
    │   ├── PowerError         a power verb did not become true
    │   │   └── LeftOn           the machine could not be switched off, and may be on for as long as nobody does it
    │   ├── ConsoleLost        the console ended while the machine did not
    │   ├── DeployError        the build could not be put on the target
    │   ├── ManagementError    a BMC, QMP or PDU answered wrongly or not at all
    │   ├── SecretUnavailable  a password is not where its reference says, or not safe there
    │   └── StorageError       the results or the cache cannot be written
    ├── TargetFailure        this *is* the result; never retried; exit 1
    │   ├── BuildFailed        the recipe does not give an artefact
    │   ├── BootFailed         the machine did not get to ``ready``; says the last milestone
    │   ├── KernelCrash        panic, oops, BUG ...; title and excerpt
    │   ├── TargetHung         silence, or a reset loop
    │   ├── DisplayFailed      a VM's display is not there, or speaks no VNC
    │   ├── CommandFailed      a command inside the machine failed where success was asked
    │   └── VmFailed           a VM on the machine, or its toolstack, did not do what was asked; the machine is well
    └── MeasurementInvalid   a figure that must not be trusted

The most specific cause wins: before a timeout or a lost console is raised, the transcript is drained and searched for a crash.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in one file: where, what was found, and what is allowed there."""

    where: str
    """The file, or ``command line``."""
    key: str
    """Dotted path of the key in the file; empty for the whole file."""
    found: str
    allowed: str

    def __str__(self) -> str:
        place = f"{self.where}: {self.key}" if self.key else self.where
        return f"{place}: {self.found}; {self.allowed}" if self.allowed else f"{place}: {self.found}"


class LabctlError(Exception):
    """Base of all. ``target``, ``cell`` and ``tail`` are filled in by whoever knows them, on the way up."""

    exit_code = 3

    def __init__(self, message: str, *, target: str = "", cell: str = "", tail: str = "", remedy: str = "", title: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.title = title or message.splitlines()[0] if message else title
        self.target = target
        self.cell = cell
        self.tail = tail
        """The last lines of the transcript, or the lines around the cause, already made printable."""
        self.remedy = remedy
        """What the user can do about it; one line."""

    def __str__(self) -> str:
        subject = self.cell or self.target
        named = self.message.startswith((f"{subject}: ", f"target {subject} "))
        text = f"{subject}: {self.message}" if subject and not named else self.message
        return f"{text}\n  try: {self.remedy}" if self.remedy else text

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process borders (xdist, JSON): keep every attribute.
        return (_rebuild, (type(self), self.args, self.__dict__))


def _rebuild(kind: type[LabctlError], args: tuple[object, ...], state: dict[str, object]) -> LabctlError:
    error = kind.__new__(kind)
    Exception.__init__(error, *args)
    error.__dict__.update(state)
    return error


class ConfigError(LabctlError):
    """The author's mistake: all mistakes of a file at once, each as a `Problem`."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem] | str, *, remedy: str = "") -> None:
        self.problems: tuple[Problem, ...] = (Problem("command line", "", problems, ""),) if isinstance(problems, str) else tuple(problems)
        text = problems if isinstance(problems, str) else "\n".join(str(p) for p in self.problems)
        super().__init__(text, remedy=remedy)


class InfraError(LabctlError):
    """The lab's fault. Retried at most twice, never a verdict on a build."""

    exit_code = 3


class TargetBusy(InfraError):
    """Somebody else holds the target; the message says who, since when and why."""


class HostToolMissing(InfraError):
    """The host lacks a program, a package or a right; the remedy is the line that mends it."""


class PowerError(InfraError):
    """A power verb did not become true in time."""


class LeftOn(PowerError):
    """Nobody holds the machine any more, and it may still be on."""


class ConsoleLost(InfraError):
    """The console ended while the machine did not."""


class DeployError(InfraError):
    """The build could not be put on the target."""


class ManagementError(InfraError):
    """A management interface (QMP, BMC, PDU) answered wrongly, late or not at all."""


class SecretUnavailable(InfraError):
    """A secret is not where its reference says, or not safe there. Says which reference, never what it holds."""


class StorageError(InfraError):
    """The results, the cache or a disk image cannot be read or written."""


class TargetFailure(LabctlError):
    """The build failed on the machine: this is the result, and it is never retried."""

    exit_code = 1


class BuildFailed(TargetFailure):
    """The recipe gives no artefact."""


class BootFailed(TargetFailure):
    """The machine did not reach ``ready``."""

    def __init__(self, message: str, *, last_milestone: str = "", **more: str) -> None:
        super().__init__(message, **more)
        self.last_milestone = last_milestone


class KernelCrash(TargetFailure):
    """The kernel said that it crashed. ``title`` is one line (``Kernel panic: ...``), ``excerpt`` the report itself."""

    def __init__(self, message: str, *, title: str = "", excerpt: str = "", last_milestone: str = "", **more: str) -> None:
        super().__init__(message, title=title or message, **more)
        self.excerpt = excerpt
        self.last_milestone = last_milestone


class TargetHung(TargetFailure):
    """The machine is silent, or resets for ever."""

    def __init__(self, message: str, *, last_milestone: str = "", **more: str) -> None:
        super().__init__(message, **more)
        self.last_milestone = last_milestone


class DisplayFailed(TargetFailure):
    """The display of a VM cannot be reached, or what it says is not what a VNC server says."""


class CommandFailed(TargetFailure):
    """A command in the machine exited with another status than the one asked for."""

    def __init__(self, message: str, *, status: int | None = None, output: str = "", **more: str) -> None:
        super().__init__(message, **more)
        self.status = status
        self.output = output


class VmFailed(TargetFailure):
    """A VM on the machine under test, or the toolstack that makes it, did not do what was asked; the machine itself is well."""


class MeasurementInvalid(LabctlError):
    """A figure was taken under conditions in which it must not be trusted; or a machine failed while its host had no time for it."""

    exit_code = 1
