"""The loader that checks what arrived before it is booted: ``guest/loader``, compiled here once, and what it says on the console.

iPXE, as machines and QEMU bring it, checks no digest, and TCP's checksum lets through what a broken switch or memory did to a packet.
"""

from __future__ import annotations

import re
from pathlib import Path

from labctl.machine.compiled import compiled

_FLAGS = (
    *("-m32", "-march=i686", "-O2", "-ffreestanding", "-fno-pic", "-no-pie", "-fno-stack-protector", "-fno-asynchronous-unwind-tables"),
    *("-nostdlib", "-static", "-s", "-Wl,--build-id=none", "-Wl,-z,noexecstack", "-Wl,-T,@/loader.ld"),
)
SAID = re.compile(rb"labctl-loader: (?P<part>kernel|cmdline|initrd) poly1305:(?P<tag>[0-9a-f]{32}) (?P<how>ok|is not as sent)")
GAVE_UP = re.compile(rb"labctl-loader: (?P<why>[^\r\n]{1,120})[\r\n]")


def loader() -> Path:
    """The program, made now if it was never made from these sources. HostToolMissing, DeployError, StorageError."""
    return compiled("loader", ("start.S", "loader.c", "poly1305.c"), _FLAGS, also=("loader.ld", "poly1305.h", "poly1305_long.h"))
