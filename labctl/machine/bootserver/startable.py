"""Which kernels the loader starts: a bzImage of Linux, and by UEFI whatever is an EFI program for x86_64. Known from the file's beginning.

Which of the two a machine's firmware takes is not known before it boots: what the one takes and the other does not, the loader says itself.
"""

from __future__ import annotations

from pathlib import Path

from labctl.errors import DeployError

_HEAD = 4096
_X86_64 = b"\x64\x86"


def is_startable(head: bytes) -> bool:
    """Documentation/arch/x86/boot.rst; Microsoft's PE format."""
    if head[0x202:0x206] == b"HdrS":
        return True
    pe = int.from_bytes(head[0x3C:0x40], "little")
    return head[:2] == b"MZ" and head[pe : pe + 6] == b"PE\0\0" + _X86_64


def refuse_others(kernel: Path, build: str, target: str) -> None:
    """DeployError for a kernel that no loader starts. One that cannot be read is another's to tell."""
    try:
        with kernel.open("rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return
    if is_startable(head):
        return
    what = "an ELF file" if head[:4] == b"\x7fELF" else "another file"
    raise DeployError(
        f"the kernel of {build} is {what}: over the network a machine boots a bzImage of Linux, or by UEFI an EFI program for x86_64",
        target=target,
        remedy="a target of the driver qemu boots it by -kernel",
    )
