"""QEMU as a machine: Power, Console, Deploy, Counter and Ports in one process.

The process is started paused (``-S``) with its serial port on pipes and QMP on a socket pair, so that the console's reader is attached
before the first instruction and there is no socket file to race for; ``cont`` is time zero. It dies with its owner. The disk is a sparse
qcow2 that outlives power cycles and is deleted with the session's folder.

On the channel ``icount`` virtual time is the number of instructions (``-icount shift=0,sleep=off``: one a nanosecond, and idle time is
skipped), the clock starts at a fixed date, random numbers come from a fixed seed, and a plugin counts (`labctl.machine.icount`).
"""

from __future__ import annotations

import json
import os
import select
import shlex
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Annotated, Any, Literal

from pydantic import Field

from labctl.deadline import Deadline, DeadlineExpired
from labctl.errors import ConsoleLost, DeployError, ManagementError, PowerError, Problem
from labctl.machine import icount, qemu_network, qemudisk, qemuimage
from labctl.machine.hosttime import Given, HostTime
from labctl.machine.protocols import DriverContext
from labctl.machine.qemucopy import DISK, Kept, disk_copy, disk_over, emulator, processor
from labctl.machine.qemudisk import Backend, Bus, Disk
from labctl.machine.qemuend import ending
from labctl.machine.qemumachine import (
    BINARIES,
    START_DEADLINE,
    accelerator_of,
    clock_words,
    counted_words,
    last_words,
    refused,
    virtualizes,
)
from labctl.machine.qemuports import OpenPorts, held, open_ports
from labctl.machine.qmp import Qmp
from labctl.machine.reader import Reader
from labctl.machine.serialline import SerialLine, by_pipes, by_socket
from labctl.machine.transcript import Transcript
from labctl.machine.volatiledisk import VolatileDisk
from labctl.machine.wires import Wire
from labctl.model import Build, Channel, PowerState, Target, TargetConfig
from labctl.process import Child, start

DEBUG_EXIT = 0xF4
"""Port of isa-debug-exit, QEMU's own default; a value written there ends QEMU with the status ``value << 1 | 1``."""
ENDING = 2.0
"""Seconds between the end of the console and that of the process, at most."""
WRITE_DEADLINE = 10.0
"""Seconds that a guest may leave typed bytes unread."""


@dataclass
class _Process:
    """One life of the machine: from power-on to power-off."""

    since: int
    """Where in the transcript it began to speak."""
    counts: icount.Counts | None
    child: Child
    qmp: Qmp
    serial: SerialLine
    reader: Reader
    log: IO[bytes]
    ports: OpenPorts
    disk: VolatileDisk | None
    host_time: HostTime | None

    def close(self) -> str:
        """Returns what there is to say about the power cut that this is for its disk; empty if nothing was lost."""
        if self.host_time is not None:
            self.host_time.stop()
        self.child.kill()
        self.reader.stop()
        self.serial.close()
        self.ports.close()
        self.qmp.close()
        self.log.close()
        if self.counts is not None:
            self.counts.close()
        if self.disk is None:
            return ""
        loss = self.disk.cut()
        return f"power cut: of {loss.cached} sectors in the disk's cache {loss.lost} are lost" if loss.lost else ""


