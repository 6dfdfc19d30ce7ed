"""Network boot: the machine's own firmware fetches the build from the lab's boot server, for one boot at a time.

The Power driver says to the BMC what to boot from; iPXE fetches a loader, kernel, command line and initramfs over HTTP; the loader
checks that they are what was sent, and starts the kernel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from labctl.deadline import Deadline
from labctl.errors import ConfigError, DeployError, Problem
from labctl.machine.bootserver.delivery import Delivery, parts_of
from labctl.machine.bootserver.impatience import Impatience
from labctl.machine.bootserver.seal import Seal
from labctl.machine.bootserver.startable import refuse_others
from labctl.machine.endpoint import PortOrAny
from labctl.machine.power import power_cycle
from labctl.machine.protocols import BootDevice, Console, DriverContext, Power
from labctl.machine.transcript import Transcript
from labctl.model import Build, PowerState, Target


@dataclass
class Netboot:
    """Options: ``address`` and ``port`` (where the boot server listens while the machine is held), or ``service`` (the folder of offers
    of a running ``labctl boot-server``) with ``mac`` (the network card that boots), ``boot_device`` (the BMC is told to boot from the
    network, for one boot; false for a machine that always does)."""

    context: DriverContext
    transcript: Transcript
    power: Power
    console: Console | None
    address: str = "127.0.0.1"
    port: PortOrAny = 0
    service: str = ""
    mac: Annotated[str, Field(pattern=r"^([0-9a-f]{2}(:[0-9a-f]{2}){5})?$")] = ""
    boot_device: bool = True

    _digest: str = field(default="", init=False)
    _impatience: Impatience | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.console is not None:
            self._impatience = Impatience(self.transcript, self.console)

    @staticmethod
    def host_programs(_target: Target, _options: Mapping[str, Any]) -> list[str]:
        """gcc makes the loader."""
        return ["gcc"]

    @cached_property
    def _delivery(self) -> Delivery:
        service = Path(self.service) if self.service else None
        return Delivery(self.context, self.transcript, "drivers.netboot", self.address, self.port, self.mac, service)

    def put(self, build: Build, append: str, deadline: Deadline) -> str:
        target = self.context.target.name
        if self.boot_device and not isinstance(self.power, BootDevice):
            found = f"the Power driver {type(self.power).__name__.lower()} cannot tell the machine what to boot from"
            allowed = "ipmi or redfish; boot_device = false for a machine that always boots from the network"
            raise ConfigError([Problem(f"targets/{target}.toml", "drivers.netboot", found, allowed)])
        seal = Seal()
        files = parts_of(build, target, seal)
        refuse_others(build.kernel, build.name, target)
        if self.power.state(deadline) is PowerState.ON:
            raise DeployError("the machine is on; a build is put on it when it is off", target=target)
        self._delivery.put(files, append, seal)
        self._digest = build.digest
        return build.digest

    def reproduce(self, build: Build, append: str) -> str:
        return ""

    def start(self, warm: bool, deadline: Deadline) -> int:
        self._delivery.begin()
        self._from_network(deadline)
        if self._impatience is not None:
            self._impatience.begin()
        return self.power.reset(deadline) if warm else power_cycle(self.power, deadline)

    def check(self) -> None:
        self._delivery.check()

    def arrived(self, ready: bool) -> str:
        self._stop_typing()
        self._delivery.arrived(ready)
        return self._digest if self._delivery.verified else ""

    def boot_server(self, deadline: Deadline) -> str:
        return self._delivery.ask(deadline)

    def release(self) -> None:
        self._stop_typing()
        self._delivery.release()

    def _stop_typing(self) -> None:
        if self._impatience is not None:
            self._impatience.end()

    def _from_network(self, deadline: Deadline) -> None:
        if isinstance(self.power, BootDevice) and self.boot_device:
            self.power.boot_next("network", deadline)


DRIVER = Netboot
