"""Power by a switched outlet: a command of the host, or an outlet that speaks HTTP.

An outlet switches the power, not the machine: set the firmware to *power on after AC loss*. There is no warm reset.
"""

from __future__ import annotations

import os
import re
import shlex
import string
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from labctl.deadline import Deadline
from labctl.errors import HostToolMissing, ManagementError, PowerError, Problem
from labctl.machine.lockfile import printable
from labctl.machine.polling import until
from labctl.machine.protocols import DriverContext
from labctl.model import PowerState, Target
from labctl.process import run
from labctl.secrets import Secret, reveal, without_password

PLACES = ("host", "outlet", "verb")
ANSWER = 20.0
"""Seconds that an outlet may take for one answer."""
_MOST = 1 << 16
"""Bytes of an answer that are looked at."""


def _template(text: str) -> str:
    try:
        found = [place for place in string.Formatter().parse(text) if place[1] is not None]
        used = {name if not form and not conversion else "" for _, name, form, conversion in found}
        words = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"text with {{host}}, {{outlet}} and {{verb}} ({error})") from None
    if not used <= set(PLACES) or not words:
        raise ValueError("text with no other places than {host}, {outlet} and {verb}")
    return text


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"a regular expression ({error})") from None
    return text


Template = Annotated[str, AfterValidator(_template)]
Url = Annotated[str, AfterValidator(_template), AfterValidator(without_password)]
Pattern = Annotated[str, AfterValidator(_pattern)]


