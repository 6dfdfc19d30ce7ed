"""The loader in a machine of its own: what it says of files that arrive as they were sent, and of others, with words of 64 bits and of 32."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from labctl.machine.bootserver.loader import GAVE_UP, SAID, loader
from labctl.machine.bootserver.offer import Offer, Shelf, describe
from labctl.machine.bootserver.script import boot_script
from labctl.machine.bootserver.seal import Seal
from labctl.machine.bootserver.web import serving

pytestmark = pytest.mark.qemu
SIZES = {"kernel": 3_000_001, "cmdline": 30, "initrd": 1_000_007}
CPUS = {"64 bits": "max", "32 bits": "pentium3"}


def said_by_the_loader(folder: Path, cpu: str, spoil: str = "", at: int = 0) -> bytes:
    """``spoil``: a file that has another byte there when it is sent than when it got its tag."""
    seal, shelf, files = Seal(), Shelf(folder), {"loader": describe(loader(), "", "")}
    for part, size in SIZES.items():
        path = folder / part
        path.write_bytes(os.urandom(size) if part != "cmdline" else b"console=ttyS0,115200 quiet".ljust(size))
        files[part] = seal.describe(part, path, "", "")
    if spoil:
        with (folder / spoil).open("r+b") as file:
            file.seek(at, os.SEEK_END if at < 0 else os.SEEK_SET)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 1]))
    offer = Offer("rack1", "", "", files)
    offer = Offer("rack1", "", boot_script(offer.token, files, "quiet", seal), files, offer.token)
    with shelf.offering(offer), serving(shelf, "127.0.0.1", 0) as port:
        words = ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-machine", "q35,graphics=off", "-m", "128M", "-serial", "stdio"]
        words += ["-accel", "tcg", "-cpu", cpu, "-boot", "strict=on", "-netdev", f"user,id=n0,bootfile=http://10.0.2.2:{port}/boot.ipxe"]
        words += ["-device", "virtio-net-pci,netdev=n0,bootindex=0"]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as machine:
            assert machine.stdin is not None
            assert machine.stdout is not None
            try:
                heard, limit, pressed = b"", time.monotonic() + 120, False
                while time.monotonic() < limit and not GAVE_UP.search(SAID.sub(b"", heard)) and b"is not as sent" not in heard:
                    heard += os.read(machine.stdout.fileno(), 4096)
                    if not pressed and b"command line..." in heard:
                        pressed = machine.stdin.write(b" ") > 0
                        machine.stdin.flush()
                return heard
            finally:
                machine.kill()


@pytest.mark.parametrize("bits", CPUS)
def test_what_arrives_as_it_was_sent(tmp_path: Path, bits: str) -> None:
    heard = said_by_the_loader(tmp_path, CPUS[bits])
    assert [(words["part"].decode(), words["how"]) for words in SAID.finditer(heard)] == [(part, b"ok") for part in SIZES]
    assert b"labctl-loader: kernel: is no bzImage" in heard  # found right, and then looked at: it is noise


@pytest.mark.parametrize("bits", CPUS)
@pytest.mark.parametrize(
    ("part", "at"), [("kernel", 0), ("kernel", 1_500_000), ("kernel", -1), ("cmdline", -1), ("initrd", 0), ("initrd", -1)]
)
def test_one_bit_that_is_another(tmp_path: Path, bits: str, part: str, at: int) -> None:
    heard = said_by_the_loader(tmp_path, CPUS[bits], part, at)
    found = [(words["part"].decode(), words["how"]) for words in SAID.finditer(heard)]
    before = list(SIZES)[: list(SIZES).index(part)]
    assert found == [*((name, b"ok") for name in before), (part, b"is not as sent")]
    assert b"is no bzImage" not in heard
