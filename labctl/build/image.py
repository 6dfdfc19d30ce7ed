"""What a kernel's file says about itself: its kind, its architecture, its release. Pure: bytes in, values out.

Formats: ``Documentation/arch/x86/boot.rst`` (bzImage), ``arch/arm64/booting.rst`` and ``arch/riscv/boot-image-header.rst`` (Image), ELF.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

HEAD_BYTES = 1 << 16
"""How much of the start of a file is looked at: a bzImage's version lies behind its setup code, 32 KiB at most."""

_ELF_ARCH = {3: "x86_64", 62: "x86_64", 183: "aarch64", 243: "riscv64"}
_MAX_BANNER = 512


@dataclass(frozen=True, slots=True)
class KernelImage:
    kind: str
    """``bzImage``, ``Image`` or ``ELF``."""
    arch: str
    """The lab's word for the machine that boots it; a 32-bit x86 kernel boots on ``x86_64``. Empty where it cannot be told."""
    banner: str = ""
    """``6.1.0-56-cloud-amd64 (debian-kernel@…) #1 SMP …``; empty where the file does not carry one."""

    @property
    def release(self) -> str:
        """What ``uname -r`` says."""
        return self.banner.split(" ", 1)[0]


class NotAKernel(ValueError):
    """The message says what the file starts with."""


def read(path: Path) -> KernelImage:
    """Look at the start of a file. Raises NotAKernel, OSError."""
    with path.open("rb") as file:
        return identify(file.read(HEAD_BYTES))


def identify(head: bytes) -> KernelImage:
    """The kind of kernel that starts with these bytes. Raises NotAKernel."""
    if head[0x202:0x206] == b"HdrS" and head[0x1FE:0x200] == b"\x55\xaa" and len(head) >= 0x210:
        return KernelImage("bzImage", "x86_64", _banner(head))
    if head[0x38:0x3C] == b"ARM\x64":
        return KernelImage("Image", "aarch64")
    if head[0x38:0x3C] == b"RSC\x05":
        return KernelImage("Image", "riscv64")
    if head[:4] == b"\x7fELF":
        return _elf(head)
    raise NotAKernel(f"starts with {_shown(head)}")


def _banner(head: bytes) -> str:
    """The text that the setup header points at; empty if the pointer is 0 or leaves the setup code."""
    (pointer,) = struct.unpack_from("<H", head, 0x20E)
    if not pointer:
        return ""
    text = head[pointer + 0x200 :][:_MAX_BANNER].split(b"\0", 1)[0].decode("ascii", "replace")
    return text if text.isprintable() and text.isascii() else ""


def _elf(head: bytes) -> KernelImage:
    """An executable that asks for no interpreter. Objects and programs that need a dynamic linker are not kernels."""
    if len(head) < 64 or head[5] != 1:
        raise NotAKernel("is an ELF file of the wrong byte order, or cut off")
    wide = head[4] == 2
    kind, machine = struct.unpack_from("<HH", head, 16)
    if kind not in (2, 3):
        raise NotAKernel("is an ELF file that is not an executable")
    table, size, count = (
        (struct.unpack_from("<Q", head, 32)[0], *struct.unpack_from("<HH", head, 54))
        if wide
        else (struct.unpack_from("<I", head, 28)[0], *struct.unpack_from("<HH", head, 42))
    )
    headers = (head[start : start + 4] for start in range(table, min(table + size * count, len(head)), size or 1))
    if any(len(header) == 4 and struct.unpack("<I", header)[0] == 3 for header in headers):
        raise NotAKernel("is a program that runs on a kernel, not one")
    return KernelImage("ELF", _ELF_ARCH.get(machine, ""))


def _shown(head: bytes) -> str:
    if not head:
        return "nothing: it is empty"
    start = head[:8]
    text = start.decode("ascii", "replace")
    known = {
        b"\x1f\x8b": " (gzip)",
        b"!<arch>": " (a Debian package or an archive)",
        b"070701": " (a cpio archive)",
        b"QFI\xfb": " (a qcow2 image)",
    }
    kind = next((name for magic, name in known.items() if head.startswith(magic)), "")
    return (repr(text) if text.isprintable() and text.isascii() else start.hex(" ")) + kind
