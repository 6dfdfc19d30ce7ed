"""The network cards of a target as arguments of QEMU: those ``to = "host"`` by its own small network, those to a link by a cable."""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import ip_address, ip_interface

from labctl.errors import Problem
from labctl.machine.nics import mac
from labctl.machine.wires import MOST_PATH, Wire
from labctl.model import Nic, Target

GATEWAY, MACHINE = "10.0.2.2", "10.0.2.15/24"
"""The host and the machine on QEMU's user network, unless the target's file says otherwise."""
LOOPBACK = "127.0.0.1"
"""Where the host's ends of forwarded ports are: nobody else's machine gets there."""
_FORWARD = re.compile(rf"\s*TCP\[HOST_FORWARD\]\s+\d+\s+{LOOPBACK}\s+(\d{{1,5}})\s+\S+\s+(\d{{1,5}})\s")


def arguments(target: str, nics: Mapping[str, Nic], machine: str, wires: Mapping[str, Wire]) -> list[str]:
    """A back end and a card for each NIC of a target. A card that is for a cable is there only with one."""
    made: list[str] = []
    for name, nic in nics.items():
        if nic.to == "host":
            interface = ip_interface(nic.address or MACHINE)
            backend = f"user,id=net-{name},net={interface.network},host={nic.peer or GATEWAY},dhcpstart={interface.ip}"
            backend += "".join(f",hostfwd=tcp:{LOOPBACK}:0-{interface.ip}:{port}" for port in nic.forward)
        elif name in wires:
            wire = wires[name]
            backend = f"dgram,id=net-{name},local.type=unix,local.path={_path(wire.local)},remote.type=unix,remote.path={_path(wire.out)}"
        else:
            continue
        # Without a ROM: no machine of the lab boots from its emulated card, and its firmware would look there.
        device = "virtio-net-device" if "microvm" in machine else "virtio-net-pci,romfile="
        made += ["-netdev", backend, "-device", f"{device},netdev=net-{name},id=nic-{name},mac={mac(target, name, nic)}"]
    return made


def forwarded(usernet: str, card: str, port: int) -> int | None:
    """The port of the host's loopback that leads to that TCP port of the machine over that card, by what the monitor's ``info usernet``
    says; None if none does. The system picks it when QEMU starts, so that no two machines want the same."""
    mine = False
    for line in usernet.splitlines():
        if heading := re.match(r"Hub .*\((.*)\):", line):
            mine = heading[1] == f"net-{card}"
        elif mine and (found := _FORWARD.match(line)) and int(found[2]) == port:
            return int(found[1])
    return None


def problems(target: Target) -> list[Problem]:
    """What QEMU would refuse."""
    found: list[Problem] = []
    for name, nic in target.config.nics.items():
        if nic.to != "host":
            continue
        key = f"nics.{name}"
        interface, peer = ip_interface(nic.address or MACHINE), ip_address(nic.peer or GATEWAY)
        if peer not in interface.network or peer == interface.ip:
            wanted = f"an address of {interface.network} that is not the machine's own"
            found.append(Problem(f"targets/{target.name}.toml", f"{key}.peer", f"found '{peer}'", wanted))
    return found


def _path(path: object) -> str:
    text = str(path)
    if len(text.encode()) > MOST_PATH:
        raise ValueError(f"{text}: longer than the {MOST_PATH} bytes of a socket's path; set TMPDIR to a shorter folder")
    return text.replace(",", ",,")
