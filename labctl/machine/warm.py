"""Warm start: a cell's machine as a copy of one that was booted before, in a fraction of a second.

::

    warm/HASH/         a kept machine: memory, state, disk (if it has one), manifest.json, last
    warm/HASH.lock     flock: exclusive while it is made or removed, shared while a copy of it starts
    warm/HASH.refused  why such a machine cannot be kept: it is not tried again
    warm/HASH.draft    where it is made; only the holder of the lock has one

The name is a digest of everything that the copy must have in common with it: build with suite overlay and agent, command line, target,
QEMU, host, version of the lab. Whatever is wrong with one, it is removed, and the cell boots. Everything here can be deleted at any time:
who runs already has its files open.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labctl import __version__
from labctl.config import cache_error, cache_folder
from labctl.deadline import Deadline
from labctl.errors import LabctlError, ManagementError
from labctl.machine import registry
from labctl.machine.protocols import Copies, DriverContext, Renews, Shell
from labctl.machine.session import Session, command_line
from labctl.machine.transcript import Transcript
from labctl.model import Build, Channel, Target

MOST_BYTES = 4 << 30
"""What all kept machines may take of the disk: those that were not used for the longest time go first."""
_SPARE_BYTES = 1 << 30
"""What must be free on the disk besides the memory of the machine that is to be kept."""
_WAIT_S = 300.0
"""Seconds for another cell that is making the same one: a slow boot."""
_PAUSE_S = 0.01
_REFRESH_S = 20.0
_ENTROPY_BYTES = 256
_FILES = ("memory", "state", "disk")
_MANIFEST, _LAST = "manifest.json", "last"

_ANEW = "it has reset itself, and booted: its memory may be damaged"
_COUNTED = "instructions are counted from power-on"
_NO_COPIES = "the target's drivers cannot copy a machine: that takes qemu, and agent to make copies differ"

_OWN_ADDRESSES = """for card in /sys/class/net/*; do
	card=${card##*/}; [ -e /sys/class/net/$card/device ] || continue
	up=$(($(cat /sys/class/net/$card/flags) & 1)); [ $up = 0 ] || ip link set $card down
	ip link set $card address 02:$(od -An -N5 -tx1 /dev/urandom | tr ' ' : | cut -c2-)
	[ $up = 0 ] || ip link set $card up
