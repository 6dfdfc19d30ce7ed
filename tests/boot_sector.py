"""A machine that boots in no time and only talks on its serial port: 512 bytes, which echo what is typed and flood on demand."""

from __future__ import annotations

import subprocess
from pathlib import Path

SOURCE = Path(__file__).parent / "data" / "serial" / "echo.S"
READY = b"READY\r\n"
"""What it says when it has started, and at the end of a flood."""
FLOOD = b"F"
"""Typed: it says so many numbered lines of ten bytes as it was made for, as fast as the port takes them."""


def lines(count: int) -> bytes:
    """What a flood says."""
    return b"".join(b"%08x\r\n" % number for number in range(count)) + READY


def make_disk(disk: Path, flood: int) -> None:
    """A disk image that boots it; ``flood``: lines."""
    raw = disk.with_suffix(".raw")
    object_file = disk.with_suffix(".o")
    subprocess.run(["as", "--32", "--defsym", f"LINES={flood}", "-o", object_file, SOURCE], check=True)
    subprocess.run(
        ["ld", "-m", "elf_i386", "-Ttext", "0x7c00", "--oformat", "binary", "-o", raw, object_file], check=True, stderr=subprocess.DEVNULL
    )
    raw.write_bytes(raw.read_bytes().ljust(1 << 20, b"\0"))
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, disk], check=True)
    raw.unlink()
    object_file.unlink()
