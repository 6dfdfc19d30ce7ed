"""The target file of a virtual server: written at its start, taken away at its end, never touched once somebody has changed it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from labctl.errors import ConfigError, Problem
from labctl.size import format_size
from labctl.virtualserver import bmc
from labctl.virtualserver.settings import LOOPBACK, Files, Settings

_FIRST = "# Written by `labctl virtual-server start`, and removed by `stop` unless it is changed: "
_TEMPLATE = """schema = 1
description = "A virtual server: {cpus} CPU, {memory} of memory, {disk} of disk, behind a BMC"
cpus = {cpus}
memory = "{memory}"
on_host = true
disk = "{disk}"
tags = ["virtual-server"]
append = "console=ttyS0,115200"

[drivers.{power}]
{power_options}

# To have builds written to its disk, put [drivers.disk] in the place of [drivers.netboot], with the same port, and with
# url = "http://10.0.2.2:{boot_port}"
# The build that is written is the installer too: its recipe needs modules = ["virtio_pci", "virtio_net", "virtio_blk"].
[drivers.netboot]
port = {boot_server_port}

[drivers.{console}]
{console_options}
{account}

[drivers.console_shell]
"""


def render(settings: Settings, files: Files) -> str:
    """The whole file. Every driver that a virtual server has is named here and nowhere else."""
    if settings.redfish:
        power, console, options = "redfish", "redfish_console", f'url = "http://{LOOPBACK}:{settings.redfish_port}"'
        host_key = f'\nhost_key = "{files.public_host_key.read_text().strip()}"'
    else:
        power, console, options = "ipmi", "sol", f'host = "{LOOPBACK}"\nport = {settings.bmc_port}'
        host_key = ""
    uefi = "\nuefi = true" if settings.uefi else ""
    account = f'user = "{bmc.USER}"\npassword = "file:{files.password}"'
    text = _TEMPLATE.format(
        cpus=settings.cpus,
        memory=format_size(settings.memory),
        disk=format_size(settings.disk),
        power=power,
        power_options=f"{options}\n{account}{uefi}",
        boot_server_port=settings.boot_server_port,
        boot_port=settings.boot_port,
        console=console,
        console_options=f"{options}{host_key}",
        account=account,
    )
    return f"{_FIRST}{hashlib.sha256(text.encode()).hexdigest()[:16]}\n{text}"


def check(path: Path) -> None:
    """ConfigError if somebody else's target has that name."""
    if path.exists() and not path.read_text(errors="replace").startswith(_FIRST):
        raise ConfigError([Problem(str(path), "", "is a target already, and no virtual server", "another name")])


def write(path: Path, settings: Settings, files: Files) -> None:
    """Unless it is there and was changed by hand."""
    if not path.exists() or is_ours(path):
        path.parent.mkdir(exist_ok=True)
        path.write_text(render(settings, files))


def remove(path: Path) -> None:
    """If it is as it was written."""
    if path.exists() and is_ours(path):
        path.unlink()


def is_ours(path: Path) -> bool:
    """As it was written, by the digest in its first line."""
    first, _, text = path.read_text(errors="replace").partition("\n")
    return first == f"{_FIRST}{hashlib.sha256(text.encode()).hexdigest()[:16]}"
