"""Debian source packages: which version apt names, and its files. Most hosts have lists of binary packages only, so the lists of sources
are fetched into the cache, from the very archives that the host trusts (its own ``sources.list`` with ``deb-src`` for ``deb``)."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from labctl.build import apt, debversion
from labctl.build.cache import Artefact, Cache, Made, digest_of, now
from labctl.config import cache_error, cache_folder
from labctl.deadline import Deadline
from labctl.errors import BuildFailed, HostToolMissing, InfraError
from labctl.model import Provenance
from labctl.process import Completed, run

_DOWNLOAD_S = 900.0
_FILE = re.compile(r"^ ([0-9a-f]{64}) ([0-9]+) ([A-Za-z0-9][A-Za-z0-9.+~_-]*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Source:
    """One version of a source package."""

    name: str
    version: str
    files: Mapping[str, str]
    """File → SHA-256, as the archive signed them; one of them is the ``.dsc``."""

    @property
    def dsc(self) -> str:
        return next(name for name in self.files if name.endswith(".dsc"))


def newest(name: str, cache: Cache, deadline: Deadline, progress: Callable[[str], None]) -> Source:
    """The newest version that apt's lists of sources name. The answer holds until the host's own lists change; where the archive cannot be
    reached then, it is that of the last time.

    NotThere for a name that the lists do not have; InfraError if they cannot be fetched and never were; HostToolMissing without apt.
    """
    asked = "\n".join(("source", name, os.environ.get("APT_CONFIG", "")))
    key = f"apt-{hashlib.sha256(asked.encode()).hexdigest()[:32]}"
    note = cache.note(key)
    before = _noted(note.get("source"))
    watched = note.get("watched")
    if before and isinstance(watched, list) and note.get("state") == apt.state_of(watched):
        return before
    try:
        folders = apt.watched_folders(deadline)
        state = apt.state_of(folders)
        found = _found(name, _update(deadline, progress), deadline)
    except (HostToolMissing, InfraError) as error:
        if before:
            progress(f"{error.message}; {name} as apt named it on {note.get('resolved_at', 'an unknown day')}")
            return before
        raise
    source = {"name": found.name, "version": found.version, "files": dict(found.files)}
    cache.remember(key, {"source": source, "watched": folders, "state": state, "resolved_at": now()})
    return found


def fetched(source: Source, cache: Cache, deadline: Deadline, progress: Callable[[str], None]) -> Artefact:
    """Its files by their names, from the cache or downloaded now. BuildFailed if the archive has it no more; InfraError, StorageError."""

    def make(folder: Path) -> Made:
        progress(f"downloading the source of {source.name} {source.version}")
        done = run(
            ["apt-get", *_options(), "source", "--download-only", "--only-source", f"{source.name}={source.version}"],
            deadline.sooner(_DOWNLOAD_S),
            cwd=folder,
            env={**os.environ, "LC_ALL": "C"},
            owned=True,
        )
        if done.status != 0:
            if apt.is_gone(done):
                raise BuildFailed(
                    f"the source of {source.name} {source.version} is in apt's lists but no longer in the archive",
                    tail=done.err.strip(),
                    remedy=apt.UPDATE,
                )
            cache.require_room(done.err)
            raise _unreachable(f"the source of {source.name} cannot be downloaded", done)
        for name, sha256 in source.files.items():
            if not (folder / name).is_file() or digest_of(folder / name) != f"sha256:{sha256}":
                raise InfraError(f"{name} is not what apt's lists say: its SHA-256 differs", remedy=apt.UPDATE)
        files = {name: folder / name for name in source.files}
        return Made(files, source.version, Provenance("source-package", source.name, source.version, built_at=now()))

    return cache.obtain({"builder": "source-package", **source.files}, make, deadline=deadline, progress=progress)


def unpacked(source: Source, folder: Path, cache: Cache, deadline: Deadline, progress: Callable[[str], None]) -> Path:
    """Its tree with Debian's patches, inside ``folder``. BuildFailed, HostToolMissing, InfraError, StorageError."""
    files = fetched(source, cache, deadline, progress).files
    packed, tree = folder / "packed", folder / "tree"
    packed.mkdir()
    for name, path in files.items():
        (packed / name).symlink_to(path)
    done = run(
        ["dpkg-source", "--no-check", "-x", str(packed / source.dsc), str(tree)],
        deadline,
        env={**os.environ, "LC_ALL": "C", "TMPDIR": str(folder)},
        owned=True,
    )
    if done.status != 0:
        cache.require_room(done.err)
        raise BuildFailed(f"the source of {source.name} {source.version} cannot be unpacked: {done.words}", tail=done.err.strip())
    return tree


