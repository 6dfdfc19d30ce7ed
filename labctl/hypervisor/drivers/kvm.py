"""KVM with QEMU: a VM is a process of the machine under test, which `vmkeeper` keeps and QMP speaks to.

Everything of a VM lies in a folder of its own, and the machine's files are the truth: who holds the session asks them.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from io import BytesIO
from ipaddress import ip_address, ip_interface
from typing import Any, Literal

from labctl.deadline import Deadline
from labctl.errors import ConfigError, TargetHung, VmFailed
from labctl.hypervisor import qemuvm
from labctl.hypervisor.keeper import Keeper, Status
from labctl.hypervisor.monitor import EVENTS_ON, MIGRATED, Monitor, Told, VmOff, command
from labctl.hypervisor.protocols import (
    PCI_PATTERN,
    AuditEntry,
    Heard,
    Migration,
    Vm,
    VmDisk,
    VmMetrics,
    VmNic,
    VmSpec,
    VmState,
)
from labctl.hypervisor.records import LOOK_S, Records, check_name, folder_of
from labctl.machine.session import Session
from labctl.parsers.text import last_lines, visible

_USB: Mapping[str, str] = {"keyboard": "usb-kbd", "tablet": "usb-tablet", "storage": "usb-storage"}
_USB_SIZE = 1 << 20
TICKS_S = 100
"""Of the times in /proc/PID/stat in a second: the kernel's USER_HZ."""
MIGRATION_PORT = 4444
KEEPER_LOST = "its keeper on the machine was killed, and its QEMU with it"
CANCEL_S = 30.0
"""Seconds in which a QEMU is to give up moving a VM."""


