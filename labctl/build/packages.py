"""Debian packages for what goes into the machine: one with the libraries that it depends on, each kept in the cache as it was signed.

`labctl.build.apt` knows kernels, of which a recipe picks by pattern; here a package is asked for by its name, and apt's newest is taken.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

from labctl.build import apt, debversion
from labctl.build.cache import Artefact, Cache, Made, now
from labctl.deadline import Deadline
from labctl.errors import BuildFailed, HostToolMissing
from labctl.model import Provenance
from labctl.process import run

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "riscv64": "riscv64"}
"""Debian's words for the lab's."""

_MOST_PACKAGES = 2000
_NAME = re.compile(r"^([a-z0-9][a-z0-9+.-]+)(?::[a-z0-9-]+)?")


def closure(
    names: Iterable[str],
    architecture: str,
    cache: Cache,
    deadline: Deadline,
    *,
    only_libraries: bool = True,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[apt.Package, ...]:
    """Packages by name with what they depend on, in the order of their distance from the first. With ``only_libraries`` of what they
    depend on only libraries count, which is what programs need to be started; the rest serves what else the package does.

    The answer holds until apt's lists change, and where apt cannot be asked it is that of the last time.
    NotThere for a name that apt's lists do not know; HostToolMissing without apt or its lists.
    """
    names = tuple(names)
    asked = "\n".join(("closure", *names, architecture, str(only_libraries), os.environ.get("APT_CONFIG", "")))
    key = f"apt-{hashlib.sha256(asked.encode()).hexdigest()[:32]}"
    note = cache.note(key)
    before = _packages(note.get("packages"))
    watched = note.get("watched")
    if before and isinstance(watched, list) and note.get("state") == apt.state_of(watched):
        return before
    try:
        folders = apt.watched_folders(deadline)
        state = apt.state_of(folders)
        found = _walk(names, architecture, only_libraries, deadline)
        if not found and not apt.has_lists(folders[0]):
            raise HostToolMissing("apt has no lists of packages", remedy=apt.UPDATE)
    except HostToolMissing as missing:
        if before:
            progress(f"{missing.message}; packages as apt named them on {note.get('resolved_at', 'an unknown day')}")
            return before
        raise
    absent = [name for name in names if name not in {package.name for package in found}]
    if absent:
        raise apt.NotThere("package", f"apt has no package {absent[0]!r} for {architecture}", "a package of apt's lists")
    cache.remember(key, {"packages": [asdict(p) for p in found], "watched": folders, "state": state, "resolved_at": now()})
    return found


def fetched(package: apt.Package, cache: Cache, deadline: Deadline, progress: Callable[[str], None] = lambda _: None) -> Artefact:
    """The package's file, under ``deb``, from the cache or downloaded now. BuildFailed, InfraError, StorageError."""

    def make(folder: Path) -> Made:
        progress(f"downloading {package.name} {package.version}" + (f" ({package.size / 1e6:.1f} MB)" if package.size else ""))
        file = apt.download(package, folder, cache, deadline)
        return Made({"deb": file}, package.version, Provenance("package", package.name, package.version, built_at=now()))

    return cache.obtain({"builder": "package", "sha256": package.sha256}, make, deadline=deadline, progress=progress)


def unpacked(package: apt.Package, to: Path, cache: Cache, deadline: Deadline, progress: Callable[[str], None] = lambda _: None) -> Path:
    """Its files below ``to``, which is made; others may be there already. BuildFailed, InfraError, StorageError."""
    file = fetched(package, cache, deadline, progress).files["deb"]
    to.mkdir(parents=True, exist_ok=True)
    done = run(["dpkg-deb", "-x", str(file), str(to)], deadline, env={**os.environ, "LC_ALL": "C"}, owned=True)
    if done.status != 0:
        cache.require_room(done.err)
        raise BuildFailed(f"{package.name} {package.version} cannot be unpacked: {done.words}", tail=done.err.strip())
    return to


def resolved(root: Path, path: str) -> Path | None:
    """The file that a path means inside a folder of unpacked packages: links are followed as in a machine whose root that is. None if
    there is none."""
    parts, at, links = [part for part in path.split("/") if part not in ("", ".")], root, 0
    while parts:
        part = parts.pop(0)
        if part == "..":
            at = at.parent if at != root else root
            continue
        at = at / part
        if at.is_symlink():
            links += 1
            to = str(at.readlink())
            if links > 40:
                return None
            parts = [p for p in to.split("/") if p not in ("", ".")] + parts
            at = root if to.startswith("/") else at.parent
    return at if at.is_file() else None


def room_for(packages: Iterable[apt.Package], cache: Cache) -> None:
    """StorageError if the disk cannot hold what is still to be downloaded."""
    needed = sum(p.size for p in packages if cache.find({"builder": "package", "sha256": p.sha256}) is None)
    cache.root.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(cache.root).free < needed:
        cache.require_room("", needed)


def _walk(names: tuple[str, ...], architecture: str, only_libraries: bool, deadline: Deadline) -> tuple[apt.Package, ...]:
    """From the names outwards, a level at a time: one question to apt each."""
    found: dict[str, apt.Package] = {}
    seen: set[str] = set(names)
    level: list[str] = list(names)
    while level and len(seen) < _MOST_PACKAGES:
        records = _newest(level, architecture, deadline)
        below: dict[str, None] = {}
        for name in level:
            record = records.get(name)
            if record is None or (only_libraries and name not in names and not _is_library(record)):
                continue
            found[name] = _package(record)
            below.update(dict.fromkeys(_needed(record)))
        level = [name for name in below if name not in seen]
        seen.update(level)
    return tuple(found.values())


def _newest(names: list[str], architecture: str, deadline: Deadline) -> Mapping[str, Mapping[str, str]]:
    """Of each name the newest record that can be downloaded; those that apt does not know are absent."""
    newest: dict[str, Mapping[str, str]] = {}
    shown = apt.answer(["apt-cache", "show", "--", *(f"{name}:{architecture}" for name in names)], deadline)
    for record in apt.records(shown):
        name = record.get("Package", "")
        if record.get("Architecture") not in (architecture, "all") or not {"Filename", "SHA256", "Version"} <= record.keys():
            continue
        kept = newest.get(name)
        if kept is None or debversion.sort_key(record["Version"]) > debversion.sort_key(kept["Version"]):
            newest[name] = record
    return newest


def _needed(record: Mapping[str, str]) -> list[str]:
    """Names in Pre-Depends and Depends; of alternatives the first."""
    listed = [field for key in ("Pre-Depends", "Depends") if (field := record.get(key))]
    names = (_NAME.match(each.strip()) for field in listed for each in field.split(","))
    return [name[1] for name in names if name]


def _is_library(record: Mapping[str, str]) -> bool:
    return record.get("Section", "").split("/")[-1] in ("libs", "oldlibs")


def _package(record: Mapping[str, str]) -> apt.Package:
    size = record.get("Size", "0")
    source = record.get("Source", record["Package"]).split(" ")[0]
    return apt.Package(record["Package"], record["Version"], record["SHA256"], source, int(size) if size.isdecimal() else 0)


def _packages(noted: object) -> tuple[apt.Package, ...]:
    """From a note; empty if that is none."""
    try:
        return tuple(apt.Package(**each) for each in noted) if isinstance(noted, list) else ()
    except TypeError:
        return ()
