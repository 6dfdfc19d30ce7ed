"""A root file system on a disk: an ext4 of Debian packages, for tools too heavy for the machine's memory. No root is needed to make it.

The machine starts with the lab's own initramfs all the same. What was put there for the suite (tools, modules, hooks, the agent) is copied
into the disk's root, which takes over then and says that it is ready: so a suite with an image is written like any other. The disk is
found by its label, since NVMe disks are numbered in the order in which they answer.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from labctl.build import apt, cpio, initramfs, packages
from labctl.build.cache import Artefact, Cache, Made, now
from labctl.config import Lab, shipped
from labctl.deadline import Deadline
from labctl.errors import BuildFailed, ConfigError, Problem
from labctl.model import Provenance
from labctl.process import find, run

LABEL = "labctl-root"
_UUID = "6c616263-746c-4000-8000-726f6f740000"
_FOLDERS = ("bin", "dev", "etc", "proc", "root", "run", "sbin", "sys", "tmp", "usr/bin", "var/tmp")
_LAYOUT = "1"


def obtain(lab: Lab, name: str, arch: str, cache: Cache, deadline: Deadline, progress: Callable[[str], None] = lambda _: None) -> Artefact:
    """The image of a recipe under ``image``, from the cache or made now.

    ConfigError, HostToolMissing, BuildFailed, InfraError, StorageError.
    """
    recipe = lab.image(name)
    where = f"guest/images/{name}.toml"
    try:
        found = packages.closure(
            recipe.packages,
            packages.ARCHITECTURES[arch],
            cache,
            deadline,
            only_libraries=False,
            progress=lambda line: progress(f"{name}: {line}"),
        )
    except apt.NotThere as error:
        raise ConfigError([Problem(where, "packages", error.found, error.allowed)], remedy=f"correct it; or: {apt.UPDATE}") from None
    wanted = [package for package in found if package.name not in recipe.without]
    base = initramfs.base(arch, cache, deadline, progress)
    identity = {
        "builder": "root-image",
        "arch": arch,
        "layout": _LAYOUT,
        "room": str(recipe.room),
        "base": base.digests["initrd"],
        "packages": hashlib.sha256(repr(sorted((p.name, p.version, p.sha256) for p in wanted)).encode()).hexdigest(),
    }

    def make(folder: Path) -> Made:
        find("mke2fs")
        root = folder / "root"
        root.mkdir()
        packages.room_for(wanted, cache)
        for package in wanted:
            packages.unpacked(package, root, cache, deadline, lambda line: progress(f"{name}: {line}"))
        _lay_base(root)
        progress(f"{name}: making a file system of {len(wanted)} packages")
        file = folder / "image"
        _format(root, file, recipe.room, where, cache, deadline)
        details = {package.name: package.version for package in wanted}
        return Made({"image": file}, "", Provenance("root-image", " ".join(recipe.packages), built_at=now(), details=details))

    return cache.obtain(identity, make, deadline=deadline, progress=progress)


def archive(image: Artefact) -> bytes:
    """What goes behind the initramfs: the first process that moves into the disk. It names the image, so that the build's digest does."""
    mover = (shipped("guest") / "images" / "move").read_bytes()
    digest = image.digests["image"].encode()
    return cpio.archive([cpio.file("init", mover, 0o755), cpio.file("etc/labctl/image", digest + b"\n")])


def _lay_base(root: Path) -> None:
    """What the lab's initramfs has too: the static busybox and the first process. A package's own ``/bin/sh`` stays."""
    guest = shipped("guest")
    for folder in _FOLDERS:
        if not (root / folder).is_dir():
            (root / folder).mkdir(parents=True)
    for path, content in {
        "bin/busybox": Path(find("busybox")).resolve().read_bytes(),
        "sbin/init": (guest / "init").read_bytes(),
        "etc/fstab": (guest / "fstab").read_bytes(),
    }.items():
        (root / path).unlink(missing_ok=True)
        (root / path).write_bytes(content)
        (root / path).chmod(0o644 if path == "etc/fstab" else 0o755)
    for path, to in {"bin/sh": "busybox", "usr/bin/env": "../../bin/busybox"}.items():
        if not os.path.lexists(root / path):
            (root / path).symlink_to(to)


def _format(root: Path, file: Path, room: int, where: str, cache: Cache, deadline: Deadline) -> None:
    used = sum(-(-size // 4096) * 4096 for size in _sizes(root))
    # A tenth for the file system's own tables; without a journal's room a small one gets none.
    size = (used + used // 10 + room + (8 << 20)) // 4096
    # Sparse, and still: its tables take a part of its size, and a machine may fill the rest of each copy.
    cache.require_room("", size * 4096)
    words = ["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-L", LABEL, "-U", _UUID, "-m", "0", "-d", str(root)]
    done = run(
        [*words, "-E", f"root_owner=0:0,hash_seed={_UUID}", str(file), str(size)],
        deadline,
        env={**os.environ, "LC_ALL": "C", "E2FSPROGS_FAKE_TIME": "1"},
        owned=True,
    )
    if done.status != 0:
        cache.require_room(done.err)
        raise BuildFailed(f"{where}: the file system cannot be made: {done.words}", tail=done.err.strip())


def _sizes(root: Path) -> Iterable[int]:
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            yield max(1, os.lstat(os.path.join(folder, name)).st_size)  # noqa: PTH118  # thousands of files