done"""
"""Every network card gets an address of its own (locally administered), drawn after the random numbers were begun anew."""


class Unusable(Exception):
    """Why there is no copy to start from."""


class Unkeepable(Unusable):
    """Why there will be none of this machine, however often it is tried."""


@dataclass
class KeptMachines:
    """Machines in files, shared by any number of processes."""

    root: Path = field(default_factory=lambda: cache_folder() / "warm")
    most_bytes: int = MOST_BYTES

    @contextmanager
    def borrow(self, identity: Mapping[str, str], make: Callable[[Path], None], memory: int, deadline: Deadline) -> Iterator[Path]:
        """The folder of the machine of that identity, made now by ``make(folder)`` if there is none; it stays for as long as the block.

        Unusable: what is there is broken (it is removed), it would take more room than there is, or whoever makes it takes too long. What
        ``make`` raises.
        """
        name = _name(identity)
        folder = self.root / name
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Unusable(cache_error(self.root, error).message) from None
        refused = self.root / f"{name}.refused"
        with self._lock(name) as descriptor:
            if refused.is_file():
                raise Unusable(refused.read_text())
            _take(descriptor, fcntl.LOCK_SH, deadline)
            if not folder.exists():
                fcntl.flock(descriptor, fcntl.LOCK_UN)
                _take(descriptor, fcntl.LOCK_EX, deadline)
                if not folder.exists():  # nobody made it in between
                    self._require_room(memory)
                    try:
                        self._make(folder, identity, make)
                    except Unkeepable as error:
                        refused.write_text(str(error))
                        raise
                    self._clean(name)
                fcntl.flock(descriptor, fcntl.LOCK_SH)
            try:
                _check(folder)
            except Unusable:
                self._discard(folder, descriptor)
                raise
            (folder / _LAST).touch()
            yield folder

    def foreseen(self, identity: Mapping[str, str], memory: int) -> str:
        """What a copy would be of, as `borrow` would find it now. Unusable: why there would be none."""
        name = _name(identity)
        folder, refused = self.root / name, self.root / f"{name}.refused"
        if refused.is_file():
            raise Unusable(refused.read_text())
        if folder.exists():
            _check(folder)
            return "of a machine that is kept"
        if self.root.exists() and not self.root.is_dir():
            raise Unusable(cache_error(self.root, NotADirectoryError(errno.ENOTDIR, "")).message)
        self._require_room(memory)
        return "of a machine that is booted first, and kept"

    def drop(self, folder: Path) -> None:
        """A machine that does not wake: it is made anew by whoever wants it next. One that others are starting from stays."""
        with self._lock(folder.name) as descriptor:
            self._discard(folder, descriptor)

    @property
    def bytes(self) -> int:
        """Of the disk, that all of them take."""
        return sum(_bytes(folder) for folder in self._folders())

    def _make(self, folder: Path, identity: Mapping[str, str], make: Callable[[Path], None]) -> None:
        draft = folder.with_suffix(".draft")
        _clear(draft)
        draft.mkdir()
        try:
            make(draft)
            for path in draft.iterdir():
                if path.name not in _FILES:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            (draft / _MANIFEST).write_text(json.dumps({"schema": 1, "identity": dict(identity), "files": _seals(draft)}))
            (draft / _LAST).touch()
            draft.rename(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _require_room(self, memory: int) -> None:
        free = shutil.disk_usage(next(place for place in (self.root, *self.root.parents) if place.is_dir())).free
        if memory > self.most_bytes:
            raise Unusable(f"its memory is larger than all kept machines may be together ({self.most_bytes >> 20} MiB)")
        if free < memory + _SPARE_BYTES:
            raise Unusable(f"{self.root} has {free >> 20} MiB free, and keeping it needs {(memory + _SPARE_BYTES) >> 20}")

    def _clean(self, kept: str) -> None:
        """Remove those that were not used for the longest time, until the rest is small enough; drafts whose makers died go too."""
        for draft in self.root.glob("*.draft"):
            with self._lock(draft.stem) as descriptor:
                if draft.stem != kept and _try(descriptor, fcntl.LOCK_EX):
                    _clear(draft)
        oldest_first = sorted((folder for folder in self._folders() if folder.name != kept), key=_last_used)
        while oldest_first and self.bytes > self.most_bytes:
            folder = oldest_first.pop(0)
            with self._lock(folder.name) as descriptor:
                self._discard(folder, descriptor)

    def _discard(self, folder: Path, descriptor: int) -> None:
        if _try(descriptor, fcntl.LOCK_EX):
            # Out of the way first: a copy is never started from half a folder.
            grave = folder.with_suffix(".draft")
            _clear(grave)
            with suppress(OSError):
                folder.rename(grave)
            _clear(grave)

    def _folders(self) -> list[Path]:
        return [path for path in self.root.glob("*") if path.is_dir() and not path.suffix]

    @contextmanager
    def _lock(self, name: str) -> Iterator[int]:
        path = self.root / f"{name}.lock"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise Unusable(cache_error(path, error).message) from None
        try:
            yield descriptor
        finally:
            os.close(descriptor)


@dataclass
class WarmStart:
    """Starts a session's machine as a copy. ``told`` is given how it went: ``copy``, or ``boot`` and why."""

    told: Callable[[str, str], None] = lambda how, why: None
    kept: KeptMachines = field(default_factory=KeptMachines)

    def __call__(self, session: Session) -> bool:
        """Whether it runs now; if not, it is off, and as it was."""
        try:
            self._start(session)
        except (Unusable, LabctlError, OSError) as error:
            session.give_up_copy()
            self.told("boot", _words(error))
            return False
        self.told("copy", "")
        return True

    def _start(self, session: Session) -> None:
        power, shell = session.machine.power, session.machine.roles.get(Shell)
        if session.config.channel is Channel.ICOUNT:
            raise Unusable(_COUNTED)
        if not isinstance(power, Copies) or not isinstance(shell, Renews):
            raise Unusable(_NO_COPIES)
        if why := power.why_not():
            raise Unusable(why)
        deadline = Deadline.after(_WAIT_S)
        session.watcher.status("waiting for a machine to copy")
        identity = _identity(session.target, session.build, session.append, power)
        with self.kept.borrow(identity, lambda folder: _keep(session, folder), session.config.memory, deadline) as folder:
            broken = ""
            try:
                session.wake(folder)
                limit = Deadline.after(_REFRESH_S)
                shell.reseed(os.urandom(_ENTROPY_BYTES), limit)
                shell.set_clock(limit)
                result = session.machine.shell.run(_OWN_ADDRESSES, limit)
                broken = _ANEW if session.began_anew() else ""
            except LabctlError as error:  # also where it runs and does not answer: its memory may be damaged
                broken = error.title
        if broken:
            self.kept.drop(folder)
            raise Unusable(f"what is kept of the machine cannot be started from: {broken}")
        if result.status != 0:
            raise Unusable(f"its network cards take no addresses of their own: {result.stderr.strip()[-200:]}")


