"""Xen with its toolstack xl: a VM is a PVH domain, whose console `vmkeeper` keeps on the machine under test.

What xl is told of a VM, and the scripts that run for one, are `xenvm`; what it prints, `xltext`; what it has no verb for does ``xendom``
(guest/tools/xendom.c).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from ipaddress import ip_interface
from typing import ClassVar

from labctl.deadline import Deadline
from labctl.errors import ConfigError, TargetHung, VmFailed
from labctl.hypervisor import xenvm, xltext
from labctl.hypervisor.keeper import Keeper, Status
from labctl.hypervisor.protocols import AuditEntry, Heard, Vm, VmDisk, VmMetrics, VmNic, VmSpec, VmState
from labctl.hypervisor.qemuvm import bridge, disk_file, mac
from labctl.hypervisor.records import LOOK_S, VMS, Records, check_name, folder_of
from labctl.machine.protocols import CommandResult
from labctl.machine.session import Session
from labctl.parsers.text import last_lines, visible

_KILLED = 137
"""Status of a command that ``timeout`` has killed."""
KEEPER_LOST = "its keeper on the machine was killed: what its console says nobody hears"
_SECTOR = 512

_SUSPENDED = """
control=/local/domain/$id/control
if [ "$(xenstore-read $control/feature-suspend 2>/dev/null)" != 1 ]; then
	rm -f asked && mkfifo asked && exec 6<>asked
	xenstore-watch -n 2 $control/shutdown >asked & watch=$!
	read -r first <&6
	{ read -r second <&6 && xenstore-write $control/shutdown '' && xendom suspend $id; } &