@dataclass
class Pdu:
    """Options: either ``command``, a command line (no shell reads it; the environment has ``LABCTL_PDU_PASSWORD``), or ``url``. In both
    ``{host}``, ``{outlet}`` and ``{verb}`` stand for what follows: ``host``, ``outlet``, ``verbs`` (what ``on``, ``off`` and ``state`` are
    called there; without ``state`` the outlet is believed). ``says_on`` and ``says_off`` are what the answer to ``state`` holds (regular
    expressions). ``method`` of HTTP, ``user`` and ``password`` (a reference: ``env:``, ``file:``, ``keyring:``, ``vault:``), ``rest``
    (seconds between off and on, for the capacitors of the power supply)."""

    context: DriverContext
    outlet: str = ""
    host: str = ""
    command: Template = ""
    url: Url = ""
    verbs: Mapping[Literal["on", "off", "state"], str] = field(default_factory=lambda: {"on": "on", "off": "off", "state": "state"})
    says_on: Pattern = r"(?i)\bon\b"
    says_off: Pattern = r"(?i)\boff\b"
    method: Literal["GET", "POST", "PUT"] = "GET"
    user: str = ""
    password: Secret | None = None
    rest: Annotated[float, Field(strict=True, ge=0, le=600)] = 5.0

    _asked: PowerState = field(default=PowerState.UNKNOWN, init=False)
    """For an outlet that cannot be asked."""
    _off_since: float | None = field(default=None, init=False)

    stays_on = True

    @staticmethod
    def occupies(options: Mapping[str, Any]) -> str:
        place = options.get("url") or options.get("command")
        return f"outlet {options.get('outlet', '')} of {options.get('host') or place}"

    @staticmethod
    def problems(target: Target, options: Mapping[str, Any]) -> list[Problem]:
        where = f"targets/{target.name}.toml"
        found = []
        if ("command" in options) == ("url" in options):
            found.append(Problem(where, "drivers.pdu", "has " + ("both" if "url" in options else "neither"), "either command or url"))
        if missing := {"on", "off"} - set(options.get("verbs", ("on", "off"))):
            absent = f"has no {' and no '.join(sorted(missing))}"
            found.append(Problem(where, "drivers.pdu.verbs", absent, "on, off, and state if there is one"))
        return found

    @staticmethod
    def host_programs(_target: Target, options: Mapping[str, Any]) -> list[str]:
        """What it calls on the host."""
        command = options.get("command")
        words = shlex.split(command) if isinstance(command, str) else []
        return words[:1]

    def on(self, deadline: Deadline) -> int:
        if self._off_since is not None:
            time.sleep(min(deadline.left, max(0.0, self._off_since + self.rest - time.monotonic())))
        if self.state(deadline) is PowerState.ON:
            raise PowerError("the machine is on already", target=self.context.target.name)
        t0_ns = time.monotonic_ns()
        self._switch("on", PowerState.ON, deadline)
        self._off_since = None
        return t0_ns

    def off(self, deadline: Deadline) -> None:
        if self.state(deadline) is not PowerState.OFF:
            self._switch("off", PowerState.OFF, deadline)
        self._off_since = time.monotonic()

    def reset(self, deadline: Deadline) -> int:
        if self.state(deadline) is PowerState.OFF:
            raise PowerError("the machine is off: there is nothing to reset", target=self.context.target.name)
        raise PowerError("an outlet has no warm reset", target=self.context.target.name, remedy="labctl power cycle")

    def state(self, deadline: Deadline) -> PowerState:
        if "state" not in self.verbs:
            return self._asked
        said = self._ask("state", deadline)
        on, off = re.search(self.says_on, said), re.search(self.says_off, said)
        if bool(on) == bool(off):
            raise ManagementError(
                f"{self._named} says neither on nor off: {said[:200].strip()!r}",
                target=self.context.target.name,
                remedy="see drivers.pdu.says_on and says_off",
            )
        return PowerState.ON if on else PowerState.OFF

    def _switch(self, verb: Literal["on", "off"], wanted: PowerState, deadline: Deadline) -> None:
        try:
            said = self._ask(verb, deadline)
        except ManagementError as error:
            raise PowerError(f"power {verb}: {error.message}", target=self.context.target.name, remedy=error.remedy) from None
        self._asked = wanted
        if not until(lambda: self.state(deadline) is wanted, deadline):
            raise PowerError(
                f"{self._named} took power {verb} ({said[:100].strip()!r}), and does not read {wanted} {deadline.seconds:g} s later",
                target=self.context.target.name,
            )

    @property
    def _named(self) -> str:
        return f"outlet {self.outlet}" if self.outlet else "the outlet"

    def _ask(self, verb: Literal["on", "off", "state"], deadline: Deadline) -> str:
        places = {"host": self.host, "outlet": self.outlet, "verb": self.verbs[verb]}
        limit = deadline.sooner(ANSWER)
        return self._by_http(places, limit) if self.url else self._by_command(places, limit)

    def _by_command(self, places: Mapping[str, str], limit: Deadline) -> str:
        # Split before anything is put in: what stands in a place stays one word, whatever is in it.
        argv = [word.format(**places) for word in shlex.split(self.command)]
        secret = {"LABCTL_PDU_PASSWORD": reveal(self.password)} if self.password else {}
        try:
            done = run(argv, limit, env={**os.environ, **secret})
        except ManagementError as error:
            raise ManagementError(error.message, target=self.context.target.name, remedy=error.remedy) from None
        except HostToolMissing as error:
            remedy = f"install it, or correct targets/{self.context.target.name}.toml"
            raise HostToolMissing(f"drivers.pdu.command: {error.message}", target=self.context.target.name, remedy=remedy) from None
        if done.status != 0:
            words = f": {_plain(done.words)}" if done.words else ""
            raise ManagementError(f"{argv[0]} ended with {done.status}{words}", target=self.context.target.name)
        return done.out[:_MOST]

    def _by_http(self, places: Mapping[str, str], limit: Deadline) -> str:
        try:
            import requests

            from labctl.machine.boundedhttp import Bounded, Unfit, cause
        except ImportError:
            remedy = "pip install 'labctl[hardware]'"
            raise HostToolMissing("an outlet's HTTP needs the Python package requests", remedy=remedy) from None
        from urllib.parse import quote

        url = self.url.format(**{name: value if name == "host" else quote(value, safe="") for name, value in places.items()})
        auth = (self.user, reveal(self.password)) if self.password else None
        bounded, handled = Bounded(url, ANSWER), sys.exception()
        try:
            with requests.Session() as session, bounded.within(limit):
                for scheme in ("http://", "https://"):
                    session.mount(scheme, bounded)
                answer = session.request(self.method, url, auth=auth, timeout=max(0.1, limit.left), allow_redirects=False)
        except (requests.RequestException, OSError) as error:
            reason = cause(error, handled)
            words = reason.words if isinstance(reason, Unfit) else f"does not answer: {type(error).__name__}"
            raise ManagementError(f"the outlet at {url} {words}", target=self.context.target.name) from None
        said, status = answer.content[:_MOST].decode(errors="replace"), answer.status_code
        if not 200 <= status < 300:
            words = _plain(said, 100)
            raise ManagementError(
                f"the outlet at {url} says HTTP {status}" + (f": {words}" if words else ""),
                target=self.context.target.name,
                remedy="see drivers.pdu.user and password" if status in (401, 403) else "",
            )
        return said


def _plain(text: str, most: int = 200) -> str:
    """An outlet's words, on one line, short, and safe on a terminal."""
    return printable(" ".join(text.split())[:most])


DRIVER = Pdu
