"""Whether a virtual server runs, and where its keeper answers: said by a file in its own folder that its keeper holds.

The file goes where the folder goes, so that a lab that is moved keeps what runs in it; a copy of a lab has a file that nobody holds.
The keeper's socket lies elsewhere, for its path must be short: in a folder of the user's, made at each start, which the file names.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from labctl.deadline import Deadline
from labctl.errors import InfraError, TargetBusy
from labctl.machine.keeper import runtime_folder
from labctl.machine.lockfile import attempts

_MOST_BYTES = 4096


@dataclass(frozen=True)
class Place:
    """Where a keeper answers. ``pid`` is 0 until it has said so itself."""

    socket: Path
    pid: int = 0


def new_place() -> Place:
    return Place(runtime_folder(secrets.token_hex(8)) / "socket")


def say(lock: int, place: Place) -> None:
    """Into the file that ``lock`` is a descriptor of."""
    text = json.dumps({"schema": 1, "socket": str(place.socket), "pid": place.pid}).encode()
    os.pwrite(lock, text, 0)
    os.ftruncate(lock, len(text))


def place_of(file: Path) -> Place | None:
    """Where the keeper that holds this file answers, or None if nobody holds it."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None
        return _read(descriptor)
    finally:
        os.close(descriptor)


def clear(lock: int) -> None:
    """Take away the socket of a keeper that was killed. For whoever holds the file. That of a keeper which lives stays: in a copy of a lab
    the file says what it said in the lab itself."""
    if (left := _read(lock)) is None:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(left.socket))
        except ConnectionRefusedError:
            remove(left.socket)
        except OSError:  # not even that is left
            return


def remove(keeper_socket: Path) -> None:
    """With the folder that was made for it."""
    with suppress(OSError):
        keeper_socket.unlink(missing_ok=True)
        keeper_socket.parent.rmdir()


def is_gone(lock: int) -> bool:
    """Whether the file was deleted: with the server's folder, so that nobody can find this keeper any more."""
    return os.fstat(lock).st_nlink == 0


@contextmanager
def locked(path: Path, deadline: Deadline, otherwise: str, remedy: str = "") -> Iterator[int]:
    """Hold a file; TargetBusy if it is not free in time, InfraError if its folder is gone. A descriptor that a child inherits holds it as
    long as the child lives."""
    for _ in attempts(deadline):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            raise InfraError(f"{path.parent} was deleted meanwhile") from None
        try:
            with suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not is_gone(descriptor):  # deleted by whoever held it before
                    yield descriptor
                    return
        finally:
            os.close(descriptor)
    raise TargetBusy(otherwise, remedy=remedy)


def _read(descriptor: int) -> Place | None:
    with suppress(ValueError):
        match json.loads(os.pread(descriptor, _MOST_BYTES, 0)):
            case {"socket": str(path), "pid": int(pid)}:
                return Place(Path(path), pid)
    return None