def _words(error: Exception) -> str:
    if isinstance(error, OSError):
        return cache_error(KeptMachines().root, error).message
    return error.title if isinstance(error, LabctlError) else str(error)


def foreseen(target: Target, build: Build, workdir: Path, kept: KeptMachines | None = None) -> str:
    """What a machine of that target with that build would be a copy of, if its cell began now; nothing is powered. Unusable: why it would
    boot. ``build``: as it is put on the target; ``workdir``: an empty folder."""
    if target.machines:
        raise Unusable("it has several machines")
    if target.config.channel is Channel.ICOUNT:
        raise Unusable(_COUNTED)
    # By their classes: those of a real server would look for its passwords.
    classes = [registry.load(name) for name in target.config.drivers]
    if not any(issubclass(each, Copies) for each in classes) or not any(issubclass(each, Renews) for each in classes):
        raise Unusable(_NO_COPIES)
    with Transcript(workdir) as transcript:
        power: object = registry.assemble(DriverContext(target, workdir), transcript).power
        assert isinstance(power, Copies)  # noqa: S101  # an instance of one of the classes
        if why := power.why_not():
            raise Unusable(why)
        identity = _identity(target, build, command_line(target, build), power)
    return (kept or KeptMachines()).foreseen(identity, target.config.memory)


def _name(identity: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(dict(identity), sort_keys=True).encode()).hexdigest()[:32]


def _identity(target: Target, build: Build, append: str, power: Copies) -> dict[str, str]:
    config: Any = target.config.model_dump(mode="json", by_alias=True)
    return {
        "labctl": __version__,
        "build": build.digest,
        "milestones": json.dumps(dict(build.milestones), sort_keys=True),
        "append": append,
        "target": json.dumps([target.name, config], sort_keys=True),
        "machine": power.identity(build, append),
    }


def _keep(session: Session, folder: Path) -> None:
    """Boot the same machine, and keep it as it is when its shell answers."""
    workdir = folder / "session"
    workdir.mkdir()
    with Session(session.target, session.build, workdir, session.host_cpus) as original:
        power = original.machine.power
        assert isinstance(power, Copies)  # noqa: S101  # the same drivers as those of the session
        session.watcher.status("booting a machine to copy")
        power.keep(folder)
        original.booted()
        original.run("sync")
        original.let_go()
        try:
            power.freeze(Deadline.after(_REFRESH_S))
        except ManagementError as error:
            raise Unkeepable(f"the machine cannot be kept: {error.title}") from None


def _check(folder: Path) -> None:
    """Unusable unless the files are those that were kept: size and time of the large ones, content of the state."""
    try:
        seals = json.loads((folder / _MANIFEST).read_bytes())["files"]
    except (OSError, ValueError, KeyError, TypeError):
        raise Unusable("what is kept of the machine has no manifest") from None
    now = _seals(folder)
    for name in sorted({*seals, *now}):
        if name not in now:
            raise Unusable(f"what is kept of the machine has lost its {name}")
        if seals.get(name) != now[name]:
            raise Unusable(f"what is kept of the machine has another {name} than it had")


def _seals(folder: Path) -> dict[str, str]:
    seals = {}
    for name in _FILES:
        with suppress(FileNotFoundError):
            status = (folder / name).stat()
            seals[name] = f"{status.st_size} {status.st_mtime_ns}"
            if name == "state":
                seals[name] += " " + hashlib.sha256((folder / name).read_bytes()).hexdigest()
    return seals


def _clear(path: Path) -> None:
    """Whatever stands there: a folder that was left, or a file that somebody has put in its place."""
    shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _bytes(folder: Path) -> int:
    total = 0
    for path in folder.iterdir():
        with suppress(FileNotFoundError):
            total += path.stat().st_blocks * 512
    return total


def _last_used(folder: Path) -> float:
    try:
        return (folder / _LAST).stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _try(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _take(descriptor: int, kind: int, deadline: Deadline) -> None:
    while not _try(descriptor, kind):
        if deadline.expired:
            raise Unusable(f"another cell has been making the machine to copy for over {deadline.seconds:g} s")
        time.sleep(_PAUSE_S)
