"""The ports of a QEMU machine beside its console: what they add to its command line, and the host's ends of them."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass
class OpenPorts:
    """Of one life of the machine. QEMU's ends are inherited by it, and closed here once it has started."""

    arguments: list[str] = field(default_factory=list)
    host: dict[str, socket.socket] = field(default_factory=dict)
    qemu: list[socket.socket] = field(default_factory=list)

    @property
    def fds(self) -> list[int]:
        return [end.fileno() for end in self.qemu]

    def handed_over(self) -> None:
        for end in self.qemu:
            end.close()
        self.qemu.clear()

    def close(self) -> None:
        self.handed_over()
        for end in self.host.values():
            with suppress(OSError):
                end.close()


def _device(port: str) -> str:
    return f"port-{port}"


def held(port: str, events: Iterable[Mapping[str, Any]]) -> bool | None:
    """Whether a process in the machine has a virtio port open, by QMP's ``VSERPORT_CHANGE``; None if none of the events tells."""
    told = [e["data"]["open"] for e in events if e["event"] == "VSERPORT_CHANGE" and e["data"]["id"] == _device(port)]
    return bool(told[-1]) if told else None


def open_ports(wanted: dict[str, Literal["virtio", "serial"]]) -> OpenPorts:
    """A connected pair for each port. Serial ones must be asked for last: QEMU numbers them in the order of its command line, and the
    console comes before them."""
    opened = OpenPorts()
    if "virtio" in wanted.values():
        opened.arguments += ["-device", "virtio-serial-pci,id=labctl-ports"]
    for number, (name, kind) in enumerate(wanted.items()):
        ours, its = socket.socketpair()
        opened.host[name] = ours
        opened.qemu.append(its)
        chardev = f"labctl-port{number}"
        opened.arguments += ["-chardev", f"socket,id={chardev},fd={its.fileno()}"]
        if kind == "virtio":
            opened.arguments += ["-device", f"virtserialport,bus=labctl-ports.0,chardev={chardev},name={name},id={_device(name)}"]
        else:
            opened.arguments += ["-serial", f"chardev:{chardev}"]
    return opened
