"""The cache of artefacts: immutable files named by their digest, found by what they were made from.

::

    objects/sha256/ab/abcd…   the files, read-only
    keys/HASH.json            what was made of which identity: digests, sizes, version, provenance
    locks/HASH.lock           held (flock) by whoever makes that identity
    tmp/HASH/                 where it is made; only the holder of the lock has one
    notes/NAME.json           small things worth remembering, safe to lose

Whoever is killed in the middle leaves a folder in ``tmp`` whose lock is free: the next one who makes anything removes it.
Everything here can be deleted at any time; it is made again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from labctl.config import cache_error, cache_folder
from labctl.deadline import Deadline
from labctl.errors import StorageError
from labctl.model import Provenance

_LOCK_PAUSE_S = 0.002, 0.1
"""Shortest and longest pause between two tries at a lock: flock has no form with a timeout."""

_GRAVE = ".gone"

_LITTLE_ROOM = 1 << 20
"""Bytes; with less than that free a disk counts as full."""


def cache_root() -> Path:
    """Where the artefacts lie: ``$LABCTL_CACHE``, else ``$XDG_CACHE_HOME/labctl``, else ``~/.cache/labctl``."""
    return cache_folder()


@dataclass(frozen=True)
class Made:
    """What a builder hands over: files by their part (``kernel``, ``initrd``) inside the folder that it was given."""

    files: Mapping[str, Path]
    version: str
    provenance: Provenance


class _StoredFile(BaseModel):
    model_config = ConfigDict(frozen=True, defer_build=True)

    digest: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    size: int


class _Manifest(BaseModel):
    """``keys/HASH.json``. One of another schema counts as absent and is made anew."""

    model_config = ConfigDict(frozen=True, defer_build=True)

    schema_: Literal[1] = Field(1, alias="schema")
    identity: Mapping[str, str]
    files: Mapping[str, _StoredFile]
    version: str
    provenance: Provenance
    made_at: str


@dataclass(frozen=True)
class Artefact:
    """Something in the cache."""

    files: Mapping[str, Path]
    digests: Mapping[str, str]
    """``sha256:HEX`` of each file."""
    size: int
    """Of all files, in bytes."""
    version: str
    provenance: Provenance
    made_at: str
    """UTC, ISO 8601."""


class Cache:
    """A cache in one folder, shared by any number of processes."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root if root is not None else cache_root()

    def find(self, identity: Mapping[str, str]) -> Artefact | None:
        """What was made of this identity, if all of its files are there in their full size."""
        try:
            manifest = _Manifest.model_validate_json(self._key(identity).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None
        except OSError as error:
            raise cache_error(self.root, error) from error
        files = {part: self._object(stored.digest) for part, stored in manifest.files.items()}
        for part, stored in manifest.files.items():
            try:
                if files[part].stat().st_size != stored.size:
                    return None
            except OSError:
                return None
        return Artefact(
            files,
            {part: stored.digest for part, stored in manifest.files.items()},
            sum(stored.size for stored in manifest.files.values()),
            manifest.version,
            manifest.provenance,
            manifest.made_at,
        )

    def obtain(
        self,
        identity: Mapping[str, str],
        make: Callable[[Path], Made],
        *,
        deadline: Deadline,
        progress: Callable[[str], None] = lambda _: None,
    ) -> Artefact:
        """What was made of this identity; made now by ``make(folder)`` if nobody did, and by one process only if several ask at once.

        StorageError if the cache cannot be written or another process does not finish within the deadline; what ``make`` raises.
        """
        if found := self.find(identity):
            return found
        try:
            with self._lock(identity, deadline, progress):
                if found := self.find(identity):
                    return found
                self._sweep()
                with self._folder(identity) as folder:
                    self._keep(identity, make(folder))
                if found := self.find(identity):
                    return found
        except OSError as error:
            raise cache_error(self.root, error) from error
        raise StorageError(f"{self.root}: what was just stored there is gone", remedy="is something else cleaning that folder?")

    def verify(self) -> list[str]:
        """Read every object; drop those whose content is not what their name says. Returns the digests dropped: they are made again."""
        dropped: list[str] = []
        try:
            for path in sorted(self.root.glob("objects/sha256/*/*")):
                with suppress(FileNotFoundError):
                    if digest_of(path) != f"sha256:{path.name}":
                        path.unlink()
                        dropped.append(f"sha256:{path.name}")
        except OSError as error:
            raise cache_error(self.root, error) from error
        return dropped

    def note(self, name: str) -> dict[str, Any]:
        """A small remembered thing; empty if there is none that can be read."""
        try:
            value = json.loads((self.root / "notes" / f"{name}.json").read_bytes())
        except (OSError, ValueError):
            return {}
        return value if isinstance(value, dict) and value.get("schema") == 1 else {}

    def remember(self, name: str, value: Mapping[str, Any]) -> None:
        try:
            _write_whole(self.root / "notes" / f"{name}.json", {"schema": 1, **value})
        except OSError as error:
            raise cache_error(self.root, error) from error

    def require_room(self, said: str, needed: int = 0) -> None:
        """StorageError if a full disk is why a program failed here: it ``said`` so, or less is free than the bytes it still needed."""
        free = shutil.disk_usage(self.root).free
        if free < max(needed, _LITTLE_ROOM) or "No space left on device" in said or "Disk quota exceeded" in said:
            raise StorageError(
                f"the disk of the cache of builds is full: {self.root}: {_mib(free)} free"
                + (f", {_mib(needed)} needed" if needed > 0 else ""),
                remedy=_MAKE_ROOM,
            )

    def _keep(self, identity: Mapping[str, str], made: Made) -> None:
        """Move the files into the store, then say so in the manifest: whoever reads the manifest finds the files."""
        stored: dict[str, dict[str, Any]] = {}
        for part, path in made.files.items():
            digest, size = digest_of(path), path.stat().st_size
            path.chmod(0o444)
            with path.open("rb") as file:
                os.fsync(file.fileno())
            target = self._object(digest)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
            stored[part] = {"digest": digest, "size": size}
        _write_whole(
            self._key(identity),
            {
                "schema": 1,
                "identity": dict(identity),
                "files": stored,
                "version": made.version,
                "provenance": asdict(made.provenance),
                "made_at": now(),
            },
        )

    @contextmanager
    def _lock(self, identity: Mapping[str, str], deadline: Deadline, progress: Callable[[str], None]) -> Iterator[None]:
        path = self._lock_file(_hash(identity))
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            pause, longest = _LOCK_PAUSE_S
            waiting = False
            while not _try_lock(descriptor):
                holder = os.pread(descriptor, 64, 0).decode("ascii", "replace").strip() or "unknown"
                if deadline.expired:
                    raise StorageError(f"process {holder} has been making the same build for over {deadline.seconds:g} s")
                if not waiting:
                    progress(f"waiting for process {holder}, which makes the same build")
                    waiting = True
                time.sleep(min(pause, deadline.left))
                pause = min(pause * 2, longest)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def _folder(self, identity: Mapping[str, str]) -> Iterator[Path]:
        """An empty folder of this identity's own, on the file system of the objects. Its lock is held."""
        folder = self.root / "tmp" / _hash(identity)
        _remove(folder)
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            _remove(folder)

    def _sweep(self) -> None:
        """Remove the folders whose makers died."""
        for folder in (self.root / "tmp").glob("*"):
            if folder.suffix == _GRAVE:
                shutil.rmtree(folder, ignore_errors=True)
                continue
            try:
                descriptor = os.open(self._lock_file(folder.name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except FileNotFoundError:
                continue
            try:
                if _try_lock(descriptor):
                    _remove(folder)
            finally:
                os.close(descriptor)

    def _object(self, digest: str) -> Path:
        hexadecimal = digest.removeprefix("sha256:")
        return self.root / "objects" / "sha256" / hexadecimal[:2] / hexadecimal

    def _key(self, identity: Mapping[str, str]) -> Path:
        return self.root / "keys" / f"{_hash(identity)}.json"

    def _lock_file(self, key: str) -> Path:
        return self.root / "locks" / f"{key}.lock"


class NotMade(LookupError):
    """A `Shelf` does not hold what was asked for."""


class Shelf(Cache):
    """The cache as one who only looks has it: what is not there is not made, but NotMade."""

    def obtain(
        self,
        identity: Mapping[str, str],
        make: Callable[[Path], Made],
        *,
        deadline: Deadline,
        progress: Callable[[str], None] = lambda _: None,
    ) -> Artefact:
        if (found := self.find(identity)) is None:
            raise NotMade(identity.get("builder", ""))
        return found


def digest_of(path: Path) -> str:
    """``sha256:HEX`` of a file's content."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _hash(identity: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(dict(identity), sort_keys=True).encode()).hexdigest()[:32]


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove(folder: Path) -> None:
    """Remove a folder, out of the way at once: what still writes into it by its path finds it gone."""
    grave = folder.with_name(f"{folder.name}.{time.monotonic_ns()}{_GRAVE}")
    try:
        folder.rename(grave)
    except FileNotFoundError:
        return
    shutil.rmtree(grave, ignore_errors=True)


def _write_whole(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file so that a reader sees all of it or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    try:
        with draft.open("w", encoding="utf-8") as file:
            json.dump(value, file, indent=1, sort_keys=True)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"


_MAKE_ROOM = "make room there, or: export LABCTL_CACHE=/some/other/folder"
