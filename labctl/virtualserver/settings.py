"""What a virtual server is: its size, its ports and its files. Kept in its folder, so that a restart has the same addresses and disk."""

from __future__ import annotations

import json
import os
import random
import secrets
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

from labctl.errors import ConfigError, ManagementError, Problem

LOOPBACK = "127.0.0.1"
SIMULATOR = "127.0.0.2"
"""Where the BMC's simulator listens, behind the relay and on the same port: it tells its SOL's port to clients, who insist on it."""
_BLOCK = 10
"""Ports that a server has."""
_PORTS = range(20000, 32000, _BLOCK)
"""The first ones of blocks. Below those that Linux gives to outgoing connections."""
_Kind = Literal[socket.SocketKind.SOCK_STREAM, socket.SocketKind.SOCK_DGRAM]
_KINDS: tuple[_Kind, _Kind] = (socket.SOCK_STREAM, socket.SOCK_DGRAM)


@dataclass(frozen=True)
class Settings:
    """Sizes in bytes; ports on the loopback."""

    name: str
    cpus: int
    memory: int
    disk: int
    redfish: bool
    uefi: bool
    """Its firmware is OVMF instead of SeaBIOS."""
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
    ssh_console_port: int
    """TCP: the serial console by SSH to the BMC, if the server has Redfish."""


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
    def host_key(self) -> Path:
        """Of the BMC's SSH."""
        return self.folder / "host_key"

    @property
    def public_host_key(self) -> Path:
        """One line, as the option ``host_key`` of a driver wants it."""
        return self.folder / "host_key.pub"

    @property
    def disk(self) -> Path:
        return self.folder / "disk.qcow2"

    @property
    def uefi_variables(self) -> Path:
        """What a UEFI firmware keeps."""
        return self.folder / "uefi_variables.fd"

    @property
    def serial_log(self) -> Path:
        """Every byte that the machine's serial port said since the server was started."""
        return self.folder / "serial.log"

    @property
    def log(self) -> Path:
        return self.folder / "keeper.log"

    @property
    def keeper_lock(self) -> Path:
        """Held by its keeper as long as it lives: see `labctl.virtualserver.running`."""
        return self.folder / "keeper.lock"

    @property
    def verb_lock(self) -> Path:
        """Held by whoever starts or stops it."""
        return self.folder / "verb.lock"


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
        # A server that was made before there were these has a block of ports whose last one is free.
        data.setdefault("uefi", False)
        data.setdefault("ssh_console_port", data["bmc_port"] // _BLOCK * _BLOCK + _BLOCK - 1)
        return Settings(**{field.name: data[field.name] for field in fields(Settings)})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError([Problem(str(files.settings), "", f"is not what labctl wrote: {error!r}", "delete the virtual server")]) from None


def create(files: Files, name: str, *, cpus: int, memory: int, disk: int, redfish: bool, uefi: bool = False) -> Settings:
    """New settings with ports that are free now, and a password that only this user can read."""
    ports = iter(_free_ports(files))
    settings = Settings(
        name,
        cpus,
        memory,
        disk,
        redfish,
        uefi,
        bmc_port=next(ports),
        sim_port=next(ports),
        sim_console_port=next(ports),
        kcs_port=next(ports),
        serial_port=next(ports),
        ssh_port=next(ports),
        boot_port=next(ports),
        boot_server_port=next(ports),
        redfish_port=next(ports),
        ssh_console_port=next(ports),
    )
    save(files, settings)
    descriptor = os.open(files.password, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(8))  # IPMI takes 16 characters at most where it is old
    return settings


def save(files: Files, settings: Settings) -> None:
    files.settings.write_text(json.dumps({"schema": 1, **asdict(settings)}, indent=2))


def _free_ports(files: Files) -> range:
    """Ports next to each other, of which nobody has one.

    Some of a server's ports are bound only while its machine is on or somebody boots it. So a running server keeps its whole block by the
    others, and one of this lab that is stopped by its settings.
    """
    taken = {settings.bmc_port // _BLOCK for other in files.folder.parent.iterdir() if (settings := _known(Files(other))) is not None}
    for _ in range(1000):
        first = random.choice(_PORTS)  # noqa: S311  # so that servers that start at once do not all try the same
        block = range(first, first + _BLOCK)
        if first // _BLOCK not in taken and all(_is_free(port, kind) for port in block for kind in _KINDS):
            return block
    raise ManagementError(f"no free ports among {_PORTS.start} to {_PORTS.stop}")


def _known(files: Files) -> Settings | None:
    with suppress(ConfigError):  # its own start says so
        return load(files)
    return None


def _is_free(port: int, kind: _Kind) -> bool:
    with socket.socket(socket.AF_INET, kind) as probe:
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True
