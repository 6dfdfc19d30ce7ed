"""A QEMU machine kept in files, and copies of it: its memory is one file that all copies share and none changes, the rest of its state a
small one beside it (``x-ignore-shared``: memory in a shared file is no part of what is migrated). A copy maps the memory privately, so the
host holds once what no copy has written to.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from labctl.deadline import Deadline
from labctl.errors import DeployError, ManagementError
from labctl.machine.qmp import Qmp
from labctl.process import find, run

MEMORY, STATE, DISK = "memory", "state", "disk"
"""The files of a kept machine; the disk only of one that has one."""
_LOOK_S = 0.005


@dataclass(frozen=True)
class Kept:
    """How a machine's memory is held in this life: in a file of ``folder`` that it writes to, or as a copy of what is there."""

    folder: Path
    role: Literal["original", "copy"]

    def arguments(self, memory: int) -> list[str]:
        """What QEMU is told; ``memory`` in bytes."""
        path = str(self.folder / MEMORY).replace(",", ",,")
        share = "on" if self.role == "original" else "off"
        backend = f"memory-backend-file,id=labctl-memory,size={memory // 1024}K,mem-path={path},share={share}"
        incoming = ["-incoming", "defer"] if self.role == "copy" else []
        return ["-object", backend, "-machine", "memory-backend=labctl-memory", *incoming]

    @contextmanager
    def state(self) -> Iterator[int]:
        """The file of the state, open. DeployError."""
        flags = os.O_RDONLY if self.role == "copy" else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        try:
            descriptor = os.open(self.folder / STATE, flags | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise DeployError(f"{self.folder / STATE}: {error.strerror}") from None
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def freeze(self, qmp: Qmp, deadline: Deadline) -> None:
        """Stop the machine and write its state. ManagementError, DeployError."""
        qmp.command("stop", deadline)
        self._migrate(qmp, "migrate", deadline)

    def thaw(self, qmp: Qmp, deadline: Deadline) -> None:
        """Take the state; the machine is stopped where it was. ManagementError, DeployError."""
        self._migrate(qmp, "migrate-incoming", deadline)

    def _migrate(self, qmp: Qmp, command: str, deadline: Deadline) -> None:
        _ignore_shared(qmp, deadline)
        with self.state() as descriptor:
            qmp.give("labctl-state", descriptor, deadline)
            qmp.command(command, deadline, uri="fd:labctl-state")
            _until_migrated(qmp, deadline)


def _ignore_shared(qmp: Qmp, deadline: Deadline) -> None:
    qmp.command("migrate-set-capabilities", deadline, capabilities=[{"capability": "x-ignore-shared", "state": True}])


def _until_migrated(qmp: Qmp, deadline: Deadline) -> None:
    while (status := qmp.command("query-migrate", deadline).get("status", "none")) != "completed":
        if status in ("failed", "cancelled"):
            raise ManagementError(f"the machine's state is not taken: migration {status}")
        if deadline.expired:
            raise ManagementError(f"the machine's state was not taken within {deadline.seconds:g} s: migration {status}")
        time.sleep(_LOOK_S)


def disk_over(kept: Path, to: Path, disk_format: str, deadline: Deadline) -> None:
    """A new disk that holds what the kept one does; what is written stays in ``to``. DeployError."""
    made = run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(kept), "-F", disk_format, str(to)], deadline)
    if made.status != 0:
        raise DeployError(f"qemu-img: {made.words}")


def disk_copy(kept: Path, to: Path, deadline: Deadline) -> None:
    """The same, where the new one must not share a file with the kept one; what is empty takes no room. DeployError."""
    made = run(["cp", "--sparse=always", "--reflink=auto", str(kept), str(to)], deadline)
    if made.status != 0:
        raise DeployError(made.words)


@cache
def processor() -> str:
    """The host's: a machine that shares it with KVM cannot go on on another."""
    with Path("/proc/cpuinfo").open() as lines:
        return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


@cache
def emulator(binary: str) -> str:
    """Which QEMU this is: its file, and what it says of itself."""
    path = Path(find(binary)).resolve()
    status = path.stat()
    version = run([str(path), "--version"], Deadline.after(20)).out.split("\n", 1)[0]
    return f"{path} {status.st_size} {status.st_mtime_ns} {version}"
