"""What a suite needs in the machine, put behind a build's initramfs: tools, modules of the kernel,
the files of ``overlay/``, and what moves into a root file system on a disk."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from labctl.build import equipment, kernelmodules, overlay, rootimage
from labctl.build.cache import Cache
from labctl.build.initramfs import followed_by, overlay_cpio
from labctl.build.tools.obtain import tool
from labctl.config import Lab
from labctl.deadline import Deadline
from labctl.errors import ConfigError
from labctl.model import Build

LONGEST_S = 3600.0
"""Seconds that all of a suite's tools may take to be built."""


def check(lab: Lab, suite: str) -> None:
    """What can be known by reading: the suite's file and the recipes of its tools. ConfigError with the mistakes of one of them."""
    config = lab.suite_config(suite)
    for name in config.tools:
        tool(lab, name)
    if config.image is not None:
        lab.image(config.image)


def with_suite(lab: Lab, build: Build, suite: str, progress: Callable[[str], None] = lambda _: None, cache: Cache | None = None) -> Build:
    """The same build as this suite boots it; its digest is that of what boots now. A build without an initramfs gets no tools and no
    modules: nothing there would look for them. NotMade of a `labctl.build.cache.Shelf` that does not hold all of it.

    ConfigError, HostToolMissing, BuildFailed, InfraError, StorageError.
    """
    config, cache, deadline = lab.suite_config(suite), cache or Cache(), Deadline.after(LONGEST_S)
    folder = lab.suite(suite) / "overlay"
    archives: list[bytes] = []
    carried: list[str] = []
    image: Path | None = None
    if build.initrd is not None and config.image is not None:
        made_image = rootimage.obtain(lab, config.image, build.arch, cache, deadline, progress)
        image = made_image.files["image"]
        archives.append(rootimage.archive(made_image))
    if build.initrd is not None and config.tools:
        there = equipment.tools(lab, build.tools, build.arch, progress, deadline, cache)
        more = equipment.tools(lab, config.tools, build.arch, progress, deadline, cache)
        archives.append(equipment.tools_archive(more, cache, deadline, there))
        carried = [path for artefact in more.values() for path in artefact.files]
    if build.initrd is not None and (config.modules or config.optional_modules):
        where = str(lab.suite(suite).relative_to(lab.root) / "suite.toml")
        wanted = list(config.modules)
        for name in config.optional_modules:
            with suppress(ConfigError):  # this kernel has none, or nobody knows: the suite makes do without
                kernelmodules.archive(build, [name], where, cache, deadline, progress)
                wanted.append(name)
        # The list of modules lies in the machine once, and the suite's replaces the build's own.
        archives.append(kernelmodules.archive(build, [*build.modules, *wanted], where, cache, deadline, progress, build.more_modules))
    if folder.is_dir():
        if image is None and (problems := overlay.lacks(folder, str(folder.relative_to(lab.root)), carried, build.initrd)):
            raise ConfigError(problems)
        archives.append(overlay_cpio(folder))
    joined = b"".join(archives)
    return replace(followed_by(build, joined, f"suites/{suite}", cache, deadline), image=image) if joined else build
