"""How a target stands with the people of its lab: reserved by one of them, or found unhealthy. Kept in the lab, for all its users.

A reservation is for people, and lasts until it is given back: its owner's runs go on, everybody else's leave the target out. A target
that fails its known-good boot is unhealthy, with the reason, until a check of it passes.
"""

from __future__ import annotations

import json
import os
import re
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from labctl.errors import StorageError, TargetBusy
from labctl.machine.lockfile import printable, user_name

_MOST_BYTES = 4096


@dataclass(frozen=True)
class Reservation:
    user: str
    since: float
    """Seconds since the Unix epoch."""
    note: str

    @property
    def ours(self) -> bool:
        return self.user == user_name()

    def __str__(self) -> str:
        text = f"{self.user} since {_when(self.since)}"
        return f"{text}: {self.note}" if self.note else text


@dataclass(frozen=True)
class Unhealthy:
    since: float
    """When it was found so first."""
    reason: str
    """What was found last."""
    seen: float
    """When that was."""

    def __str__(self) -> str:
        last = f"; at {_when(self.seen)}" if self.seen - self.since >= 60 else ""
        return f"unhealthy since {_when(self.since)}{last}: {self.reason}"


def reservation(lab_root: Path, target: str) -> Reservation | None:
    match _read(_file(lab_root, target, "reserved")):
        case {"user": str(user), "since": int() | float() as since, "note": str(note)}:
            return Reservation(printable(user), float(since), printable(note))
    return None


def unhealthy(lab_root: Path, target: str) -> Unhealthy | None:
    match _read(_file(lab_root, target, "unhealthy")):
        case {"since": int() | float() as since, "reason": str(reason), **more}:
            seen = more.get("seen")
            return Unhealthy(float(since), printable(reason), float(seen if isinstance(seen, (int, float)) else since))
    return None


def reserve(lab_root: Path, target: str, note: str) -> Reservation:
    """For this user, until `release`. TargetBusy with who has it, if somebody else does. One's own is renewed."""
    made = Reservation(user_name(), time.time(), printable(note)[:500])
    file = _file(lab_root, target, "reserved")
    while not _create(file, asdict(made)):
        check_free(lab_root, target)
        file.unlink(missing_ok=True)  # one's own, or one that nobody can read
    return made


def release(lab_root: Path, target: str, *, force: bool = False) -> bool:
    """Give it back; False if nobody had it. TargetBusy if somebody else has, unless forced."""
    if not force:
        check_free(lab_root, target)
    file = _file(lab_root, target, "reserved")
    there = file.exists()
    file.unlink(missing_ok=True)
    return there


def check_free(lab_root: Path, target: str) -> None:
    """TargetBusy if somebody else has reserved it."""
    found = reservation(lab_root, target)
    if found is not None and not found.ours:
        raise TargetBusy(
            f"target {target} is reserved by {found}",
            target=target,
            remedy=f"ask {found.user}; labctl targets release --force {target} takes it back",
        )


def set_unhealthy(lab_root: Path, target: str, reason: str) -> None:
    """From now on, or since before if it was already."""
    before = unhealthy(lab_root, target)
    file = _file(lab_root, target, "unhealthy")
    file.unlink(missing_ok=True)
    now = time.time()
    _create(file, asdict(Unhealthy(before.since if before else now, printable(reason)[:1000], now)))


def set_healthy(lab_root: Path, target: str) -> None:
    _file(lab_root, target, "unhealthy").unlink(missing_ok=True)


def forget(lab_root: Path, target: str) -> None:
    """Of a target that there is no more: one that gets its name is another machine. TargetBusy if somebody else has reserved it."""
    release(lab_root, target)
    set_healthy(lab_root, target)


def why_left_out(lab_root: Path, target: str) -> str:
    """Why no run of this user may have it now; empty if it may."""
    if (found := reservation(lab_root, target)) is not None and not found.ours:
        return f"reserved by {found}"
    ill = unhealthy(lab_root, target)
    return str(ill) if ill is not None else ""


def in_a_word(lab_root: Path, target: str) -> str:
    """``reserved``, ``unhealthy``, both, or nothing: for a list."""
    found = {"reserved": reservation(lab_root, target), "unhealthy": unhealthy(lab_root, target)}
    return ", ".join(word for word, standing in found.items() if standing is not None)


def _file(lab_root: Path, target: str, what: str) -> Path:
    return lab_root / ".labctl" / "targets" / f"{re.sub(r'[^A-Za-z0-9._+-]', '_', target)}.{what}.json"


def _read(file: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError, RecursionError):
        with file.open("rb") as opened:
            found = json.loads(opened.read(_MOST_BYTES))
        if isinstance(found, dict):
            return found
    return {}


def _create(file: Path, content: dict[str, Any]) -> bool:
    """Whole or not at all; False if there is one already."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({"schema": 1, **content}))
        try:
            os.link(temporary, file)
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
    except OSError as error:
        raise StorageError(f"{file} cannot be written: {error.strerror}", remedy=f"ls -ld {file.parent}") from None
    return True


def _when(since: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(since))
