"""Speaks to ``vmkeeper`` (guest/tools/vmkeeper.c) on the machine under test: a VM's process, its console, its restarts.

What it answers is a guest's word in part: parsed strictly, and bounded by the shell's own limits.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from labctl.deadline import Deadline
from labctl.errors import CommandFailed, VmFailed
from labctl.hypervisor.protocols import Heard
from labctl.machine.protocols import CommandResult
from labctl.machine.session import Session
from labctl.parsers.text import visible

GRACE_S = 15.0
"""Seconds beyond a verb's own deadline after which a command in the machine hangs: the tools keep the deadline themselves."""
_MOST_TYPED = 400
"""Bytes for one request."""
_LOST = 5
"""Status of a request to a keeper that has died."""
_NEVER_SAID = 1 << 62
"""An offset that no console comes to: who waits for what is said there hears of the program's end alone."""
_LINE = re.compile(r"([0-9]{1,20}) ([0-9]{1,20}) (.*)")
_READ = re.compile(rb"from=([0-9]{1,20}) to=([0-9]{1,20}) dropped=([0-9]{1,20})\n")


@dataclass(frozen=True, slots=True)
class Status:
    """Of a VM's process. Times in seconds of the machine's monotonic clock, 0 for what has not been."""

    state: str
    """``running``, ``ended``, ``gone`` where there is no keeper, or ``lost`` where that was killed, and the program with it."""
    pid: int = 0
    """Of the program, also once that has ended."""
    started: float = 0.0
    ended: float = 0.0
    how: int = 0
    """Its exit status, 128 and the signal's number if one ended it."""
    starts: int = 0
    console: int = 0
    """Bytes that its console has said."""


def status_of(line: str) -> tuple[str, Status]:
    """``FOLDER key=value...`` → the folder, and what it says. ValueError for what is no such line."""
    folder, _, rest = line.partition(" ")
    words = dict(word.split("=", 1) for word in rest.split())
    if (state := words.get("state")) in ("gone", "lost"):
        return folder, Status(state)
    if words.get("state") not in ("running", "ended"):
        raise ValueError(f"no state of a VM: {line[:200]!r}")
    number = {key: int(value) for key, value in words.items() if key != "state"}
    return folder, Status(
        words["state"],
        number["pid"],
        number["started_ns"] / 1e9,
        number["ended_ns"] / 1e9,
        number["ended"],
        number["starts"],
        number["console"],
    )


@dataclass
class Keeper:
    """The keepers of one machine. ``folder`` of a VM is where its keeper listens."""

    session: Session

    def shell(self, command: str, deadline: Deadline, *, check: bool = True) -> CommandResult:
        """A command in the machine that keeps the deadline itself. VmFailed if ``check`` and its status is not 0."""
        try:
            return self.session.run(command, deadline=Deadline.after(deadline.left + GRACE_S), check=check)
        except CommandFailed as error:
            if error.status is None:
                raise
            raise VmFailed(error.message, target=self.session.name) from None

    def start(self, folder: str, restarts: int, words: Sequence[str], deadline: Deadline) -> None:
        """Until the program runs. VmFailed if it cannot be run."""
        done = self.shell(f"vmkeeper start {folder} {restarts} -- {shlex.join(words)}", deadline, check=False)
        if done.status != 0:
            raise VmFailed(f"{words[0]} does not start: {_told(done)}", target=self.session.name)

    def status(self, folders: Sequence[str], deadline: Deadline) -> dict[str, Status]:
        if not folders:
            return {}
        told = self.shell(f"vmkeeper status {' '.join(folders)}", deadline).output
        try:
            return dict(status_of(line) for line in told.splitlines())
        except (ValueError, KeyError) as error:
            raise VmFailed(f"what the keeper of VMs says cannot be read: {error}", target=self.session.name) from None

    def wait(self, folder: str, text: str, since: int, deadline: Deadline) -> Heard | str:
        """Where and when the console said it; else why it did not: ``late``, ``ended``, ``gone``, ``lost``."""
        if not text.isprintable() or not 1 <= len(text.encode()) <= 256:
            raise ValueError("1 to 256 bytes that can be printed")
        command = f"vmkeeper wait {folder} {since} {max(1, int(deadline.left * 1000))} {shlex.quote(text)}"
        done = self.shell(command, deadline, check=False)
        if done.status == 0 and (found := re.fullmatch(r"at=([0-9]{1,20}) ns=([0-9]{1,20})\n", done.output)):
            return Heard(int(found[1]), int(found[2]) / 1e9, text)
        return {1: done.output.strip(), 3: "gone", _LOST: "lost"}.get(done.status, _told(done))

    def ended(self, folder: str, deadline: Deadline) -> bool:
        """Until its program has ended; False if it has not by then. It must not be one that is started again."""
        return self.wait(folder, "-", _NEVER_SAID, deadline) in ("ended", "gone", "lost")

    def read(self, folder: str, since: int, deadline: Deadline) -> bytes:
        """What is kept of the console from that offset on; empty where there is no keeper."""
        told = self.shell(f"vmkeeper read {folder} {since}", deadline, check=False).output.encode(errors="replace")
        found = _READ.match(told)
        return told[found.end() :] if found else b""

    def lines(self, folder: str, prefix: str, since: int, deadline: Deadline) -> tuple[Heard, ...]:
        told = self.shell(f"vmkeeper lines {folder} {since} {shlex.quote(prefix)}", deadline, check=False).output
        found = (_LINE.fullmatch(line) for line in told.split("\n"))
        return tuple(Heard(int(line[1]), int(line[2]) / 1e9, line[3]) for line in found if line)

    def type(self, folder: str, data: bytes, deadline: Deadline) -> None:
        """VmFailed if nobody takes it."""
        for at in range(0, len(data), _MOST_TYPED):
            done = self.shell(f"vmkeeper type {folder} {data[at : at + _MOST_TYPED].hex()}", deadline, check=False)
            if done.status != 0:
                raise VmFailed(f"its console takes no bytes: {_told(done)}", target=self.session.name)

    def words(self, folder: str, deadline: Deadline) -> str:
        """The last that the program said on its standard error, made visible."""
        return visible(self.shell(f"vmkeeper said {folder}", deadline, check=False).output.strip()[-600:])

    def end(self, folder: str, deadline: Deadline) -> None:
        """Program and keeper are gone; gone before is no error. VmFailed if they are still there."""
        done = self.shell(f"timeout {max(1, int(deadline.left))} vmkeeper end {folder}", deadline, check=False)
        if done.status not in (0, 3, _LOST):
            raise VmFailed(f"its process does not end: {_told(done)}", target=self.session.name)

    def clock(self, deadline: Deadline) -> tuple[float, float]:
        """The machine's monotonic and real-time clocks now, in seconds."""
        return self.clock_of(self.shell("vmkeeper clock", deadline).output)

    def clock_of(self, told: str) -> tuple[float, float]:
        """What ``vmkeeper clock`` said → seconds."""
        found = re.match(r"monotonic=([0-9]{1,20}) realtime=([0-9]{1,20})\n", told)
        if not found:
            raise VmFailed(f"the machine's clock says {told[:80]!r}", target=self.session.name)
        return int(found[1]) / 1e9, int(found[2]) / 1e9


def _told(done: CommandResult) -> str:
    return visible((done.stderr.strip() or done.output.strip() or f"status {done.status}")[-600:])
