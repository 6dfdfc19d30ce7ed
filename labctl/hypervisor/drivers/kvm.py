"""KVM with QEMU: a VM is a process of the machine under test, which `vmkeeper` keeps and QMP speaks to.

Everything of a VM lies in a folder of its own, and the machine's files are the truth: who holds the session asks them.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from labctl.deadline import Deadline
from labctl.errors import ConfigError, LabctlError, TargetHung, VmFailed
from labctl.hypervisor import qemuvm, specfile
from labctl.hypervisor.keeper import Keeper, Status
from labctl.hypervisor.monitor import Monitor, Told, command
from labctl.hypervisor.protocols import AuditEntry, Heard, Vm, VmNic, VmSpec, VmState
from labctl.machine.session import Session
from labctl.parsers.text import last_lines, visible

VMS, TEMPLATES, AUDIT = "/run/labctl/vms", "/run/labctl/templates", "/run/labctl/audit.json"
LOOK_S = 5.0
"""Seconds that a QEMU which is only looked at may take to answer."""
_USB: Mapping[str, str] = {"keyboard": "usb-kbd", "tablet": "usb-tablet", "storage": "usb-storage"}
_USB_SIZE = 1 << 20


@dataclass
class Kvm:
    session: Session
    who: str = "labctl"
    """Who acts, for the audit log."""

    keeper: Keeper = field(init=False)
    monitor: Monitor = field(init=False)

    def __post_init__(self) -> None:
        self.keeper = Keeper(self.session)
        self.monitor = Monitor(self.keeper)

    # --- Hypervisor

    def create(self, spec: VmSpec, deadline: Deadline) -> None:
        with self._audited("create", spec.name, deadline):
            self._define(spec, deadline)

    def start(self, vm: str, deadline: Deadline) -> None:
        with self._audited("start", vm, deadline):
            spec = self._spec(vm, deadline)
            self._launch(spec, deadline)

    def stop(self, vm: str, deadline: Deadline) -> None:
        with self._audited("stop", vm, deadline):
            self._spec(vm, deadline)
            self.keeper.end(_folder(vm), deadline)

    def list(self, deadline: Deadline) -> tuple[Vm, ...]:
        specs = self._specs(deadline)
        states = self.keeper.status([_folder(name) for name in specs], deadline)
        return tuple(self._listed(spec, states.get(_folder(name), Status("gone")), deadline) for name, spec in sorted(specs.items()))

    def destroy(self, vm: str, deadline: Deadline) -> None:
        with self._audited("destroy", vm, deadline):
            folder, specs = _folder(vm), self._specs(deadline)
            spec = specs.pop(vm, None)
            self.keeper.end(folder, deadline)
            used = {nic.network for other in specs.values() for nic in other.nics}
            networks = {nic.network for nic in spec.nics} - used if spec is not None else set()
            bridges = (qemuvm.bridge(network) for network in sorted(networks))
            lines = [f"rm -rf {folder}", *(f"ip link set {bridge} down && brctl delbr {bridge}" for bridge in bridges)]
            self.keeper.shell(" && ".join(lines), deadline)

    # --- Consoles

    def heard(self, vm: str, text: str, deadline: Deadline, since: int = 0) -> Heard:
        found = self.keeper.wait(_folder(vm), text, since, deadline)
        if isinstance(found, Heard):
            return found
        tail = last_lines(self.said(vm, Deadline.after(LOOK_S), since)[-8192:], 10)
        if found == "late":
            raise self._failed(vm, f"has not said {text!r} within {deadline.seconds:g} s", tail)
        raise self._failed(vm, f"ended before it said {text!r}: {self._why_ended(vm, Deadline.after(LOOK_S)) or 'it is off'}", tail)

    def said(self, vm: str, deadline: Deadline, since: int = 0) -> bytes:
        return self.keeper.read(_folder(vm), since, deadline)

    def lines(self, vm: str, prefix: str, deadline: Deadline, since: int = 0) -> tuple[Heard, ...]:
        return self.keeper.lines(_folder(vm), prefix, since, deadline)

    def type(self, vm: str, data: bytes, deadline: Deadline) -> None:
        try:
            self.keeper.type(_folder(vm), data, deadline)
        except VmFailed as error:
            raise self._failed(vm, error.message) from None

    def began(self, vm: str, deadline: Deadline) -> float:
        return self._status(vm, deadline).started

    # --- Pauses, Digests

    def pause(self, vm: str, deadline: Deadline) -> None:
        with self._audited("pause", vm, deadline):
            self._ask(vm, [command("stop")], deadline)

    def resume(self, vm: str, deadline: Deadline) -> None:
        with self._audited("resume", vm, deadline):
            self._ask(vm, [command("cont")], deadline)

    def memory_digest(self, vm: str, deadline: Deadline) -> str:
        spec, folder = self._spec(vm, deadline), _folder(vm)
        dump = json.dumps(command("pmemsave", val=0, size=spec.memory, filename=f"{folder}/memory"))
        seconds = max(1, int(deadline.left))
        # Through a pipe: the machine need not have room for the VM's memory twice.
        script = (
            f"cd {folder} && rm -f memory && mkfifo memory && {{ timeout {seconds} sha256sum <memory >digest & }} && "
            f"qmp qmp {seconds * 1000} {shlex.quote(dump)} >&2; s=$?; [ $s = 0 ] || kill $! 2>/dev/null; wait; "
            "cat digest; rm -f memory digest; exit $s"
        )
        told = self.keeper.shell(script, deadline)
        return self._digest(vm, told.output)

    # --- Pins

    def pin(self, vm: str, cpus: Sequence[int], deadline: Deadline) -> None:
        with self._audited("pin", vm, deadline):
            self._pin(vm, cpus, deadline)

    def pinned(self, vm: str, deadline: Deadline) -> tuple[tuple[int, ...], ...]:
        pid, threads = self._status(vm, deadline).pid, self._threads(vm, deadline)
        told = self.keeper.shell("; ".join(f"grep Cpus_allowed_list: /proc/{pid}/task/{thread}/status" for thread in threads), deadline)
        return tuple(cpu_list(line.partition(":")[2]) for line in told.output.splitlines())

    # --- Audits

    def audit(self, deadline: Deadline) -> tuple[AuditEntry, ...]:
        told = self.keeper.shell(f"cat {AUDIT} 2>/dev/null; true", deadline).output
        try:
            lines = [json.loads(line) for line in told.splitlines()]
            return tuple(AuditEntry(line["at"], line["who"], line["verb"], line["vm"], line["result"]) for line in lines)
        except (ValueError, KeyError, TypeError):
            raise VmFailed(f"{AUDIT} is no audit log: {visible(told)[:200]}", target=self.session.name) from None

    @contextmanager
    def _audited(self, verb: str, vm: str, deadline: Deadline) -> Iterator[None]:
        """The verb and how it ended are in the log before its caller knows."""
        if not re.fullmatch(r"[a-z][a-z0-9-]{0,30}", vm):
            raise ConfigError(f"no name of a VM: {vm!r}")
        try:
            yield
        except LabctlError as error:
            with suppress(LabctlError):  # the machine may be gone: its own end tells more
                self._note(verb, vm, error.title, Deadline.after(LOOK_S))
            raise
        self._note(verb, vm, "ok", deadline)

    def _note(self, verb: str, vm: str, result: str, deadline: Deadline) -> None:
        self.keeper.shell(f"vmkeeper audit {AUDIT} {shlex.join([self.who, verb, vm, result[:300]])}", deadline)

    # --- a VM's folder

    def _define(self, spec: VmSpec, deadline: Deadline) -> None:
        folder = _folder(spec.name)
        needed = [spec.kernel, *filter(None, [spec.initrd]), *(disk.file for disk in spec.disks if disk.file)]
        files = " ".join(map(shlex.quote, needed))
        there = f"for f in {files}; do [ -f $f ] || [ -b $f ] || {{ echo $f: no such file; exit 4; }}; done"
        made = f"mkdir -p {VMS} && mkdir {folder} 2>/dev/null || {{ echo there is one already; exit 5; }}"
        said = f"printf '%s\\n' {shlex.quote(specfile.to_json(spec))} >{folder}/spec.json"
        done = self.keeper.shell("; ".join([there, "set -e", made, said, *self._parts(spec)]), deadline, check=False)
        if done.status != 0:
            if done.status != 5:
                self.keeper.shell(f"rm -rf {folder}", Deadline.after(LOOK_S), check=False)
            raise self._failed(spec.name, f"cannot be made: {visible((done.output + done.stderr).strip())[-300:]}")

    def _parts(self, spec: VmSpec) -> Iterator[str]:
        """Commands that make what a VM brings along: its own disks, its networks."""
        folder = _folder(spec.name)
        for disk in spec.disks:
            if not disk.file:
                yield f"truncate -s {disk.size} {qemuvm.disk_file(disk, folder)}"
        if spec.nics:
            yield "modprobe -a tun bridge"
        for nic in spec.nics:
            yield from self._network(nic, folder)

    def _network(self, nic: VmNic, folder: str) -> Iterator[str]:
        bridge, script = qemuvm.bridge(nic.network), qemuvm.up_script(nic, folder)
        # Both may be doing it: of two VMs on one network the first makes it.
        yield f"[ -e /sys/class/net/{bridge} ] || {{ brctl addbr {bridge} && ip link set {bridge} up; }}"
        yield f"printf '#!/bin/sh\\nip link set $1 up && brctl addif {bridge} $1\\n' >{script} && chmod 755 {script}"

    def _specs(self, deadline: Deadline) -> dict[str, VmSpec]:
        told = self.keeper.shell(f"cat {VMS}/*/spec.json 2>/dev/null; true", deadline).output
        try:
            specs = [specfile.from_json(line) for line in told.splitlines()]
        except (ValueError, ConfigError) as error:
            raise VmFailed(f"a VM's folder in {VMS} is not as it was made: {error}", target=self.session.name) from None
        return {spec.name: spec for spec in specs}

    def _spec(self, vm: str, deadline: Deadline) -> VmSpec:
        told = self.keeper.shell(f"cat {_folder(vm)}/spec.json 2>/dev/null; true", deadline).output
        if not told:
            raise self._failed(vm, "does not exist")
        try:
            return specfile.from_json(told)
        except (ValueError, ConfigError) as error:
            raise self._failed(vm, f"is not as it was made: {error}") from None

    # --- a VM's process

    def _launch(self, spec: VmSpec, deadline: Deadline, incoming: str = "") -> Told:
        """Its QEMU runs and answers; its CPUs too, unless something is to come in first. VmFailed with what QEMU said."""
        folder = _folder(spec.name)
        try:
            self.keeper.start(folder, 0 if incoming else spec.restarts, qemuvm.arguments(spec, folder, incoming), deadline)
            told = self._ask(spec.name, [command("query-status"), command("query-cpus-fast")], deadline)
        except VmFailed as error:
            raise self._failed(spec.name, f"does not start: {error.message}") from None
        except TargetHung:
            with suppress(VmFailed):
                self.keeper.end(folder, Deadline.after(LOOK_S))
            raise
        if spec.pinned:
            self._pin(spec.name, spec.pinned, deadline, told)
        return told

    def _ask(self, vm: str, steps: Sequence[Mapping[str, Any] | str], deadline: Deadline) -> Told:
        """VmFailed, with what QEMU said last if it is gone; TargetHung, which names it."""
        try:
            return self.monitor.run(vm, qemuvm.monitor(_folder(vm)), steps, deadline)
        except VmFailed as error:
            why = self._why_ended(vm, Deadline.after(LOOK_S))
            raise self._failed(vm, f"{why}: {error.message}" if why else error.message) from None

    def _status(self, vm: str, deadline: Deadline) -> Status:
        """Of one that runs. VmFailed else."""
        status = self.keeper.status([_folder(vm)], deadline)[_folder(vm)]
        if status.state != "running":
            raise self._failed(vm, self._why_ended(vm, deadline) or "is off")
        return status

    def _why_ended(self, vm: str, deadline: Deadline) -> str:
        """How its process ended by itself; empty if it runs, or was never started or was ended by us."""
        status = self.keeper.status([_folder(vm)], deadline)[_folder(vm)]
        return self._ending(vm, status, deadline) if status.state == "ended" else ""

    def _ending(self, vm: str, status: Status, deadline: Deadline) -> str:
        if status.how == 0:
            return "its guest has powered it off"
        if status.how > 128:
            killed = f"dmesg | grep -i 'out of memory: killed process.*qemu' | grep -w {status.pid} | tail -1"
            if status.how == 137 and (oom := self.keeper.shell(killed, deadline, check=False).output.strip()):
                return f"the machine ran out of memory: {visible(oom)[-200:]}"
            return f"its QEMU was ended by signal {status.how - 128}"
        return f"its QEMU ended with status {status.how}: {self.keeper.words(_folder(vm), deadline)}"

    def _listed(self, spec: VmSpec, status: Status, deadline: Deadline) -> Vm:
        state, why = VmState.OFF, ""
        if status.state == "ended" and status.how != 0:
            state, why = VmState.FAILED, self._ending(spec.name, status, deadline)
        elif status.state == "running":
            try:
                told = self._ask(spec.name, [command("query-status")], deadline.sooner(LOOK_S)).returned[0]
                state = VmState.RUNNING if told["status"] == "running" else VmState.PAUSED
                if told["status"] in ("guest-panicked", "internal-error", "io-error"):
                    state, why = VmState.FAILED, str(told["status"])
            except (TargetHung, VmFailed) as error:
                state, why = VmState.FAILED, error.message
        return Vm(spec.name, state, spec.cpus, spec.memory, why)

    def _threads(self, vm: str, deadline: Deadline, told: Told | None = None) -> tuple[int, ...]:
        """Of its CPUs, as the machine's kernel numbers them."""
        found = told.returned[-1] if told is not None else self._ask(vm, [command("query-cpus-fast")], deadline).returned[0]
        return tuple(int(cpu["thread-id"]) for cpu in found)

    def _pin(self, vm: str, cpus: Sequence[int], deadline: Deadline, told: Told | None = None) -> None:
        if not cpus:
            raise ConfigError("pin: no CPU named; name at least one of the machine's")
        mask = f"{sum(1 << cpu for cpu in set(cpus)):x}"
        threads = self._threads(vm, deadline, told)
        done = self.keeper.shell(" && ".join(f"taskset -p {mask} {thread}" for thread in threads), deadline, check=False)
        if done.status != 0:
            raise self._failed(vm, f"cannot be pinned to CPU {', '.join(map(str, cpus))}: {visible(done.stderr.strip())[-200:]}")

    def _digest(self, vm: str, told: str) -> str:
        found = re.match(r"[0-9a-f]{64}\b", told)
        if not found:
            raise self._failed(vm, f"no digest of it: {visible(told)[:200]!r}")
        return found[0]

    def _failed(self, vm: str, why: str, tail: str = "") -> VmFailed:
        message = why if why.startswith((f"VM {vm} ", f"VM {vm}: ")) else f"VM {vm}: {why}"
        return VmFailed(message, target=self.session.name, tail=tail)


def _folder(vm: str) -> str:
    return f"{VMS}/{vm}"


def cpu_list(text: str) -> tuple[int, ...]:
    """``0-1,4`` as the kernel writes it → the numbers. ValueError for anything else."""
    cpus: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        cpus += range(int(first), int(last or first) + 1)
    return tuple(cpus)


DRIVER = Kvm
