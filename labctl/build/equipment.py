"""What lies behind the base of an initramfs: tools, modules of the kernel, the files of a folder ``overlay``. A build may bring some of its
own, as a hypervisor does, and a suite more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

from labctl.build import cpio, kernelmodules
from labctl.build.cache import Artefact, Cache, Made, now
from labctl.build.initramfs import followed_by, overlay_cpio
from labctl.build.tools.obtain import tool
from labctl.config import Lab
from labctl.deadline import Deadline
from labctl.errors import BuildFailed
from labctl.model import Build, Provenance


def with_own(
    lab: Lab, build: Build, where: str, overlay: Path | None, cache: Cache, deadline: Deadline, progress: Callable[[str], None]
) -> Build:
    """The same build with the tools and modules that it names and the files of its folder; ``where`` is its recipe.

    ConfigError, HostToolMissing, BuildFailed, InfraError, StorageError.
    """
    archives: list[bytes] = []
    if build.tools:
        archives.append(tools_archive(tools(lab, build.tools, build.arch, progress, deadline, cache), cache, deadline))
    if build.modules or build.more_modules:
        archives.append(kernelmodules.archive(build, build.modules, where, cache, deadline, progress, build.more_modules))
    if overlay is not None:
        archives.append(overlay_cpio(overlay))
    joined = b"".join(archives)
    return followed_by(build, joined, where, cache, deadline) if joined else build


def tools(
    lab: Lab, names: tuple[str, ...], arch: str, progress: Callable[[str], None], deadline: Deadline, cache: Cache
) -> dict[str, Artefact]:
    """Tools by their names, from the cache or made now. ConfigError, HostToolMissing, BuildFailed, InfraError, StorageError."""
    return {name: tool(lab, name, arch, progress, deadline, cache).obtain() for name in names}


def tools_archive(made: Mapping[str, Artefact], cache: Cache, deadline: Deadline, there: Mapping[str, Artefact] | None = None) -> bytes:
    """One archive of several tools, from the cache or put together now: a library that several need is in it once, and of files with the
    same content all but one are links to that. What the tools that are ``there`` already bring is left out.

    BuildFailed if two tools bring different files of one path.
    """
    digests: dict[str, str] = {}
    files: dict[str, Path] = {}
    whose: dict[str, str] = {}
    before = there or {}
    for name, artefact in {**before, **made}.items():
        for path, digest in artefact.digests.items():
            if digests.setdefault(path, digest) != digest:
                raise BuildFailed(
                    f"the tools {whose[path]} and {name} bring different files as /{path}",
                    remedy="apt-get update, so that both come from the same packages; or keep them apart in two suites",
                )
            files[path] = artefact.files[path]
            whose.setdefault(path, name)
    wanted = {path: digest for path, digest in digests.items() if whose[path] not in before}
    identity = {"builder": "tools", "files": hashlib.sha256(repr(sorted(wanted.items())).encode()).hexdigest()}

    def make(folder: Path) -> Made:
        first: dict[str, str] = {}
        entries: list[cpio.Entry] = []
        for path in sorted(wanted, key=lambda p: (PurePosixPath(p).suffix != "", p)):
            if (same := first.setdefault(wanted[path], path)) != path:
                entries.append(cpio.symlink(path, f"/{same}"))
            else:
                data = files[path].read_bytes()
                entries.append(cpio.file(path, data, 0o755 if data[:4] == b"\x7fELF" or data[:2] == b"#!" else 0o644))
        file = folder / "archive"
        file.write_bytes(cpio.archive(entries))
        return Made({"archive": file}, "", Provenance("tools", " ".join(made), built_at=now()))

    return cache.obtain(identity, make, deadline=deadline).files["archive"].read_bytes() if wanted else b""
