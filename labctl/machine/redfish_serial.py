"""What a BMC says in Redfish of its serial console: which services carry it, and how the one by SSH is entered.

Two places: ``SerialConsole`` of the ComputerSystem (DMTF DSP2046, ComputerSystem 1.13 and later), with port and entry command; and the one
of its Manager, which is older and names no more than the kinds of service.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from labctl.machine.redfish import get, link_path, links, plain

KINDS = ("SSH", "IPMI", "Telnet", "WebSocket", "Oem")
SSH_PORT = 22


@dataclass(frozen=True)
class SshConsole:
    """A console by SSH to the BMC."""

    port: int
    entry: tuple[str, ...]
    """What is typed at the manager's command line, one line each; empty: the console is there at once."""
    farewell: str
    """How the BMC says that its console is left, for a person to read."""


@dataclass
class NotOffered(Exception):
    """No console by SSH: ``found``, and what is right instead. ``disabled``: there is one, which is switched off."""

    found: str
    allowed: str
    disabled: bool = False


def ssh_console(system: Any, entry: str = "") -> SshConsole:
    """Of a system of sushy's that was read just now. ``entry`` is typed instead of what the BMC says. NotOffered."""
    described = system.json.get("SerialConsole")
    if isinstance(described, dict) and any(isinstance(described.get(kind), dict) for kind in KINDS):
        return _of_system(described, entry)
    for path in links(system.json.get("Links"), "ManagedBy"):
        manager = get(system, path)
        if isinstance(described := manager.get("SerialConsole"), dict):
            return _of_manager(described, get(system, link_path(manager.get("NetworkProtocol"))), entry)
    raise NotOffered("describes no serial console in Redfish", "the driver sol, if it has a Serial over LAN")


def _of_system(described: Mapping[str, Any], entry: str) -> SshConsole:
    ssh = described.get("SSH")
    if not isinstance(ssh, dict):
        raise _others([kind for kind in KINDS if _is_on(described.get(kind))])
    if not _is_on(ssh):
        raise _disabled("SerialConsole/SSH/ServiceEnabled of its ComputerSystem is false")
    commands = _lines(entry or ssh.get("ConsoleEntryCommand"))
    if ssh.get("SharedWithManagerCLI") is True and not commands:
        raise _no_entry()
    return SshConsole(_port(ssh), commands, plain(ssh.get("HotKeySequenceDisplay") or ""))


def _of_manager(described: Mapping[str, Any], protocols: Mapping[str, Any], entry: str) -> SshConsole:
    if described.get("ServiceEnabled") is False:
        raise _disabled("SerialConsole/ServiceEnabled of its Manager is false")
    kinds = described.get("ConnectTypesSupported")
    kinds = [kind for kind in KINDS if kind in kinds] if isinstance(kinds, list) else []
    if "SSH" not in kinds:
        raise _others(kinds)
    ssh = protocols.get("SSH")
    ssh = ssh if isinstance(ssh, dict) else {}
    if ssh.get("ProtocolEnabled") is False:
        raise _disabled("SSH/ProtocolEnabled of its Manager's NetworkProtocol is false")
    if not (commands := _lines(entry)):
        raise _no_entry()
    return SshConsole(_port(ssh), commands, "")


def _others(kinds: list[str]) -> NotOffered:
    if not kinds:
        return NotOffered("offers its serial console by no service", "the driver sol, if it has a Serial over LAN")
    right = "the driver sol" if "IPMI" in kinds else "SSH switched on in the BMC; the driver sol, if it has a Serial over LAN"
    return NotOffered(f"offers its serial console by {' and '.join(kinds)}, not by SSH", right)


def _disabled(found: str) -> NotOffered:
    return NotOffered(
        f"has its serial console by SSH switched off: {found}", "switch it on in the BMC, or use the driver sol", disabled=True
    )


def _no_entry() -> NotOffered:
    """What its command line says would be taken for the machine's words."""
    found = "offers its serial console in the command line of its manager, and does not say by which command"
    return NotOffered(found, "the option entry, by the BMC's manual: `console com2` on an iDRAC, `vsp` on an iLO")


def _is_on(service: object) -> bool:
    return isinstance(service, dict) and service.get("ServiceEnabled") is not False


def _port(service: Mapping[str, Any]) -> int:
    port = service.get("Port")
    return port if isinstance(port, int) and not isinstance(port, bool) and 0 < port < 65536 else SSH_PORT


def _lines(entry: object) -> tuple[str, ...]:
    """``cd system1/sol1; start`` are two commands, and not every manager takes both on one line."""
    return tuple(part for text in str(entry or "").split(";") if (part := text.strip()))
