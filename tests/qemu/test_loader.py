"""The loader in a machine of its own: what it says of files that arrive as they were sent, and of others: by BIOS, with words of 64 bits and of 32,
and by UEFI."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from labctl.machine.bootserver.loader import SAID, loaders, refusal
from labctl.machine.bootserver.offer import Offer, Shelf, describe
from labctl.machine.bootserver.script import boot_script
from labctl.machine.bootserver.seal import Seal
from labctl.machine.bootserver.web import serving
from labctl.virtualserver.machine import OVMF

pytestmark = pytest.mark.qemu
SIZES = {"kernel": 3_000_001, "cmdline": 30, "initrd": 1_000_007}
MACHINES = {"BIOS, 64 bits": "max", "BIOS, 32 bits": "pentium3", "UEFI": "max"}


@pytest.fixture(params=MACHINES)
def machine(request: pytest.FixtureRequest) -> str:
    if request.param == "UEFI" and not OVMF.exists():
        pytest.skip("needs Debian's package ovmf")
    return str(request.param)


def said_by_the_loader(
    folder: Path, machine: str, spoil: str = "", at: int = 0, contents: Mapping[str, bytes] = MappingProxyType({}), until: bytes = b""
) -> bytes:
    """``spoil``: a file that has another byte there when it is sent than when it got its tag. ``contents`` of files that are no noise."""
    seal, shelf = Seal(), Shelf(folder)
    files = {name: describe(program, "", "") for name, program in loaders().items()}
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
    offer = Offer("rack1", "", "", files)
    offer = Offer("rack1", "", boot_script(offer.token, files, seal), files, offer.token)
    with shelf.offering(offer), serving(shelf, "127.0.0.1", 0) as port:
        words = ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-machine", "q35,graphics=off", "-m", "256M", "-serial", "stdio"]
        if machine == "UEFI":
            shutil.copyfile(OVMF / "OVMF_VARS_4M.fd", folder / "variables.fd")
            words += ["-drive", f"if=pflash,format=raw,readonly=on,file={OVMF / 'OVMF_CODE_4M.fd'}"]
            words += ["-drive", f"if=pflash,format=raw,file={folder / 'variables.fd'}"]
        words += [
            "-accel",
            "tcg",
            "-cpu",
            MACHINES[machine],
            "-boot",
            "strict=on",
            "-netdev",
            f"user,id=n0,bootfile=http://10.0.2.2:{port}/boot.ipxe",
        ]
        words += ["-device", "virtio-net-pci,netdev=n0,bootindex=0"]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
            assert running.stdin is not None
            assert running.stdout is not None
            try:
                heard, limit, pressed = b"", time.monotonic() + 120, False
                while time.monotonic() < limit and not refusal(heard) and not (until and until in heard):
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
    heard = said_by_the_loader(tmp_path, machine, part, at)
    before = list(SIZES)[: list(SIZES).index(part)]
    assert found(heard) == [*((name, b"ok") for name in before), (part, b"is not as sent")]
    assert b"labctl-loader: kernel: " not in heard
