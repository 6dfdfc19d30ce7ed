"""The plugin that counts a machine's instructions (icount.c), built with the host's gcc when first needed and kept in the cache, and the
memory that it counts in."""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from labctl import process
from labctl.config import cache_error, cache_folder
from labctl.deadline import Deadline
from labctl.errors import HostToolMissing
from labctl.parsers import icount

SOURCE = Path(__file__).with_name("icount.c")
_FLAGS = ("-std=gnu11", "-O2", "-shared", "-fPIC", "-fvisibility=hidden")
_BUILD_DEADLINE = 60.0
_CONSOLE_BYTES = 1 << 20
"""Bytes of a boot's console whose counts are kept: a chatty kernel says a tenth of that."""


def plugin() -> Path:
    """The shared object, made now if it is not there. HostToolMissing without gcc, or if its compiler does not work; StorageError."""
    source = SOURCE.read_bytes()
    name = hashlib.sha256(b"\0".join((source, " ".join(_FLAGS).encode(), os.uname().machine.encode()))).hexdigest()[:32]
    path = cache_folder() / "plugins" / f"icount-{name}.so"
    if path.is_file():
        return path
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        made = process.run(["gcc", *_FLAGS, "-o", str(draft), str(SOURCE)], Deadline.after(_BUILD_DEADLINE))
        if made.status != 0:
            raise HostToolMissing(
                f"the plugin that counts instructions cannot be built: {made.words}", remedy="apt-get install -y gcc libc6-dev"
            )
        draft.replace(path)  # whole or not at all, whoever else builds it
    except OSError as error:
        raise cache_error(path.parent, error) from None
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
    return path


def arguments(
    counts: Counts | None, console: Sequence[int], trace: Path, trace_at: Sequence[int], handed_over: ExitStack
) -> tuple[list[int], list[str], dict[str, str] | None]:
    """What QEMU with the plugin needs: file descriptors (``handed_over`` closes those that are only its), arguments, environment.

    ``console`` is its end of the serial port, a socket; ``trace`` the file of snapshots at the bytes ``trace_at``, if there are any."""
    if counts is None:
        return [], [], None
    path = plugin()
    fds = [counts.fd]
    words = f"file={path},console={console[0]},counts={counts.fd}"
    if trace_at:
        file = handed_over.enter_context(trace.open("wb"))
        fds.append(file.fileno())
        words += f",trace={file.fileno()},at={':'.join(map(str, trace_at))}"
    return fds, ["-plugin", words], {**os.environ, "LD_PRELOAD": str(path)}


@dataclass
class Counts:
    """Memory shared with the plugin of one machine, for as long as that is on."""

    cpus: int
    fd: int = field(init=False)

    def __post_init__(self) -> None:
        size = 64 + 8 * self.cpus * _CONSOLE_BYTES
        self.fd = os.memfd_create("labctl-icount", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, size)  # taken page by page as the console speaks
        self._memory = mmap.mmap(self.fd, size)

    @property
    def loaded(self) -> bool:
        """Whether the plugin is at work."""
        return icount.loaded(self._memory)

    def at(self, offset: int) -> tuple[int, ...] | None:
        """Instructions of each CPU when byte ``offset`` since power-on was sent; None if it was not, or comes too late to be kept."""
        return icount.counts_at(self._memory, offset)

    def close(self) -> None:
        self._memory.close()
        os.close(self.fd)
