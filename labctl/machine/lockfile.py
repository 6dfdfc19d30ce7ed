"""Lock files shared by all users of one host, and proof against a neighbour who plants something in their place.

Locks are Linux *open file description* locks on ranges of bytes (fcntl(2), ``F_OFD_SETLK``). The kernel keeps them with the open
file, so that they end with their owner, also at ``kill -9``; the descriptor is close-on-exec, so that a machine emulator started by
the owner does not keep them; and unlike flock(2) they can be asked about (``F_OFD_GETLK``) without being taken for a moment. The
locked bytes are only numbers: they need not exist in the file, whose content says who holds what, for people.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pwd
import stat
import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labctl.deadline import Deadline
from labctl.errors import InfraError, StorageError

RECORD_BYTES = 512
"""Size of one record in the content of a lock file."""

_FOLDER_ENV = "LABCTL_LOCKS"
_FOLDER = Path("/run/lock/labctl")
# Not tempfile.gettempdir(): that may differ from user to user, and then they would not exclude each other.
_FOLDER_WITHOUT_RUN_LOCK = Path("/tmp/labctl-locks")  # noqa: S108

_FOLDER_MODE = 0o1777
_FILE_MODE = 0o666
_FIRST_PAUSE_S = 0.0005
_LONGEST_PAUSE_S = 0.02

# struct flock of 64-bit Linux: l_type, l_whence, l_start, l_len, l_pid.
_FLOCK = struct.Struct("hhqqi4x")
_TAKEN = (errno.EAGAIN, errno.EACCES)
# What opening a link, a socket or a folder gives.
_NOT_A_FILE = (errno.ELOOP, errno.ENXIO, errno.EISDIR)


def attempts(deadline: Deadline) -> Iterator[int]:
    """Count tries: one at once, then after growing pauses of at most 20 ms; ends when the deadline has passed."""
    pause, count = _FIRST_PAUSE_S, 0
    while True:
        yield count
        if deadline.expired:
            return
        time.sleep(min(pause, deadline.left))
        pause = min(pause * 2, _LONGEST_PAUSE_S)
        count += 1


def user_name() -> str:
    """Login name of the process' owner, else the number."""
    uid = os.getuid()
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def printable(text: str) -> str:
    """One line that is safe on a terminal: records are written by other users."""
    return "".join(c if c.isprintable() else " " for c in text)


