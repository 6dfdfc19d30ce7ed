"""Whether this host's KVM really starts a guest.

``/dev/kvm`` that opens is not enough, nor is one that runs real-mode code: on some nested hosts the guest then hangs for ever
on its way into long mode. So the probe is a real guest: a ROM of 64 KiB that goes from the reset vector through protected mode
into long mode with paging, works on a stack, and says so through QEMU's debug-exit port. It takes some 40 ms where KVM works;
the answer is kept until the host reboots, ``/dev/kvm`` changes or QEMU does.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from labctl import process
from labctl.config import cache_error, cache_folder
from labctl.deadline import Deadline
from labctl.errors import HostToolMissing, ManagementError

KVM = Path("/dev/kvm")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
PROBE_SECONDS = 3.0

# guest/kvm_probe.S, assembled; a test assembles it again and compares.
_PROBE = bytes.fromhex(
    "fa2e660f01169bff0f20c00c010f22c066ea18ff0f00080066b810008ed88ec08ed031c0bf00100000b9000c0000fcf3abc7050010000003"
    "200000c7050020000003300000c7050030000083000000b8001000000f22d80f20e083c8200f22e0b9800000c00f320d000100000f300f20"
    "c00d000000800f22c0ea80ff0f001800bc00400000bba08601005331c05bffcb75f80fa2b015e6f4f4ebfd1f00a1ff0f0000000000000000"
    "00ffff0000009acf00ffff00000092cf00ffff0000009aaf00"
)
_PROBE_AT = 0xFF00
_RESET_VECTOR = 0xFFF0
_EXIT_CODE = (0x15 << 1) | 1  # QEMU's isa-debug-exit: what the guest wrote, shifted, plus one


@dataclass(frozen=True, slots=True)
class Accel:
    """What QEMU's ``-accel`` is given, and the one line that says why."""

    name: Literal["kvm", "tcg"]
    why: str


def probe_kvm() -> Accel:
    """Start the smallest real guest under KVM, at most once a boot of the host. HostToolMissing without QEMU; StorageError."""
    if platform.machine() != "x86_64":
        return Accel("tcg", f"KVM is probed on x86_64 hosts only; this is {platform.machine()}")
    if not KVM.exists():
        return Accel("tcg", "the host has no /dev/kvm")
    if not os.access(KVM, os.R_OK | os.W_OK):
        return Accel("tcg", "/dev/kvm may not be opened by this user")
    identity = _identity()
    file = cache_folder() / "kvm.json"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a+b") as cached:
            fcntl.flock(cached, fcntl.LOCK_EX)  # one probe for many workers that begin at once
            cached.seek(0)
            known = _parse(cached.read(), identity)
            if known is not None:
                return known
            found = _start_guest()
            cached.truncate(0)
            cached.write(json.dumps({"schema": 1, "identity": identity, "name": found.name, "why": found.why}).encode())
            return found
    except OSError as error:
        raise cache_error(file, error) from None


def choose(wanted: Literal["auto", "kvm", "tcg"]) -> Accel:
    """The accelerator to use. HostToolMissing if ``kvm`` is asked for and does not start a guest."""
    if wanted == "tcg":
        return Accel("tcg", "asked for")
    found = probe_kvm()
    if wanted == "kvm" and found.name != "kvm":
        raise HostToolMissing(f"KVM was asked for, but {found.why}", remedy='give accel = "auto" to the target\'s qemu driver')
    return found


def _identity() -> list[str]:
    """What the answer depends on."""
    device = KVM.stat()
    qemu = Path(process.find("qemu-system-x86_64")).resolve()
    program = qemu.stat()
    return [
        BOOT_ID.read_text().strip(),
        f"{device.st_rdev:x}.{device.st_ino}.{device.st_ctime_ns}",
        f"{qemu}.{program.st_size}.{program.st_mtime_ns}",
    ]


def _parse(raw: bytes, identity: list[str]) -> Accel | None:
    """A kept answer, if it is one and still holds."""
    try:
        match json.loads(raw):
            case {"schema": 1, "identity": list() as kept, "name": "kvm" | "tcg" as name, "why": str() as why} if kept == identity:
                return Accel(name, why)
    except ValueError:
        pass
    return None


def _start_guest() -> Accel:
    with tempfile.TemporaryDirectory(prefix="labctl-kvm-") as folder:
        rom = Path(folder) / "probe.rom"
        rom.write_bytes(probe_rom())
        try:
            done = process.run(probe_command(rom, "kvm"), Deadline.after(PROBE_SECONDS))
        except ManagementError:
            return Accel("tcg", f"a guest hangs under this host's KVM (not in long mode after {PROBE_SECONDS:g} s)")
    if done.status == _EXIT_CODE:
        return Accel("kvm", "a guest ran under KVM")
    return Accel("tcg", f"QEMU cannot use KVM: {done.words or f'exit status {done.status}'}")


def probe_rom() -> bytes:
    """The guest: all of a PC's BIOS region."""
    rom = bytearray(b"\xf4" * 0x10000)  # hlt
    rom[_PROBE_AT : _PROBE_AT + len(_PROBE)] = _PROBE
    rom[_RESET_VECTOR : _RESET_VECTOR + 3] = b"\xe9" + ((_PROBE_AT - _RESET_VECTOR - 3) & 0xFFFF).to_bytes(2, "little")
    return bytes(rom)


def probe_command(rom: Path, accel: str) -> list[str]:
    return [
        *("qemu-system-x86_64", "-accel", accel, "-machine", "pc", "-m", "2", "-bios", str(rom)),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-device", "isa-debug-exit,iobase=0xf4,iosize=1"),
    ]
