"""Archives in cpio's ``newc`` form, the one that Linux unpacks as its initramfs. Pure: entries in, bytes out.

The form is that of the kernel's ``Documentation/driver-api/early-userspace/buffer-format.rst``: a 110-byte header of hexadecimal
numbers, the name with its NUL, the data, each padded to 4 bytes. Archives may be concatenated; a later one overwrites.

The bytes depend on nothing but the entries: sorted by name, owned by root, time 0, numbered from 1.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from labctl.errors import ConfigError, Problem

ALIGNMENT = 512
"""Archives end on a multiple of this, so that another one can follow at once."""

_TRAILER = "TRAILER!!!"


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of an archive. ``path`` is relative to the root: ``bin/busybox``."""

    path: str
    mode: int
    """Type and permissions, as in ``st_mode``."""
    data: bytes = b""
    """Content of a file, or where a symbolic link points."""
    device: tuple[int, int] = (0, 0)
    """Major and minor number of a device node."""


def directory(path: str, permissions: int = 0o755) -> Entry:
    return Entry(path, stat.S_IFDIR | permissions)


def file(path: str, data: bytes, permissions: int = 0o644) -> Entry:
    return Entry(path, stat.S_IFREG | permissions, data)


def symlink(path: str, to: str) -> Entry:
    return Entry(path, stat.S_IFLNK | 0o777, to.encode())


def character_device(path: str, major: int, minor: int, permissions: int = 0o600) -> Entry:
    return Entry(path, stat.S_IFCHR | permissions, device=(major, minor))


def archive(entries: Iterable[Entry]) -> bytes:
    """Entries → an archive, folders above them added. Raises ValueError for a path given twice or not below the root."""
    known: dict[str, Entry] = {}
    for entry in entries:
        parts = PurePosixPath(entry.path).parts
        if not parts or entry.path.startswith("/") or ".." in parts or "\0" in entry.path:
            raise ValueError(f"not a path below the root: {entry.path!r}")
        if entry.path in known:
            raise ValueError(f"given twice: {entry.path!r}")
        known[entry.path] = entry
    for path in list(known):
        for parent in PurePosixPath(path).parents:
            if str(parent) != ".":
                known.setdefault(str(parent), directory(str(parent)))
    # A folder's name is a prefix of what it holds, so sorting puts it first, as the kernel needs.
    members = [_member(number, known[path]) for number, path in enumerate(sorted(known), start=1)]
    members.append(_member(0, Entry(_TRAILER, 0)))
    body = b"".join(members)
    return body + b"\0" * (-len(body) % ALIGNMENT)


def tree(root: Path) -> list[Entry]:
    """A folder on disk as entries: names, content, links, and whether a file is executable; owner, time and umask do not count.

    Raises ConfigError for what cannot stand in an overlay (sockets, pipes, devices, names that are not UTF-8) or be read.
    """
    entries: list[Entry] = []
    for folder, folders, files in os.walk(root, onerror=_unreadable):
        for name in (*folders, *files):
            path = Path(folder, name)
            relative = path.relative_to(root).as_posix()
            try:
                relative.encode()
                mode = path.lstat().st_mode
                if stat.S_ISLNK(mode):
                    entries.append(symlink(relative, str(path.readlink())))
                elif stat.S_ISDIR(mode):
                    entries.append(directory(relative))
                elif stat.S_ISREG(mode):
                    entries.append(file(relative, path.read_bytes(), 0o755 if mode & 0o111 else 0o644))
                else:
                    raise ConfigError([Problem(str(path), "", "a socket, pipe or device", "files, folders and symbolic links")])
            except OSError as error:
                _unreadable(error)
            except UnicodeEncodeError:
                raise ConfigError([Problem(ascii(str(path)), "", "a name that is not UTF-8", "names in UTF-8")]) from None
    return entries


def paths(data: bytes) -> list[str] | None:
    """What stands in archives that follow each other; None if it is not all in this form, for instance compressed."""
    found: list[str] = []
    at = 0
    while at < len(data):
        if data[at : at + 4] == bytes(4):
            at += 4
            continue
        try:
            if data[at : at + 6] not in (b"070701", b"070702"):
                return None
            size, length = int(data[at + 54 : at + 62], 16), int(data[at + 94 : at + 102], 16)
        except ValueError:
            return None
        name = data[at + 110 : at + 110 + length].rstrip(b"\0").decode(errors="surrogateescape")
        if name != _TRAILER:
            found.append(name)
        at = (at + 110 + length + 3) & ~3
        at = (at + size + 3) & ~3
    return found


def _unreadable(error: OSError) -> None:
    raise ConfigError([Problem(str(error.filename), "", f"cannot be read: {error.strerror}", "readable files")]) from None


def _member(number: int, entry: Entry) -> bytes:
    name = entry.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    # inode, mode, uid, gid, links, time, size, device of the archive (2), device (2), name's length, checksum
    fields = (number, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
    header = b"070701" + b"".join(b"%08X" % value for value in fields)
    return _padded(header + name) + _padded(entry.data)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
