"""What a virtual server is: its size, its ports and its files. Kept in its folder, so that a restart has the same addresses and disk."""

from __future__ import annotations

import json
import os
import random
import secrets
import socket
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

from labctl.errors import ConfigError, ManagementError, Problem

LOOPBACK = "127.0.0.1"
SIMULATOR = "127.0.0.2"
"""Where the BMC's simulator listens, behind the relay and on the same port: it tells its SOL's port to clients, who insist on it."""
_PORTS = range(20000, 32000)
"""Below those that Linux gives to outgoing connections."""


@dataclass(frozen=True)
class Settings:
    """Sizes in bytes; ports on the loopback."""

    name: str
    cpus: int
    memory: int
    disk: int
    redfish: bool
    bmc_port: int
    """UDP: where the BMC is reached."""
    sim_port: int
    """TCP: where a simulated management interface other than IPMI listens, behind the relay."""
    sim_console_port: int
    """TCP: the simulator's own commands."""
    kcs_port: int
    """TCP: the machine's own line to its BMC."""
    serial_port: int
    """TCP: the machine's serial console, as plain bytes."""
    ssh_port: int
    """TCP: port 22 of the machine."""
    boot_port: int
    """TCP: where the machine fetches what it boots from; passed on to `boot_server_port`."""
    boot_server_port: int
    """TCP: where the lab's boot server is expected."""
    redfish_port: int
    """TCP: Redfish, if the server has it."""


@dataclass(frozen=True)
class Files:
    """The folder of one virtual server, which only its user may enter."""

    folder: Path

    @classmethod
    def of(cls, lab_root: Path, name: str) -> Files:
        return cls(lab_root / ".labctl" / "virtual-servers" / name)

    def make(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self.folder.stat().st_uid != os.getuid():
            raise ConfigError([Problem(str(self.folder), "", "belongs to somebody else", "a folder of your own")])
        self.folder.chmod(0o700)

    @property
    def settings(self) -> Path:
        return self.folder / "settings.json"

    @property
    def password(self) -> Path:
        return self.folder / "password"

    @property
    def disk(self) -> Path:
        return self.folder / "disk.qcow2"

    @property
    def serial_log(self) -> Path:
        """Every byte that the machine's serial port said since the server was started."""
        return self.folder / "serial.log"

    @property
    def log(self) -> Path:
        return self.folder / "keeper.log"


def names(lab_root: Path) -> list[str]:
    """Virtual servers that were started here and not deleted."""
    return sorted(path.parent.name for path in (lab_root / ".labctl" / "virtual-servers").glob("*/settings.json"))


def load(files: Files) -> Settings | None:
    """The settings of an earlier start, or None. ConfigError if the file is spoilt."""
    try:
        text = files.settings.read_text()
    except FileNotFoundError:
        return None
    try:
        data = json.loads(text)
        return Settings(**{field.name: data[field.name] for field in fields(Settings)})
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError([Problem(str(files.settings), "", f"is not what labctl wrote: {error!r}", "delete the virtual server")]) from None


def create(files: Files, name: str, *, cpus: int, memory: int, disk: int, redfish: bool) -> Settings:
    """New settings with ports that are free now, and a password that only this user can read."""
    ports = _free_ports()
    settings = Settings(
        name,
        cpus,
        memory,
        disk,
        redfish,
        bmc_port=next(ports),
        sim_port=next(ports),
        sim_console_port=next(ports),
        kcs_port=next(ports),
        serial_port=next(ports),
        ssh_port=next(ports),
        boot_port=next(ports),
        boot_server_port=next(ports),
        redfish_port=next(ports),
    )
    save(files, settings)
    descriptor = os.open(files.password, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(8))  # IPMI takes 16 characters at most where it is old
    return settings


def save(files: Files, settings: Settings) -> None:
    files.settings.write_text(json.dumps({"schema": 1, **asdict(settings)}, indent=2))


class _Ports:
    """Each port once."""

    def __init__(self) -> None:
        self._given: set[int] = set()

    def __iter__(self) -> _Ports:
        return self

    def __next__(self) -> int:
        for _ in range(1000):
            port = random.choice(_PORTS)  # noqa: S311  # so that servers that start at once do not all try the same
            if port not in self._given and _is_free(port, socket.SOCK_STREAM) and _is_free(port, socket.SOCK_DGRAM):
                self._given.add(port)
                return port
        raise ManagementError(f"no free port among {_PORTS.start} to {_PORTS.stop}")


def _free_ports() -> _Ports:
    return _Ports()


def _is_free(port: int, kind: Literal[socket.SocketKind.SOCK_STREAM, socket.SocketKind.SOCK_DGRAM]) -> bool:
    with socket.socket(socket.AF_INET, kind) as probe:
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True
