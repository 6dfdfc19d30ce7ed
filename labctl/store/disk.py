"""Bytes on disk that survive a kill: whole lines appended by one write, whole files put in place by a rename.

Everything that fails here is a `StorageError` that names the file, the cause and the space left.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NoReturn

from labctl.errors import StorageError

MOST_LINE = 16 << 20
"""Bytes of the longest line that is written, and that is read."""
_SMALL = 1 << 20
"""Bytes of a file that is read at once."""
MOST_DOCUMENT = 256 << 20
"""Bytes of the largest JSON document (run.json, end.json) that is read."""


def storage_error(path: Path, doing: str, error: OSError) -> StorageError:
    """What could not be done to which file, why, and, if it was for want of space, what is left there."""
    cause = os.strerror(error.errno) if error.errno else str(error)
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    space = free_space(path) if full else ""
    return StorageError(
        f"cannot {doing} {path}: {cause}{f' ({space} free there)' if space else ''}",
        remedy="free some space there, or name another folder with --results"
        if full
        else "see that the folder can be written, or name another with --results",
    )


def free_space(path: Path) -> str:
    """Free space of the filesystem that ``path`` would lie on, as text; empty if the system does not tell."""
    for place in (path, *path.parents):
        with suppress(OSError):
            found = os.statvfs(place)
            return f"{found.f_bavail * found.f_frsize / (1 << 20):.1f} MiB"
    return ""


def make_folder(path: Path, *, exist_ok: bool = False) -> None:
    """Make a folder and those above it. FileExistsError unless ``exist_ok``; StorageError for every other cause."""
    try:
        path.mkdir(parents=True, exist_ok=exist_ok)
    except FileExistsError:
        if exist_ok:
            raise storage_error(path, "make the folder", OSError(errno.ENOTDIR, "")) from None
        raise
    except OSError as error:
        raise storage_error(path, "make the folder", error) from error


def write_atomically(path: Path, content: bytes) -> None:
    """The file has either its old content or all of the new one, also after a power cut. StorageError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
        put_in_place(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise storage_error(path, "write", error) from error


def put_in_place(temporary: Path, path: Path) -> None:
    """Flush a finished file to the disk and rename it to its name. OSError."""
    _sync(temporary)
    temporary.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class LineFile:
    """A file that many processes may append whole lines to, each by one ``write(2)`` at its end."""

    def __init__(self, path: Path, *, exclusive: bool = False) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | (os.O_EXCL if exclusive else 0), 0o644)
        except OSError as error:
            raise storage_error(path, "open", error) from error

    def append(self, line: bytes) -> None:
        """Add one line (without its newline). When this returns the system has it, and no kill of ours loses it. StorageError."""
        try:
            whole = (b"" if self._at_line_start() else b"\n") + line + b"\n"
            written = os.write(self._fd, whole)
        except OSError as error:
            raise storage_error(self.path, "write", error) from error
        if written != len(whole):
            self._cut_short(len(whole))

    def _cut_short(self, size: int) -> NoReturn:
        """Say why the system took only a part: a full disk, a quota, a limit of the file's size. The reader skips the torn line."""
        try:
            os.write(self._fd, b"\n")
        except OSError as error:
            raise storage_error(self.path, "write", error) from error
        raise storage_error(self.path, f"write all {size} bytes to", OSError(errno.ENOSPC, ""))

    def _at_line_start(self) -> bool:
        """False behind a torn line that a killed writer or a full disk left: it must not swallow the next one."""
        size = os.fstat(self._fd).st_size
        return size == 0 or os.pread(self._fd, 1, size - 1) in (b"\n", b"")

    def claim(self) -> None:
        """Say to all (`claimed`) that the file's owner is alive, until this is closed or its process dies. Without effect on a
        filesystem that knows no locks."""
        with suppress(OSError):
            fcntl.flock(self._fd, fcntl.LOCK_EX)

    def sync(self) -> None:
        """Until the disk itself has it. StorageError."""
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise storage_error(self.path, "write", error) from error

    def close(self) -> None:
        """Closed already is no error."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> LineFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def claimed(path: Path) -> bool:
    """Whether the owner of the file (`LineFile.claim`) is alive."""
    try:
        with open_regular(path) as file:
            fcntl.flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; anything else under that name (a pipe that would block, a folder) is an OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(fd, "rb")


def lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file without their ends; one longer than `MOST_LINE` comes as ``b"\\0"``, which no format of ours can read.

    The last one comes too if it is torn: it may be whole but for its newline.
    """
    if os.fstat(file.fileno()).st_size <= _SMALL:
        yield from file.read(MOST_LINE).split(b"\n")
        return
    while line := file.readline(MOST_LINE):
        if len(line) == MOST_LINE and not line.endswith(b"\n"):
            while (rest := file.readline(MOST_LINE)) and not rest.endswith(b"\n"):
                pass
            line = b"\0"
        yield line.rstrip(b"\n")
