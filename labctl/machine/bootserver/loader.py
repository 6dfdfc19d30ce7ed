"""The loader that checks what arrived before it is booted: ``guest/loader``, compiled here once, and what it says on the console.

iPXE, as machines and QEMU bring it, checks no digest, and TCP's checksum lets through what a broken switch or memory did to a packet.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from pathlib import Path

from labctl.config import cache_folder, shipped
from labctl.deadline import Deadline
from labctl.errors import DeployError, StorageError
from labctl.process import run

_SOURCES = ("start.S", "loader.c", "loader.ld")
_FLAGS = (
    *("-m32", "-march=i686", "-O2", "-ffreestanding", "-fno-pic", "-no-pie", "-fno-stack-protector", "-fno-asynchronous-unwind-tables"),
    *("-nostdlib", "-static", "-s", "-Wl,--build-id=none", "-Wl,-z,noexecstack"),
)
SAID = re.compile(rb"labctl-loader: (?P<part>kernel|cmdline|initrd) sha256:(?P<digest>[0-9a-f]{64}) (?P<how>ok|is not as sent)")
GAVE_UP = re.compile(rb"labctl-loader: (?P<why>[^\r\n]{1,120})[\r\n]")


def loader() -> Path:
    """The program, made now if it was never made from these sources. HostToolMissing, DeployError, StorageError."""
    folder = shipped("guest") / "loader"
    sources = [folder / name for name in _SOURCES]
    key = hashlib.sha256(repr((_FLAGS, [source.read_bytes() for source in sources])).encode()).hexdigest()[:16]
    made = cache_folder() / f"loader-{key}"
    if made.exists():
        return made
    try:
        made.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=made.parent, prefix="loader-") as file:
            words = ["gcc", *_FLAGS, f"-Wl,-T,{folder / 'loader.ld'}", "-o", file.name, *map(str, sources[:2])]
            done = run(words, Deadline.after(60))
            if done.status != 0:
                raise DeployError(f"the loader that checks what arrived cannot be made: {done.words}")
            os.link(file.name, made)
    except FileExistsError:
        pass  # by another process meanwhile
    except OSError as error:
        raise StorageError(f"{made}: {error.strerror}", remedy="set LABCTL_CACHE to a folder that can be written") from None
    return made
