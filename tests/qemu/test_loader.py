"""The loader in a machine of its own: what it says of files that arrive as they were sent, and of others: by BIOS, with words of 64 bits and of 32,
and by UEFI."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest

from labctl.machine.bootserver.loader import SAID, for_uefi, loaders, refusal
from labctl.machine.bootserver.offer import File, Offer, Shelf, describe
from labctl.machine.bootserver.script import boot_script
from labctl.machine.bootserver.seal import Seal
from labctl.machine.bootserver.web import serving
from labctl.model import Build
from labctl.virtualserver.machine import OVMF

pytestmark = pytest.mark.qemu
SIZES = {"kernel": 3_000_001, "cmdline": 30, "initrd": 1_000_007}
MACHINES = {"BIOS, 64 bits": "max", "BIOS, 32 bits": "pentium3", "UEFI": "max"}
BY_NETWORK, BY_DISK = "by network", "by disk"


@pytest.fixture(params=MACHINES)
def machine(request: pytest.FixtureRequest) -> str:
    if request.param == "UEFI" and not OVMF.exists():
        pytest.skip("needs Debian's package ovmf")
    return str(request.param)


def said_by_the_loader(
    folder: Path,
    machine: str,
    spoil: str = "",
    at: int = 0,
    contents: Mapping[str, bytes] = MappingProxyType({}),
    way: str = BY_NETWORK,
    until: bytes = b"",
) -> bytes:
    """``spoil``: a file that has another byte there when it is sent than when it got its tag. ``contents`` of files that are no noise."""
    seal, files = Seal(), {name: describe(program, "", "") for name, program in loaders().items()}
    for part, size in SIZES.items():
        path = folder / part
        noise = os.urandom(size) if part != "cmdline" else b"console=ttyS0,115200 quiet".ljust(size)
        path.write_bytes(contents.get(part, noise))
        files[part] = seal.describe(part, path, "", "")
    if spoil:
        with (folder / spoil).open("r+b") as file:
            file.seek(at, os.SEEK_END if at < 0 else os.SEEK_SET)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 1]))
    return _by_disk(folder, machine, seal, until) if way == BY_DISK else _by_network(folder, machine, seal, files, until)


def _by_network(folder: Path, machine: str, seal: Seal, files: dict[str, File], until: bytes) -> bytes:
    shelf = Shelf(folder)
    offer = Offer("rack1", "", "", files)
    offer = replace(offer, script=boot_script(offer.token, files, seal))
    with shelf.offering(offer), serving(shelf, "127.0.0.1", 0) as port:
        words = ["-netdev", f"user,id=n0,bootfile=http://10.0.2.2:{port}/boot.ipxe", "-device", "virtio-net-pci,netdev=n0,bootindex=0"]
        return _heard(folder, machine, words, until)


def _by_disk(folder: Path, machine: str, seal: Seal, until: bytes) -> bytes:
    """QEMU makes a FAT of a folder."""
    disk = folder / "disk"
    (disk / "EFI/BOOT").mkdir(parents=True)
    shutil.copyfile(for_uefi(), disk / "EFI/BOOT/BOOTX64.EFI")
    (disk / "sent").write_text(f"loader {seal.words()}")
    for part in SIZES:
        (folder / part).rename(disk / part)
    words = ["-drive", f"if=none,id=d0,format=raw,readonly=on,file=fat:{disk}", "-device", "virtio-blk-pci,drive=d0,bootindex=0"]
    return _heard(folder, machine, words, until)


def _heard(folder: Path, machine: str, more: list[str], until: bytes) -> bytes:
    words = ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-machine", "q35,graphics=off", "-m", "256M", "-serial", "stdio"]
    if machine == "UEFI":
        shutil.copyfile(OVMF / "OVMF_VARS_4M.fd", folder / "variables.fd")
        words += ["-drive", f"if=pflash,format=raw,readonly=on,file={OVMF / 'OVMF_CODE_4M.fd'}"]
        words += ["-drive", f"if=pflash,format=raw,file={folder / 'variables.fd'}"]
    words += ["-accel", "tcg", "-cpu", MACHINES[machine], "-boot", "strict=on", *more]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        try:
            heard, limit, pressed = b"", time.monotonic() + 120, False
            while time.monotonic() < limit and not refusal(heard) and not (until and until in heard):
                if select.select([running.stdout], [], [], 1)[0]:
                    heard += os.read(running.stdout.fileno(), 4096)
                if not pressed and b"command line..." in heard:
                    pressed = running.stdin.write(b" ") > 0
                    running.stdin.flush()
            return heard
        finally:
            running.kill()


def found(heard: bytes) -> list[tuple[str, bytes]]:
    return [(words["part"].decode(), words["how"]) for words in SAID.finditer(heard)]


def test_what_arrives_as_it_was_sent(tmp_path: Path, machine: str) -> None:
    heard = said_by_the_loader(tmp_path, machine)
    assert found(heard) == [(part, b"ok") for part in SIZES]
    # Found right, and then looked at: it is noise.
    why = b"is no EFI program, nor a Linux that has an EFI stub" if machine == "UEFI" else b"is no bzImage"
    assert b"labctl-loader: kernel: " + why + b"\r" in heard


@pytest.mark.parametrize(
    ("part", "at"), [("kernel", 0), ("kernel", 1_500_000), ("kernel", -1), ("cmdline", -1), ("initrd", 0), ("initrd", -1)]
)
def test_one_bit_that_is_another(tmp_path: Path, machine: str, part: str, at: int) -> None:
    heard = said_by_the_loader(tmp_path, machine, part, at, way=BY_DISK if machine == "UEFI" else BY_NETWORK)
    before = list(SIZES)[: list(SIZES).index(part)]
    assert found(heard) == [*((name, b"ok") for name in before), (part, b"is not as sent")]
    assert b"labctl-loader: kernel: " not in heard


def _with(kernel: bytes, at: int, value: bytes) -> bytes:
    return kernel[:at] + value + kernel[at + len(value) :]


def _pe(kernel: bytes) -> int:
    return int.from_bytes(kernel[0x3C:0x40], "little")


REFUSED: dict[str, tuple[Callable[[bytes], bytes], bytes, bytes]] = {
    "no EFI stub": (lambda kernel: _with(kernel, 0, b"\0\0"), b"", b"kernel: has no EFI stub (CONFIG_EFI_STUB)"),
    "another processor's": (
        lambda kernel: _with(kernel, _pe(kernel) + 4, b"\x64\xaa"),
        b"",
        b"kernel: is an EFI program for another processor",
    ),
    "cut off": (lambda kernel: kernel[:1_000_000], b"", b"kernel: is not taken by the firmware: 0x8000000000000003"),
    "a header that points nowhere": (lambda kernel: _with(kernel, 0x3C, b"\xf0\xff\xff\xff"), b"", b"kernel: has no EFI stub"),
    "many words": (lambda kernel: kernel, b"x" * 2048, b"cmdline: is longer than this kernel takes"),
    "words of two lines": (lambda kernel: kernel, b"a\nb", b"cmdline: has a line's end, or a zero, in it"),
    "words that are cut off": (lambda kernel: kernel, "𝄞".encode()[:-1], b"cmdline: is not UTF-8"),
}


@pytest.mark.skipif(not OVMF.exists(), reason="needs Debian's package ovmf")
@pytest.mark.parametrize("what", REFUSED)
def test_what_uefi_does_not_start_is_told(tmp_path: Path, debian: Build, what: str) -> None:
    spoilt, words, why = REFUSED[what]
    contents = {"kernel": spoilt(debian.kernel.read_bytes()), "cmdline": b"console=ttyS0,115200 " + words}
    heard = said_by_the_loader(tmp_path, "UEFI", contents=contents, way=BY_DISK)
    assert found(heard) == [(part, b"ok") for part in SIZES]
    assert b"labctl-loader: " + why in heard


@pytest.mark.skipif(not OVMF.exists(), reason="needs Debian's package ovmf")
def test_an_older_kernel_reads_its_initramfs_from_ipxe(tmp_path: Path, debian: Build) -> None:
    """One that says by its version that it knows no other way."""
    assert debian.initrd is not None
    kernel = debian.kernel.read_bytes()
    older = _with(kernel, _pe(kernel) + 24 + 44, b"\0\0")
    assert older != kernel
    contents = {"kernel": older, "cmdline": b"console=ttyS0,115200", "initrd": debian.initrd.read_bytes()}
    heard = said_by_the_loader(tmp_path, "UEFI", contents=contents, until=b"labctl-guest: ready")
    assert b"EFI stub: Loaded initrd from command line option" in heard
    assert b"Command line: initrd=initrd console=ttyS0,115200\r\n" in heard
    assert b"labctl-guest: ready" in heard
