"""A disk image that boots a kernel with its command line and initramfs: MBR, and one FAT partition that is UEFI's system partition as well.
By BIOS it boots by SYSLINUX; by UEFI by the lab's loader, which checks what the disk gave it as it does what the network gave.

Made by mtools and syslinux without root: nothing is mounted. The same input gives the same bytes, so that an installer which finds
them on the disk already is sent nothing: the file system's serial number and its times are always the same.
"""

from __future__ import annotations

import hashlib
import os
import struct
import tempfile
from pathlib import Path

from labctl.deadline import Deadline
from labctl.errors import DeployError, HostToolMissing
from labctl.machine.bootserver.loader import for_uefi
from labctl.machine.bootserver.offer import File
from labctl.machine.bootserver.seal import Seal
from labctl.process import run

MBR = Path("/usr/lib/syslinux/mbr/mbr.bin")
START = 1 << 20
"""Where the partition begins, in bytes."""
_ROOM = 8 << 20
"""For SYSLINUX, the file system's tables, and rounding."""
_SECTOR = 512
_BY_UEFI = "/EFI/BOOT/BOOTX64.EFI"
"""What UEFI boots of a disk that its boot entries do not know (UEFI 3.5.1.1)."""
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
        # Active, an EFI system partition (UEFI 5.2.2), from START to the end. The places by cylinder are not looked at where LBA is.
        image.write(struct.pack("<B3sB3sII", 0x80, b"\xfe\xff\xff", 0xEF, b"\xfe\xff\xff", START // _SECTOR, size // _SECTOR))
        image.seek(510)
        image.write(b"\x55\xaa")
        image.truncate(START + size)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        volume = f"{path}@@{START}"
        for command in (
            [
                "mformat",
                "-i",
                volume,
                "-N",
                _SERIAL,
                "-T",
                str(size // _SECTOR),
                "-h",
                "255",
                "-s",
                "63",
                "-H",
                str(START // _SECTOR),
                "::",
            ],
            ["mmd", "-i", volume, "::/EFI", "::/EFI/BOOT"],
            *(
                ["mcopy", "-i", volume, str(source), f"::{name}"]
                for name, source in _files(Path(folder), kernel, initrd, append, target).items()
            ),
            ["syslinux", "--install", "--offset", str(START), str(path)],
        ):
            done = run(command, deadline, env={**os.environ, "SOURCE_DATE_EPOCH": _EPOCH, "TZ": "UTC"})
            if done.status != 0:
                raise DeployError(f"the disk image cannot be made: {command[0]}: {done.words}", target=target)


def _files(folder: Path, kernel: File, initrd: File | None, append: str, target: str) -> dict[str, Path]:
    """What is on the volume, and where it comes from; what has to be written is written to ``folder``."""
    parts = {"kernel": Path(kernel.path), "cmdline": folder / "cmdline", **({"initrd": Path(initrd.path)} if initrd else {})}
    parts["cmdline"].write_text(append)
    config, sent = folder / "syslinux.cfg", folder / "sent"
    initrd_line = " INITRD /initrd\n" if initrd else ""
    config.write_text(f"DEFAULT labctl\nPROMPT 0\nTIMEOUT 0\nLABEL labctl\n LINUX /kernel\n{initrd_line} APPEND {append}\n")
    # A key of the content, so that the same content is the same image. What goes wrong on a disk does not know it either.
    seal = Seal(hashlib.sha256(f"{kernel.digest} {initrd.digest if initrd else ''} {append}".encode()).digest())
    for part, source in parts.items():
        seal.describe(part, source, "", target)
    sent.write_text(f"loader {seal.words()}")
    return {**{f"/{part}": source for part, source in parts.items()}, "/syslinux.cfg": config, "/sent": sent, _BY_UEFI: for_uefi()}
