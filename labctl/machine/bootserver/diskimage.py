"""A disk image that boots a kernel with its command line and initramfs, as any PC's BIOS boots a disk: MBR, one FAT partition, SYSLINUX.

Made by mtools and syslinux without root: nothing is mounted. The same input gives the same bytes, so that an installer which finds
them on the disk already is sent nothing: the file system's serial number and its times are always the same.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

from labctl.deadline import Deadline
from labctl.errors import DeployError, HostToolMissing
from labctl.machine.bootserver.offer import File
from labctl.process import run

MBR = Path("/usr/lib/syslinux/mbr/mbr.bin")
START = 1 << 20
"""Where the partition begins, in bytes."""
_ROOM = 8 << 20
"""For SYSLINUX, the file system's tables, and rounding."""
_SECTOR = 512
_SERIAL = "4c414243"
_EPOCH = "315532800"
"""1980-01-01, where a FAT file system's time begins, for mtools (https://reproducible-builds.org/specs/source-date-epoch/)."""
_LONGEST = 2047
"""Characters of a command line that SYSLINUX passes on."""


def make(path: Path, kernel: File, initrd: File | None, append: str, deadline: Deadline, target: str) -> None:
    """DeployError with the tool's own words; HostToolMissing."""
    if len(append) > _LONGEST or "\n" in append:
        raise DeployError(f"a boot loader on a disk takes {_LONGEST} characters of command line, of one line", target=target)
    if not MBR.exists():
        raise HostToolMissing(f"the host has no {MBR}", remedy="apt-get install -y syslinux-common")
    size = -(-(kernel.size + (initrd.size if initrd else 0) + _ROOM) // START) * START
    with path.open("wb") as image:
        image.write(MBR.read_bytes().ljust(440, b"\0")[:440])
        image.seek(446)
        # Active, FAT32 with LBA, from START to the end. The places by cylinder are not looked at where LBA is.
        image.write(struct.pack("<B3sB3sII", 0x80, b"\xfe\xff\xff", 0x0C, b"\xfe\xff\xff", START // _SECTOR, size // _SECTOR))
        image.seek(510)
        image.write(b"\x55\xaa")
        image.truncate(START + size)
    config = path.with_suffix(".cfg")
    initrd_line = " INITRD /initrd\n" if initrd else ""
    config.write_text(f"DEFAULT labctl\nPROMPT 0\nTIMEOUT 0\nLABEL labctl\n LINUX /kernel\n{initrd_line} APPEND {append}\n")
    volume = f"{path}@@{START}"
    files = {"/kernel": kernel.path, **({"/initrd": initrd.path} if initrd else {}), "/syslinux.cfg": str(config)}
    for command in (
        ["mformat", "-i", volume, "-N", _SERIAL, "-T", str(size // _SECTOR), "-h", "255", "-s", "63", "-H", str(START // _SECTOR), "::"],
        *(["mcopy", "-i", volume, source, f"::{name}"] for name, source in files.items()),
        ["syslinux", "--install", "--offset", str(START), str(path)],
    ):
        done = run(command, deadline, env={**os.environ, "SOURCE_DATE_EPOCH": _EPOCH, "TZ": "UTC"})
        if done.status != 0:
            raise DeployError(f"the disk image cannot be made: {command[0]}: {done.words}", target=target)
    config.unlink()