@dataclass(frozen=True, slots=True)
class LockFile:
    """An open lock file. Every lock taken through it ends when it is closed."""

    fd: int
    path: Path

    def try_lock(self, start: int, length: int = 1) -> bool:
        """Take a range of bytes for ourselves; False if anybody else has one of them."""
        return self._set(fcntl.F_WRLCK, start, length)

    def unlock(self, start: int, length: int = 1) -> None:
        self._set(fcntl.F_UNLCK, start, length)

    def held(self, start: int, end: int) -> list[tuple[int, int]]:
        """Ranges ``(from, to)`` in ``[start, end)`` that others hold, ascending."""
        found: list[tuple[int, int]] = []
        open_ranges = [(start, end)]
        while open_ranges:
            low, high = open_ranges.pop()
            if low >= high:
                continue
            # The kernel names one lock in the way, not necessarily the first: look on at both sides of it.
            answer = fcntl.fcntl(self.fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, low, high - low, 0))
            kind, _, at, length, _ = _FLOCK.unpack(answer)
            if kind == fcntl.F_UNLCK:
                continue
            till = min(high, at + length) if length else high
            at = max(low, at)
            found.append((at, till))
            open_ranges += [(low, at), (till, high)]
        return sorted(found)

    def is_held(self, start: int, length: int = 1) -> bool:
        return bool(self.held(start, start + length))

    @contextmanager
    def locked(self, byte: int, deadline: Deadline) -> Iterator[None]:
        """Hold one byte for a few instructions. InfraError if another process sits on it until the deadline."""
        for _ in attempts(deadline):
            if self.try_lock(byte):
                break
        else:
            raise InfraError(
                f"{self.path} stayed locked for {deadline.seconds:g} s",
                remedy=f"fuser -v {self.path} names the process that sits on it",
            )
        try:
            yield
        finally:
            self.unlock(byte)

    def write_record(self, index: int, values: Mapping[str, object]) -> None:
        """Say who holds what. Text that is too long for a record is cut. StorageError."""
        longest = max(values, key=lambda k: len(str(values[k])))
        raw = json.dumps(values).encode()
        text = str(values[longest])[:RECORD_BYTES]
        while text and len(raw) >= RECORD_BYTES:
            raw = json.dumps({**values, longest: text}).encode()
            # JSON takes at most 12 bytes for a character, so that this never cuts more than is needed.
            text = text[: -(max(0, len(raw) - RECORD_BYTES) // 12 + 1)]
        self._write(index, raw[: RECORD_BYTES - 1])

    def clear_record(self, index: int) -> None:
        self._write(index, b"")

    def read_record(self, index: int) -> dict[str, Any]:
        """What a record says; {} if it is empty, torn or nonsense."""
        raw = os.pread(self.fd, RECORD_BYTES, index * RECORD_BYTES)
        try:
            values = json.loads(raw.decode().strip(" \n\0"))
        except (ValueError, RecursionError):
            return {}
        return values if isinstance(values, dict) else {}

    def _write(self, index: int, raw: bytes) -> None:
        try:
            os.pwrite(self.fd, raw.ljust(RECORD_BYTES - 1) + b"\n", index * RECORD_BYTES)
        except OSError as error:
            raise StorageError(f"{self.path} cannot be written: {error.strerror}", remedy=f"df {self.path.parent}") from None

    def _set(self, kind: int, start: int, length: int) -> bool:
        try:
            fcntl.fcntl(self.fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0))
        except OSError as error:
            if error.errno in _TAKEN:
                return False
            raise InfraError(
                f"{self.path} cannot be locked: {error.strerror}", remedy=f"set {_FOLDER_ENV} to a folder on a local file system"
            ) from None
        return True


@contextmanager
def open_lock_file(name: str, deadline: Deadline) -> Iterator[LockFile]:
    """Open ``name`` in the host's lock folder for this block; made if missing. InfraError if what lies there must not be used."""
    path = _folder() / name
    fd = _open_patiently(path, deadline)
    try:
        yield LockFile(fd, path)
    finally:
        os.close(fd)


@contextmanager
def peek(name: str) -> Iterator[LockFile | None]:
    """Open ``name`` for reading only, for this block; None if there is none. Nothing is made and nothing locked."""
    folder = _folder()
    try:
        fd = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        yield None
        return
    try:
        yield LockFile(fd, folder / name) if stat.S_ISREG(os.fstat(fd).st_mode) else None
    finally:
        os.close(fd)


def _folder() -> Path:
    if chosen := os.environ.get(_FOLDER_ENV):
        return Path(os.path.realpath(chosen))
    if _FOLDER.is_dir() or os.access(_FOLDER.parent, os.W_OK):
        return _FOLDER
    return _FOLDER_WITHOUT_RUN_LOCK


def _open_patiently(path: Path, deadline: Deadline) -> int:
    last: OSError | None = None
    for _ in attempts(deadline.sooner(1.0)):
        try:
            folder_fd = _open_folder(path.parent)
            try:
                return _open_file(folder_fd, path)
            finally:
                os.close(folder_fd)
        except (FileNotFoundError, FileExistsError, PermissionError) as error:
            last = error  # another process may be between making the folder or the file and opening it to all: try again, shortly
        except OSError as error:
            last = error
            break
    raise InfraError(
        f"lock file {path} cannot be opened: {last.strerror if last else 'no time left'}",
        remedy=f"as root: chmod {_FOLDER_MODE:o} {path.parent} && chmod {_FILE_MODE:o} {path}",
    )


def _open_folder(folder: Path) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(folder, flags)
    except FileNotFoundError:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(_FOLDER_MODE)
        fd = os.open(folder, flags)
        os.fchmod(fd, _FOLDER_MODE)  # mkdir was cut by the umask
        return fd
    except NotADirectoryError:  # what a link gives, too
        raise InfraError(f"lock folder {folder} is no folder of its own", remedy=f"as root: rm {folder}; it is made anew") from None


def _open_file(folder_fd: int, path: Path) -> int:
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        # Without O_CREAT: sysctl fs.protected_regular refuses it for another user's file in a sticky folder, even to root.
        fd = os.open(path.name, flags, dir_fd=folder_fd)
    except FileNotFoundError:
        fd = os.open(path.name, flags | os.O_CREAT | os.O_EXCL, _FILE_MODE, dir_fd=folder_fd)
    except OSError as error:
        if error.errno in _NOT_A_FILE:
            raise _planted(path, error.strerror or "") from None
        raise
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        os.close(fd)
        raise _planted(path, "not a regular file of one name")
    if stat.S_IMODE(found.st_mode) != _FILE_MODE and found.st_uid == os.getuid():
        os.fchmod(fd, _FILE_MODE)  # the umask cut it when it was made
    return fd


def _planted(path: Path, what: str) -> InfraError:
    return InfraError(f"{path} is no lock file: {what}", remedy=f"as root: rm {path}; it is made anew")
