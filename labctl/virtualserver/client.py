"""Start, ask and stop virtual servers. InfraError and ManagementError carry the keeper's own last words."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labctl.deadline import Deadline
from labctl.errors import InfraError, LabctlError, ManagementError, TargetBusy
from labctl.machine.keeper import folder_of
from labctl.machine.lockfile import attempts
from labctl.process import Child, detach, start
from labctl.virtualserver import machine, settings, sshconsole, targetfile
from labctl.virtualserver.settings import Files, Settings

START = 30.0
"""Seconds that a virtual server may take to come up, on a loaded host."""


@dataclass(frozen=True)
class VirtualServer:
    """A virtual server of a lab, running or not."""

    lab_root: Path
    name: str

    @property
    def files(self) -> Files:
        return Files.of(self.lab_root, self.name)

    @property
    def target_file(self) -> Path:
        return self.lab_root / "targets" / f"{self.name}.toml"

    @property
    def target_is_ours(self) -> bool:
        """Whether its target file is as the lab wrote it; one that somebody has changed is never touched."""
        return targetfile.is_ours(self.target_file)

    @property
    def settings(self) -> Settings:
        found = settings.load(self.files)
        if found is None:
            raise ManagementError(f"there is no virtual server {self.name}", remedy=f"labctl virtual-server start {self.name}")
        return found

    @property
    def running(self) -> bool:
        return self.files.folder.is_dir() and self.status() is not None

    def status(self) -> dict[str, Any] | None:
        """What its keeper says, or None if it does not run."""
        return self._ask({"verb": "status"})

    def fault(self, name: str, argument: float | None = None) -> dict[str, Any]:
        """Let it misbehave: see `labctl.virtualserver.faults`. ManagementError if it does not run, or does not know the fault."""
        return self._must({"verb": "fault", "name": name, "argument": argument})

    def clear(self) -> dict[str, Any]:
        """End all faults."""
        return self._must({"verb": "clear"})

    def stop(self) -> bool:
        """Returns when none of its processes is left; False if there was none. Its target file goes, unless it was changed by hand."""
        with self._alone():
            asked = self._ask({"verb": "stop"}) is not None
            with _locked(self._runtime / "keeper.lock", Deadline.after(START), f"virtual server {self.name} does not end"):
                targetfile.remove(self.target_file)
        return asked

    def delete(self) -> None:
        """Stop it, and forget its disk, its logs and its addresses."""
        self.stop()
        shutil.rmtree(self.files.folder, ignore_errors=True)

    def prepare(self, *, cpus: int, memory: int, disk: int, redfish: bool, uefi: bool) -> Settings:
        """Make its folder, or find what an earlier start left: its disk and addresses stay, its size is as asked now."""
        self.files.make()
        if redfish:
            sshconsole.make_host_key(self.files)
        if uefi:
            machine.make_variables(self.files)
        old = settings.load(self.files)
        if old is None:
            return settings.create(self.files, self.name, cpus=cpus, memory=memory, disk=disk, redfish=redfish, uefi=uefi)
        new = Settings(**{**old.__dict__, "cpus": cpus, "memory": memory, "redfish": redfish, "uefi": uefi})
        settings.save(self.files, new)
        return new

    def start(self, *, cpus: int, memory: int, disk: int, redfish: bool = False, uefi: bool = False, owned: bool = False) -> Child | None:
        """Start it, and write its target file; returns when its BMC answers.

        ``owned``: it dies with the thread that calls, and is returned as a child to wait for. TargetBusy if it runs already, ConfigError
        if ``targets/NAME.toml`` is a file of somebody else.
        """
        targetfile.check(self.target_file)
        with self._alone():
            if self._ask({"verb": "status"}) is not None:
                raise TargetBusy(f"virtual server {self.name} runs already", remedy=f"labctl virtual-server stop {self.name}")
            made = self.prepare(cpus=cpus, memory=memory, disk=disk, redfish=redfish, uefi=uefi)
            child = self._start(owned)
            targetfile.write(self.target_file, made, self.files)
        return child

    @property
    def socket(self) -> Path:
        """Its keeper's: see `labctl.virtualserver.serve`."""
        return self._runtime / "socket"

    @property
    def _runtime(self) -> Path:
        """Where its socket is: short, for a socket's path has 107 bytes."""
        return folder_of(f"virtual-server {self.name}", self.lab_root)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One start or stop at a time."""
        with _locked(self._runtime / "verb.lock", Deadline.after(2 * START), f"virtual server {self.name} is being started or stopped"):
            yield

    def _start(self, owned: bool) -> Child | None:
        path = self._runtime / "socket"
        path.unlink(missing_ok=True)
        with (
            socket.socket(socket.AF_UNIX) as connection,
            socket.socket(socket.AF_UNIX) as listener,
            _locked(self._runtime / "keeper.lock", Deadline.after(START), f"an earlier virtual server {self.name} does not end") as lock,
        ):
            listener.bind(str(path))
            listener.listen(64)
            connection.connect(str(path))
            connection.sendall(b'{"verb": "status"}\n')
            argv = [sys.executable, "-m", "labctl.virtualserver.serve", str(self.files.folder), str(listener.fileno()), str(lock)]
            child = None
            if owned:
                with self.files.log.open("wb") as log:
                    child = start(argv, pass_fds=[listener.fileno(), lock], stdout=log, stderr=log)
            else:
                detach(argv, [listener.fileno(), lock], self.files.log)
            listener.close()
            try:
                _answer(connection, self.name)
            except LabctlError as error:
                log_lines = self.files.log.read_text(errors="replace").strip().splitlines()
                if child is not None:
                    child.kill()
                raise InfraError(log_lines[-1] if log_lines else error.message, target=self.name) from None
        return child

    def _ask(self, request: dict[str, Any]) -> dict[str, Any] | None:
        with socket.socket(socket.AF_UNIX) as connection:
            try:
                connection.connect(str(self._runtime / "socket"))
            except OSError:
                return None
            with suppress(OSError):  # the answer, or that there is none, says it better
                connection.sendall(json.dumps(request).encode() + b"\n")
            return _answer(connection, self.name)

    def _must(self, request: dict[str, Any]) -> dict[str, Any]:
        answer = self._ask(request)
        if answer is None:
            raise ManagementError(f"virtual server {self.name} does not run", remedy=f"labctl virtual-server start {self.name}")
        return answer


def all_of(lab_root: Path) -> list[VirtualServer]:
    return [VirtualServer(lab_root, name) for name in settings.names(lab_root)]


def _answer(connection: socket.socket, name: str) -> dict[str, Any]:
    connection.settimeout(START)
    said = b""
    try:
        while not said.endswith(b"\n"):
            more = connection.recv(65536)
            if not more:
                raise ManagementError("its keeper ended without an answer", target=name)
            said += more
        answer: dict[str, Any] = json.loads(said)
    except (OSError, ValueError) as error:
        raise ManagementError(f"its keeper does not answer: {error}", target=name) from None
    if "error" in answer:
        raise ManagementError(str(answer["error"]), target=name)
    return answer


@contextmanager
def _locked(path: Path, deadline: Deadline, otherwise: str) -> Iterator[int]:
    """Hold a lock; TargetBusy if it is not free in time. A descriptor that a child inherits holds it as long as the child lives."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        for _ in attempts(deadline):
            with suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
        else:
            raise TargetBusy(otherwise)
        yield descriptor
    finally:
        os.close(descriptor)
