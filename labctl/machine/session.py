"""Hold a machine through a cell: deploy → power on → boot → shell → off, each state reached only when it is asked for.

The session is a ``with`` block; whatever happens in it, the machine is off at its end and everything it said is on disk.
"""

from __future__ import annotations

import io
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from ipaddress import ip_interface
from pathlib import Path
from types import TracebackType
from typing import IO, Self, TypeVar

from labctl.deadline import Deadline, DeadlineExpired
from labctl.errors import (
    CommandFailed,
    ConfigError,
    ConsoleLost,
    DeployError,
    InfraError,
    KernelCrash,
    LabctlError,
    LeftOn,
    ManagementError,
    PowerError,
    Problem,
    StorageError,
    TargetFailure,
    TargetHung,
)
from labctl.machine.boot import Boot, explain, wait_for_ready
from labctl.machine.expect import ConsoleExpect
from labctl.machine.nics import mac
from labctl.machine.power import power_cycle, together
from labctl.machine.protocols import (
    Carries,
    CommandResult,
    Copies,
    Counter,
    Deploy,
    DriverContext,
    Files,
    Forwards,
    HostTimed,
    Proves,
    Shell,
    StartsFromWithin,
    Starves,
    Unplugs,
)
from labctl.machine.registry import Machine, assemble
from labctl.machine.restarted import restarted
from labctl.machine.transcript import ConsoleEnded, Transcript
from labctl.machine.wires import Wire
from labctl.model import Build, Channel, PowerState, Target, TargetConfig
from labctl.parsers.crash import find_crash, standstills

POWER_DEADLINE = 30.0
"""Seconds for one power verb, or for a build to be put on the machine."""
_ENDING = 2.0
"""Seconds between a console that takes no more bytes and the end of what it says, at most."""
COMMAND_DEADLINE = 60.0
"""Seconds for one command, unless the caller says otherwise."""
FILE_DEADLINE = 120.0
"""Seconds for one file, unless the caller says otherwise."""
STANDSTILL_S = 25.0
"""Seconds before a kernel says that it stood still: a lockup is told after some 20, a stall of RCU after 21."""
_LATEST = 4 << 20
"""Bytes of the console that are searched for that."""
R = TypeVar("R")


def start(machine: Machine, *, warm: bool, deadline: Deadline) -> int:
    """Boot what was put on the machine, by a power cycle or a warm reset. Returns time zero of the boot."""
    if isinstance(machine.deploy, Carries):
        return machine.deploy.start(warm, deadline)
    return machine.power.reset(deadline) if warm else power_cycle(machine.power, deadline)


def _require_path(path: object) -> None:
    if not isinstance(path, str) or not path or "\0" in path:
        raise ValueError(f"{path!r} is no path of a file in the machine")


def command_line(target: Target, build: Build, words: str = "") -> str:
    """The kernel's: what the machine needs, what the build needs, and more words."""
    return " ".join(filter(None, (target.config.append, build.append, words)))


@dataclass
class Watcher:
    """What a session tells while it works; each may be left alone."""

    status: Callable[[str], None] = lambda state: None
    milestone: Callable[[str, float, int], None] = lambda name, seconds, boot: None
    """name, seconds from power-on, number of the boot in this session (1 ...)"""
    booted: Callable[[Boot], None] = lambda boot: None
    arrived: Callable[[str], None] = lambda digest: None
    """The build's digest, once the machine was seen to have got all of it: only where it travels, and can be checked there."""


