"""What a machine may fetch now: a file in a folder, locked by the process that holds the machine. A dead owner's offer is none.

The folder is all that the two sides share, so the server may be a thread of the owner or a service of another user. The server writes
what was fetched to a journal beside it, one JSON object a line; the owner reads it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from labctl.errors import DeployError, StorageError

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
"""Of a file within an offer: safe in a URL and in an iPXE script."""
_SERVER = "boot-server.json"
_PIECE = 1 << 18
"""Bytes of a file that are read at a time."""
_JOURNAL = 1 << 22
"""Bytes of a journal at most: a machine that asks without end fills no disk."""


@dataclass(frozen=True)
class File:
    """One file, named by its digest (hexadecimal SHA-256)."""

    path: str
    digest: str
    size: int


@dataclass(frozen=True)
class Offer:
    """``token`` is part of every URL but the first: only the machine that was given the script knows where its files are."""

    target: str
    mac: str
    """``52:54:00:12:34:56``: whose it is. Empty: any machine's that asks, for a server of one machine."""
    script: str
    """What iPXE runs; addresses in it name no server: it is the one that the script came from."""
    files: Mapping[str, File]
    token: str = field(default_factory=lambda: secrets.token_hex(16))

    def text(self) -> str:
        return json.dumps({"schema": 1, **asdict(self)})

    @classmethod
    def from_text(cls, text: str) -> Offer:
        """Raises ValueError, KeyError, TypeError for what no owner wrote."""
        data = json.loads(text)
        files = {name: File(**entry) for name, entry in data["files"].items() if NAME.fullmatch(name)}
        return cls(data["target"], data["mac"], data["script"], files, data["token"])


def describe(path: Path, build: str, target: str, also: Callable[[memoryview], object] = lambda piece: None) -> File:
    """A file as it is now, read to its end; ``also`` is told the same bytes. DeployError if it is gone or cannot be read."""
    digest, size, piece = hashlib.sha256(), 0, memoryview(bytearray(_PIECE))
    try:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(piece):
                digest.update(piece[:count])
                also(piece[:count])
                size += count
            return File(str(path), digest.hexdigest(), size)
    except FileNotFoundError:
        raise DeployError(f"{path} is gone from the cache", target=target, remedy=f"labctl build {build}") from None
    except OSError as error:
        raise DeployError(f"{path} cannot be read: {error.strerror}", target=target) from None


@dataclass(frozen=True)
class Fetch:
    """What the journal tells of one request."""

    name: str
    sent: int
    size: int
    """Bytes given to the network, and bytes asked for."""
    at: float
    """Seconds since the Unix epoch of the last byte."""
    ended: bool
    reported: str = ""
    """What the machine said of itself, if this was a report."""

    @property
    def whole(self) -> bool:
        return self.ended and self.sent == self.size


class Shelf:
    """The folder of offers. Many owners, one server."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def make(self, shared: bool = False) -> None:
        """``shared``: other users may put their offers there, and take away none but their own. StorageError."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o755)
            if shared:
                self.folder.chmod(0o1777)
        except OSError as error:
            remedy = f"ls -ld {self.folder} {self.folder.parent}; another folder: --offers of labctl boot-server"
            if isinstance(error, (FileExistsError, NotADirectoryError)):
                raise StorageError(f"{self.folder} cannot be the folder of offers: a file is in its place", remedy=remedy) from None
            raise StorageError(f"{self.folder} cannot be made: {error.strerror}", remedy=remedy) from None

    @contextmanager
    def offering(self, offer: Offer) -> Iterator[None]:
        """Offer it within this block. DeployError if the folder takes no file."""
        path = self.folder / f"{offer.token}.offer"
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise DeployError(
                f"the boot server's folder {self.folder} takes no offer: {error.strerror}",
                target=offer.target,
                remedy=f"labctl boot-server --offers {self.folder}",
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            os.write(descriptor, offer.text().encode())
            yield
        finally:
            path.unlink(missing_ok=True)
            os.close(descriptor)
            with suppress(OSError):
                self._journal(offer.token).unlink()

    def live(self) -> list[Offer]:
        """The offers whose owners live. What others left in the folder is passed over."""
        found = []
        for path in self.folder.glob("*.offer"):
            with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
                offer = self._read(path)
                if offer is not None and offer.token == path.stem:
                    found.append(offer)
        return found

    def _read(self, path: Path) -> Offer | None:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(descriptor) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return Offer.from_text(file.read())  # held: its owner lives
        with suppress(OSError):
            path.unlink()
        return None

    # --- the service that serves this folder

    @contextmanager
    def served(self, address: str, port: int) -> Iterator[None]:
        """Say within this block where the folder is served: a file that its server holds. One server a folder: StorageError."""
        path = self.folder / _SERVER
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StorageError(f"{path} cannot be written: {error.strerror}") from None
        with os.fdopen(descriptor, "r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StorageError(f"{self.folder} is served already", remedy="one boot server a folder of offers") from None
            file.truncate()
            file.write(json.dumps({"address": address, "port": port}))
            file.flush()
            yield
            path.unlink(missing_ok=True)

    def server(self, target: str) -> tuple[str, int]:
        """Address and port of the service that serves this folder now. DeployError if there is none."""
        with suppress(OSError, ValueError, KeyError, TypeError), (self.folder / _SERVER).open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                said = json.loads(file.read())
                return str(said["address"]), int(said["port"])
        raise DeployError(
            f"no boot server serves {self.folder}", target=target, remedy=f"labctl boot-server --offers {self.folder}, with --address"
        )

    # --- the journal: written by the server, read by the owner

    def _journal(self, token: str) -> Path:
        return self.folder / f"{token}.journal"

    def note(self, token: str, number: int, fetch: Fetch) -> None:
        """Of one request, so far: ``number`` tells it from the others."""
        line = json.dumps({"n": number, **asdict(fetch)}) + "\n"
        with suppress(OSError), self._journal(token).open("a") as file:
            if file.tell() < _JOURNAL:
                file.write(line)

    def fetches(self, token: str) -> list[Fetch]:
        """Each request as the journal knows it last, oldest first. A line that makes no sense is passed over."""
        latest: dict[int, Fetch] = {}
        try:
            text = self._journal(token).read_bytes().decode(errors="replace")
        except OSError:
            return []
        for line in text.splitlines():
            with suppress(ValueError, TypeError, KeyError):
                data = json.loads(line)
                number = data.pop("n")
                latest[number] = Fetch(**data)
        return list(latest.values())


def now() -> float:
    return time.time()
