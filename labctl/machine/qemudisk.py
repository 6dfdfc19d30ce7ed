"""A QEMU machine's disk: the file behind it, made when first needed, and the arguments that put it on a bus."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from labctl.deadline import Deadline
from labctl.errors import DeployError, ManagementError, StorageError
from labctl.machine.qmp import Qmp
from labctl.machine.volatiledisk import VolatileDisk
from labctl.process import run

Bus = Literal["nvme", "virtio", "none"]
Backend = Literal["file", "null", "volatile", "lying"]

NODE = "disk0"
"""QEMU's name of what lies behind the disk."""
ROOM = 1 << 20
"""Bytes: a file system with less is full, for a file that grows."""
DEVICE = "blk0"
"""QEMU's name of the disk itself."""


@dataclass(frozen=True)
class Disk:
    """``backend``: ``file``, which outlives power cycles and is deleted with the session's folder; ``null``, which answers at once, keeps
    nothing and reads as zeros, so that all but a disk is measured; ``volatile``, a file behind a cache that loses with the power what was
    not flushed; ``lying``, one that flushes too late (`labctl.machine.volatiledisk`)."""

    size: int
    """Bytes."""
    bus: Bus
    backend: Backend
    filesystem: str
    """What the disk holds at first: ``ext4``, or nothing."""
    slot: bool = False
    """It is in a slot of its own, from which it can be taken while the machine is on."""
    counted: bool = False
    """Of a machine in virtual time: a request is taken when it is made, not when another thread of the host's gets to it."""

    @property
    def loses(self) -> bool:
        """Whether a power cut takes something from it."""
        return self.backend in ("volatile", "lying")

    def file(self, workdir: Path) -> Path:
        """Where its contents are."""
        return workdir / ("disk.raw" if self._raw else "disk.qcow2")

    def prepare(self, path: Path, deadline: Deadline, target: str) -> None:
        """Make the file if it is not there. DeployError."""
        if self.backend == "null" or path.exists() or (self.loses and not self.filesystem):
            return
        maker = self.maker(str(path))
        made = run(maker, deadline)
        if made.status != 0:
            # The cause without the path before it: where there is room for a few words only, they must be these.
            cause = made.words.removeprefix(f"{maker[0]}: ").replace(f"{path}: ", "")
            raise DeployError(f"{maker[0]}: {cause} (the disk in {path.parent})", target=target)

    def serve(self, path: Path, seed: int) -> VolatileDisk | None:
        """The disk, if it is one that loses, for one life of the machine. StorageError."""
        if not self.loses:
            return None
        try:
            return VolatileDisk(path, self.size, lies=self.backend == "lying", seed=seed)
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror}", remedy="make room, or choose another folder with --results") from None

    def maker(self, path: str) -> list[str]:
        """The command that makes a sparse file; a file system is made in a plain one."""
        if self.filesystem:
            return ["mke2fs", "-q", "-F", "-t", self.filesystem, path, f"{self.size // 1024}K"]
        return ["qemu-img", "create", "-q", "-f", "qcow2", path, str(self.size)]

    def arguments(self, path: str, machine: str, served: int | None = None) -> list[str]:
        """What QEMU is told. ``path`` may be ``null-co``, for a disk that is not to be kept whatever its backend; ``served`` is QEMU's end
        of the socket to a disk that loses."""
        behind: dict[str, object]
        if path == "null-co" or self.backend == "null":
            behind = {"driver": "null-co", "size": self.size, "read-zeroes": True}
        elif served is not None:
            behind = {"driver": "nbd", "server": {"type": "fd", "str": str(served)}}
        else:
            behind = {"driver": "raw" if self._raw else "qcow2", "file": {"driver": "file", "filename": path}}
        on_pci = "microvm" not in machine
        # Without ioeventfd QEMU 7.2 loses doorbells of an emulated machine that has several requests on their way: they are never answered.
        device = {"nvme": "nvme,serial=labctl,ioeventfd=on", "virtio": "virtio-blk-pci" if on_pci else "virtio-blk-device"}
        bus = self.bus if on_pci else "virtio"
        slot, place = (["-device", "pcie-root-port,id=slot0"], ",bus=slot0") if self.slot and on_pci else ([], "")
        if bus == "virtio":
            place += ",ioeventfd=off" if self.counted and on_pci else ""
            place += ",werror=report,rerror=report"  # else QEMU stops the machine where the host's disk is full, and nobody is told
        return ["-blockdev", json.dumps({"node-name": NODE, **behind}), *slot, "-device", f"{device[bus]},drive={NODE},id={DEVICE}{place}"]

    @property
    def _raw(self) -> bool:
        return bool(self.filesystem) or self.loses


def unplug(qmp: Qmp, deadline: Deadline, target: str) -> None:
    """Until the guest has let go of the disk. ManagementError."""
    seen = len(qmp.drain())
    qmp.command("device_del", deadline, id=DEVICE)
    while not any(event["event"] == "DEVICE_DELETED" and event["data"].get("device") == DEVICE for event in qmp.drain()[seen:]):
        if deadline.expired:
            raise ManagementError(f"the machine does not let go of its disk within {deadline.seconds:g} s", target=target)
        time.sleep(0.02)  # QEMU says it as soon as the guest has answered


def starved(qmp: Qmp, file: Path, deadline: Deadline) -> str:
    """Whether the disk has refused writes because the host has no room for its file; says so, else empty. ManagementError."""
    told = qmp.command("query-blockstats", deadline, **{"query-nodes": False})
    failed = sum(int(each["stats"].get("failed_wr_operations", 0)) for each in told if each.get("qdev", "").find(DEVICE) >= 0)
    if failed == 0 or shutil.disk_usage(file.parent).free >= ROOM:
        return ""
    return f"the host has no room left in {file.parent} for the machine's disk: {failed} of its writes failed"
