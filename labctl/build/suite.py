"""What a suite needs in the machine, put behind a build's initramfs: tools, modules of the kernel,
the files of ``overlay/``, and what moves into a root file system on a disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath

from labctl.build import cpio, kernelmodules, rootimage
from labctl.build.cache import Artefact, Cache, Made, now
from labctl.build.initramfs import followed_by, overlay_cpio
from labctl.build.tools.obtain import tool
from labctl.config import Lab
from labctl.deadline import Deadline
from labctl.errors import BuildFailed, ConfigError
from labctl.model import Build, Provenance

LONGEST_S = 3600.0
"""Seconds that all of a suite's tools may take to be built."""


def check(lab: Lab, suite: str) -> None:
    """What can be known by reading: the suite's file and the recipes of its tools. ConfigError with the mistakes of one of them."""
    config = lab.suite_config(suite)
    for name in config.tools:
        tool(lab, name)
    if config.image is not None:
        lab.image(config.image)


def with_suite(lab: Lab, build: Build, suite: str, progress: Callable[[str], None] = lambda _: None) -> Build:
    """The same build as this suite boots it; its digest is that of what boots now. A build without an initramfs gets no tools and no
    modules: nothing there would look for them.

    ConfigError, HostToolMissing, BuildFailed, InfraError, StorageError.
    """
    config, cache, deadline = lab.suite_config(suite), Cache(), Deadline.after(LONGEST_S)
    folder = lab.suite(suite) / "overlay"
    archives: list[bytes] = []
    image: Path | None = None
    if build.initrd is not None and config.image is not None:
        made_image = rootimage.obtain(lab, config.image, build.arch, cache, deadline, progress)
        image = made_image.files["image"]
        archives.append(rootimage.archive(made_image))
    if build.initrd is not None and config.tools:
        made = {name: tool(lab, name, build.arch, progress, deadline).obtain() for name in config.tools}
        archives.append(tools_archive(made, cache, deadline))
    if build.initrd is not None and (config.modules or config.optional_modules):
        where = str(lab.suite(suite).relative_to(lab.root) / "suite.toml")
        wanted = list(config.modules)
        for name in config.optional_modules:
            with suppress(ConfigError):  # this kernel has none, or nobody knows: the suite makes do without
                kernelmodules.archive(build, [name], where, cache, deadline, progress)
                wanted.append(name)
        archives.append(kernelmodules.archive(build, wanted, where, cache, deadline, progress))
    if folder.is_dir():
        archives.append(overlay_cpio(folder))
    joined = b"".join(archives)
    return replace(followed_by(build, joined, f"suites/{suite}", cache, deadline), image=image) if joined else build


def tools_archive(made: Mapping[str, Artefact], cache: Cache, deadline: Deadline) -> bytes:
    """One archive of several tools, from the cache or put together now: a library that several need is in it once, and of files with the
    same content all but one are links to that. BuildFailed if two tools bring different files of one path."""
    digests: dict[str, str] = {}
    files: dict[str, Path] = {}
    whose: dict[str, str] = {}
    for name, artefact in made.items():
        for path, digest in artefact.digests.items():
            if digests.setdefault(path, digest) != digest:
                raise BuildFailed(
                    f"the tools {whose[path]} and {name} bring different files as /{path}",
                    remedy="apt-get update, so that both come from the same packages; or keep them apart in two suites",
                )
            files[path] = artefact.files[path]
            whose.setdefault(path, name)
    identity = {"builder": "tools", "files": hashlib.sha256(repr(sorted(digests.items())).encode()).hexdigest()}

    def make(folder: Path) -> Made:
        first: dict[str, str] = {}
        entries: list[cpio.Entry] = []
        for path in sorted(files, key=lambda p: (PurePosixPath(p).suffix != "", p)):
            if (same := first.setdefault(digests[path], path)) != path:
                entries.append(cpio.symlink(path, f"/{same}"))
            else:
                data = files[path].read_bytes()
                entries.append(cpio.file(path, data, 0o755 if data[:4] == b"\x7fELF" or data[:2] == b"#!" else 0o644))
        file = folder / "archive"
        file.write_bytes(cpio.archive(entries))
        return Made({"archive": file}, "", Provenance("tools", " ".join(made), built_at=now()))

    return cache.obtain(identity, make, deadline=deadline).files["archive"].read_bytes()
