"""noVNC, the VNC client that runs in a browser: the modules of Debian's package, fetched as other packages are and not installed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from labctl.build import apt, packages
from labctl.build.cache import Cache, Made, now
from labctl.deadline import Deadline
from labctl.errors import BuildFailed, HostToolMissing
from labctl.model import Provenance

_HOME = "usr/share/novnc"
ENTRY = "core/rfb.js"
"""The module that a page imports."""


def novnc(deadline: Deadline, progress: Callable[[str], None] = lambda _: None, cache: Cache | None = None) -> Mapping[str, Path]:
    """Its modules by their paths (`ENTRY` is one), from the cache or fetched now. HostToolMissing without apt, its lists, or the package
    in them; BuildFailed, InfraError, StorageError."""
    cache = cache or Cache()
    try:
        package = packages.closure(["novnc"], "amd64", cache, deadline, progress=progress)[0]
    except apt.NotThere as error:
        raise HostToolMissing(error.found, remedy=apt.UPDATE) from None

    def make(folder: Path) -> Made:
        root = packages.unpacked(package, folder / "unpacked", cache, deadline, progress) / _HOME
        files = {str(path.relative_to(root)): path for kind in ("core", "vendor") for path in sorted((root / kind).rglob("*.js"))}
        if ENTRY not in files:
            raise BuildFailed(f"{package.name} {package.version} has no {_HOME}/{ENTRY}")
        return Made(files, package.version, Provenance("package", package.name, package.version, built_at=now()))

    return cache.obtain({"builder": "novnc", "sha256": package.sha256}, make, deadline=deadline, progress=progress).files
