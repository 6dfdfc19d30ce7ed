"""A QEMU machine kept in files, and copies of it: its memory is one file that all copies share and none changes, the rest of its state a
small one beside it (``x-ignore-shared``: memory in a shared file is no part of what is migrated). A copy maps the memory privately, so the
host holds once what no copy has written to.

While the machine boots that is to be kept, its memory is a file of no file system (memfd_create(2)), and is written out once it has
stopped: a file on a disk is told of each page that the machine writes to for the first time, which takes longer.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Self

from labctl.deadline import Deadline
from labctl.errors import DeployError, ManagementError
from labctl.machine.qmp import Qmp
from labctl.process import find, run

MEMORY, STATE, DISK = "memory", "state", "disk"
"""The files of a kept machine; the disk only of one that has one."""
_ENDS = ("completed", "failed", "cancelled")
"""States of a migration (QEMU's qapi/migration.json, MigrationStatus) that it does not leave."""


@dataclass(frozen=True)
class Kept:
    """How a machine's memory is held in this life: apart from it, to be written to ``folder``, or as a copy of what is there."""

    folder: Path
    memory: IO[bytes] | None = None
    """Of the machine that is to be kept; None for a copy."""

    @classmethod
    def original(cls, folder: Path) -> Self:
        """A machine that is to be kept there."""
        return cls(folder, os.fdopen(os.memfd_create("labctl-memory"), "r+b"))

    @property
    def fds(self) -> list[int]:
        """What QEMU is given."""
        return [] if self.memory is None else [self.memory.fileno()]

    def arguments(self, memory: int) -> list[str]:
        """What QEMU is told; ``memory`` in bytes."""
        path, share = (self.folder / MEMORY, "off") if self.memory is None else (f"/proc/self/fd/{self.memory.fileno()}", "on")
        backend = f"memory-backend-file,id=labctl-memory,size={memory // 1024}K,mem-path={str(path).replace(',', ',,')},share={share}"
        incoming = ["-incoming", "defer"] if self.memory is None else []
        return ["-object", backend, "-machine", "memory-backend=labctl-memory", *incoming]

    def save(self) -> None:
        """Write the memory of a machine that is off; what it never wrote to takes no room. DeployError."""
        if self.memory is None:
            return
        try:
            with self.memory as memory, (self.folder / MEMORY).open("wb") as file:
                _copy_sparsely(memory.fileno(), file.fileno())
        except OSError as error:
            raise DeployError(f"{self.folder / MEMORY}: {error.strerror}", remedy="make room there: it is the lab's cache") from None

    @contextmanager
    def state(self) -> Iterator[int]:
        """The file of the state, open. DeployError."""
        flags = os.O_RDONLY if self.memory is None else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
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
        _prepare_migration(qmp, deadline)
        with self.state() as descriptor:
            qmp.give("labctl-state", descriptor, deadline)
            qmp.command(command, deadline, uri="fd:labctl-state")
            _until_migrated(qmp, deadline)


def _copy_sparsely(source: int, to: int) -> None:
    size = os.fstat(source).st_size
    os.ftruncate(to, size)
    at = 0
    while at < size:
        try:
            at = os.lseek(source, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # nothing but a hole follows
            raise
        end = os.lseek(source, at, os.SEEK_HOLE)
        os.lseek(to, at, os.SEEK_SET)
        while at < end:
            at += os.sendfile(to, source, at, end - at)


def _prepare_migration(qmp: Qmp, deadline: Deadline) -> None:
    """Memory in a shared file is no part of it, and how it goes is told as it goes."""
    wanted = [{"capability": name, "state": True} for name in ("x-ignore-shared", "events")]
    qmp.command("migrate-set-capabilities", deadline, capabilities=wanted)


def _until_migrated(qmp: Qmp, deadline: Deadline) -> None:
    try:
        ended = qmp.wait_event("MIGRATION", deadline, lambda data: data.get("status") in _ENDS)
    except ManagementError as error:
        raise ManagementError(f"the machine's state is not taken: {error.message}") from None
    if (status := ended["data"]["status"]) != "completed":
        raise ManagementError(f"the machine's state is not taken: migration {status}")


def disk_over(kept: Path, to: Path, disk_format: str) -> None:
    """A new disk that holds what the kept one does; what is written stays in ``to``. DeployError."""
    status = kept.stat()
    to.write_bytes(_empty_layer(kept, disk_format, status.st_ino, status.st_mtime_ns))


@cache
def _empty_layer(kept: Path, disk_format: str, _inode: int, _changed: int) -> bytes:
    """A qcow2 file without anything of its own, some 200 kB: the same for all copies, and written faster than qemu-img starts."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layer"
        made = run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(kept), "-F", disk_format, str(path)], Deadline.after(30))
        if made.status != 0:
            raise DeployError(f"qemu-img: {made.words}")
        return path.read_bytes()


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
