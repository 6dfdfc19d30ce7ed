"""Power and boot device through a BMC, over IPMI 2.0.

A BMC says yes before anything has happened, so each verb asks for the state until it is true. Commands: IPMI 2.0, 28.2 (Get Chassis
Status), 28.3 (Chassis Control), 28.12 and 28.13 (boot options).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from labctl.deadline import Deadline
from labctl.errors import ManagementError, PowerError
from labctl.machine import ipmi_health
from labctl.machine.endpoint import Host, Port
from labctl.machine.ipmi import Address, Conversation, Password, Refused, session
from labctl.machine.polling import until
from labctl.machine.protocols import DriverContext, HealthEvent, Reading
from labctl.model import PowerState

if TYPE_CHECKING:
    import pyipmi


@dataclass
class Ipmi:
    """Options: ``host``, ``port``, ``user``, ``password`` (a reference: ``env:``, ``file:``, ``keyring:`` or ``vault:``),
    ``cipher_suite`` (3, 17, or 0 for the best that both can), ``rest`` (seconds that the machine stays off before it is switched on
    again), ``uefi`` (the boot device is asked for in UEFI's way)."""

    context: DriverContext
    host: Host
    user: str
    password: Password
    port: Port = 623
    cipher_suite: Literal[0, 3, 17] = 3
    rest: Annotated[float, Field(strict=True, ge=0, le=600)] = 0.0
    uefi: bool = False

    _off_since: float | None = field(default=None, init=False)
    _sampled: dict[str, Any] | None = field(default=None, init=False)
    """Sensors that are read beside a measurement."""

    _conversation: tuple[int, Conversation] | None = field(default=None, init=False)
    """Within `together`: the thread that gives the verbs, and the session that they share."""

    stays_on = True

    @staticmethod
    def occupies(options: Mapping[str, Any]) -> str:
        return f"the BMC {str(options.get('host')).lower()}:{options.get('port', 623)}"

    @property
    def _address(self) -> Address:
        return Address(self.context.target.name, self.host, self.port, self.user, self.password, self.cipher_suite or None)

    @contextmanager
    def together(self) -> Iterator[None]:
        if self._conversation is not None:  # within such a block already, or another thread is
            yield
            return
        with closing(Conversation(self._address)) as conversation:
            self._conversation = threading.get_ident(), conversation
            try:
                yield
            finally:
                self._conversation = None

    def _session(self, deadline: Deadline) -> AbstractContextManager[pyipmi.Ipmi]:
        if self._conversation is not None and self._conversation[0] == threading.get_ident():
            return self._conversation[1].session(deadline)
        return session(self._address, deadline)

    def on(self, deadline: Deadline) -> int:
        if self._off_since is not None:
            time.sleep(min(deadline.left, max(0.0, self._off_since + self.rest - time.monotonic())))
        with self._verb("power on", deadline) as bmc:
            if _is_on(bmc):
                raise PowerError("the machine is on already", target=self.context.target.name)
            t0_ns = time.monotonic_ns()
            bmc.chassis_control_power_up()
            self._wait(bmc, True, "power on", deadline)
        self._off_since = None
        return t0_ns

    def off(self, deadline: Deadline) -> None:
        with self._verb("power off", deadline) as bmc:
            if _is_on(bmc):
                bmc.chassis_control_power_down()
                self._wait(bmc, False, "power off", deadline)
        self._off_since = time.monotonic()

    def reset(self, deadline: Deadline) -> int:
        with self._verb("reset", deadline) as bmc:
            if not _is_on(bmc):
                raise PowerError("the machine is off: there is nothing to reset", target=self.context.target.name)
            t0_ns = time.monotonic_ns()
            bmc.chassis_control_hard_reset()
            self._wait(bmc, True, "reset", deadline)
        return t0_ns

    def state(self, deadline: Deadline) -> PowerState:
        with self._session(deadline) as bmc:
            return PowerState.ON if _is_on(bmc) else PowerState.OFF

    def boot_next(self, device: Literal["network", "disk"], deadline: Deadline) -> None:
        from pyipmi.chassis import BootDevice

        wanted = BootDevice.PXE if device == "network" else BootDevice.DEFAULT_HDD
        with self._session(deadline) as bmc:
            bmc.set_boot_options(wanted, "efi" if self.uefi else "legacy", False)
            found = bmc.get_boot_device()
        if found is not wanted:
            raise ManagementError(
                f"{self._address} was told to boot from {wanted.value} and reads back {found.value}", target=self.context.target.name
            )

    # --- Health

    def readings(self, deadline: Deadline) -> tuple[Reading, ...]:
        with session(self._address, deadline) as bmc:
            return tuple(reading for _, reading in ipmi_health.readings(bmc))

    def sample(self, deadline: Deadline) -> Mapping[str, float]:
        with session(self._address, deadline) as bmc:
            if self._sampled is None:
                self._sampled = ipmi_health.beside_a_measurement(bmc)
            found = {name: ipmi_health.read_one(bmc, record) for name, record in self._sampled.items()}
        return {name: reading.value for name, reading in found.items() if reading is not None}

    def latest_event(self, deadline: Deadline) -> int:
        with session(self._address, deadline) as bmc:
            return ipmi_health.latest_event(bmc)

    def events(self, after: int, deadline: Deadline) -> tuple[HealthEvent, ...]:
        with session(self._address, deadline) as bmc:
            return ipmi_health.events(bmc, after)

    def log_is_full(self, deadline: Deadline) -> bool:
        with session(self._address, deadline) as bmc:
            return ipmi_health.log_is_full(bmc)

    def inventory(self, deadline: Deadline) -> Mapping[str, str]:
        with session(self._address, deadline) as bmc:
            return ipmi_health.inventory(bmc)

    @contextmanager
    def _verb(self, verb: str, deadline: Deadline) -> Iterator[pyipmi.Ipmi]:
        """What the BMC refuses in this block is a verb that did not become true."""
        try:
            with self._session(deadline) as bmc:
                yield bmc
        except Refused as error:
            raise PowerError(f"{verb}: {error.message}", target=self.context.target.name) from None

    def _wait(self, bmc: pyipmi.Ipmi, on: bool, verb: str, deadline: Deadline) -> None:
        if not until(lambda: _is_on(bmc) is on, deadline):
            raise PowerError(
                f"{self._address} said yes to {verb}, and {deadline.seconds:g} s later the machine still reads {'off' if on else 'on'}",
                target=self.context.target.name,
                remedy="labctl power status; if the BMC does not obey, reset it",
            )


def _is_on(bmc: pyipmi.Ipmi) -> bool:
    return bool(bmc.get_chassis_status().power_on)


DRIVER = Ipmi