@dataclass
class Kvm:
    session: Session
    who: str = "labctl"
    """Who acts, for the audit log."""

    keeper: Keeper = field(init=False)
    records: Records = field(init=False)
    monitor: Monitor = field(init=False)

    def __post_init__(self) -> None:
        self.keeper = Keeper(self.session)
        self.records = Records(self.keeper, self.who)
        self.monitor = Monitor(self.keeper)

    # --- Hypervisor

    def create(self, spec: VmSpec, deadline: Deadline) -> None:
        with self.records.audited("create", spec.name, deadline):
            self.records.define(spec, self._parts(spec), deadline)

    def start(self, vm: str, deadline: Deadline) -> None:
        with self.records.audited("start", vm, deadline):
            spec = self.records.spec(vm, deadline)
            self._need_off(vm, "it runs already", deadline)
            self._launch(spec, deadline)

    def stop(self, vm: str, deadline: Deadline) -> None:
        with self.records.audited("stop", vm, deadline):
            self.records.spec(vm, deadline)
            self.keeper.end(folder_of(vm), deadline)

    def list(self, deadline: Deadline) -> tuple[Vm, ...]:
        specs = self.records.specs(deadline)
        states = self.keeper.status([folder_of(name) for name in specs], deadline)
        return tuple(self._listed(spec, states.get(folder_of(name), Status("gone")), deadline) for name, spec in sorted(specs.items()))

    def destroy(self, vm: str, deadline: Deadline) -> None:
        with self.records.audited("destroy", vm, deadline):
            folder, specs = folder_of(vm), self.records.specs(deadline)
            spec = specs.pop(vm, None)
            self.keeper.end(folder, deadline)
            used = {nic.network for other in specs.values() for nic in other.nics}
            networks = {nic.network for nic in spec.nics} - used if spec is not None else set()
            bridges = (qemuvm.bridge(network) for network in sorted(networks))
            lines = [f"rm -rf {folder}", *(f"ip link set {bridge} down && brctl delbr {bridge}" for bridge in bridges)]
            self.keeper.shell(" && ".join(lines), deadline)

    # --- Consoles

    def heard(self, vm: str, text: str, deadline: Deadline, since: int = 0) -> Heard:
        found = self.keeper.wait(folder_of(vm), text, since, deadline)
        if isinstance(found, Heard):
            return found
        tail = last_lines(self.said(vm, Deadline.after(LOOK_S), since)[-8192:], 10)
        if found == "late":
            raise self.records.failed(vm, f"has not said {text!r} within {deadline.seconds:g} s", tail)
        raise self.records.failed(vm, f"ended before it said {text!r}: {self._why_ended(vm, Deadline.after(LOOK_S)) or 'it is off'}", tail)

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
            self._ask(vm, [command("stop")], deadline)

    def resume(self, vm: str, deadline: Deadline) -> None:
        with self.records.audited("resume", vm, deadline):
            self._ask(vm, [command("cont")], deadline)

    def memory_digest(self, vm: str, deadline: Deadline) -> str:
        return self._digest(vm, self._through(vm, "sha256sum", deadline))

    def memory_holds(self, vm: str, text: str, deadline: Deadline) -> bool:
        # Lines end at each NUL: busybox' grep sees nothing behind one. All is read, for QEMU fails where its pipe is closed.
        found = self._through(vm, f"tr -s '\\000' '\\n' | grep -c -F {shlex.quote(text)}", deadline).strip()
        return found.isdigit() and int(found) > 0

    def _through(self, vm: str, program: str, deadline: Deadline) -> str:
        """What a program says that reads all memory of a VM: through a pipe, for the machine need not have room for it twice."""
        spec, folder = self.records.spec(vm, deadline), folder_of(vm)
        self._status(vm, deadline)
        seconds = max(1, int(deadline.left))
        dump = shlex.quote(json.dumps(command("pmemsave", val=0, size=spec.memory, filename=f"{folder}/memory")))
        script = (
            f"cd {folder} && rm -f memory && mkfifo memory && {{ timeout {seconds} sh -c {shlex.quote(program)} <memory >found & }} && "
            f"qmp qmp {seconds * 1000} {dump} >&2; s=$?; [ $s = 0 ] || kill $! 2>/dev/null; wait; cat found; rm -f memory found; exit $s"
        )
        return self.keeper.shell(script, deadline).output

    # --- Pins

    def pin(self, vm: str, cpus: Sequence[int], deadline: Deadline) -> None:
        with self.records.audited("pin", vm, deadline):
            self._pin(vm, cpus, deadline)

    def pinned(self, vm: str, deadline: Deadline) -> tuple[tuple[int, ...], ...]:
        pid, threads = self._status(vm, deadline).pid, self._threads(vm, deadline)
        told = self.keeper.shell("; ".join(f"grep Cpus_allowed_list: /proc/{pid}/task/{thread}/status" for thread in threads), deadline)
        return tuple(cpu_list(line.partition(":")[2]) for line in told.output.splitlines())

    # --- Snapshots

    def snapshot(self, vm: str, name: str, deadline: Deadline) -> None:
        with self.records.audited("snapshot", vm, deadline):
            check_name(name)
            spec, folder = self.records.spec(vm, deadline), f"{folder_of(vm)}/snapshot-{name}"
            ran = self._ask(vm, [command("query-status"), command("stop")], deadline).returned[0]["status"] == "running"
            try:
                self.keeper.shell(f"rm -rf {folder}; mkdir {folder}", deadline)
                self._save(vm, f"{folder}/state", deadline)
                self.records.keep(folder, [("state", ""), *self._files(spec)], deadline)
            finally:
                if ran:
                    self._ask(vm, [command("cont")], Deadline.after(max(deadline.left, LOOK_S)))

    def restore(self, vm: str, name: str, deadline: Deadline) -> None:
        with self.records.audited("restore", vm, deadline):
            check_name(name)
            spec, folder = self.records.spec(vm, deadline), f"{folder_of(vm)}/snapshot-{name}"
            self.records.check_whole(vm, f"its snapshot {name}", folder, deadline)
            self.keeper.end(folder_of(vm), deadline)
            self.records.put_back(folder, self._files(spec), deadline)
            self._load(spec, f"{folder}/state", deadline)

    def _save(self, vm: str, file: str, deadline: Deadline) -> None:
        """Memory and devices of a VM that is paused, into a file."""
        told = self._ask(vm, [EVENTS_ON, command("migrate", uri=f"exec:cat >{file}"), MIGRATED, command("query-migrate")], deadline)
        if (found := told.returned[-1]).get("status") != "completed":
            raise self.records.failed(vm, f"cannot be written down: {visible(str(found.get('error-desc', found.get('status'))))[:300]}")

    def _load(self, spec: VmSpec, file: str, deadline: Deadline) -> None:
        """A VM that goes on from such a file, paused."""
        self._launch(spec, deadline, incoming="defer")
        coming: Sequence[Mapping[str, Any] | str] = [
            EVENTS_ON,
            command("migrate-incoming", uri=f"exec:cat {file}"),
            MIGRATED,
            command("query-status"),
        ]
        status = self._ask(spec.name, coming, deadline).returned[-1]["status"]
        if status != "paused":
            raise self.records.failed(spec.name, f"is not paused after it was read back, but {status}")

    def _files(self, spec: VmSpec) -> Sequence[tuple[str, str]]:
        """Of a VM's own disks: a name for a copy, and the file. What was there before the VM is not its own."""
        return [(f"disk-{disk.name}", qemuvm.disk_file(disk, folder_of(spec.name))) for disk in spec.disks if not disk.file]

    # --- Templates

    def template(self, vm: str, name: str, deadline: Deadline) -> None:
        with self.records.audited("template", vm, deadline):
            check_name(name)
            spec = self.records.spec(vm, deadline)
            if self.keeper.status([folder_of(vm)], deadline)[folder_of(vm)].state == "running":
                raise self.records.failed(vm, "is not off: what its disks hold is not all there is of it")
            self.records.new_template(vm, name, self._files(spec), deadline)

    def clone(self, template: str, vm: str, deadline: Deadline) -> None:
        with self.records.audited("clone", vm, deadline):
            check_name(template)
            folder, kept = self.records.template(template, vm, deadline)
            # Its addresses are made anew from its own name: two cards on one network must not share one.
            spec = replace(kept, name=vm, nics=tuple(replace(nic, mac="") for nic in kept.nics))
            self.records.define(spec, self._parts(spec), deadline)
            self.records.put_back(folder, self._files(spec), deadline)

    def forget(self, template: str, deadline: Deadline) -> None:
        with self.records.audited("forget", template, deadline):
            self.records.forget(template, deadline)

    # --- AttachesDisks, AttachesNics, AttachesUsb, Networks

    def attach_disk(self, vm: str, disk: VmDisk, deadline: Deadline) -> None:
        with self.records.audited("attach disk", vm, deadline):
            spec, folder = self.records.spec(vm, deadline), folder_of(vm)
            more = replace(spec, disks=(*spec.disks, disk))
            self._only_once(vm, disk.name, [each.name for each in spec.disks])
            file = qemuvm.disk_file(disk, folder)
            if disk.file:
                self.records.need_file(vm, file, deadline)
            else:
                self.keeper.shell(f"truncate -s {disk.size} {file}", deadline)
            block = {"driver": "raw", "node-name": f"disk-{disk.name}", "file": {"driver": "file", "filename": file}}
            device = qemuvm.disk_device(disk.name)
            self._ask(vm, [{"execute": "blockdev-add", "arguments": block}, {"execute": "device_add", "arguments": device}], deadline)
            self.records.rewrite(more, deadline)

    def detach_disk(self, vm: str, name: str, deadline: Deadline) -> None:
        with self.records.audited("detach disk", vm, deadline):
            spec = self.records.spec(vm, deadline)
            disk = next((each for each in spec.disks if each.name == name), None)
            if disk is None:
                raise self.records.failed(vm, f"has no disk {name}")
            self._unplug(vm, f"blk-{name}", [command("blockdev-del", node_name=f"disk-{name}")], deadline)
            self.records.rewrite(replace(spec, disks=tuple(each for each in spec.disks if each != disk)), deadline)
            if not disk.file:
                self.keeper.shell(f"rm -f {qemuvm.disk_file(disk, folder_of(vm))}", deadline)

    def attach_nic(self, vm: str, nic: VmNic, deadline: Deadline) -> None:
        with self.records.audited("attach nic", vm, deadline):
            spec, folder = self.records.spec(vm, deadline), folder_of(vm)
            more = replace(spec, nics=(*spec.nics, nic))
            self._only_once(vm, nic.name, [each.name for each in spec.nics])
            self.keeper.shell("; ".join(["set -e", "modprobe -a tun bridge", *self._network(nic, folder)]), deadline)
            card = {"execute": "device_add", "arguments": qemuvm.nic_device(vm, nic)}
            self._ask(vm, [{"execute": "netdev_add", "arguments": qemuvm.netdev(vm, nic, folder)}, card], deadline)
            self.records.rewrite(more, deadline)

    def detach_nic(self, vm: str, name: str, deadline: Deadline) -> None:
        with self.records.audited("detach nic", vm, deadline):
            spec = self.records.spec(vm, deadline)
            if name not in [each.name for each in spec.nics]:
                raise self.records.failed(vm, f"has no card {name}")
            self._unplug(vm, f"nic-{name}", [command("netdev_del", id=f"net-{name}")], deadline)
            self.records.rewrite(replace(spec, nics=tuple(each for each in spec.nics if each.name != name)), deadline)

    def attach_usb(self, vm: str, name: str, kind: Literal["keyboard", "tablet", "storage"], deadline: Deadline) -> None:
        with self.records.audited("attach usb", vm, deadline):
            check_name(name)
            if kind not in _USB:
                raise ConfigError(f"no USB device {kind!r}; known: {', '.join(_USB)}")
            there = self._ask(vm, [command("qom-list", path="/machine/peripheral")], deadline).returned[0]
            steps: list[Mapping[str, Any] | str] = []
            if "usb" not in [each["name"] for each in there]:
                steps.append(command("device_add", driver="qemu-xhci", id="usb"))
            device = {"driver": _USB[kind], "id": f"usb-{name}", "bus": "usb.0"}
            if kind == "storage":
                file = f"{folder_of(vm)}/usb-{name}.raw"
                self.keeper.shell(f"truncate -s {_USB_SIZE} {file}", deadline)
                block = {"driver": "raw", "node-name": f"usb-disk-{name}", "file": {"driver": "file", "filename": file}}
                steps.append({"execute": "blockdev-add", "arguments": block})
                device["drive"] = f"usb-disk-{name}"
            self._ask(vm, [*steps, {"execute": "device_add", "arguments": device}], deadline)

    def detach_usb(self, vm: str, name: str, deadline: Deadline) -> None:
        with self.records.audited("detach usb", vm, deadline):
            check_name(name)
            self._unplug(vm, f"usb-{name}", [], deadline)

    def address(self, network: str, address: str, deadline: Deadline) -> str:
        device = qemuvm.bridge(network)
        self.keeper.shell(f"ip address replace {ip_interface(address)} dev {device}", deadline)
        return device

    def _unplug(self, vm: str, device: str, after: Sequence[Mapping[str, Any]], deadline: Deadline) -> None:
        """Until its guest has let go of it."""
        self._ask(vm, [command("device_del", id=device), f'DEVICE_DELETED.*"{device}"|"{device}".*DEVICE_DELETED', *after], deadline)

    def _only_once(self, vm: str, name: str, there: Sequence[str]) -> None:
        if name in there:
            raise self.records.failed(vm, f"has {name} already")

    # --- Meters

    def metrics(self, vm: str, deadline: Deadline) -> VmMetrics:
        spec, pid = self.records.spec(vm, deadline), self._status(vm, deadline).pid
        cards = " ".join(f"/sys/class/net/{qemuvm.tap(vm, nic.name)}/statistics/?x_bytes" for nic in spec.nics)
        lines = [f"cat /proc/{pid}/stat", f"grep -E '^Pss:' /proc/{pid}/smaps_rollup", *([f"cat {cards}"] if cards else [])]
        told = self.keeper.shell(" && ".join(lines), deadline).output.splitlines()
        blocks = self._ask(vm, [command("query-blockstats")], deadline).returned[0]
        try:
            ticks = told[0].rpartition(")")[2].split()
            # Of a tap what it receives is what its guest sends.
            counts = [int(line) for line in told[2:]]
            return VmMetrics(
                cpu_s=(int(ticks[11]) + int(ticks[12])) / TICKS_S,
                memory=int(told[1].split()[1]) << 10,
                read=sum(int(block["stats"]["rd_bytes"]) for block in blocks),
                written=sum(int(block["stats"]["wr_bytes"]) for block in blocks),
                received=sum(counts[1::2]),
                sent=sum(counts[0::2]),
            )
        except (IndexError, KeyError, ValueError):
            raise self.records.failed(vm, f"what it takes cannot be read: {visible(' '.join(told))[:200]}") from None

    # --- Restarts

    def kill(self, vm: str, deadline: Deadline) -> float:
        pid = self._status(vm, deadline).pid
        told = self.keeper.shell(f"vmkeeper clock && kill -9 {pid}", deadline).output
        return self.keeper.clock_of(told)[0]

    def starts(self, vm: str, deadline: Deadline) -> int:
        return self.keeper.status([folder_of(vm)], deadline)[folder_of(vm)].starts

    # --- BacksUp

    def backup(self, vm: str, disk: str, file: str, deadline: Deadline) -> str:
        with self.records.audited("backup", vm, deadline):
            if disk not in [each.name for each in self.records.spec(vm, deadline).disks]:
                raise self.records.failed(vm, f"has no disk {disk}")
            job = command("drive-backup", job_id="backup", device=f"disk-{disk}", target=file, sync="full", format="raw")
            told = self._ask(vm, [job, "BLOCK_JOB_COMPLETED"], deadline)
            ended = next(event for event in told.events if event["event"] == "BLOCK_JOB_COMPLETED")["data"]
            if ended.get("error") or ended.get("offset") != ended.get("len"):
                raise self.records.failed(vm, f"its backup ended early: {visible(str(ended.get('error', 'not all of it')))[:200]}")
            return self._digest(vm, self.keeper.shell(f"sha256sum {shlex.quote(file)}", deadline).output)

    def restore_backup(self, vm: str, disk: str, file: str, digest: str, deadline: Deadline) -> None:
        with self.records.audited("restore backup", vm, deadline):
            into = next((each for each in self.records.spec(vm, deadline).disks if each.name == disk), None)
            if into is None:
                raise self.records.failed(vm, f"has no disk {disk}")
            if self.keeper.status([folder_of(vm)], deadline)[folder_of(vm)].state == "running":
                raise self.records.failed(vm, "is not off: it would write over what is put back")
            if self._digest(vm, self.keeper.shell(f"sha256sum {shlex.quote(file)}", deadline).output) != digest:
                raise self.records.failed(vm, f"the backup {file} is corrupt: it is not what was written")
            self.keeper.shell(f"cat {shlex.quote(file)} >{qemuvm.disk_file(into, folder_of(vm))}", deadline)

    # --- Migrates

    def receive(self, spec: VmSpec, source: str, deadline: Deadline) -> str:
        with self.records.audited("receive", spec.name, deadline):
            self.records.define(spec, self._parts(spec), deadline)
            # QEMU chooses no port by itself: one for each VM that is there, out of the way of everything else.
            port = MIGRATION_PORT + len(self.records.specs(deadline))
            self._launch(replace(spec, paused=False), deadline, incoming=f"tcp:0.0.0.0:{port}")
            told = self.keeper.shell(f"ip route get {ip_address(source)}", deadline).output
            found = re.search(r" src ([0-9a-f.:]+)", told)
            if not found:
                raise self.records.failed(spec.name, f"no way to {source}: {visible(told)[:200]}")
            return f"tcp:{found[1]}:{port}"

    def clock(self, deadline: Deadline) -> tuple[float, float]:
        return self.keeper.clock(deadline)

    def migrate(self, vm: str, to: str, deadline: Deadline) -> Migration:
        with self.records.audited("migrate", vm, deadline):
            if not re.fullmatch(r"tcp:[0-9a-f.:]+", to):
                raise ConfigError(f"migrate: found {to!r}; allowed: what receive returned")
            seconds = deadline.left
            try:
                told = self._ask(vm, [EVENTS_ON, command("migrate", uri=to), MIGRATED, command("query-migrate")], deadline)
            except TargetHung:
                # Neither came nor went: it stays, as it was. The stream is given up by itself, whenever its peer's silence lets it.
                with suppress(TargetHung, VmFailed):
                    self._ask(vm, [command("migrate_cancel")], Deadline.after(CANCEL_S))
                state = self._ask(vm, [command("query-status")], Deadline.after(CANCEL_S)).returned[0]["status"]
                here = "it runs here" if state == "running" else f"here it is {state}"
                raise self.records.failed(vm, f"has not arrived at {to} within {seconds:.0f} s; {here}") from None
            found = told.returned[-1]
            if found.get("status") != "completed":
                why = visible(str(found.get("error-desc") or found.get("status")))[:300]
                raise self.records.failed(vm, f"did not arrive at {to}: {why}; it runs here")
            # What its console said here stays to be read.
            self._ask(vm, [command("quit")], deadline)
            return Migration(float(found.get("total-time", 0)) / 1e3, float(found.get("downtime", 0)) / 1e3)

    # --- PassesDevices

    def group(self, device: str, deadline: Deadline) -> tuple[str, ...]:
        _check_device(device)
        told = self.keeper.shell(f"ls /sys/bus/pci/devices/{device}/iommu_group/devices", deadline, check=False)
        if told.status != 0:
            if self.keeper.shell(f"[ -e /sys/bus/pci/devices/{device} ]", deadline, check=False).status != 0:
                raise VmFailed(f"the machine has no PCI device {device}", target=self.session.name)
            why = "the machine has no IOMMU, or its kernel does not use it: nothing would keep the device from all memory"
            raise VmFailed(f"PCI device {device} is in no IOMMU group: {why}", target=self.session.name)
        return tuple(told.output.split())

    def give(self, device: str, deadline: Deadline) -> None:
        with self.records.audited("give", "host", deadline):
            others = [each for each in self.group(device, deadline) if each != device]
            look = f"cd /sys/bus/pci/devices; for d in {' '.join(others)}; do [ -e $d/driver ] && echo $d $(cat $d/class); done; true"
            held = [line.split() for line in self.keeper.shell(look, deadline).output.splitlines()]
            # A bridge belongs to its group, and has nothing that could be given away.
            if used := [each[0] for each in held if not each[-1].startswith("0x06")]:
                why = f"PCI device {device} shares its IOMMU group with {', '.join(used)}, which the machine uses"
                raise VmFailed(why, target=self.session.name)
            self._drive(device, "vfio-pci", deadline)

    def take_back(self, device: str, deadline: Deadline) -> None:
        with self.records.audited("take back", "host", deadline):
            _check_device(device)
            self._drive(device, "", deadline)

    def _drive(self, device: str, by: str, deadline: Deadline) -> None:
        """Bind a PCI device to a driver of the machine's kernel; without a name to the one that it would have had."""
        home = f"/sys/bus/pci/devices/{device}"
        lines = [
            *(["modprobe -a vfio_iommu_type1 vfio_pci"] if by else []),
            f"if [ -e {home}/driver ]; then echo {device} >{home}/driver/unbind; fi",
            f"echo '{by}' >{home}/driver_override",
            f"echo {device} >/sys/bus/pci/drivers_probe",
        ]
        if by:
            lines.append(f'[ "$(basename $(readlink -f {home}/driver))" = {by} ] || {{ echo no driver took it >&2; exit 1; }}')
        done = self.keeper.shell("set -e; " + "; ".join(lines), deadline, check=False)
        if done.status != 0:
            why = f"PCI device {device} does not go to {by or 'its driver'}: {visible(done.stderr)[-200:]}"
            raise VmFailed(why, target=self.session.name)

    # --- Displays

    def press(self, vm: str, keys: Sequence[str], deadline: Deadline) -> None:
        self._ask(vm, [command("send-key", keys=[{"type": "qcode", "data": key} for key in keys])], deadline)

    def screen(self, vm: str, deadline: Deadline) -> bytes:
        file, picture = f"{folder_of(vm)}/screen.ppm", BytesIO()
        self._ask(vm, [command("screendump", filename=file)], deadline)
        self.session.get(file, picture, deadline=Deadline.after(deadline.left + LOOK_S))
        return picture.getvalue()

    # --- Audits

    def audit(self, deadline: Deadline) -> tuple[AuditEntry, ...]:
        return self.records.audit(deadline)

    # --- a VM's folder

    def _parts(self, spec: VmSpec) -> Iterator[str]:
        """Commands that make what a VM brings along: its own disks, its networks."""
        folder = folder_of(spec.name)
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

    # --- a VM's process

    def _launch(self, spec: VmSpec, deadline: Deadline, incoming: str = "") -> Told:
        """Its QEMU runs and answers; its CPUs too, unless something is to come in first. VmFailed with what QEMU said."""
        folder = folder_of(spec.name)
        try:
            self.keeper.start(folder, 0 if incoming else spec.restarts, qemuvm.arguments(spec, folder, incoming), deadline)
            told = self._ask(spec.name, [command("query-status"), command("query-cpus-fast")], deadline)
        except VmFailed as error:
            raise self.records.failed(spec.name, f"does not start: {error.message}") from None
        except TargetHung:
            with suppress(VmFailed):
                self.keeper.end(folder, Deadline.after(LOOK_S))
            raise
        if spec.pinned:
            self._pin(spec.name, spec.pinned, deadline, told)
        return told

    def _ask(self, vm: str, steps: Sequence[Mapping[str, Any] | str], deadline: Deadline) -> Told:
        """VmFailed, with what QEMU said last if it is gone, and at once if it is off; TargetHung, which names it."""
        try:
            return self.monitor.run(vm, qemuvm.monitor(folder_of(vm)), steps, deadline)
        except VmOff:
            self.records.spec(vm, Deadline.after(LOOK_S))
            raise self.records.failed(vm, self._why_ended(vm, Deadline.after(LOOK_S)) or "is off") from None
        except VmFailed as error:
            why = self._why_ended(vm, Deadline.after(LOOK_S))
            raise self.records.failed(vm, f"{why}: {error.message}" if why else error.message) from None

    def _need_off(self, vm: str, why: str, deadline: Deadline) -> None:
        if self.keeper.status([folder_of(vm)], deadline)[folder_of(vm)].state == "running":
            raise self.records.failed(vm, f"is not off: {why}")

    def _status(self, vm: str, deadline: Deadline) -> Status:
        """Of one that runs. VmFailed else."""
        status = self.keeper.status([folder_of(vm)], deadline)[folder_of(vm)]
        if status.state != "running":
            raise self.records.failed(vm, self._why_ended(vm, deadline) or "is off")
        return status

    def _why_ended(self, vm: str, deadline: Deadline) -> str:
        """How its process ended by itself; empty if it runs, or was never started or was ended by us."""
        status = self.keeper.status([folder_of(vm)], deadline)[folder_of(vm)]
        return self._ending(vm, status, deadline) if status.state in ("ended", "lost") else ""

    def _ending(self, vm: str, status: Status, deadline: Deadline) -> str:
        if status.state == "lost":
            return KEEPER_LOST
        if status.how == 0:
            return self._terminated(vm, deadline) or "its guest has powered it off"
        if status.how > 128:
            killed = f"dmesg | grep -i 'out of memory: killed process {status.pid} .*qemu' | tail -1"
            if status.how == 137 and (oom := self.keeper.shell(killed, deadline, check=False).output.strip()):
                return f"the machine ran out of memory: {visible(oom)[-200:]}"
            return f"its QEMU was ended by signal {status.how - 128}"
        return f"its QEMU ended with status {status.how}: {self.keeper.words(folder_of(vm), deadline)}"

    def _terminated(self, vm: str, deadline: Deadline) -> str:
        """Of one that ended well: whether somebody ended it by a signal, at which QEMU says so and ends as if its guest had."""
        found = re.search(r"terminating on (signal [0-9]+)", self.keeper.words(folder_of(vm), deadline))
        return f"its QEMU was ended by {found[1]}" if found else ""

    def _listed(self, spec: VmSpec, status: Status, deadline: Deadline) -> Vm:
        state, why = VmState.OFF, ""
        if status.state == "lost" or (status.state == "ended" and status.how != 0):
            state, why = VmState.FAILED, self._ending(spec.name, status, deadline)
        elif status.state == "ended" and (why := self._terminated(spec.name, deadline)):
            state = VmState.FAILED
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
            raise self.records.failed(vm, f"cannot be pinned to CPU {', '.join(map(str, cpus))}: {visible(done.stderr.strip())[-200:]}")

    def _digest(self, vm: str, told: str) -> str:
        found = re.match(r"[0-9a-f]{64}\b", told)
        if not found:
            raise self.records.failed(vm, f"no digest of it: {visible(told)[:200]!r}")
        return found[0]


def _check_device(device: str) -> None:
    if not re.fullmatch(PCI_PATTERN, device):
        raise ConfigError(f"no PCI device: {device!r}; allowed: DOMAIN:BUS:DEVICE.FUNCTION, such as 0000:00:04.0")


def cpu_list(text: str) -> tuple[int, ...]:
    """``0-1,4`` as the kernel writes it → the numbers. ValueError for anything else."""
    cpus: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        cpus += range(int(first), int(last or first) + 1)
    return tuple(cpus)


DRIVER = Kvm
