"""Keeps an emulated machine alive between commands: ``labctl power on`` starts one, ``power off`` and ``console`` speak to it.

A real server stays on by itself; an emulator lives only as long as the process that started it. The keeper is that process: it holds the
target's lease and serves a Unix socket in a folder that only its user can enter. One JSON object a line asks (``{"verb": "off"}``) and
one answers; after ``{"verb": "console"}`` is answered the connection carries the console's bytes both ways. With ``"owner": true`` the
machine is on for that console only, and goes off when its connection ends, however it ends.

The keeper ends when the machine is off. Whoever is told so is told when the target's lease is free.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import select
import socket
import sys
import threading
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from labctl.deadline import Deadline
from labctl.errors import InfraError, LabctlError, ManagementError, PowerError
from labctl.machine import lease
from labctl.machine.session import POWER_DEADLINE, Session, Watcher, start
from labctl.machine.transcript import ConsoleEnded
from labctl.model import Build, PowerState, Target, TargetConfig
from labctl.process import detach

REPLAY = 16384
"""Bytes of the past that a newly attached console is shown."""
MAX_REQUEST = 65536
REQUEST_DEADLINE = 2.0
"""Seconds that a client may take to say what it wants."""
_TELL = 5.0
"""Seconds of silence of a keeper that has been started, after which whoever started it is told what it is at."""
_STATUS = "status"
"""File of the keeper's folder: that."""
FAREWELL = 1.0
"""Seconds that an attached console may take for the machine's last words."""
_ASKS_THE_TERMINAL = b"\x1b[6n"
"""Where is the cursor? A terminal types its answer, which is for whoever asked, and when."""


def folder_of(target: str, lab_root: Path) -> Path:
    """Where a target's keeper lives."""
    return runtime_folder(hashlib.sha256(f"{lab_root.resolve()}\0{target}".encode()).hexdigest()[:16])


def runtime_folder(key: str) -> Path:
    """A folder for a keeper's socket. Only its user may enter. Short, for a socket's path has 107 bytes."""
    base = Path(os.environ.get("XDG_RUNTIME_DIR") or f"/tmp/labctl-{os.getuid()}")  # noqa: S108  # made 0700 and checked below
    folder = base / "labctl-keepers" / key
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for part in (folder, folder.parent):
        if part.lstat().st_uid != os.getuid() or part.is_symlink():
            raise InfraError(f"{part} belongs to somebody else", remedy=f"rm -r {part}, or set XDG_RUNTIME_DIR")
    return folder


def keep(target: Target, build: Build, lab_root: Path, why: str) -> dict[str, Any]:
    """Start a keeper, detached from this process; returns its status when the machine's power is on. InfraError says why it is not."""
    connection, answer = _start(target, build, lab_root, why, {"verb": "status"})
    connection.close()
    return answer


def keep_for_console(target: Target, build: Build, lab_root: Path, why: str, *, outlives: bool) -> socket.socket:
    """Start a keeper whose machine is on for this console only, unless it ``outlives`` it; returns the console's connection."""
    connection, _ = _start(target, build, lab_root, why, {"verb": "console", "owner": not outlives})
    return connection


def _start(target: Target, build: Build, lab_root: Path, why: str, first: dict[str, Any]) -> tuple[socket.socket, dict[str, Any]]:
    folder = folder_of(target.name, lab_root)
    request = {
        "lab": str(lab_root),
        "target": target.name,
        "config": target.config.model_dump(mode="json", by_alias=True),
        "build": asdict(build),
        "why": why,
    }
    # One at a time: of two that start one, the second finds the first's.
    with (folder / "starting").open("a") as starting:
        fcntl.flock(starting, fcntl.LOCK_EX)
        if (connection := _connect(target.name, lab_root)) is not None:
            connection.sendall(json.dumps(first).encode() + b"\n")
            answer = _answer_on(connection, target.name)
            if answer["state"] == PowerState.ON:
                return connection, answer
            connection.close()  # it is about to end
        (folder / _STATUS).unlink(missing_ok=True)
        (folder / "keep.json").write_text(json.dumps(request, default=str))
        return _start_alone(folder, target.name, first)


