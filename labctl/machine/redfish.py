"""A BMC that is spoken to by Redfish (DMTF DSP0266), for whatever speaks to one: power, boot device, sensors, event log, serial console.

The library is OpenStack's client sushy, which knows the vendors' quirks; its errors end here and become the lab's, with the BMC's own
words. Every request logs in by itself (HTTP Basic): a BMC has few sessions, and one that was not ended occupies it for half an hour.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from labctl.deadline import Deadline
from labctl.errors import ConfigError, HostToolMissing, InfraError, ManagementError, Problem
from labctl.machine.lockfile import printable
from labctl.secrets import reveal

if TYPE_CHECKING:
    from labctl.machine.boundedhttp import Bounded

ANSWER, CONNECT = 10.0, 5.0
"""Seconds that a BMC may take for one answer, and to take a connection."""
_LEAST = 2.0
"""Seconds that it has where the deadline has passed: a verb that waits until something is true asks once more then."""
_NO_SENSE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError, RecursionError)
"""What is raised on an answer that is not as it should be, by the library or here: RecursionError, where it is nested too deeply."""
_NOT_REDFISH = "see that url is the address of the BMC's Redfish; if it is, reset the BMC"


@dataclass
class Bmc:
    """Where a BMC is and who asks."""

    target: str
    url: str
    user: str
    password: str
    """A reference of `labctl.secrets`."""
    system: str = ""
    """Path of the system, where the BMC has several."""
    verify: bool | str = True
    key: str = "drivers.redfish"
    """Of the target's file: what is wrong there is said of it."""

    _system: Any = field(default=None, init=False)
    _http: Bounded | None = field(default=None, init=False)

    def __str__(self) -> str:
        return f"the BMC at {self.url}"

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or ""

    @contextmanager
    def asked(self, deadline: Deadline, refused: Callable[[str], InfraError] | None = None) -> Iterator[Any]:
        """The system's resource, for this block. ManagementError if the BMC does not answer in time, or without a sense, or says no (or
        what ``refused`` makes of its words then); ConfigError if it refuses user or password: trying again would lock the account."""
        try:
            import requests
            from sushy import exceptions

            from labctl.machine.boundedhttp import Bounded, Unfit, cause
        except ImportError:
            raise HostToolMissing(
                "Redfish needs the Python package sushy", remedy="pip install 'labctl[hardware]'", target=self.target
            ) from None
        handled = sys.exception()
        if self._http is None:
            self._http = Bounded(self.url, ANSWER, _no_object)
        try:
            with self._http.within(Deadline.after(max(_LEAST, deadline.left))):
                if self._system is None:
                    self._system = self._connected(self._http)
                yield self._system
        except exceptions.AccessError:
            found = f"{self} refuses the user {self.user!r} or the password of {self.password}"
            raise self.wrong(self.key, found, "a user with administrator rights") from None
        except exceptions.HTTPError as error:
            words = f"{self} says HTTP {error.status_code}: {plain(error.detail or 'no words of its own')} (to {self._http.asked})"
            raise refused(words) if refused else ManagementError(words, target=self.target) from None
        except (exceptions.ConnectionError, requests.RequestException) as error:
            reason, senseless = cause(error, handled), f"{self} answers without a sense: {self._http.asked}"
            if isinstance(reason, Unfit):
                raise ManagementError(f"{self} {plain(reason.words)}", target=self.target, remedy=reason.remedy) from None
            if isinstance(reason, requests.TooManyRedirects):
                words = f"{senseless} sends us on and on, to its own addresses"
                raise ManagementError(words, target=self.target, remedy="see that url is its address, and reset it") from None
            if isinstance(reason, HTTPException):
                raise ManagementError(f"{senseless} gave no HTTP ({type(reason).__name__})", target=self.target) from None
            remedy = "see its address, its cable and its certificate"
            raise ManagementError(f"{self} does not answer: {plain(reason)}", target=self.target, remedy=remedy) from None
        except exceptions.SushyError as error:
            raise ManagementError(f"{self} answers without a sense: {self._http.asked}: {plain(error)}", target=self.target) from None
        except _NO_SENSE as error:
            words = f"{self} answers without a sense: {self._http.asked} gave what is of another kind in Redfish"
            raise ManagementError(f"{words} ({type(error).__name__}: {plain(error)})", target=self.target, remedy=_NOT_REDFISH) from None

    def _connected(self, http: Bounded) -> Any:
        import sushy
        from sushy.connector import Connector

        connector = Connector(
            self.url,
            verify=self.verify,
            # Its own repetitions are off.
            server_side_retries=1,
            server_side_retries_delay=0,
            connect_timeout=CONNECT,
            default_request_timeout=ANSWER,
        )
        for scheme in ("http://", "https://"):
            connector._session.mount(scheme, http)
        root = sushy.Sushy(self.url, auth=sushy.auth.BasicAuth(self.user, reveal(self.password)), connector=connector)
        return root.get_system(self.system or None)

    def wrong(self, key: str, found: str, allowed: str) -> ConfigError:
        """A mistake of the target's file that only the BMC could tell."""
        error = ConfigError([Problem(f"targets/{self.target}.toml", key, found, allowed)])
        error.target = self.target
        return error


def occupied(options: Mapping[str, Any]) -> str:
    """What a driver with these options has for itself."""
    parts = urlsplit(str(options.get("url")))
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        return f"the BMC {parts.netloc}"  # a mistake of the file, which is told when its options are checked
    return f"the BMC {parts.hostname}:{port} {options.get('system', '')}".rstrip()


def power_of(system: Any) -> str:
    """``PowerState`` of a system as it was last read: On, Off, PoweringOn, PoweringOff, or empty where it says none."""
    said = system.power_state
    return str(getattr(said, "value", said) or "")


# --- Resources that are read as they are: sushy keeps what it has read, and does not know all


def get(system: Any, path: str) -> dict[str, Any]:
    """A resource as it is now; empty if the BMC does not have what it names. What else goes wrong is raised as sushy raises it."""
    from sushy import exceptions

    if not path:
        return {}
    try:
        content = system._conn.get(path).json()
    except exceptions.ResourceNotFoundError:
        return {}
    return content if isinstance(content, dict) else {}


def links(content: object, name: str) -> list[str]:
    """Paths of the resources of a list of links."""
    return [path for link in members(content.get(name) if isinstance(content, dict) else None) if (path := link_path(link))]


def link_path(link: object) -> str:
    """Of one link; empty if it is none."""
    return str(link.get("@odata.id") or "") if isinstance(link, dict) else ""


def members(content: object) -> list[dict[str, Any]]:
    """Those of a list that are objects."""
    return [member for member in content if isinstance(member, dict)] if isinstance(content, list) else []


def _no_object(answer: Any) -> str:
    """What was given for a resource instead of an object of JSON; empty if it is one."""
    if answer.status_code != 200 or answer.request.method != "GET":
        return ""
    try:
        content = answer.json()
    except RecursionError:
        return "JSON that is nested too deeply"
    except ValueError:
        kind = answer.headers.get("Content-Type", "").partition(";")[0] or "no kind of content"
        return f"no JSON ({kind}): {answer.text[:60]!r}" if answer.content else "nothing"
    kinds = {list: "a list", str: "a text", bool: "a truth", type(None): "null"}
    return "" if isinstance(content, dict) else f"{kinds.get(type(content), 'a number')}, where Redfish has an object"


def plain(error: object) -> str:
    """A BMC's words, on one line and short."""
    return printable(" ".join(str(error).split())[:200])
