"""Power and boot device through a BMC, over Redfish (DMTF DSP0266), by OpenStack's client sushy, which knows the vendors' quirks.

Every request logs in by itself (HTTP Basic): a BMC has few sessions, and one that was not ended occupies it for half an hour.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from labctl.deadline import Deadline
from labctl.errors import ConfigError, HostToolMissing, InfraError, ManagementError, PowerError, Problem
from labctl.machine import redfish_health
from labctl.machine.lockfile import printable
from labctl.machine.polling import until
from labctl.machine.protocols import DriverContext, HealthEvent, Reading
from labctl.model import PowerState
from labctl.secrets import Secret, reveal, without_password

ANSWER, CONNECT = 10.0, 5.0
"""Seconds that a BMC may take for one answer, and to take a connection. The client is made once, so no single deadline is its own."""


@dataclass
class Redfish:
    """Options: ``url`` (``https://HOST``), ``user``, ``password`` (a reference: ``env:``, ``file:``, ``keyring:`` or ``vault:``),
    ``system`` (path of the system, where the BMC has several), ``verify`` (a BMC's certificate is checked; ``false`` for the one it
    signed itself; or the path of a CA's certificate), ``rest`` (seconds that the machine stays off before it is switched on again),
    ``uefi`` (the boot device is asked for in UEFI's way)."""

    context: DriverContext
    url: Annotated[str, AfterValidator(without_password)]
    user: str
    password: Secret
    system: str = ""
    verify: bool | str = True
    rest: Annotated[float, Field(ge=0, le=600)] = 0.0
    uefi: bool = False

    _system: Any = field(default=None, init=False)
    _off_since: float | None = field(default=None, init=False)
    _sampled: dict[str, str] | None = field(default=None, init=False)
    """Sensors that are read beside a measurement."""

    stays_on = True

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
        with self._bmc(deadline) as system:
            system.refresh(force=True)
            said = system.power_state
        match getattr(said, "value", said):
            case "On" | "PoweringOff":
                return PowerState.ON
            case "Off" | "PoweringOn":
                return PowerState.OFF
        return PowerState.UNKNOWN

    def boot_next(self, device: Literal["network", "disk"], deadline: Deadline) -> None:
        with self._bmc(deadline) as system:
            import sushy

            wanted = sushy.BootSource.PXE if device == "network" else sushy.BootSource.HDD
            mode = sushy.BootSourceOverrideMode.UEFI if self.uefi else sushy.BootSourceOverrideMode.LEGACY
            system.set_system_boot_options(target=wanted, enabled=sushy.BootSourceOverrideEnabled.ONCE, mode=mode)
            system.refresh(force=True)
            found = system.boot.target
        if found is not wanted:
            raise ManagementError(
                f"{self._name} was told to boot from {wanted.value} and reads back {getattr(found, 'value', found)}",
                target=self.context.target.name,
            )

    # --- Health

    def readings(self, deadline: Deadline) -> tuple[Reading, ...]:
        with self._bmc(deadline) as system:
            return tuple(redfish_health.readings(system))

    def sample(self, deadline: Deadline) -> Mapping[str, float]:
        with self._bmc(deadline) as system:
            self._sampled, found = redfish_health.beside_a_measurement(self._sampled, system)
        return found

    def latest_event(self, deadline: Deadline) -> int:
        with self._bmc(deadline) as system:
            return redfish_health.latest_event(system)

    def events(self, after: int, deadline: Deadline) -> tuple[HealthEvent, ...]:
        with self._bmc(deadline) as system:
            return redfish_health.events(system, after)

    def log_is_full(self, deadline: Deadline) -> bool:
        with self._bmc(deadline) as system:
            return redfish_health.log_is_full(system)

    def inventory(self, deadline: Deadline) -> Mapping[str, str]:
        with self._bmc(deadline) as system:
            return redfish_health.inventory(system)

    @staticmethod
    def occupies(options: Mapping[str, Any]) -> str:
        parts = urlsplit(str(options.get("url")))
        return f"the BMC {parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)} {options.get('system', '')}".rstrip()

    @property
    def _name(self) -> str:
        return f"the BMC at {self.url}"

    def _reset(self, kind: str, verb: str, deadline: Deadline) -> int:
        with self._bmc(deadline, lambda words: PowerError(f"{verb}: {words}", target=self.context.target.name)) as system:
            import sushy

            t0_ns = time.monotonic_ns()
            system.reset_system(sushy.ResetType[kind])
        return t0_ns

    def _wait(self, wanted: PowerState, verb: str, deadline: Deadline) -> None:
        if not until(lambda: self.state(deadline) is wanted, deadline):
            raise PowerError(
                f"{self._name} said yes to {verb}, and {deadline.seconds:g} s later the machine still does not read {wanted}",
                target=self.context.target.name,
                remedy="labctl power status; if the BMC does not obey, reset it",
            )

    @contextmanager
    def _bmc(self, deadline: Deadline, refused: Callable[[str], InfraError] | None = None) -> Iterator[Any]:
        """The system's resource; what goes wrong in the block becomes the lab's error, with the BMC's own words."""
        target = self.context.target.name
        try:
            import requests
            import sushy
            from sushy import exceptions
        except ImportError:
            raise HostToolMissing(
                "Redfish needs the Python package sushy", remedy="pip install 'labctl[hardware]'", target=target
            ) from None
        try:
            if self._system is None:
                auth = sushy.auth.BasicAuth(self.user, reveal(self.password))
                # Its own repetitions are off.
                root = sushy.Sushy(
                    self.url,
                    verify=self.verify,
                    auth=auth,
                    server_side_retries=1,
                    server_side_retries_delay=0,
                    connect_timeout=CONNECT,
                    read_timeout=ANSWER,
                )
                self._system = root.get_system(self.system or None)
            yield self._system
        except exceptions.AccessError:
            where, key = f"targets/{target}.toml", "drivers.redfish"
            found = f"{self._name} refuses the user {self.user!r} or the password of {self.password}"
            raise ConfigError([Problem(where, key, found, "a user with administrator rights")]) from None
        except exceptions.HTTPError as error:
            words = f"{self._name} says HTTP {error.status_code}: {_plain(error.detail or error)}"
            raise refused(words) if refused else ManagementError(words, target=target) from None
        except (exceptions.ConnectionError, requests.RequestException) as error:
            if isinstance(cause := _cause(error), HTTPException):
                raise ManagementError(f"{self._name} answers without a sense ({type(cause).__name__})", target=target) from None
            remedy = "see its address, its cable and its certificate"
            raise ManagementError(f"{self._name} does not answer: {_plain(cause)}", target=target, remedy=remedy) from None
        except (exceptions.SushyError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ManagementError(f"{self._name} answers without a sense: {_plain(error)}", target=target) from None


def _cause(error: BaseException) -> BaseException:
    """The innermost reason: the outer ones repeat themselves."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return error


def _plain(error: object) -> str:
    return printable(" ".join(str(error).split())[:200])


DRIVER = Redfish