def _folder() -> Path:
    return cache_folder() / "apt-source"


def _options() -> list[str]:
    """Apt with lists of its own."""
    home = _folder().resolve()
    return [
        *("-o", f"Dir::Etc::sourcelist={home}/sources.list", "-o", f"Dir::Etc::sourceparts={home}/sources.d"),
        *("-o", f"Dir::State::lists={home}/lists/", "-o", f"Dir::Cache={home}/cache/", "-o", "Acquire::Languages=none"),
    ]


def _update(deadline: Deadline, progress: Callable[[str], None]) -> list[str]:
    """Fetch the lists; returns apt's options for asking them."""
    home = _folder()
    try:
        for folder in ("lists/partial", "cache/archives/partial", "sources.d"):
            (home / folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cache_error(home, error) from None
    asked = ["apt-config", "shell", "ONE", "Dir::Etc::sourcelist/f", "MANY", "Dir::Etc::sourceparts/d"]
    said = dict(line.split("=", 1) for line in apt.answer(asked, deadline).splitlines() if "=" in line)
    one, many = (Path(said.get(key, "''").strip("'")) for key in ("ONE", "MANY"))
    for old in (home / "sources.d").iterdir():
        old.unlink()
    (home / "sources.list").write_text(_of_sources(one.read_text(errors="replace")) if one.is_file() else "")
    for file in sorted(many.glob("*")) if many.is_dir() else ():
        if file.suffix in (".list", ".sources"):
            (home / "sources.d" / file.name).write_text(_of_sources(file.read_text(errors="replace")))
    progress("asking the archive for its list of sources")
    done = run(["apt-get", *_options(), "update"], deadline.sooner(_DOWNLOAD_S), env={**os.environ, "LC_ALL": "C"}, owned=True)
    if done.status != 0 or re.search(r"^(E|W): (Failed to fetch|Some index files failed)", done.err, re.MULTILINE):
        raise _unreachable("the archive's list of sources cannot be fetched", done)
    return _options()


def _of_sources(text: str) -> str:
    """A file of archives, one a line or in paragraphs, for their sources."""
    text = re.sub(r"^deb(-src)?(?=\s)", "deb-src", text, flags=re.MULTILINE)
    return re.sub(r"^Types:.*$", "Types: deb-src", text, flags=re.MULTILINE)


def _found(name: str, options: list[str], deadline: Deadline) -> Source:
    done = run(["apt-cache", *options, "showsrc", "--only-source", name], deadline, env={**os.environ, "LC_ALL": "C"})
    versions: list[Source] = []
    for paragraph in done.out.split("\n\n"):
        version = re.search(r"^Version: (\S+)$", paragraph, re.MULTILINE)
        listed = re.search(r"^Checksums-Sha256:\s*\n((?: .*\n?)+)", paragraph, re.MULTILINE)
        if re.search(rf"^Package: {re.escape(name)}$", paragraph, re.MULTILINE) and version and listed:
            files = {found[3]: found[1] for found in _FILE.finditer(listed[1])}
            if any(each.endswith(".dsc") for each in files):
                versions.append(Source(name, version[1], files))
    if not versions:
        raise apt.NotThere("package", f"apt has no source package {name!r}", "a source package of the archives in apt's sources.list")
    return max(versions, key=lambda source: debversion.sort_key(source.version))


def _unreachable(what: str, done: Completed) -> InfraError:
    first = next((line for line in done.err.splitlines() if line.startswith(("E: ", "W: ", "Err:"))), done.words)
    return InfraError(f"{what}: {first}", tail=done.err.strip(), remedy="check the network and apt's proxy")


def _noted(value: object) -> Source | None:
    if not isinstance(value, dict) or not isinstance(value.get("files"), dict):
        return None
    try:
        return Source(**value)
    except TypeError:
        return None
