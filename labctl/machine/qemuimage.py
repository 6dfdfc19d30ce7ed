"""A build's root file system as a disk of a QEMU machine: NVMe, copy-on-write, so that the image in the cache stays as it is."""

from __future__ import annotations

import json
from pathlib import Path

from labctl.deadline import Deadline
from labctl.errors import DeployError
from labctl.process import run

_NODE = "image0"


def prepare(image: Path, workdir: Path, deadline: Deadline, target: str) -> Path:
    """The file that takes what the machine writes; it outlives power cycles, and is deleted with the session's folder. DeployError."""
    file = workdir / "root.qcow2"
    if not file.exists():
        made = run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(image), "-F", "raw", str(file)], deadline)
        if made.status != 0:
            raise DeployError(f"qemu-img: {made.words.removeprefix('qemu-img: ')}", target=target)
    return file


def arguments(file: Path) -> list[str]:
    """What QEMU is told; of the image itself, by hand, what is written is forgotten at the end."""
    device = ["-device", f"nvme,serial=labctl-root,ioeventfd=on,drive={_NODE}"]
    if file.suffix != ".qcow2":
        return ["-drive", f"file={file},format=raw,if=none,id={_NODE},snapshot=on", *device]
    return ["-blockdev", json.dumps({"node-name": _NODE, "driver": "qcow2", "file": {"driver": "file", "filename": str(file)}}), *device]