@dataclass
class Qemu:
    """Options: ``machine`` (``q35``, ``microvm`` or any other of ``-machine``), ``accel``, ``tcg_thread`` (without KVM, the
    machine's CPUs take turns in one thread of the host, or have one each), ``cpu`` (``-cpu``; empty: the host's with KVM,
    ``max`` without), ``bios`` (``-bios``: ``qboot.rom``; ``none`` for no firmware), ``firmware_console`` (the firmware speaks on the
    serial port), ``debug_exit`` (a port by which the guest may end the machine, for one without power-off), ``debug_exit_success`` (what
    it writes there when all is well; anything else is a failure), ``disk_bus``, ``disk_backend`` (``file``; ``null``: a disk that answers
    at once and keeps nothing; ``volatile``: one that loses with the power what was not flushed; ``lying``: one that flushes too late),
    ``disk_slot`` (the disk can be taken out while the machine is on),
    ``disk_filesystem`` (``ext4``: the disk is not empty but has that, made by mke2fs), ``icount_disk`` (a disk on the channel
    ``icount`` too: it answers when the host does, and no two boots count quite the same), ``icount_shift`` (an instruction lasts 2 to the
    power of this in virtual ns), ``extra`` (more arguments, as a list),
    ``binary`` (another QEMU)."""

    takes_wires = True
    boots_dom0 = True

    context: DriverContext
    transcript: Transcript
    machine: str = "q35"
    accel: Literal["auto", "kvm", "tcg"] = "auto"
    tcg_thread: Literal["single", "multi"] = "single"
    cpu: str = ""
    bios: str = ""
    firmware_console: bool = True
    debug_exit: bool = False
    debug_exit_success: int = 0x10
    disk_bus: Bus = "nvme"
    disk_backend: Backend = "file"
    disk_slot: bool = False
    disk_filesystem: Literal["", "ext4"] = ""
    icount_disk: bool = False
    icount_shift: Annotated[int, Field(ge=0, le=10)] = 0
    extra: list[str] = field(default_factory=list)
    binary: str = ""

    _build: Build | None = field(default=None, init=False)
    _append: str = field(default="", init=False)
    _process: _Process | None = field(default=None, init=False)
    _ports: dict[str, Literal["virtio", "serial"]] = field(default_factory=dict, init=False)
    _kept: Kept | None = field(default=None, init=False)
    """How the memory is held from the next power-on: by itself, if None."""
    _has_copy_of_disk: bool = field(default=False, init=False)
    """Its disk is a layer over another machine's."""
    _disk_is_new: bool = field(default=False, init=False)
    """That disk was made by the last `wake`, since a build was put on the machine: nothing but the copy has written to it."""
    _trace_at: Sequence[int] = field(default=(), init=False)
    _starts: int = field(default=0, init=False)
    _pulled: bool = field(default=False, init=False)
    """The plug, by the lab."""
    _host_time: HostTime | None = field(default=None, init=False)
    """Of the newest life of the machine."""
    _fault: str = field(default="", init=False)
    """How QEMU ended, if neither the guest nor the lab wanted it."""
    _bad_end: str = field(default="", init=False)
    """How the guest ended the machine, if that says that it failed."""

    @staticmethod
    def host_programs(target: Target, options: Mapping[str, Any]) -> list[str]:
        """What it calls on the host."""
        disk = target.config.disk and options.get("disk_bus") != "none" and options.get("disk_backend") != "null"
        counted = target.config.channel is Channel.ICOUNT
        return [
            *("setpriv", str(options.get("binary") or BINARIES[target.config.arch])),
            *(["mke2fs" if options.get("disk_filesystem") else "qemu-img"] if disk else []),
            *(["gcc"] if counted else []),
        ]

    @staticmethod
    def problems(target: Target, options: Mapping[str, Any]) -> list[Problem]:
        """What QEMU would refuse."""
        return refused(target, options)

    @staticmethod
    def why_not_counted(options: Mapping[str, Any]) -> str:
        """Instructions are counted by the emulator: what KVM runs goes past it."""
        return 'accel = "kvm": instructions are counted under TCG only' if options.get("accel") == "kvm" else ""

    @staticmethod
    def counted(config: TargetConfig, options: Mapping[str, Any]) -> TargetConfig:
        """The machine on the channel ``icount``."""
        return config.model_copy(update={"nics": {}} | ({} if options.get("icount_disk") else {"disk": None}))

    @staticmethod
    def host_cpus(target: Target, options: Mapping[str, Any]) -> int:
        """Host CPUs that it keeps busy: emulated one after another by one thread, all CPUs of the machine take one of the host's."""
        one_thread = options.get("tcg_thread", "single") == "single"
        if target.config.channel is Channel.ICOUNT:
            return 1
        return 1 if one_thread and accelerator_of(target, options.get("accel", "auto")) == "tcg" else target.config.cpus

    @staticmethod
    def takes_image(options: Mapping[str, Any]) -> bool:
        """An NVMe disk needs PCI, which microvm does not have."""
        return "microvm" not in str(options.get("machine", "q35"))

    @staticmethod
    def why_not_hypervisor(target: Target, options: Mapping[str, Any], multiboot: bool) -> str:
        """A machine whose firmware knows no multiboot, or whose emulated CPU cannot run machines."""
        if multiboot and "microvm" in str(options.get("machine", "q35")):
            return "QEMU's microvm boots no kernel by multiboot, as Xen is"
        binary, cpu = str(options.get("binary") or BINARIES[target.config.arch]), str(options.get("cpu") or "max")
        if accelerator_of(target, options.get("accel", "auto")) == "tcg" and not virtualizes(binary, cpu):
            return f"its emulated CPU {cpu} has neither SVM nor VMX, which a hypervisor needs"
        return ""

    # --- Deploy

    def put(self, build: Build, append: str, deadline: Deadline) -> str:
        if self._process is not None and self._process.child.status is None:
            raise DeployError("the machine is on; a build is put on it when it is off", target=self.context.target.name)
        for file in filter(None, (build.kernel, build.dom0, build.initrd, build.image)):
            if not file.is_file():
                raise DeployError(f"{file} is gone from the cache", target=self.context.target.name, remedy=f"labctl build {build.name}")
        self._build, self._append = build, append
        self._disk_is_new = False
        return build.digest

    def reproduce(self, build: Build, append: str) -> str:
        made = self._disk is not None and self._disk.filesystem
        disk = f"/tmp/{self.context.target.name}.raw" if made else "null-co"  # noqa: S108  # the reader's own
        machine = self._machine_arguments(build, append, disk, {})  # the cables end with the cell
        first = shlex.join(self._disk.maker(disk)) + " && " if self._disk is not None and made else ""
        return first + shlex.join([self._binary, *machine, "-nographic", "-serial", "mon:stdio"])

    # --- Console: attached to each new process by `on`, so that no byte is missed

    def attach(self, deadline: Deadline) -> None:
        """The reader is attached at each power-on, before the first instruction: there is nothing to do."""

    def write(self, data: bytes) -> None:
        if self._process is None or self._process.child.status is not None:
            raise ConsoleLost("the machine is off: nobody takes what is typed", target=self.context.target.name)
        limit, line = Deadline.after(WRITE_DEADLINE), self._process.serial.writes
        try:
            while data:
                if not select.select([], [line], [], limit.left)[1]:
                    raise TimeoutError("timed out")
                with suppress(BlockingIOError):
                    data = data[os.write(line, data) :]
        except OSError as error:
            raise ConsoleLost(f"the serial port takes no bytes: {error}", target=self.context.target.name) from None

    def detach(self) -> None:
        if self._process is not None:
            self._process.reader.stop()

    # --- Power

    def on(self, deadline: Deadline) -> int:
        target = self.context.target.name
        if self._build is None:
            raise PowerError("no build was put on the machine", target=target)
        if self._process is not None:
            if self._process.child.status is None:
                raise PowerError("the machine is on already", target=target)
            self._close(self._process)
        self._fault = self._bad_end = ""
        self._pulled = False
        self._process = self._start(self._build, deadline)
        try:
            self._process.qmp.handshake(deadline.sooner(START_DEADLINE))
            if self._kept is not None and self._kept.memory is None:
                self._kept.thaw(self._process.qmp, deadline)
            t0_ns = time.monotonic_ns()
            self._process.qmp.command("cont", deadline)
        except ManagementError as error:
            status = self._process.child.wait(Deadline.after(0.5))
            words = last_words(self.context.workdir / "qemu.log")
            self.off(Deadline.after(10))
            how = f"QEMU ended with status {status}" if status is not None else "QEMU does not answer"
            if "machine type" in words:
                words = f"{words}: {self.machine!r}"  # QEMU does not say which it was asked for
            raise PowerError(f"{how}: {words or error.message}", target=target, remedy=self.reproduce(self._build, self._append)) from None
        return t0_ns

    def off(self, deadline: Deadline) -> None:
        if self._process is None:
            return
        process, self._process = self._process, None
        self._pulled = process.disk is not None
        try:
            if process.child.status is None and process.disk is None:
                # An orderly `quit` writes the disk image's metadata; a machine whose plug is pulled has a disk too.
                with suppress(ManagementError):
                    process.qmp.command("quit", deadline.sooner(5))
                process.child.wait(deadline.sooner(5))
        finally:
            self._close(process)

    def _close(self, process: _Process) -> None:
        if said := process.close():
            self.transcript.note(said)

    def reset(self, deadline: Deadline) -> int:
        if self._process is None or self._process.child.status is not None:
            raise PowerError("the machine is off: there is nothing to reset", target=self.context.target.name)
        t0_ns = time.monotonic_ns()
        seen = len(self._process.qmp.drain())
        try:
            self._process.qmp.command("system_reset", deadline)
            while not any(e["event"] == "RESET" for e in self._process.qmp.events[seen:]):
                seen_now = len(self._process.qmp.events)
                self._process.qmp.command("query-status", deadline)  # the event comes before the answer to what is asked after it
                if len(self._process.qmp.events) == seen_now and deadline.expired:
                    raise PowerError("no RESET event", target=self.context.target.name)
        except ManagementError as error:
            raise PowerError(f"reset: {error.message}", target=self.context.target.name) from None
        return t0_ns

    def state(self, deadline: Deadline) -> PowerState:
        if self._process is None:
            return PowerState.OFF
        if self._process.child.status is None:
            return PowerState.ON
        with suppress(DeadlineExpired):
            self.transcript.wait_end(deadline.sooner(ENDING))  # the reader finds out how it ended
        if self._fault:
            # An emulator that is killed or falls over says nothing about the build.
            raise ManagementError(self._fault, target=self.context.target.name, remedy="dmesg tells whether the host ran out of memory")
        return PowerState.OFF

    def ended_badly(self) -> str:
        return self._bad_end

    def starved(self, deadline: Deadline) -> str:
        process, disk = self._process, self._disk
        if process is None or process.child.status is not None or disk is None:
            return ""
        return qemudisk.starved(process.qmp, disk.file(self.context.workdir), deadline)

    def host_time(self, since_ns: int, until_ns: int) -> Given | None:
        return self._host_time.given(since_ns, until_ns) if self._host_time is not None else None

    def unplug_disk(self, deadline: Deadline) -> None:
        process, target = self._process, self.context.target.name
        if process is None or process.child.status is not None:
            raise PowerError("the machine is off: there is no disk to take out", target=target)
        if self._disk is None or not self._disk.slot:
            raise ManagementError("the disk is in no slot", target=target, remedy="disk_slot = true among the options of qemu")
        qemudisk.unplug(process.qmp, deadline, target)

    # --- Counter

    def instructions(self, offset: int) -> tuple[int, ...] | None:
        process = self._process
        if process is None or process.counts is None or offset < process.since:
            return None
        return process.counts.at(offset - process.since)

    def trace(self, offsets: Sequence[int]) -> None:
        self._trace_at = tuple(offsets)

    def traced(self) -> bytes:
        return self._trace.read_bytes() if self._trace.is_file() else b""

    # --- Copies

    def why_not(self) -> str:
        if self.context.wires:
            return "it has cables to other machines"
        if self._disk is not None and self.disk_backend == "lying":
            return "its disk flushes too late: what is kept of it would not be what the machine wrote"
        return 'QEMU cannot copy an NVMe disk: disk_bus = "virtio" or "none"' if self._disk is not None and self.disk_bus == "nvme" else ""

    def identity(self, build: Build, append: str) -> str:
        machine = self._machine_arguments(build, append, "disk", self.context.wires)
        return json.dumps([emulator(self._binary), machine, self._ports, processor()])

    def keep(self, folder: Path) -> None:
        self._kept = Kept.original(folder)

    def freeze(self, deadline: Deadline) -> None:
        process, kept = self._process, self._kept
        if process is None or kept is None or process.child.status is not None:
            raise PowerError("the machine is off: there is nothing to keep", target=self.context.target.name)
        kept.freeze(process.qmp, deadline)
        self.off(deadline)
        kept.save()
        self._kept = None
        if self._disk is not None and (disk := self._disk.file(self.context.workdir)).exists():
            disk.rename(kept.folder / DISK)

    def wake(self, folder: Path, deadline: Deadline) -> int:
        if (own := self._disk) is not None and (folder / DISK).exists():
            self._copy_disk(folder / DISK, own, deadline)
            self._has_copy_of_disk = self._disk_is_new = True
        self._kept = Kept(folder)
        try:
            return self.on(deadline)
        except BaseException:
            self.give_up(deadline)
            raise
        finally:
            self._kept = None

    def give_up(self, deadline: Deadline) -> None:
        self.off(deadline)
        if self._disk_is_new and (own := self._disk) is not None:
            own.file(self.context.workdir).unlink(missing_ok=True)  # a boot begins with a disk of its own
            self._has_copy_of_disk = self._disk_is_new = False

    def _copy_disk(self, kept: Path, own: Disk, deadline: Deadline) -> None:
        if own.loses:  # what a power cut takes from it must be missed in its own file
            disk_copy(kept, own.file(self.context.workdir), deadline)
            return
        over = self.context.workdir / "disk.qcow2"
        over.unlink(missing_ok=True)
        disk_over(kept, over, own.file(kept.parent).suffix.lstrip("."))

    # --- Ports

    def want_port(self, name: str, kind: Literal["virtio", "serial"]) -> None:
        self._ports[name] = kind

    def port(self, name: str) -> socket.socket:
        if self._process is None or self._process.child.status is not None:
            raise ConsoleLost(f"the machine is off: its port {name} is not there", target=self.context.target.name)
        return self._process.ports.host[name]

    def held(self, name: str) -> bool | None:
        return None if self._process is None else held(name, self._process.qmp.drain())

    # --- Forwards

    def forwarded(self, card: str, port: int, deadline: Deadline) -> tuple[str, int]:
        process, target = self._process, self.context.target.name
        if process is None or process.child.status is not None:
            raise ConsoleLost(f"the machine is off: nothing leads to its port {port}", target=target)
        said = process.qmp.command("human-monitor-command", deadline, **{"command-line": "info usernet"})
        if (found := qemu_network.forwarded(str(said), card, port)) is None:
            raise ManagementError(f"QEMU forwards no port of the host to port {port} over the card {card}: {said}", target=target)
        return qemu_network.LOOPBACK, found

    # --- how it is put together

    @property
    def _counts(self) -> bool:
        return self.context.target.config.channel is Channel.ICOUNT

    @property
    def _config(self) -> TargetConfig:
        config = self.context.target.config
        return self.counted(config, {"icount_disk": self.icount_disk}) if self._counts else config

    @property
    def _trace(self) -> Path:
        return self.context.workdir / "icount.trace"

    @property
    def _binary(self) -> str:
        return self.binary or BINARIES[self.context.target.config.arch]

    def _machine_arguments(self, build: Build, append: str, disk: str, wires: Mapping[str, Wire], served: int | None = None) -> list[str]:
        config = self._config
        accelerator = "tcg" if self._counts else accelerator_of(self.context.target, self.accel)
        words = counted_words(self.machine, self.icount_disk) if self._counts else clock_words(self.machine, accelerator)
        machine = self.machine
        if machine == "q35" and self.firmware_console and not self.bios:
            machine = "q35,graphics=off"
        if machine == "microvm":
            machine = "microvm,isa-serial=on,rtc=on"
        arguments = [
            *("-nodefaults", "-no-user-config", "-display", "none"),
            *(
                "-name",
                self.context.target.name,
                "-machine",
                machine,
                "-accel",
                f"tcg,thread={'single' if self._counts else self.tcg_thread}" if accelerator == "tcg" else accelerator,
            ),
            *("-cpu", self.cpu or ("host" if accelerator == "kvm" else "max")),
            *("-smp", str(config.cpus), "-m", f"{config.memory // 1024}K"),
            *_kernel(build, append + words),
        ]
        if self.bios:
            arguments += ["-bios", self.bios]
        if self.debug_exit:
            arguments += ["-device", f"isa-debug-exit,iobase={DEBUG_EXIT:#x},iosize=4"]
        if self._counts:
            arguments += ["-icount", f"shift={self.icount_shift},sleep=off", "-rtc", "base=2020-01-01,clock=vm", "-seed", "1"]
        if build.image is not None:
            arguments += qemuimage.arguments(build.image)
        if self._disk is not None:
            arguments += self._disk.arguments(disk, machine, served)
        return [*arguments, *qemu_network.arguments(self.context.target.name, config.nics, machine, wires), *self.extra]

    @property
    def _disk(self) -> Disk | None:
        size = self._config.disk
        filesystem = "" if self._has_copy_of_disk else self.disk_filesystem
        if not size or self.disk_bus == "none":
            return None
        return Disk(size, self.disk_bus, self.disk_backend, filesystem, self.disk_slot, self._counts)

    def _start(self, build: Build, deadline: Deadline) -> _Process:
        file, volatile = None, None
        if self._disk is not None:
            file = self._disk.file(self.context.workdir)
            self._disk.prepare(file, deadline, self.context.target.name)
            volatile = self._disk.serve(file, self._starts)
        if build.image is not None:
            root = qemuimage.prepare(build.image, self.context.workdir, deadline, self.context.target.name)
            build = replace(build, image=root)
        self._starts += 1
        served = [volatile.qemus.fileno()] if volatile is not None else []
        serial = by_socket() if self._counts else by_pipes()
        qmp, qmp_qemu = socket.socketpair()
        log = (self.context.workdir / "qemu.log").open("ab")
        counts = icount.Counts(self.context.target.config.cpus) if self._counts else None
        ports = open_ports(self._ports)
        with qmp_qemu, ExitStack() as handed_over:
            handed_over.callback(ports.handed_over)
            handed_over.callback(serial.handed_over)
            kept, memory = ([], []) if self._kept is None else (self._kept.arguments(self._config.memory), self._kept.fds)
            shared, plugin, env = icount.arguments(counts, serial.shared, self._trace, self._trace_at, handed_over)
            child = start(
                [
                    self._binary,
                    *self._machine_arguments(build, self._append, str(file), self.context.wires, *served),
                    "-S",
                    *(*serial.arguments, "-serial", "chardev:console"),
                    *("-chardev", f"socket,id=qmp,fd={qmp_qemu.fileno()}", "-mon", "chardev=qmp,mode=control"),
                    *ports.arguments,
                    *plugin,
                    *kept,
                ],
                pass_fds=[*serial.shared, qmp_qemu.fileno(), *ports.fds, *shared, *served, *memory],
                stdin=serial.stdin,
                stdout=serial.stdout,
                stderr=log,
                env=env,
                cpus=self.context.cpus,
            )
        if volatile is not None:
            volatile.start()
        client = Qmp(qmp)
        since = self.transcript.size
        self.transcript.resume()
        reader = Reader(serial.reads, self.transcript, on_end=lambda: self._why_ended(child, client))
        reader.start()
        return _Process(since, counts, child, client, serial, reader, log, ports, volatile, self._watch_time(child.pid))

    def _watch_time(self, pid: int) -> HostTime | None:
        """Where its instructions take the time that the host gives them: with KVM the CPUs are the host's own, on the channel ``icount``
        time is counted."""
        timed = not self._counts and accelerator_of(self.context.target, self.accel) == "tcg"
        self._host_time = HostTime(pid) if timed else None
        if self._host_time is not None:
            self._host_time.start()
        return self._host_time

    def _why_ended(self, child: Child, qmp: Qmp) -> str:
        """How a machine that is gone went: asked by the reader's thread at the end of the console."""
        status = child.wait(Deadline.after(ENDING))
        if self._pulled:
            return "powered off by the lab"
        if status is None:
            return "QEMU closed the serial port"
        reasons = [e["data"].get("reason", "") for e in qmp.drain() if e["event"] == "SHUTDOWN"]
        success = self.debug_exit_success if self.debug_exit else None
        ended = ending(status, reasons, success, last_words(self.context.workdir / "qemu.log"))
        self._bad_end, self._fault = ended.bad, ended.fault
        return ended.told


def _kernel(build: Build, append: str) -> list[str]:
    """What is booted. Where that is Xen, by the multiboot specification: its modules are given as one list of files with their command
    lines, in which a comma that is not the end of one stands twice."""
    if build.dom0 is None:
        initrd = ["-initrd", str(build.initrd)] if build.initrd is not None else []
        return ["-kernel", str(build.kernel), "-append", append, *initrd]
    modules = [f"{build.dom0} {append}", *([str(build.initrd)] if build.initrd is not None else [])]
    listed = ",".join(module.replace(",", ",,") for module in modules)
    return ["-kernel", str(build.kernel), "-append", build.xen_append, "-initrd", listed]


DRIVER = Qemu
