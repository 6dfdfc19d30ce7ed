"""Kernel modules for the lab's initramfs: an archive that follows it, with the hook that loads them and installs disk images."""

from __future__ import annotations

import hashlib
import lzma
import re
from collections.abc import Iterable
from pathlib import Path

from labctl.build import cpio
from labctl.config import shipped

_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")
_SUFFIXES = (".ko", ".ko.xz")
NETWORK = (("network.sh", "usr/lib/labctl/network.sh", 0o644), ("udhcpc", "usr/lib/labctl/udhcpc", 0o755))
"""Files of ``guest/installer``, where they lie in the machine, and their permissions: by them it gets an address of its own."""
_GUEST = (("install.sh", "etc/labctl/rc.d/00-labctl.sh", 0o644), *NETWORK)


def key(wanted: Iterable[str]) -> str:
    """What decides the archive besides the package."""
    sources = [(shipped("guest") / "installer" / name).read_bytes() for name, _, _ in _GUEST]
    return ",".join(wanted) + " " + hashlib.sha256(repr((sources, _GUEST)).encode()).hexdigest()[:16]


def archive(unpacked: Path, wanted: Iterable[str]) -> bytes:
    """Modules of a kernel package, each after those that it needs. LookupError with the names of those that are not there."""
    entries = [cpio.file(f"lib/labctl/modules/{name}", data) for name, data in ordered(unpacked, wanted).items()]
    folder = shipped("guest") / "installer"
    return cpio.archive([*entries, *(cpio.file(path, (folder / name).read_bytes(), mode) for name, path, mode in _GUEST)])


def ordered(unpacked: Path, wanted: Iterable[str]) -> dict[str, bytes]:
    """Modules of a kernel package as files (``000-virtio.ko`` ...) whose names sort as they must be loaded: each after those that it
    needs, without what the kernel has built in. LookupError with the names of those that are not there."""
    files = {}
    for file in sorted(unpacked.glob("lib/modules/*/kernel/**/*.ko*")):
        if file.name.endswith(_SUFFIXES):
            files[_plain(file.name.partition(".ko")[0])] = file
    listings = unpacked.glob("lib/modules/*/modules.builtin")
    builtin = {_plain(Path(line).stem) for listing in listings for line in listing.read_text().split()}
    found_so_far: dict[str, bytes] = {}

    def add(name: str) -> None:
        name = _plain(name)
        if name in found_so_far or name in builtin:
            return
        if name not in files:
            raise LookupError(name)
        data = files[name].read_bytes()
        data = lzma.decompress(data) if files[name].suffix == ".xz" else data
        found = _DEPENDS.search(data)
        for needed in found[1].decode().split(",") if found else ():
            if needed:
                add(needed)
        found_so_far[name] = data

    missing: dict[str, None] = {}
    for name in wanted:
        try:
            add(name)
        except LookupError as error:
            missing[error.args[0]] = None
    if missing:
        raise LookupError(*missing)
    return {f"{number:03}-{name}.ko": data for number, (name, data) in enumerate(found_so_far.items())}


def _plain(name: str) -> str:
    return name.replace("-", "_")
