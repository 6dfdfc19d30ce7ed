"""What apt knows of kernel packages. Only its local lists are asked; `download` is the one thing that goes over the network.

Asking apt costs 0.3 s each time (it parses all of its lists), so an answer is remembered together with the state of the files
that it came from, and holds until one of them changes.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from labctl.build import debversion
from labctl.build.cache import Cache, digest_of, now
from labctl.config import nearest
from labctl.deadline import Deadline
from labctl.errors import BuildFailed, HostToolMissing, InfraError
from labctl.process import Completed, run

UPDATE = "apt-get update"
_VARIANT = re.compile(r"-(dbg|dbgsym|unsigned)$")
_DOWNLOAD_S = 900.0


@dataclass(frozen=True, slots=True)
class Package:
    """One version of a package that apt can download."""

    name: str
    version: str
    sha256: str
    """Of the .deb, as the archive signed it."""
    source: str
    """Debian source package."""
    size: int = 0
    """Of the .deb, in bytes."""


class NotThere(Exception):
    """Apt's lists answer, and no package fits what one of the recipe's options asks for: which, what was found, what is allowed."""

    def __init__(self, key: str, found: str, allowed: str) -> None:
        super().__init__(found)
        self.key = key
        self.found = found
        self.allowed = allowed


@dataclass(frozen=True, slots=True)
class Resolved:
    package: Package
    stale: str = ""
    """Why apt could not be asked just now, if so: the package is then the one that it named the last time."""


def resolve(pattern: str, position: int, architecture: str, cache: Cache, deadline: Deadline) -> Resolved:
    """The package at a position (0: newest) among the kernels whose names match.

    NotThere if there is none; HostToolMissing if apt or its lists are absent and it never answered this before; InfraError if apt cannot
    read its lists, or they hold no kernels at all.
    """
    question = hashlib.sha256("\n".join((pattern, str(position), architecture, os.environ.get("APT_CONFIG", ""))).encode()).hexdigest()[:32]
    note = cache.note(f"apt-{question}")
    before = _package(note.get("package"))
    watched = note.get("watched")
    if before and isinstance(watched, list) and note.get("state") == state_of(watched):
        return Resolved(before)
    try:
        folders = watched_folders(deadline)
        # The state is taken before apt is asked: a change in between makes the answer hold too short, not too long.
        state = state_of(folders)
        available = candidates(pattern, architecture, deadline)
        if not available and not has_lists(folders[0]):
            raise HostToolMissing("apt has no lists of packages", remedy=UPDATE)
    except HostToolMissing as missing:
        if before:
            return Resolved(before, f"{missing.message}; it named {before.name} on {note.get('resolved_at', 'an unknown day')}")
        raise
    if len(available) <= position:
        raise _too_few(pattern, position, available, architecture, deadline)
    package = available[position]
    cache.remember(
        f"apt-{question}",
        {"pattern": pattern, "position": position, "package": asdict(package), "watched": folders, "state": state, "resolved_at": now()},
    )
    return Resolved(package)


def candidates(pattern: str, architecture: str, deadline: Deadline) -> list[Package]:
    """Kernels that apt can download and whose names match, newest first.

    Metapackages never count; ``-dbg`` and ``-unsigned`` ones only if the pattern ends so.
    """
    fixed = re.split(r"[*?\[]", pattern, maxsplit=1)[0]
    # pkgnames takes a prefix; an empty one would list the whole archive.
    names = answer(["apt-cache", "pkgnames", *([fixed] if fixed else [])], deadline).split()
    variant = _VARIANT.search(pattern)
    wanted = [
        name
        for name in names
        if fnmatch.fnmatchcase(name, pattern) and (not (found := _VARIANT.search(name)) or (variant and found[0] == variant[0]))
    ]
    if not wanted:
        return []
    shown = answer(["apt-cache", "show", "--", *sorted(wanted)], deadline)
    newest: dict[str, Package] = {}
    for record in records(shown):
        package = _downloadable(record, architecture)
        if package is None or package.name not in wanted:
            continue
        kept = newest.get(package.name)
        if kept is None or debversion.sort_key(package.version) > debversion.sort_key(kept.version):
            newest[package.name] = package
    return sorted(newest.values(), key=lambda p: (debversion.sort_key(p.version), debversion.part_key(p.name)), reverse=True)


def download(package: Package, folder: Path, cache: Cache, deadline: Deadline) -> Path:
    """Fetch the .deb into a folder of the cache.

    BuildFailed if the archive has it no more, StorageError if the disk is full, InfraError if the archive cannot be reached.
    """
    done = run(
        ["apt-get", "download", f"{package.name}={package.version}"],
        deadline.sooner(_DOWNLOAD_S),
        cwd=folder,
        env={**os.environ, "LC_ALL": "C"},
        owned=True,
    )
    if done.status != 0:
        if is_gone(done):
            raise BuildFailed(
                f"{package.name} {package.version} is in apt's lists but no longer in the archive", tail=done.err.strip(), remedy=UPDATE
            )
        cache.require_room(done.err, package.size - sum(part.stat().st_size for part in folder.rglob("*.deb")))
        raise InfraError(
            f"apt-get could not download {package.name}: {_first_error(done)}",
            tail=done.err.strip(),
            remedy="check the network and apt's proxy",
        )
    files = list(folder.glob("*.deb"))
    if len(files) != 1:
        raise InfraError(f"apt-get download {package.name} left {len(files)} packages instead of one")
    if digest_of(files[0]) != f"sha256:{package.sha256}":
        raise InfraError(f"{files[0].name} is not what apt's lists say: its SHA-256 differs", remedy=UPDATE)
    return files[0]


def _too_few(pattern: str, position: int, available: list[Package], architecture: str, deadline: Deadline) -> NotThere | InfraError:
    if available:
        last = f" … newest-{len(available) - 1} ({available[-1].name})" if len(available) > 1 else ""
        return NotThere(
            "position",
            f"found 'newest-{position}', but apt has only {len(available)} of {pattern}",
            f"newest ({available[0].name}){last}",
        )
    family = [p.name for p in candidates("linux-image-*", architecture, deadline)]
    if not family:
        return InfraError(
            f"apt's lists hold no kernels for {architecture}",
            remedy=f"{UPDATE}; for the packages of another architecture first: dpkg --add-architecture {architecture}",
        )
    return NotThere("package", f"found {pattern!r}, but apt has no such kernel for {architecture}", nearest(pattern, family))


def answer(argv: list[str], deadline: Deadline) -> str:
    """Output of an apt query. A package that is not known is no error: the answer is then empty. InfraError if apt cannot answer."""
    done = run(argv, deadline, env={**os.environ, "LC_ALL": "C"})
    if done.status != 0 and "No packages found" not in done.err:
        raise InfraError(f"{argv[0]} cannot read apt's lists: {_first_error(done)}", tail=done.err.strip(), remedy=UPDATE)
    return done.out


def watched_folders(deadline: Deadline) -> list[str]:
    """Where apt keeps its lists, then its settings."""
    out = answer(["apt-config", "shell", "LISTS", "Dir::State::lists/d", "ETC", "Dir::Etc/d"], deadline)
    found = dict(line.split("=", 1) for line in out.splitlines() if "=" in line)
    return [found[key].strip("'") for key in ("LISTS", "ETC") if key in found]


def state_of(folders: Iterable[object]) -> str:
    """Names, sizes and times of the files in these folders: it changes when ``apt-get update`` brings something."""
    seen: list[tuple[str, int, int, int]] = []
    for folder in folders:
        try:
            with os.scandir(str(folder)) as entries:
                for entry in entries:
                    if entry.name not in ("lock", "partial", "auxfiles"):
                        status = entry.stat()
                        # apt gives a list the archive's time, so two of one second differ only in the time of the change here.
                        seen.append((entry.path, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
        except OSError:
            seen.append((str(folder), 0, 0, 0))
    return hashlib.sha256(repr(sorted(seen)).encode()).hexdigest()


def has_lists(folder: str) -> bool:
    return any("_Packages" in path.name for path in Path(folder).glob("*"))


def records(text: str) -> Iterable[dict[str, str]]:
    """Paragraphs of Debian control data. Continued lines are dropped: none of the fields used here has any."""
    for paragraph in text.split("\n\n"):
        lines = (line for line in paragraph.splitlines() if ": " in line and not line.startswith((" ", "\t")))
        if record := dict(line.split(": ", 1) for line in lines):
            yield record


def _downloadable(record: Mapping[str, str], architecture: str) -> Package | None:
    """A record → a package; None for what is only installed here, of another architecture, or merely depends on a kernel."""
    if record.get("Architecture") != architecture or not record.get("Filename"):
        return None
    if re.search(r"(^|, )linux-image-", record.get("Depends", "")):
        return None
    try:
        return Package(
            record["Package"],
            record["Version"],
            record["SHA256"],
            record.get("Source", record["Package"]).split(" ")[0],
            int(record.get("Size", "0")),
        )
    except (KeyError, ValueError):
        return None


def _package(value: Any) -> Package | None:
    """From a note; None if that is not one."""
    try:
        package = Package(**value)
    except TypeError:
        return None
    return package if all(isinstance(v, str) for v in (package.name, package.version, package.sha256, package.source)) else None


def is_gone(done: Completed) -> bool:
    return any(
        sign in done.err
        for sign in ("404 ", "Unable to locate package", "was not found", "Can't find a source to download", "File not found")
    )


def _first_error(done: Completed) -> str:
    return next((line for line in done.err.splitlines() if line.startswith(("E: ", "Err:"))), done.words)
