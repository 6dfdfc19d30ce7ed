"""A QEMU machine's disk: the file behind it, made when first needed, and the arguments that put it on a bus."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from labctl.deadline import Deadline
from labctl.errors import DeployError
from labctl.process import run

Bus = Literal["nvme", "virtio", "none"]
Backend = Literal["file", "null"]

NODE = "disk0"
"""QEMU's name of what lies behind the disk."""
DEVICE = "blk0"
"""QEMU's name of the disk itself."""


@dataclass(frozen=True)
class Disk:
    """``backend``: ``file``, which outlives power cycles and is deleted with the session's folder, or ``null``, which answers at once,
    keeps nothing and reads as zeros: what is measured on it is everything but a disk."""

    size: int
    """Bytes."""
    bus: Bus
    backend: Backend
    filesystem: str
    """What the disk holds at first: ``ext4``, or nothing."""

    def file(self, workdir: Path) -> Path:
        """Where its contents are."""
        return workdir / ("disk.raw" if self._raw else "disk.qcow2")

    def prepare(self, path: Path, deadline: Deadline, target: str) -> None:
        """Make the file if it is not there. DeployError."""
        if self.backend == "null" or path.exists():
            return
        maker = self.maker(str(path))
        made = run(maker, deadline)
        if made.status != 0:
            # The cause without the path before it: where there is room for a few words only, they must be these.
            cause = made.words.removeprefix(f"{maker[0]}: ").replace(f"{path}: ", "")
            raise DeployError(f"{maker[0]}: {cause} (the disk in {path.parent})", target=target)

    def maker(self, path: str) -> list[str]:
        """The command that makes a sparse file; a file system is made in a plain one."""
        if self.filesystem:
            return ["mke2fs", "-q", "-F", "-t", self.filesystem, path, f"{self.size // 1024}K"]
        return ["qemu-img", "create", "-q", "-f", "qcow2", path, str(self.size)]

    def arguments(self, path: str, machine: str) -> list[str]:
        """What QEMU is told. ``path`` may be ``null-co``, for a disk that is not to be kept whatever its backend."""
        behind: dict[str, object]
        if path == "null-co" or self.backend == "null":
            behind = {"driver": "null-co", "size": self.size, "read-zeroes": True}
        else:
            behind = {"driver": "raw" if self._raw else "qcow2", "file": {"driver": "file", "filename": path}}
        on_pci = "microvm" not in machine
        device = {"nvme": "nvme,serial=labctl", "virtio": "virtio-blk-pci" if on_pci else "virtio-blk-device"}
        bus = self.bus if on_pci else "virtio"
        return ["-blockdev", json.dumps({"node-name": NODE, **behind}), "-device", f"{device[bus]},drive={NODE},id={DEVICE}"]

    @property
    def _raw(self) -> bool:
        return bool(self.filesystem)