fi
"""
"""A guest is asked by the store to let itself be suspended. One that knows nothing of that, or is paused, is stopped by us when it is
asked, between two of its instructions, and xl is answered in its place. The first event says that the watch is there."""


@dataclass
class Xl:
    session: Session
    who: str = "labctl"
    """Who acts, for the audit log."""
    linux_console: ClassVar[str] = "hvc0"
    """What a Linux is to be told of its console: a serial port that is named and not there stops it."""

    keeper: Keeper = field(init=False)
    records: Records = field(init=False)

    def __post_init__(self) -> None:
        self.keeper = Keeper(self.session)
        self.records = Records(self.keeper, self.who)

    # --- Hypervisor

    def create(self, spec: VmSpec, deadline: Deadline) -> None:
        with self.records.audited("create", spec.name, deadline):
            self._define(spec, deadline)

    def start(self, vm: str, deadline: Deadline) -> None:
        with self.records.audited("start", vm, deadline):
            spec = self.records.spec(vm, deadline)
            self._need_off(vm, "it runs already", deadline)
            self._launch(spec, "create -q -p config" if spec.paused else "create -q config", deadline)

    def stop(self, vm: str, deadline: Deadline) -> None:
        with self.records.audited("stop", vm, deadline):
            self.records.spec(vm, deadline)
            self._end(vm, deadline)

    def list(self, deadline: Deadline) -> tuple[Vm, ...]:
        told = self._xl("list", deadline, before=f"cat {VMS}/*/spec.json 2>/dev/null; echo")
        specs, _, listed = f"\n{told.output}".partition("\n\n")
        known, running = self.records.specs_of(specs.strip()), self._domains(listed)
        states = self.keeper.status([folder_of(name) for name in known], deadline)
        found = {name: self._listed(spec, running.get(name), states[folder_of(name)], deadline) for name, spec in known.items()}
        for name, domain in running.items():  # what somebody else has made is there all the same
            state = VmState.PAUSED if domain.paused else VmState.RUNNING
            found.setdefault(name, Vm(name, state, domain.cpus, domain.memory << 20))
        return tuple(vm for _, vm in sorted(found.items()))

    def destroy(self, vm: str, deadline: Deadline) -> None:
        with self.records.audited("destroy", vm, deadline):
            specs = self.records.specs(deadline)
            spec = specs.pop(vm, None)
            self._end(vm, deadline)
            used = {nic.network for other in specs.values() for nic in other.nics}
            networks = {nic.network for nic in spec.nics} - used if spec is not None else set()
            bridges = (bridge(network) for network in sorted(networks))
            lines = [f"rm -rf {folder_of(vm)}", *(f"ip link set {each} down && brctl delbr {each}" for each in bridges)]
            self.keeper.shell(" && ".join(lines), deadline)

    # --- Consoles

    def heard(self, vm: str, text: str, deadline: Deadline, since: int = 0) -> Heard:
        found = self.keeper.wait(folder_of(vm), text, since, deadline)
        if isinstance(found, Heard):
            return found
        tail = last_lines(self.said(vm, Deadline.after(LOOK_S), since)[-8192:], 10)
        if found == "late":
            raise self.records.failed(vm, f"has not said {text!r} within {deadline.seconds:g} s", tail)
        why = self._why_ended(vm, Deadline.after(LOOK_S)) or "it is off"
        raise self.records.failed(vm, f"ended before it said {text!r}: {why}", tail)

    def said(self, vm: str, deadline: Deadline, since: int = 0) -> bytes:
        return self.keeper.read(folder_of(vm), since, deadline)

    def lines(self, vm: str, prefix: str, deadline: Deadline, since: int = 0) -> tuple[Heard, ...]:
        return self.keeper.lines(folder_of(vm), prefix, since, deadline)

    def type(self, vm: str, data: bytes, deadline: Deadline) -> None:
        try:
            self.keeper.type(folder_of(vm), data, deadline)
        except VmFailed as error:
            raise self.records.failed(vm, error.message) from None

    def began(self, vm: str, deadline: Deadline) -> float:
        return self._status(vm, deadline).started

    # --- Pauses, Digests

    def pause(self, vm: str, deadline: Deadline) -> None:
        with self.records.audited("pause", vm, deadline):
            self._of(vm, f"pause {vm}", deadline)

    def resume(self, vm: str, deadline: Deadline) -> None:
        with self.records.audited("resume", vm, deadline):
            self._of(vm, f"unpause {vm}", deadline)

    def memory_digest(self, vm: str, deadline: Deadline) -> str:
        return self._digest(vm, self._through(vm, "sha256sum", deadline))

    def memory_holds(self, vm: str, text: str, deadline: Deadline) -> bool:
        # busybox's grep looks at a line up to its first NUL only.
        look = f"tr '\\000' '\\n' | {{ grep -q -F {shlex.quote(text)} && echo yes || echo no; cat >/dev/null; }}"
        return self._through(vm, look, deadline).strip() == "yes"

    def _through(self, vm: str, program: str, deadline: Deadline) -> str:
        """What a program says that reads all memory of a VM."""
        number, memory = self._domain(vm, deadline).id, self.records.spec(vm, deadline).memory
        done = self.keeper.shell(f"set -o pipefail; xendom memory {number} {memory} | {program}", deadline, check=False)
        if done.status != 0:
            raise self.records.failed(vm, f"its memory cannot be read: {visible(done.stderr.strip())[-200:]}")
        return done.output

    # --- Snapshots

    def snapshot(self, vm: str, name: str, deadline: Deadline) -> None:
        with self.records.audited("snapshot", vm, deadline):
            check_name(name)
            spec, domain, folder = self.records.spec(vm, deadline), self._domain(vm, deadline), f"{folder_of(vm)}/snapshot-{name}"
            seconds = max(1, int(deadline.left))
            # It stays paused until its disks are copied, for they belong to its memory of that moment. Xen counts pauses.
            how = "-c" if domain.paused else "-p"
            save = f"timeout -s KILL {seconds} xl save {how} {domain.id} state >&2; s=$?; [ -z $watch ] || kill $watch 2>/dev/null; exit $s"
            before = f"rm -rf {folder}; mkdir {folder} && cd {folder} && watch= && id={domain.id}"
            self._told(f"xl save {vm}", self.keeper.shell(f"{before}{_SUSPENDED}{save}", deadline, check=False), deadline, vm)
            try:
                self.keeper.shell(f"rm -f {folder}/asked", deadline)
                self.records.keep(folder, [("state", ""), *self._files(spec)], deadline)
            finally:
                if not domain.paused:
                    self._of(vm, f"unpause {vm}", Deadline.after(max(deadline.left, LOOK_S)))

    def restore(self, vm: str, name: str, deadline: Deadline) -> None:
        with self.records.audited("restore", vm, deadline):
            check_name(name)
            spec, folder = self.records.spec(vm, deadline), f"{folder_of(vm)}/snapshot-{name}"
            self.records.check_whole(vm, f"its snapshot {name}", folder, deadline)
            self._end(vm, deadline)
            self.records.put_back(folder, self._files(spec), deadline)
            self._launch(spec, f"restore -p config {folder}/state", deadline)

    # --- Templates

    def template(self, vm: str, name: str, deadline: Deadline) -> None:
        with self.records.audited("template", vm, deadline):
            check_name(name)
            spec = self.records.spec(vm, deadline)
            self._need_off(vm, "what its disks hold is not all there is of it", deadline)
            self.records.new_template(vm, name, self._files(spec), deadline)

    def clone(self, template: str, vm: str, deadline: Deadline) -> None:
        with self.records.audited("clone", vm, deadline):
            check_name(template)
            folder, kept = self.records.template(template, vm, deadline)
            # Its addresses are made anew from its own name: two cards on one network must not share one.
            spec = replace(kept, name=vm, nics=tuple(replace(nic, mac="") for nic in kept.nics))
            self._define(spec, deadline)
            self.records.put_back(folder, self._files(spec), deadline)

    def forget(self, template: str, deadline: Deadline) -> None:
        with self.records.audited("forget", template, deadline):
            self.records.forget(template, deadline)

    # --- Pins

    def pin(self, vm: str, cpus: Sequence[int], deadline: Deadline) -> None:
        with self.records.audited("pin", vm, deadline):
            if not cpus:
                raise ConfigError("pin: no CPU named; name at least one of the machine's")
            self._of(vm, f"vcpu-pin {vm} all {xenvm.cpus(tuple(cpus))}", deadline)

    def pinned(self, vm: str, deadline: Deadline) -> tuple[tuple[int, ...], ...]:
        told = self._of(vm, f"vcpu-list {vm}", deadline, before="xl info | grep ^nr_cpus")
        head, _, listed = told.output.partition("\n")
        try:
            return xltext.affinities(listed, int(head.partition(":")[2]))
        except ValueError as error:
            raise self.records.failed(vm, f"what xl says cannot be read: {error}") from None

    # --- AttachesDisks, AttachesNics, Networks

    def attach_disk(self, vm: str, disk: VmDisk, deadline: Deadline) -> None:
        with self.records.audited("attach disk", vm, deadline):
            spec, folder, file = self.records.spec(vm, deadline), folder_of(vm), disk_file(disk, folder_of(vm))
            self._only_once(vm, disk.name, [each.name for each in spec.disks])
            if disk.file:
                self.records.need_file(vm, file, deadline)
            there = "true" if disk.file else f"truncate -s {disk.size} {file}"
            used = self.keeper.shell(
                f"modprobe -a xen_blkback loop; {{ {there}; }} && cat {folder}/vdev-* 2>/dev/null; true", deadline
            ).output
            free = next((name for name in map(xenvm.device, range(xenvm.MOST_DISKS)) if name not in used.split()), None)
            if free is None:
                raise self.records.failed(vm, f"has {xenvm.MOST_DISKS} disks already")
            self._of(vm, f"block-attach {vm} {shlex.quote(xenvm.disk(disk, folder, free))}", deadline)
            self.keeper.shell(f"echo {free} >{folder}/vdev-{disk.name}", deadline)
            self.records.rewrite(replace(spec, disks=(*spec.disks, disk)), deadline)

    def detach_disk(self, vm: str, name: str, deadline: Deadline) -> None:
        with self.records.audited("detach disk", vm, deadline):
            spec, folder = self.records.spec(vm, deadline), folder_of(vm)
            disk = next((each for each in spec.disks if each.name == name), None)
            if disk is None:
                raise self.records.failed(vm, f"has no disk {name}")
            self._of(vm, f"block-detach {vm} $(cat {folder}/vdev-{name})", deadline)
            self.records.rewrite(replace(spec, disks=tuple(each for each in spec.disks if each != disk)), deadline)
            own = "" if disk.file else f" {disk_file(disk, folder)}"
            self.keeper.shell(f"rm -f {folder}/vdev-{name}{own}", deadline)

    def attach_nic(self, vm: str, nic: VmNic, deadline: Deadline) -> None:
        with self.records.audited("attach nic", vm, deadline):
            spec = self.records.spec(vm, deadline)
            self._only_once(vm, nic.name, [each.name for each in spec.nics])
            self.keeper.shell("; ".join(["set -e", *self._networks([nic])]), deadline)
            self._of(vm, f"network-attach {vm} {xenvm.nic(vm, nic).replace(',', ' ')}", deadline)
            self.records.rewrite(replace(spec, nics=(*spec.nics, nic)), deadline)

    def detach_nic(self, vm: str, name: str, deadline: Deadline) -> None:
        with self.records.audited("detach nic", vm, deadline):
            spec = self.records.spec(vm, deadline)
            nic = next((each for each in spec.nics if each.name == name), None)
            if nic is None:
                raise self.records.failed(vm, f"has no card {name}")
            self._of(vm, f"network-detach {vm} {mac(vm, nic)}", deadline)
            self.records.rewrite(replace(spec, nics=tuple(each for each in spec.nics if each != nic)), deadline)

    def address(self, network: str, address: str, deadline: Deadline) -> str:
        device = bridge(network)
        self.keeper.shell(f"ip address replace {ip_interface(address)} dev {device}", deadline)
        return device

    # --- Meters

    def metrics(self, vm: str, deadline: Deadline) -> VmMetrics:
        number = self._domain(vm, deadline).id
        disks, cards = f"/sys/bus/xen-backend/devices/vbd-{number}-*/statistics", f"/sys/class/net/vif{number}.*/statistics"
        counts = f"grep -sH . {disks}/rd_sect {disks}/wr_sect {cards}/rx_bytes {cards}/tx_bytes"
        told = self.keeper.shell(f"xendom usage {number} && {{ {counts}; true; }}", deadline).output
        found = re.match(r"cpu_ns=([0-9]{1,20}) pages=([0-9]{1,12})\n", told)
        if not found:
            raise self.records.failed(vm, f"what it takes cannot be read: {visible(told)[:200]}")

        def all_of(count: str) -> int:
            return sum(int(value) for value in re.findall(rf"/{count}:([0-9]{{1,20}})\n", told))

        return VmMetrics(
            cpu_s=int(found[1]) / 1e9,
            memory=int(found[2]) << 12,
            read=all_of("rd_sect") * _SECTOR,
            written=all_of("wr_sect") * _SECTOR,
            # Of a card's device on the machine what it receives is what its guest sends.
            received=all_of("tx_bytes"),
            sent=all_of("rx_bytes"),
        )

    # --- Restarts

    def kill(self, vm: str, deadline: Deadline) -> float:
        number = self._domain(vm, deadline).id
        return self.keeper.clock_of(self.keeper.shell(f"vmkeeper clock && xendom crash {number}", deadline).output)[0]

    def starts(self, vm: str, deadline: Deadline) -> int:
        return self.keeper.status([folder_of(vm)], deadline)[folder_of(vm)].starts

    # --- Audits

    def audit(self, deadline: Deadline) -> tuple[AuditEntry, ...]:
        return self.records.audit(deadline)

    # --- a VM's folder

    def _define(self, spec: VmSpec, deadline: Deadline) -> None:
        lacking = {"a display": spec.display is not None, "PCI devices": bool(spec.devices)}
        if wanted := [what for what, asked in lacking.items() if asked]:
            raise self.records.failed(spec.name, f"cannot be made: a PVH guest of Xen has no {' and no '.join(wanted)}")
        if len(spec.disks) > xenvm.MOST_DISKS:
            raise self.records.failed(spec.name, f"cannot be made: {len(spec.disks)} disks, at most {xenvm.MOST_DISKS}")
        folder = folder_of(spec.name)
        made = [f"truncate -s {disk.size} {disk_file(disk, folder)}" for disk in spec.disks if not disk.file]
        self.records.define(spec, [*xenvm.scripts(), *made, *self._networks(spec.nics)], deadline)

    def _networks(self, nics: Sequence[VmNic]) -> Iterator[str]:
        if nics:
            yield "modprobe -a xen_netback bridge"
        for device in sorted({bridge(nic.network) for nic in nics}):
            yield f"[ -e /sys/class/net/{device} ] || {{ brctl addbr {device} && ip link set {device} up; }}"

    def _files(self, spec: VmSpec) -> Sequence[tuple[str, str]]:
        """Of a VM's own disks: a name for a copy, and the file. What was there before the VM is not its own."""
        return [(f"disk-{disk.name}", disk_file(disk, folder_of(spec.name))) for disk in spec.disks if not disk.file]

    def _only_once(self, vm: str, name: str, there: Sequence[str]) -> None:
        if name in there:
            raise self.records.failed(vm, f"has {name} already")

    def _need_off(self, vm: str, why: str, deadline: Deadline) -> None:
        state = self.keeper.status([folder_of(vm)], deadline)[folder_of(vm)].state
        # A domain outlives its keeper.
        if state == "running" or (state == "lost" and vm in self._domains(self._xl("list", deadline).output)):
            raise self.records.failed(vm, f"is not off: {why}")

    # --- a VM's domain

    def _launch(self, spec: VmSpec, words: str, deadline: Deadline) -> None:
        """Its domain is there, and its console kept. ``words``: what xl is told. VmFailed with what xl said."""
        folder, seconds = folder_of(spec.name), max(1, int(deadline.left))
        names = [f"echo {xenvm.device(number)} >vdev-{disk.name}" for number, disk in enumerate(spec.disks)]
        script = [
            f"cd {folder} && rm -f up vdev-* && mkfifo up && exec 4<>up",
            f"printf %s {shlex.quote(xenvm.config(spec, folder))} >config && echo {seconds} {words} >how",
            *names,
            *(["modprobe -a xen_blkback loop"] if spec.disks else []),
            f"vmkeeper start {folder} {spec.restarts} -- {shlex.join(xenvm.program(spec.name, folder))} 4<&-",
            f"read -r -t {seconds + int(LOOK_S)} up <&4; echo $up",
        ]
        done = self.keeper.shell(" && ".join(script), deadline, check=False)
        answer = done.output.strip().rpartition("\n")[2]
        if re.fullmatch(r"domain [0-9]{1,5}", answer):
            return
        said = visible(self.keeper.shell(f"cat {folder}/said", Deadline.after(LOOK_S), check=False).output.strip())[:400]
        with suppress(VmFailed, TargetHung):
            self._end(spec.name, Deadline.after(LOOK_S))
        if not answer or answer == f"failed {_KILLED}":
            raise self._hangs(f"xl {words.split()[0]} {spec.name}", deadline)
        raise self.records.failed(spec.name, f"does not start: {said or visible(done.stderr.strip())[-400:] or answer}")

    def _end(self, vm: str, deadline: Deadline) -> None:
        """No process keeps it, and Xen has no domain of its name."""
        self.keeper.end(folder_of(vm), deadline)
        if vm in self._domains(self._xl("list", deadline).output):
            self._of(vm, f"destroy {vm}", deadline)

    def _status(self, vm: str, deadline: Deadline) -> Status:
        """Of one that runs. VmFailed else."""
        status = self.keeper.status([folder_of(vm)], deadline)[folder_of(vm)]
        if status.state != "running":
            raise self.records.failed(vm, self._why_ended(vm, deadline) or "is off")
        return status

    def _domain(self, vm: str, deadline: Deadline) -> xltext.Domain:
        """Of one that runs or is paused. VmFailed else."""
        domain = self._domains(self._xl("list", deadline).output).get(vm)
        if domain is None or domain.ending:
            self.records.spec(vm, deadline)
            raise self.records.failed(vm, self._why_ended(vm, deadline) or "is off")
        return domain

    def _why_ended(self, vm: str, deadline: Deadline) -> str:
        """How it ended by itself; empty if it has not, or its guest has powered it off."""
        folder = folder_of(vm)
        state = self.keeper.status([folder], deadline)[folder].state
        return KEEPER_LOST if state == "lost" else self._ending(vm, deadline) if state == "ended" else ""

    def _ending(self, vm: str, deadline: Deadline) -> str:
        log = f"cat /var/log/xen/xl-{vm}.log | tail -n 30"
        return xltext.ending(self.keeper.shell(log, deadline, check=False).output)

    def _listed(self, spec: VmSpec, domain: xltext.Domain | None, status: Status, deadline: Deadline) -> Vm:
        state, why = VmState.OFF, ""
        if domain is not None and not domain.ending:
            state = VmState.PAUSED if domain.paused else VmState.RUNNING
        elif status.state == "running":  # between two starts of it
            state = VmState.RUNNING
        elif status.state == "lost":  # with the domain gone too nobody has seen how it ended
            state, why = VmState.FAILED, KEEPER_LOST
        elif status.state == "ended" and (why := self._ending(spec.name, deadline)):
            state = VmState.FAILED
        return Vm(spec.name, state, spec.cpus, spec.memory, why)

    # --- xl

    def _xl(self, words: str, deadline: Deadline, before: str = "") -> CommandResult:
        """VmFailed with what it says; TargetHung, which names it, if it has not ended in time. ``before``: a command that goes first."""
        seconds = max(1, int(deadline.left))
        script = f"{before}; timeout -s KILL {seconds} xl {words}" if before else f"timeout -s KILL {seconds} xl {words}"
        return self._told(f"xl {words}", self.keeper.shell(script, deadline, check=False), deadline)

    def _of(self, vm: str, words: str, deadline: Deadline, before: str = "") -> CommandResult:
        """The same for a verb on a VM that must run: xl's own word for another is no help."""
        try:
            return self._xl(words, deadline, before)
        except VmFailed as error:
            self._domain(vm, Deadline.after(LOOK_S))
            raise self.records.failed(vm, error.message) from None

    def _told(self, what: str, done: CommandResult, deadline: Deadline, vm: str = "") -> CommandResult:
        if done.status == _KILLED:
            raise self._hangs(what, deadline)
        if done.status != 0:
            why = f"{what} fails: {visible((done.stderr.strip() or done.output.strip())[-400:]) or f'status {done.status}'}"
            raise self.records.failed(vm, why) if vm else VmFailed(why, target=self.session.name)
        return done

    def _hangs(self, what: str, deadline: Deadline) -> TargetHung:
        return TargetHung(f"the toolstack hangs: {what} has not ended within {deadline.seconds:g} s", target=self.session.name)

    def _domains(self, told: str) -> dict[str, xltext.Domain]:
        try:
            return xltext.domains(told)
        except ValueError as error:
            raise VmFailed(f"what xl says cannot be read: {error}", target=self.session.name) from None

    def _digest(self, vm: str, told: str) -> str:
        found = re.match(r"[0-9a-f]{64}\b", told)
        if not found:
            raise self.records.failed(vm, f"no digest of it: {visible(told)[:200]!r}")
        return found[0]


DRIVER = Xl