def _start_alone(folder: Path, target: str, first: dict[str, Any]) -> tuple[socket.socket, dict[str, Any]]:
    path = folder / "socket"
    path.unlink(missing_ok=True)
    connection = socket.socket(socket.AF_UNIX)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()
            # Asked before there is a keeper: it finds the request in its queue even if this process is killed meanwhile.
            connection.connect(str(path))
            connection.sendall(json.dumps(first).encode() + b"\n")
            detach(
                [sys.executable, "-m", "labctl.machine.keeper", str(folder), str(listener.fileno())],
                [listener.fileno()],
                folder / "keeper.log",
            )
        _until_it_speaks(connection, folder / _STATUS, target)
        answer = _answer_on(connection, target)
        if answer["state"] != PowerState.ON:
            raise PowerError("it went off as soon as it was on", target=target)
    except (ManagementError, PowerError) as error:
        connection.close()
        log = (folder / "keeper.log").read_text(errors="replace").strip().splitlines()
        raise InfraError(log[-1] if log else error.message, target=target) from None
    except BaseException:
        connection.close()
        raise
    return connection, answer


def _until_it_speaks(connection: socket.socket, status: Path, target: str) -> None:
    """A keeper that puts a build on a machine may have an hour's work; each of its steps has a deadline, and if it ends its end of the
    connection does. What it is at is told when that takes long."""
    told = ""
    while not select.select([connection], [], [], _TELL)[0]:
        with suppress(OSError):
            if (now := status.read_text()) != told:
                sys.stderr.write(f"labctl: {target}: {now}\n")
                told = now


def ask(target: str, lab_root: Path, verb: str) -> dict[str, Any] | None:
    """Ask a keeper and return its answer, or None if there is no keeper. ManagementError if it says no."""
    connection = _connect(target, lab_root)
    if connection is None:
        return None
    with connection:
        return _request(connection, target, verb)


def attach(target: str, lab_root: Path) -> socket.socket | None:
    """A connection to the console of a machine that is kept on, or None if there is none. ManagementError if the keeper says no."""
    connection = _connect(target, lab_root)
    if connection is None:
        return None
    try:
        with suppress(OSError):  # the answer, or that there is none, says it better
            connection.sendall(json.dumps({"verb": "console"}).encode() + b"\n")
        _until_it_speaks(connection, folder_of(target, lab_root) / _STATUS, target)
        if _answer_on(connection, target)["state"] == PowerState.ON:
            return connection
    except ManagementError:
        connection.close()
        raise
    connection.close()
    return None


def _connect(target: str, lab_root: Path) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(folder_of(target, lab_root) / "socket"))
    except OSError:
        connection.close()
        return None
    return connection


def _request(connection: socket.socket, target: str, verb: str) -> dict[str, Any]:
    with suppress(OSError):  # the answer, or that there is none, says it better
        connection.sendall(json.dumps({"verb": verb}).encode() + b"\n")
    return _answer_on(connection, target)


def _answer_on(connection: socket.socket, target: str) -> dict[str, Any]:
    connection.settimeout(2 * POWER_DEADLINE)
    try:
        answer: dict[str, Any] = json.loads(_line(connection))
    except (OSError, ValueError) as error:
        raise ManagementError(f"its keeper does not answer: {error}", target=target) from None
    if "error" in answer:
        raise ManagementError(str(answer["error"]), target=target)
    connection.settimeout(None)
    return answer


def _line(connection: socket.socket) -> bytes:
    data = b""
    while not data.endswith(b"\n"):
        more = connection.recv(1)  # to the byte: what follows the line belongs to the console
        if not more or len(data) > MAX_REQUEST:
            raise ValueError("the connection ended in the middle of a line")
        data += more
    return data


