"""Start, ask and stop virtual servers. InfraError and ManagementError carry the keeper's own last words."""

from __future__ import annotations

import json
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labctl.deadline import Deadline
from labctl.errors import ConfigError, InfraError, ManagementError, TargetBusy
from labctl.machine import standing
from labctl.process import Child, detach, start
from labctl.virtualserver import machine, running, settings, sshconsole, targetfile
from labctl.virtualserver.settings import Files, Settings

START = 30.0
"""Seconds that a virtual server may take to come up, on a loaded host."""
_TRY = "  try: "
_LAST_WORDS = 5.0
"""Seconds that a keeper which has hung up may take to end."""


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
        return self.status() is not None

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
        if not self.files.folder.is_dir():
            return False
        with self._alone():
            return self._stop()

    def delete(self) -> None:
        """Stop it, and forget its disk, its logs and its addresses, and that it was reserved or unhealthy. TargetBusy if somebody else has
        reserved it."""
        if not self.files.folder.is_dir():
            return
        standing.check_free(self.lab_root, self.name)
        with self._alone():
            self._stop()
            standing.forget(self.lab_root, self.name)
            shutil.rmtree(self.files.folder, ignore_errors=True)

    def _stop(self) -> bool:
        """See `stop`; for whoever is alone."""
        place = running.place_of(self.files.keeper_lock)
        asked = self._ask({"verb": "stop"}) is not None
        remedy = f"kill {place.pid}" if place is not None and place.pid else ""
        with running.locked(self.files.keeper_lock, Deadline.after(START), f"virtual server {self.name} does not end", remedy) as lock:
            running.clear(lock)
            targetfile.remove(self.target_file)
        return asked

    def prepare(self, *, cpus: int, memory: int, disk: int, redfish: bool, uefi: bool) -> Settings:
        """Make it, or find what an earlier start left: its disk and addresses stay, its size is as asked now."""
        if redfish:
            sshconsole.make_host_key(self.files)
        if uefi:
            machine.make_variables(self.files)
        old = settings.load(self.files)
        machine.make_disk(self.files, disk if old is None else old.disk)
        if old is None:
            return settings.create(self.files, self.name, cpus=cpus, memory=memory, disk=disk, redfish=redfish, uefi=uefi)
        new = Settings(**{**old.__dict__, "cpus": cpus, "memory": memory, "redfish": redfish, "uefi": uefi})
        settings.save(self.files, new)
        return new

    def start(self, *, cpus: int, memory: int, disk: int, redfish: bool = False, uefi: bool = False, owned: bool = False) -> Child | None:
        """Start it, and write its target file; returns when its BMC answers.

        ``owned``: it dies with the thread that calls, and is returned as a child to wait for. ConfigError if it runs already, or if
        ``targets/NAME.toml`` is a file of somebody else.
        """
        targetfile.check(self.target_file)
        self.files.make()
        with self._alone():
            if self._ask({"verb": "status"}) is not None:
                raise ConfigError(f"virtual server {self.name} runs already", remedy=f"labctl virtual-server stop {self.name}")
            made = self.prepare(cpus=cpus, memory=memory, disk=disk, redfish=redfish, uefi=uefi)
            child = self._start(owned)
            targetfile.write(self.target_file, made, self.files)
        return child

    @property
    def socket(self) -> Path:
        """Its keeper's: see `labctl.virtualserver.serve`. ManagementError if it does not run."""
        place = running.place_of(self.files.keeper_lock)
        if place is None:
            raise self._not_running()
        return place.socket

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One start or stop at a time."""
        otherwise = f"virtual server {self.name} is being started or stopped"
        with running.locked(self.files.verb_lock, Deadline.after(2 * START), otherwise):
            yield

    def _start(self, owned: bool) -> Child | None:
        child = None
        try:
            with (
                socket.socket(socket.AF_UNIX) as connection,
                socket.socket(socket.AF_UNIX) as listener,
                self._free_for_keeper(f"an earlier virtual server {self.name} does not end") as lock,
            ):
                running.clear(lock)
                place = running.new_place()
                running.say(lock, place)
                listener.bind(str(place.socket))
                listener.listen(64)
                connection.connect(str(place.socket))
                connection.sendall(b'{"verb": "status"}\n')
                argv = [sys.executable, "-m", "labctl.virtualserver.serve", str(self.files.folder), str(listener.fileno()), str(lock)]
                if owned:
                    with self.files.log.open("wb") as log:
                        child = start(argv, pass_fds=[listener.fileno(), lock], stdout=log, stderr=log)
                else:
                    detach(argv, [listener.fileno(), lock], self.files.log)
                listener.close()
                _answer(connection, self.name)
        except ManagementError as error:
            if child is not None:
                child.wait(Deadline.after(_LAST_WORDS))
                child.kill()
            # It says why at its very end, after its end of the connection is gone.
            with suppress(TargetBusy), self._free_for_keeper("", Deadline.after(_LAST_WORDS)) as lock:
                running.clear(lock)
            raise self._last_words() or InfraError(error.message, target=self.name) from None
        return child

    def _last_words(self) -> InfraError | None:
        """Why its keeper ended, as it said: an error as labctl prints it, or anything."""
        match self.files.log.read_text(errors="replace").strip().splitlines():
            case [*_, message, remedy] if remedy.startswith(_TRY):
                return InfraError(message, target=self.name, remedy=remedy.removeprefix(_TRY))
            case [*_, message]:
                return InfraError(message, target=self.name)
        return None

    def _free_for_keeper(self, otherwise: str, deadline: Deadline | None = None) -> AbstractContextManager[int]:
        return running.locked(self.files.keeper_lock, deadline or Deadline.after(START), otherwise)

    def _ask(self, request: dict[str, Any]) -> dict[str, Any] | None:
        place = running.place_of(self.files.keeper_lock)
        if place is None:
            return None
        with socket.socket(socket.AF_UNIX) as connection:
            try:
                connection.connect(str(place.socket))
            except OSError:
                return None
            with suppress(OSError):  # the answer, or that there is none, says it better
                connection.sendall(json.dumps(request).encode() + b"\n")
            return _answer(connection, self.name)

    def _must(self, request: dict[str, Any]) -> dict[str, Any]:
        answer = self._ask(request)
        if answer is None:
            raise self._not_running()
        return answer

    def _not_running(self) -> ManagementError:
        return ManagementError(f"virtual server {self.name} does not run", remedy=f"labctl virtual-server start {self.name}")


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
        raise ManagementError(str(answer["error"]), target=name, remedy=str(answer.get("remedy", "")))
    return answer
