"""Which kernels can be booted over the network, by the beginning of their files."""

from __future__ import annotations

from pathlib import Path

import pytest

from labctl.errors import DeployError
from labctl.machine.bootserver.startable import is_startable, refuse_others

BZIMAGE = bytes(0x202) + b"HdrS" + bytes(100)
EFI = b"MZ" + bytes(0x3A) + (0x80).to_bytes(4, "little") + bytes(0x40) + b"PE\0\0\x64\x86" + bytes(100)


@pytest.mark.parametrize("head", [BZIMAGE, EFI])
def test_what_a_loader_starts(head: bytes, tmp_path: Path) -> None:
    assert is_startable(head)
    (tmp_path / "kernel").write_bytes(head)
    refuse_others(tmp_path / "kernel", "mine", "rack1")


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (b"\x7fELF\x02\x01\x01" + bytes(5000), "an ELF file"),  # the reference kernel, Xen
        (EFI.replace(b"\x64\x86", b"\x64\xaa"), "another file"),  # an arm64 Image
        (EFI[:0x81], "another file"),
        (b"MZ" + b"\xff" * 4094, "another file"),
        (b"", "another file"),
    ],
)
def test_what_none_starts(head: bytes, what: str, tmp_path: Path) -> None:
    assert not is_startable(head)
    (tmp_path / "kernel").write_bytes(head)
    with pytest.raises(DeployError, match=f"the kernel of mine is {what}: over the network a machine boots a bzImage"):
        refuse_others(tmp_path / "kernel", "mine", "rack1")
