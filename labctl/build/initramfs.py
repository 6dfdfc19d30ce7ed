"""The lab's own initramfs: a static busybox of the host, `guest/init`, and nothing else. Same inputs, same bytes.

It is not compressed: unpacking 2 MB costs a guest under emulation 20 ms less than inflating half of that.
There are no links for busybox' applets: its shell finds them in itself, and 270 links cost 18 ms of each boot under emulation.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from labctl.build import cpio
from labctl.build.cache import Artefact, Cache, Made, now
from labctl.config import shipped
from labctl.deadline import Deadline
from labctl.errors import HostToolMissing, StorageError
from labctl.model import Build, Provenance, build_digest
from labctl.process import find, run

_MACHINES = {"x86_64": 62, "aarch64": 183, "riscv64": 243}
_INSTALL = "apt-get install -y busybox-static"
_FOLDERS = ("dev", "etc", "proc", "root", "run", "sys", "tmp")
# What programs that are not the shell call by path.
_LINKS = {"bin/sh": "busybox", "sbin/poweroff": "../bin/busybox", "sbin/reboot": "../bin/busybox", "usr/bin/env": "../../bin/busybox"}


def base(arch: str, cache: Cache, deadline: Deadline, progress: Callable[[str], None] = lambda _: None) -> Artefact:
    """The initramfs for an architecture, its file under ``initrd``. HostToolMissing without a static busybox for it."""
    busybox = Path(find("busybox")).resolve()
    guest = shipped("guest")
    sources = {path: (guest / name).read_bytes() for name, path in (("init", "init"), ("fstab", "etc/fstab"))}
    status = busybox.stat()
    identity = {
        "builder": "initramfs",
        "arch": arch,
        "busybox": f"{busybox} {status.st_size} {status.st_mtime_ns} {status.st_ino}",
        "layout": hashlib.sha256(repr((_FOLDERS, _LINKS, sources)).encode()).hexdigest(),
    }

    def make(folder: Path) -> Made:
        progress("making the initramfs")
        binary = busybox.read_bytes()
        _check_static(busybox, binary, arch)
        archive = cpio.archive(
            [
                *(cpio.directory(path) for path in _FOLDERS),
                *(cpio.symlink(path, to) for path, to in _LINKS.items()),
                cpio.character_device("dev/console", 5, 1),
                cpio.file("bin/busybox", binary, 0o755),
                *(cpio.file(path, data, 0o755 if path == "init" else 0o644) for path, data in sources.items()),
            ]
        )
        file = folder / "initrd"
        file.write_bytes(archive)
        version = _package_version(deadline)
        return Made({"initrd": file}, version, Provenance("initramfs", "busybox-static", version, built_at=now()))

    return cache.obtain(identity, make, deadline=deadline, progress=progress)


def overlay_cpio(folder: Path) -> bytes:
    """A suite's ``overlay/`` folder as an archive that can follow another one: its files add to and replace those before. ConfigError."""
    return cpio.archive(cpio.tree(folder))


def with_overlay(build: Build, folder: Path, cache: Cache | None = None, deadline: Deadline | None = None) -> Build:
    """The same build with a suite's overlay after its initramfs; its digest is that of what boots now. ConfigError, StorageError."""
    return followed_by(build, overlay_cpio(folder), str(folder), cache, deadline)


def followed_by(build: Build, archive: bytes, source: str, cache: Cache | None = None, deadline: Deadline | None = None) -> Build:
    """The same build with an archive after its initramfs. StorageError."""
    try:
        before = build.initrd.read_bytes() if build.initrd else b""
    except OSError as error:
        raise StorageError(f"{build.initrd} cannot be read: {error.strerror}", remedy=f"labctl build {build.name}") from None
    joined = before + b"\0" * (-len(before) % cpio.ALIGNMENT) + archive
    identity = {"builder": "overlay", "digest": hashlib.sha256(joined).hexdigest()}

    def make(workdir: Path) -> Made:
        file = workdir / "initrd"
        file.write_bytes(joined)
        return Made({"initrd": file}, "", Provenance("overlay", source, built_at=now()))

    stored = (cache or Cache()).obtain(identity, make, deadline=deadline or Deadline.after(60))
    kernel, dom0 = (build.provenance.details.get(part, "") for part in ("kernel_digest", "dom0_digest"))
    return replace(build, initrd=stored.files["initrd"], digest=build_digest(kernel, stored.digests["initrd"], dom0))


def _check_static(path: Path, binary: bytes, arch: str) -> None:
    if binary[:6] != b"\x7fELF\x02\x01" or len(binary) < 64:
        raise HostToolMissing(f"{path} is not a 64-bit program", remedy=_INSTALL)
    (machine,) = struct.unpack_from("<H", binary, 18)
    if machine != _MACHINES[arch]:
        raise HostToolMissing(
            f"{path} is not for {arch}, so no initramfs for it can be made here",
            remedy="set initramfs = false in the recipe, or bring an initrd",
        )
    (table,) = struct.unpack_from("<Q", binary, 32)
    size, count = struct.unpack_from("<HH", binary, 54)
    if any(binary[table + i * size : table + i * size + 4] == b"\x03\0\0\0" for i in range(count)):
        raise HostToolMissing(f"{path} needs shared libraries, which the initramfs does not have", remedy=_INSTALL)


def _package_version(deadline: Deadline) -> str:
    """Debian's version of the busybox, else what it says of itself."""
    try:
        done = run(["dpkg-query", "-W", "-f", "${Version}", "busybox-static"], deadline)
        if done.status == 0 and done.out:
            return done.out
    except HostToolMissing:
        pass  # not a Debian host
    return run(["busybox"], deadline).out.split("\n", 1)[0]
