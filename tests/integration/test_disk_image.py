"""The disk image that an installer writes, made by the real mtools and syslinux."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from labctl.deadline import Deadline
from labctl.machine.bootserver import diskimage
from labctl.machine.bootserver.offer import describe

pytestmark = pytest.mark.qemu


def test_the_same_build_is_the_same_image(tmp_path: Path) -> None:
    """To the byte, at another time: what is on the disk already is not sent again."""
    for name in ("kernel", "initrd"):
        (tmp_path / name).write_bytes(name.encode() * 100_000)
    kernel, initrd = (describe(tmp_path / name, "build", "rack") for name in ("kernel", "initrd"))
    images = []
    for name in ("one", "two"):
        if images:
            time.sleep(2.1)  # a FAT's times are of two seconds
        diskimage.make(tmp_path / name, kernel, initrd, "console=ttyS0", Deadline.after(60), "rack")
        images.append((tmp_path / name).read_bytes())
    assert images[0] == images[1]
    assert len(images[0]) > 1_200_000
