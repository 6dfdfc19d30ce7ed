"""Power and boot device through a BMC, over Redfish (DMTF DSP0266)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from labctl.deadline import Deadline
from labctl.errors import ManagementError, PowerError
from labctl.machine import redfish, redfish_health
from labctl.machine.endpoint import Url
from labctl.machine.polling import until
from labctl.machine.protocols import DriverContext, HealthEvent, Reading
from labctl.model import PowerState
from labctl.secrets import Secret


@dataclass
class Redfish:
    """Options: ``url`` (``https://HOST``), ``user``, ``password`` (a reference: ``env:``, ``file:``, ``keyring:`` or ``vault:``),
    ``system`` (path of the system, where the BMC has several), ``verify`` (a BMC's certificate is checked; ``false`` for the one it
    signed itself; or the path of a CA's certificate), ``rest`` (seconds that the machine stays off before it is switched on again),
    ``uefi`` (the boot device is asked for in UEFI's way)."""

    context: DriverContext
    url: Url
    user: str
    password: Secret
    system: str = ""
    verify: bool | str = True
    rest: Annotated[float, Field(strict=True, ge=0, le=600)] = 0.0
    uefi: bool = False

    _bmc: redfish.Bmc = field(init=False)
    _off_since: float | None = field(default=None, init=False)
    _sampled: dict[str, str] | None = field(default=None, init=False)
    """Sensors that are read beside a measurement."""

    stays_on = True

    def __post_init__(self) -> None:
        self._bmc = redfish.Bmc(self.context.target.name, self.url, self.user, self.password, self.system, self.verify)

    def on(self, deadline: Deadline) -> int:
        if self._off_since is not None:
            time.sleep(min(deadline.left, max(0.0, self._off_since + self.rest - time.monotonic())))
        if self.state(deadline) is PowerState.ON:
            raise PowerError("the machine is on already", target=self.context.target.name)
        t0_ns = self._reset("ON", "power on", deadline)
        self._wait(PowerState.ON, "power on", deadline)
        self._off_since = None
        return t0_ns

    def off(self, deadline: Deadline) -> None:
        if self.state(deadline) is not PowerState.OFF:
            self._reset("FORCE_OFF", "power off", deadline)
            self._wait(PowerState.OFF, "power off", deadline)
        self._off_since = time.monotonic()

    def reset(self, deadline: Deadline) -> int:
        if self.state(deadline) is not PowerState.ON:
            raise PowerError("the machine is off: there is nothing to reset", target=self.context.target.name)
        t0_ns = self._reset("FORCE_RESTART", "reset", deadline)
        self._wait(PowerState.ON, "reset", deadline)
        return t0_ns

    def state(self, deadline: Deadline) -> PowerState:
        with self._bmc.asked(deadline) as system:
            system.refresh(force=True)
            said = redfish.power_of(system)
        match said:
            case "On" | "PoweringOff":
                return PowerState.ON
            case "Off" | "PoweringOn":
                return PowerState.OFF
        return PowerState.UNKNOWN

    def boot_next(self, device: Literal["network", "disk"], deadline: Deadline) -> None:
        with self._bmc.asked(deadline) as system:
            import sushy

            wanted = sushy.BootSource.PXE if device == "network" else sushy.BootSource.HDD
            mode = sushy.BootSourceOverrideMode.UEFI if self.uefi else sushy.BootSourceOverrideMode.LEGACY
            system.set_system_boot_options(target=wanted, enabled=sushy.BootSourceOverrideEnabled.ONCE, mode=mode)
            system.refresh(force=True)
            found = system.boot.target
        if found is not wanted:
            raise ManagementError(
                f"{self._bmc} was told to boot from {wanted.value} and reads back {getattr(found, 'value', found)}",
                target=self.context.target.name,
            )

    # --- Health

    def readings(self, deadline: Deadline) -> tuple[Reading, ...]:
        with self._bmc.asked(deadline) as system:
            try:
                return redfish_health.checked_readings(system)
            except redfish_health.Nonsense as error:
                raise ManagementError(
                    f"{self._bmc} answers without a sense: {redfish.plain(error)}", target=self.context.target.name
                ) from None

    def sample(self, deadline: Deadline) -> Mapping[str, float]:
        with self._bmc.asked(deadline) as system:
            self._sampled, found = redfish_health.beside_a_measurement(self._sampled, system)
        return found

    def latest_event(self, deadline: Deadline) -> int:
        with self._bmc.asked(deadline) as system:
            return redfish_health.latest_event(system)

    def events(self, after: int, deadline: Deadline) -> tuple[HealthEvent, ...]:
        with self._bmc.asked(deadline) as system:
            return redfish_health.events(system, after)

    def log_is_full(self, deadline: Deadline) -> bool:
        with self._bmc.asked(deadline) as system:
            return redfish_health.log_is_full(system)

    def inventory(self, deadline: Deadline) -> Mapping[str, str]:
        with self._bmc.asked(deadline) as system:
            return redfish_health.inventory(system)

    @staticmethod
    def occupies(options: Mapping[str, Any]) -> str:
        return redfish.occupied(options)

    def _reset(self, kind: str, verb: str, deadline: Deadline) -> int:
        with self._bmc.asked(deadline, lambda words: PowerError(f"{verb}: {words}", target=self.context.target.name)) as system:
            import sushy

            t0_ns = time.monotonic_ns()
            system.reset_system(sushy.ResetType[kind])
        return t0_ns

    def _wait(self, wanted: PowerState, verb: str, deadline: Deadline) -> None:
        if not until(lambda: self.state(deadline) is wanted, deadline):
            raise PowerError(
                f"{self._bmc} said yes to {verb}, and {deadline.seconds:g} s later the machine still does not read {wanted}",
                target=self.context.target.name,
                remedy="labctl power status; if the BMC does not obey, reset it",
            )


DRIVER = Redfish
