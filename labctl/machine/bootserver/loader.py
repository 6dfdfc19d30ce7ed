"""The loader that checks what arrived before it is booted, by BIOS and by UEFI: ``guest/loader``, compiled here once, and what it says
on the console.

iPXE, as machines and QEMU bring it, checks no digest, and TCP's checksum lets through what a broken switch or memory did to a packet.
"""

from __future__ import annotations

import re
from pathlib import Path

from labctl.machine.compiled import compiled

BY_BIOS, BY_UEFI = "loader", "loader.efi"
"""What they are called in an offer."""
_FREESTANDING = (
    *("-O2", "-ffreestanding", "-fno-stack-protector", "-fno-asynchronous-unwind-tables"),
    *("-nostdlib", "-static", "-no-pie", "-s", "-Wl,--build-id=none", "-Wl,-z,noexecstack"),
)
_BIOS_FLAGS = (*_FREESTANDING, "-m32", "-march=i686", "-fno-pic", "-Wl,-T,@/loader.ld")
# Interrupts of the firmware use the same stack and keep no floating point; without relaxing, no address is made absolute.
_UEFI_FLAGS = (
    *(*_FREESTANDING, "-m64", "-fpie", "-fvisibility=hidden", "-mno-red-zone", "-mgeneral-regs-only"),
    *("-Wl,--no-relax", "-Wl,--oformat=binary", "-Wl,-T,@/efi.ld"),
)
_BOTH = ("check.h", "poly1305.h", "poly1305_long.h")
SAID = re.compile(rb"labctl-loader: (?P<part>kernel|cmdline|initrd) poly1305:(?P<tag>[0-9a-f]{32}) (?P<how>ok|is not as sent)")
_LINE = re.compile(rb"labctl-loader: (?P<why>[^\r\n]{1,120})[\r\n]")


def refusal(said: bytes) -> str:
    """Why the loader starts nothing, in its own words; empty if it has not said so."""
    for line in _LINE.finditer(said):
        found = SAID.match(line[0])
        if found is None or found["how"] != b"ok":
            return line["why"].decode(errors="replace")
    return ""


def loaders() -> dict[str, Path]:
    """The programs by their names in an offer, made now if they were never made from these sources. HostToolMissing, DeployError,
    StorageError."""
    return {
        BY_BIOS: compiled("loader", ("start.S", "loader.c", "check.c", "poly1305.c"), _BIOS_FLAGS, also=("loader.ld", *_BOTH)),
        BY_UEFI: for_uefi(),
    }


def for_uefi() -> Path:
    """As `loaders`."""
    return compiled("loader", ("efi.S", "efi.c", "check.c", "poly1305.c", "long.S"), _UEFI_FLAGS, also=("efi.ld", "efi.h", *_BOTH))