class _Keeper:
    """Verbs are done in the thread that runs `serve`: an emulator dies with the *thread* that started it."""

    def __init__(self, session: Session, listener: socket.socket) -> None:
        self.session = session
        self.listener = listener
        self.kept = True
        """Whether the machine stays on when the console that it was switched on for has left."""
        self._owner_left = threading.Event()
        self._ending = threading.Event()
        self._consoles: list[threading.Thread] = []
        self._told_at_the_end: list[tuple[socket.socket, dict[str, Any]]] = []

    def on(self) -> bool:
        return self.session.machine.power.state(Deadline.after(POWER_DEADLINE)) is PowerState.ON

    def serve(self) -> None:
        """Until the machine is off."""
        while self.on():
            readable, _, _ = select.select([self.listener], [], [], 0.25)
            if readable:
                connection, _ = self.listener.accept()
                self._answer(connection)
            elif self._owner_left.is_set() and not self.kept:
                self.session.machine.power.off(Deadline.after(POWER_DEADLINE))

    def farewell(self) -> None:
        """Once the lease is free and nobody new can connect: tell whoever waits for it that the machine is off."""
        self._ending.set()
        for connection, answer in self._told_at_the_end:
            _tell(connection, answer)
        self.listener.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                connection, _ = self.listener.accept()
                _tell(connection, {"state": PowerState.OFF})
        deadline = Deadline.after(FAREWELL)
        for console in self._consoles:
            console.join(deadline.left)

    def _answer(self, connection: socket.socket) -> None:
        connection.settimeout(REQUEST_DEADLINE)
        try:
            request = json.loads(_line(connection))
            verb, owner = str(request.get("verb")), request.get("owner") is True
        except (OSError, ValueError, AttributeError):
            connection.close()  # whoever asked has gone, or speaks no JSON
            return
        answer = self._do(verb)
        if not self.on():
            self._told_at_the_end.append((connection, answer))
        elif verb == "console" and "error" not in answer:
            self.kept = self.kept and not owner
            console = threading.Thread(target=self._console, args=(connection, answer, owner), daemon=True)
            self._consoles.append(console)
            console.start()
        else:
            _tell(connection, answer)

    def _do(self, verb: str) -> dict[str, Any]:
        power, deadline = self.session.machine.power, Deadline.after(POWER_DEADLINE)
        try:
            match verb:
                case "on":
                    self.kept = True
                case "off":
                    power.off(deadline)
                case "leave":
                    if not self.kept:
                        power.off(deadline)
                case "cycle":
                    start(self.session.machine, warm=False, deadline=deadline)
                case "reset":
                    start(self.session.machine, warm=True, deadline=deadline)
                case "status" | "console":
                    pass
                case _:
                    return {"error": f"unknown verb {verb!r}"}
            return {"state": power.state(deadline), "build": self.session.build.name}
        except LabctlError as error:
            return {"error": error.message}

    def _console(self, connection: socket.socket, answer: dict[str, Any], owner: bool) -> None:
        """Bytes both ways until the client leaves or the machine is off."""
        try:
            with connection, suppress(OSError, LabctlError):
                connection.sendall(json.dumps(answer).encode() + b"\n")
                connection.settimeout(None)
                self._show(connection)
        finally:
            if owner:
                self._owner_left.set()

    def _show(self, connection: socket.socket) -> None:
        transcript = self.session.transcript
        typing = threading.Thread(target=self._type, args=(connection,), daemon=True)
        typing.start()
        at = transcript.size
        connection.sendall(transcript.read(max(0, at - REPLAY), at).replace(_ASKS_THE_TERMINAL, b""))
        while typing.is_alive():
            try:
                if transcript.wait_beyond(at, Deadline.after(0.25)):
                    data = transcript.read(at)
                    at += len(data)
                    connection.sendall(data)
            except ConsoleEnded:
                if self._ending.wait(0.05):  # if not, a power cycle may be under way: the next reader resumes the transcript
                    return

    def _type(self, connection: socket.socket) -> None:
        with suppress(OSError, LabctlError):
            while data := connection.recv(4096):
                self.session.machine.console.write(data)


def _tell(connection: socket.socket, answer: dict[str, Any]) -> None:
    with connection, suppress(OSError):  # whoever asked may have gone
        connection.settimeout(REQUEST_DEADLINE)
        connection.sendall(json.dumps(answer).encode() + b"\n")


def main(folder: Path, listener_fd: int) -> None:
    asked = json.loads((folder / "keep.json").read_text())
    target = Target(asked["target"], TargetConfig.model_validate(asked["config"]))
    build = Build.from_fields(asked["build"])
    workdir = folder / "machine"
    workdir.mkdir(exist_ok=True, mode=0o700)
    for old in workdir.iterdir():
        old.unlink()
    path = folder / "socket"
    own = path.stat().st_ino

    def told(state: str) -> None:
        (folder / _STATUS).write_text(state)

    with socket.socket(fileno=listener_fd) as listener:
        try:
            with (
                lease.hold(target, Path(asked["lab"]), why=asked["why"], deadline=Deadline.after(0.5)),
                Session(target, build, workdir, watcher=Watcher(status=told)) as session,
            ):
                session.power_on()
                keeper = _Keeper(session, listener)
                keeper.serve()
        except LabctlError as error:
            # Before the listener is closed: whoever asked reads the log as soon as it is.
            sys.stderr.write(f"{error}".replace("\n", " ") + "\n")
            sys.stderr.flush()
            sys.exit(1)
        finally:
            with suppress(FileNotFoundError):
                if path.stat().st_ino == own:  # the lease is free by now: the next keeper's may be there already
                    path.unlink()
        keeper.farewell()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