@dataclass
class Session:
    """One owner's time with a target. Errors are of the taxonomy; a crash on the console wins over every other cause."""

    target: Target
    build: Build
    workdir: Path
    host_cpus: tuple[int, ...] = ()
    """Host CPUs that the machine is pinned to; empty: any."""
    watcher: Watcher = field(default_factory=Watcher)
    wires: Mapping[str, Wire] = field(default_factory=dict)
    """Cables of its network cards that lead to other emulated machines."""

    words: str = field(default="", init=False)
    """What the last `boot` asked for on the command line, behind the build's own words."""
    boots: list[Boot] = field(default_factory=list, init=False)
    """Every boot of this session that came to ``ready``, oldest first."""
    failure: TargetFailure | None = field(default=None, init=False)
    """Why the machine did not boot: it is not tried again in this session."""
    _since: int = field(default=0, init=False)
    """Where in the transcript the current boot began."""
    _searched: int = field(default=0, init=False)
    """Up to where the transcript was searched for crashes after the boot."""
    _shell_open: bool = field(default=False, init=False)
    _up: bool = field(default=False, init=False)
    _attempted: int = field(default=0, init=False)
    starter: Callable[[Session], bool] | None = None
    """How it is started without a boot, where all that is wanted is a machine that is up (`labctl.machine.warm`); whether it was."""
    copied: bool = field(default=False, init=False)
    """Started as a copy at least once."""
    copies: bool = False
    """What is up may be a copy wherever no boot was asked for: then `booted` refuses a machine that was booted for want of one too, or a
    test's verdict would depend on what was kept of an earlier run."""
    _no_boot: bool = field(default=False, init=False)
    """What is up now is a copy, or stands for one: nobody has asked for a boot."""

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        self.transcript = self._stack.enter_context(Transcript(self.workdir, most=self.target.config.console_log))
        self.machine: Machine = assemble(DriverContext(self.target, self.workdir, self.host_cpus, self.wires), self.transcript)
        self._stack.callback(self._discard_disks)
        self._stack.callback(self.machine.console.detach)
        self._stack.callback(self._release)
        self._stack.callback(self._off_at_the_end)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    @property
    def name(self) -> str:
        """The target's name."""
        return self.target.name

    @property
    def config(self) -> TargetConfig:
        """What the target is: ``cpus``, ``memory`` in bytes, ``tags`` and so on."""
        return self.target.config

    def mac(self, card: str) -> str:
        """The hardware address of a network card, in lower case: by it the card is known in the machine."""
        return mac(self.target.name, card, self.target.config.nics[card])

    def leads_to(self, port: int) -> str:
        """The network card over which the lab reaches that TCP port of the machine; empty if the target's file forwards it on none."""
        return next((name for name, nic in self.target.config.nics.items() if port in nic.forward), "")

    def endpoint(self, port: int, *, deadline: float = POWER_DEADLINE) -> tuple[str, int]:
        """Address and TCP port at which that port of the machine is reached from here, in this life of it. The machine's card must have
        its address (`labctl.machine.addressing`). ConfigError if no card forwards it, ConsoleLost if an emulated machine is off."""
        card, file = self.leads_to(port), f"targets/{self.target.name}.toml"
        if not card:
            known = sorted({each for nic in self.target.config.nics.values() for each in nic.forward})
            raise ConfigError([Problem(file, "nics", f"no card forwards port {port}", f"forward = {[*known, port]} on a card to the host")])
        if isinstance(power := self.machine.power, Forwards):
            return power.forwarded(card, port, Deadline.after(deadline))
        if not (address := self.target.config.nics[card].address):
            raise ConfigError([Problem(file, f"nics.{card}.address", "none", "the address at which the machine is reached")])
        return str(ip_interface(address).ip), port

    @property
    def append(self) -> str:
        """The kernel's command line: what the machine needs, what the build needs, what was asked for by `boot`."""
        return command_line(self.target, self.build, self.words)

    @property
    def reproduce(self) -> str:
        """A shell command that shows the same boot by hand."""
        return self.machine.deploy.reproduce(self.build, self.append)

    @property
    def up(self) -> bool:
        """Booted and, as far as the power role can tell, still on."""
        return self._up and self.machine.power.state(Deadline.after(POWER_DEADLINE)) is PowerState.ON

    def booted(self) -> Boot:
        """The current boot; boots the machine if it is not up. A boot that failed once in this session fails again at once."""
        if self.failure is not None:
            raise self.failure
        if not self.up:
            self.boot()
        if self._no_boot:
            found = "a test asks for the boot of a machine that is a copy of one that had booted, or may be one next time"
            raise ConfigError([Problem("suite.toml", "warm = true", found, "a boot is made by target.boot(); or warm = false")])
        return self.boots[-1]

    def ready(self) -> None:
        """The machine up, by a boot or as a copy of one that was booted; as it is if it is up. Raises as `booted` does."""
        if self.failure is not None:
            raise self.failure
        if not self.up and (self.words or self.starter is None or not self.starter(self)):
            self.boot()
            self._no_boot = self.copies and not self.words

    def boot(self, append: str | None = None) -> Boot:
        """Put the build on the machine, power cycle it and wait for ``ready``. BootFailed, KernelCrash, TargetHung, or the lab's own.

        ``append``: more words on the kernel's command line, for this boot and those that follow.
        """
        if append is not None:
            self.words = append
        return self.wait(self.power_on())

    def wait(self, t0_ns: int) -> Boot:
        """Until a machine that `power_on` has switched on at that time is ready. BootFailed, KernelCrash, TargetHung, or the lab's own."""
        return self._wait(t0_ns)

    def power_on(self) -> int:
        """Off, the build put on it, on. Returns time zero in monotonic ns; nothing is waited for after that."""
        with together(self.machine.power):
            self._deploy(Deadline.after(POWER_DEADLINE))
            self.watcher.status("booting")
            self._attempted += 1
            self.transcript.note(f"power on, boot {self._attempted}")
            # A deadline of its own: a build that is written to a disk takes longer to put there than any verb.
            return self._start(warm=False, deadline=Deadline.after(POWER_DEADLINE))

    def wake(self, folder: Path) -> None:
        """Start as a copy of the machine that is kept there, instead of a boot. PowerError, DeployError, ManagementError."""
        power, deadline = self.machine.power, Deadline.after(POWER_DEADLINE)
        if not isinstance(power, Copies):
            raise ManagementError("the Power driver makes no copies", target=self.target.name)
        self._deploy(deadline)
        self.watcher.status("starting")
        self.transcript.note("a copy of a machine that was booted before")
        power.wake(folder, deadline)
        self._searched = self._since
        self._up = self._no_boot = self.copied = True
        self.watcher.status("testing")

    def began_anew(self) -> bool:
        """Whether what was to be a copy has reset itself: its console tells of a boot, which a copy has behind it."""
        on_console = not isinstance(self.machine.shell, Files)
        return restarted(self.transcript, self._since, self.build.milestones, commands_on_it=on_console)

    def give_up_copy(self) -> None:
        """What was to be a copy is none: off, and nothing of it counts."""
        self._leave()
        self.copied = False
        power = self.machine.power
        (power.give_up if isinstance(power, Copies) else power.off)(Deadline.after(POWER_DEADLINE))

    def let_go(self) -> None:
        """Of the shell's channel; the machine goes on."""
        if self._shell_open:
            self._shell_open = False
            self.machine.shell.close()

    def _deploy(self, deadline: Deadline) -> None:
        self._leave()
        if self.build.dom0 is not None and not getattr(self.machine.deploy, "boots_dom0", False):
            raise DeployError(
                f"{self.build.name} is Xen, which is booted by multiboot: the target's driver boots a Linux kernel alone",
                target=self.target.name,
                remedy="a target of the driver qemu, such as hv-2c-2g",
            )
        self.watcher.status("deploying")
        self.machine.power.off(deadline)
        self.machine.console.attach(deadline)
        self.machine.deploy.put(self.build, self.append, deadline)
        self._since = self.transcript.size

    def _start(self, *, warm: bool, deadline: Deadline) -> int:
        t0_ns = start(self.machine, warm=warm, deadline=deadline)
        if isinstance(deploy := self.machine.deploy, StartsFromWithin):
            self._since = deploy.began()
        return t0_ns

    def reset(self) -> Boot:
        """Warm reset, and wait for ``ready`` again."""
        self._leave()
        self._since = self.transcript.size
        self._attempted += 1
        self.transcript.note(f"reset, boot {self._attempted}")
        self.watcher.status("booting")
        return self._wait(self._start(warm=True, deadline=Deadline.after(POWER_DEADLINE)), counted=False)

    def _wait(self, t0_ns: int, *, counted: bool = True) -> Boot:
        counted = counted and self.target.config.channel is Channel.ICOUNT
        try:
            boot = wait_for_ready(
                self.transcript,
                t0_ns=t0_ns,
                since=self._since,
                expectation=self.target.config.boot,
                overrides=self.build.milestones,
                deadline=Deadline.after(self.target.config.boot.deadline),
                alive=self._how_it_ended,
                on_milestone=lambda name, seconds: self.watcher.milestone(name, seconds, self._attempted),
                virtual=self._virtual if counted else None,
                target=self.target.name,
            )
        except TargetFailure as failure:
            if not isinstance(failure, KernelCrash) and (deaf := self._deaf(self._since)):
                raise ConsoleLost(f"{deaf}; without them: {failure.message}", target=self.target.name, tail=failure.tail) from None
            self._arrived(ready=False)  # what did not arrive says nothing about the build
            self.failure = failure
            raise
        self._arrived(ready=True)
        if counted:
            boot = self._counted(boot)
        self._up = True
        self._searched = self.transcript.size
        self.boots.append(boot)
        self.watcher.booted(boot)
        self.watcher.status("testing")
        return boot

    def instructions_at(self, offset: int) -> int | None:
        """Instructions of all CPUs from power-on until the byte at ``offset`` of the transcript was said, on the channel ``icount``, until
        the next power-on. None if that byte was not counted."""
        counts = self.machine.role(Counter).instructions(offset)  # type: ignore[type-abstract]
        return None if counts is None else sum(counts)

    def _virtual(self, offset: int) -> float | None:
        counted = self.instructions_at(offset)
        return None if counted is None else counted / 1e9

    def _counted(self, boot: Boot) -> Boot:
        """With the instructions to each milestone. ManagementError if one was not counted: half a measurement is none."""
        counter = self.machine.role(Counter)  # type: ignore[type-abstract]
        by_cpu: dict[str, tuple[int, ...]] = {}
        for name, offset in boot.offsets.items():
            counts = counter.instructions(offset)
            if counts is None:
                raise ManagementError(
                    f"the instructions to {name} were not counted",
                    target=self.target.name,
                    remedy="counts are kept for the first MiB of a boot's console",
                )
            by_cpu[name] = counts
        return replace(boot, instructions={name: sum(counts) for name, counts in by_cpu.items()}, instructions_by_cpu=by_cpu)

    def _arrived(self, *, ready: bool) -> None:
        if isinstance(deploy := self.machine.deploy, Carries) and (digest := deploy.arrived(ready)):
            self.watcher.arrived(digest)

    def _how_it_ended(self) -> str | None:
        """None while the machine is on. Raises InfraError where it ended by a fault of the lab's."""
        if isinstance(self.machine.deploy, Carries):
            self.machine.deploy.check()
        if self.transcript.ended is None or self.machine.power.state(Deadline.after(POWER_DEADLINE)) is PowerState.ON:
            return None
        return self.transcript.ended

    def run(self, command: str, *, deadline: Deadline | float = COMMAND_DEADLINE, check: bool = True) -> CommandResult:
        """Run a command in the booted machine. CommandFailed if ``check`` and its status is not 0; a crash wins over every other cause."""
        if not isinstance(command, str):
            raise TypeError(f"a command is text, not {type(command).__name__}: {command!r}"[:200])
        began = self.transcript.size
        result = self._ask(repr(command[:200]), deadline, lambda shell, limit: shell.run(command, limit))
        if check and result.status != 0:
            self._check_host()
            said = (result.stderr.strip() or result.output.strip())[-300:]
            raise CommandFailed(
                f"{command!r} {self._ending(result.status, began)}" + (f": {said}" if said else ""),
                status=result.status,
                output=result.output,
                target=self.target.name,
            )
        return result

    def _ending(self, status: int, began: int) -> str:
        """How a command ended, by its status; of one that was killed the kernel may have said why since ``began``."""
        if not 128 < status < 128 + signal.NSIG:
            return f"exited with {status}"
        crash = find_crash(self.transcript.read(began)) if status == 128 + signal.SIGKILL else None
        return f"was killed by signal {status - 128}" + (f" ({crash.title})" if crash is not None else "")

    def _check_host(self) -> None:
        """What fails in a machine because its host gives out is no fault of the build. StorageError."""
        if isinstance(power := self.machine.power, Starves):
            with suppress(ManagementError):  # it cannot be asked: the command's own failure tells more
                if why := power.starved(Deadline.after(POWER_DEADLINE)):
                    raise StorageError(why, target=self.target.name, remedy="make room there, or choose another folder with --results")

    def put(self, content: Path | bytes, path: str, *, deadline: Deadline | float = FILE_DEADLINE, mode: int | None = None) -> None:
        """Write a file in the booted machine, whole or not at all. ``mode``: its permissions; else those of the file that it is a copy
        of. CommandFailed where the machine does not take it."""
        _require_path(path)
        permissions = mode if mode is not None else content.stat().st_mode & 0o777 if isinstance(content, Path) else 0o644
        with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as source:
            self._ask(f"put {path}", deadline, lambda shell, limit: self._files(shell).put(source, path, limit, permissions))

    def get(self, path: str, into: IO[bytes], *, deadline: Deadline | float = FILE_DEADLINE) -> None:
        """Read a file of the booted machine. CommandFailed where the machine does not give it."""
        _require_path(path)
        self._ask(f"get {path}", deadline, lambda shell, limit: self._files(shell).get(path, into, limit))

    def _files(self, shell: Shell) -> Files:
        if isinstance(shell, Files):
            return shell
        found = "the Shell driver carries no files"
        raise ConfigError([Problem(f"targets/{self.target.name}.toml", "drivers", found, "one that does: agent or ssh")])

    def _ask(self, what: str, deadline: Deadline | float, work: Callable[[Shell, Deadline], R]) -> R:
        """Something over the booted machine's shell. A crash wins over every other cause."""
        if not isinstance(deadline, (int, float, Deadline)):
            raise TypeError(f"deadline={deadline!r}: seconds as a number, or a Deadline")
        if not isinstance(deadline, Deadline) and not deadline > 0:
            raise ValueError(f"deadline={deadline!r}: more than 0 seconds")
        self.ready()
        limit = Deadline.after(deadline) if isinstance(deadline, (int, float)) else deadline
        shell = self.machine.role(Shell)  # type: ignore[type-abstract]
        began = self.transcript.size
        try:
            if not self._shell_open:
                shell.open(limit)
                self._shell_open = True
            return work(shell, limit)
        except KernelCrash:
            self._up = False
            raise
        except (TargetFailure, ConsoleLost) as error:
            on_console = not isinstance(shell, Files)
            if not isinstance(error, ConsoleLost) and restarted(self.transcript, began, self.build.milestones, commands_on_it=on_console):
                why = f"the machine has reset itself in the middle of {what}"
                error = CommandFailed(why, target=self.target.name, tail=self.transcript.tail(10, began))
            elif isinstance(error, CommandFailed):
                raise  # the machine is well, and has refused
            self._up = False  # whatever comes next starts from a fresh boot
            raise self._explained(self._went_off(what, error), began) from None

    def _explained(self, error: LabctlError, began: int) -> LabctlError:
        """The most specific cause of what went wrong since ``began``. What the kernel has survived before that explains nothing now."""
        found = explain(self.transcript, began, error, heard_since=self._since)
        if found is not error:
            return found
        earlier = find_crash(self.transcript.read(self._since, began)) if self._since < began else None
        return explain(self.transcript, self._since, error) if earlier is not None and earlier.fatal else error

    def _went_off(self, what: str, error: LabctlError) -> LabctlError:
        """A console that ended because its machine went off tells of the machine; the lab has lost nothing."""
        if not isinstance(error, ConsoleLost):
            return error
        with suppress(DeadlineExpired):
            self.transcript.wait_end(Deadline.after(_ENDING))  # typing may fail a moment before the machine is seen to be off
        try:
            if self.machine.power.state(Deadline.after(POWER_DEADLINE)) is not PowerState.OFF:
                return error
        except InfraError as fault:
            return fault
        return CommandFailed(
            f"the machine went off in the middle of {what}: {self.transcript.ended}", target=self.target.name, tail=error.tail
        )

    def expect(self) -> ConsoleExpect:
        """The console as pexpect knows it, from here on."""
        self.ready()
        return ConsoleExpect(self.transcript, self.machine.console.write, in_vain=self._in_vain)

    def _in_vain(self, offset: int) -> LabctlError | None:
        """A better reason than time why nothing came after that byte of the transcript: the lab's, or a crash; None if there is none."""
        deaf = self._deaf(offset)
        fallback = ConsoleLost(deaf, target=self.target.name, tail=self.transcript.tail(10, offset)) if deaf else None
        unknown = TargetHung("", target=self.target.name)
        found = explain(self.transcript, self._since, fallback or unknown)
        return None if found is unknown else found

    def _deaf(self, offset: int) -> str:
        """Why bytes of the console may be missing after ``offset``; empty if it has heard all, as far as it can be asked."""
        if not self.transcript.gap_since(offset) and isinstance(console := self.machine.console, Proves):
            console.prove(Deadline.after(POWER_DEADLINE))
        return self.transcript.gap_since(offset)

    def power_off(self, command: str = "poweroff -f", *, deadline: float = POWER_DEADLINE) -> float:
        """Have the machine power itself off by ``command``; returns when it is seen to be off, with the seconds that took.

        KernelCrash, or TargetHung if it stays on.
        """
        self.ready()
        limit = Deadline.after(deadline)
        self._leave()
        self.machine.console.write(f"{command}\n".encode())
        while not limit.expired:
            if self.machine.power.state(limit) is PowerState.OFF:
                took = limit.seconds - limit.left
                self.machine.power.off(Deadline.after(POWER_DEADLINE))
                self.check_crash()
                return took
            try:
                self.transcript.wait_beyond(self.transcript.size, limit.sooner(0.05))
            except ConsoleEnded:
                time.sleep(0.01)  # the console has gone before the machine: its power state can only be asked for again
        raise explain(
            self.transcript,
            self._since,
            TargetHung(f"still on {deadline:g} s after {command!r}", target=self.target.name, tail=self.transcript.tail(10)),
        )

    def cut_power(self) -> None:
        """Off at once, and the machine is not asked: what it had not flushed to its disk may be lost. PowerError."""
        self._leave()
        self.transcript.note("power cut")
        self.machine.power.off(Deadline.after(POWER_DEADLINE))

    def went_off(self) -> str:
        """How a machine that was up has ended without the lab's doing; empty if it has not."""
        return self.transcript.ended or "it is off" if self._up and not self.up else ""

    def stood_still(self, since: int) -> str:
        """Why what the machine did after that byte of the transcript says nothing of its build: it stood still, by its kernel's own word,
        and its host had no time for it. Empty where either is not so, or where the kernel has crashed in another way."""
        if not isinstance(power := self.machine.power, HostTimed):
            return ""
        start = max(self._since, self.transcript.size - _LATEST)
        for found in standstills(self.transcript.read(start)):
            if start + found.offset < since:
                continue
            at = self.transcript.time_of(start + found.offset)
            given = power.host_time(at - int(STANDSTILL_S * 1e9), at)
            if given is not None and (why := given.starved()):
                return f"the machine stood still for want of its host's time ({found.title}): {why}"
        return ""

    def unplug_disk(self, *, deadline: float = POWER_DEADLINE) -> None:
        """Take the disk out while the machine is on; it is back at the next power-on. ManagementError."""
        self.ready()
        if not isinstance(self.machine.power, Unplugs):
            raise ManagementError("no driver of the target can take its disk out", target=self.target.name)
        self.transcript.note("disk taken out")
        self.machine.power.unplug_disk(Deadline.after(deadline))

    def check_crash(self) -> None:
        """Raise KernelCrash if the kernel has crashed since the boot, or since the last call."""
        start, self._searched = self._searched, self.transcript.size
        if start < self._searched and (crash := find_crash(self.transcript.read(start, self._searched))) and crash.fatal:
            self._up = False
            raise KernelCrash(
                f"{crash.title} (while the machine was in use)",
                title=crash.title,
                excerpt=crash.in_context,
                tail=crash.in_context,
                target=self.target.name,
            )

    def _leave(self) -> None:
        """The shell and the boot are no longer what they were."""
        self._up = self._no_boot = False
        self.let_go()

    def _off_at_the_end(self) -> None:
        try:
            self.watcher.status("powering off")
        finally:  # also where whoever watches has failed, such as a full disk
            try:
                self.machine.power.off(Deadline.after(POWER_DEADLINE))
            except (PowerError, ManagementError) as error:
                # A machine that is left on costs more than a second try; the fault is told all the same.
                self.transcript.note(f"powered off again: {error.message}")
                try:
                    self.machine.power.off(Deadline.after(POWER_DEADLINE))
                except InfraError as again:
                    name = self.target.name
                    words = f"{name} may still be on: {again.message}"
                    raise LeftOn(words, target=name, remedy=f"labctl power off {name}") from again
                raise

    def _release(self) -> None:
        if isinstance(deploy := self.machine.roles.get(Deploy), Carries):
            deploy.release()

    def _discard_disks(self) -> None:
        for disk in (*self.workdir.glob("*.qcow2"), *self.workdir.glob("*.raw")):
            with suppress(OSError):
                disk.unlink()
