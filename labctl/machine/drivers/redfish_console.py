"""A console carried by a BMC over SSH, found by Redfish: the BMC itself says on which port, and what to type at its command line.

What is read from when the console is entered is the machine's; what the BMC's command line says before is not, apart from its last words
on the way in. SSH is told the password only once its host key is the right one. Whether the connection is still good is
asked through it every few seconds, for TCP notices a dead BMC only after minutes; whether the machine is on is asked of Redfish then.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from labctl.deadline import Deadline
from labctl.errors import ConsoleLost, HostToolMissing, LabctlError, ManagementError
from labctl.machine import hostkey, redfish, redfish_serial
from labctl.machine.endpoint import Url
from labctl.machine.line import Broken, Line
from labctl.machine.protocols import DriverContext
from labctl.machine.transcript import Transcript
from labctl.secrets import Secret, reveal

if TYPE_CHECKING:
    import paramiko

ANSWER = 10.0
"""Seconds that a BMC may take for one answer on its way in, and once it is asked whether it is still there."""
_CHUNK = 1 << 16
_LOOK_S = 0.2
_QUIET_S = 0.3
"""Seconds of silence after which a command line waits for what is typed."""
_REFUSED_S = 0.5
"""Seconds in which a command line that does not know a command shows its prompt again."""
_OFF = "the machine is off"


class _Entered:
    """One life of a shell at the BMC."""

    def __init__(self, transport: paramiko.Transport, channel: paramiko.Channel, farewell: str) -> None:
        self._transport = transport
        self._channel = channel
        self._farewell = farewell
        self._said = b""
        """Read already: what the machine said right after the console was entered."""
        self._received = 0
        channel.settimeout(_LOOK_S)

    def read(self, seconds: float) -> bytes:
        if self._said:
            said, self._said = self._said, b""
            return said
        limit = Deadline.after(seconds)
        while not limit.expired or self._channel.recv_ready():
            with suppress(TimeoutError):
                data: bytes = self._channel.recv(_CHUNK)
                self._received += len(data)
                if not data:
                    raise Broken(self._why_gone())
                return data
        return b""

    def write(self, data: bytes, deadline: Deadline) -> None:
        while data:
            try:
                data = data[self._channel.send(data) :]
            except TimeoutError:
                if deadline.expired:
                    raise Broken("the BMC takes no more bytes") from None
            except (OSError, EOFError):
                raise Broken(self._why_gone()) from None

    def close(self) -> None:
        with suppress(OSError, EOFError):
            self._channel.close()
        self._transport.close()

    def answers(self, seconds: float) -> bool:
        """Whether anything at all comes back within that time."""
        asking, before, limit = threading.Thread(target=self._ask, daemon=True), self._received, Deadline.after(seconds)
        asking.start()
        while asking.is_alive() and self._received == before and not limit.expired:
            asking.join(0.1)
        return not asking.is_alive() or self._received != before

    def _ask(self) -> None:
        """A request that no server knows, and each one answers (RFC 4254, 4)."""
        import paramiko

        with suppress(OSError, EOFError, paramiko.SSHException):
            self._transport.global_request("keepalive@openssh.com", wait=True)

    def _why_gone(self) -> str:
        if not self._transport.is_active() and not self._channel.eof_received:
            return "the connection to the BMC ended"
        return f"the BMC ended its console ({self._farewell})" if self._farewell else "the BMC ended its console"

    # --- the way in

    def enter(self, commands: tuple[str, ...], deadline: Deadline) -> None:
        """Type them at the manager's command line. Broken if it does not take them."""
        heard = self._until_quiet(deadline)
        prompt = heard.rpartition(b"\n")[2].strip()
        for command in commands[:-1]:
            self.write(command.encode() + b"\r", deadline)
            self._until_quiet(deadline)
        for command in commands[-1:]:
            self.write(command.encode() + b"\r", deadline)
            said = self._behind(command.encode(), deadline)
            limit = Deadline.after(_REFUSED_S)
            while not limit.expired:
                said += self.read(_LOOK_S)
            if prompt and said.rstrip().endswith(b"\n" + prompt):
                raise Broken(f"its command line does not know {command!r}: {redfish.plain(said.decode(errors='replace'))}")
            self._said = said

    def _behind(self, echo: bytes, deadline: Deadline) -> bytes:
        """What is said after the line that repeats what was typed; all of it, where that is not repeated."""
        said, limit = b"", deadline.sooner(ANSWER)
        while not limit.expired:
            said += self.read(_LOOK_S)
            _, found, rest = said.partition(echo)
            if found and b"\n" in rest:
                return rest.partition(b"\n")[2]
        return said

    def _until_quiet(self, deadline: Deadline) -> bytes:
        said, limit, last = b"", deadline.sooner(ANSWER), time.monotonic()
        while not limit.expired and not (said and time.monotonic() - last > _QUIET_S):
            if data := self.read(_LOOK_S):
                said, last = said + data, time.monotonic()
        return said


@dataclass
class RedfishConsole:
    """Options: ``url`` (``https://HOST``), ``user``, ``password`` (a reference: ``env:``, ``file:``, ``keyring:`` or ``vault:``), the
    same for Redfish and SSH; ``system`` (path of the system, where the BMC has several), ``verify`` (a BMC's certificate is checked;
    ``false`` for the one it signed itself; or the path of a CA's certificate), ``entry`` (what is typed at the BMC's command line to
    enter the console, instead of what the BMC says), ``host_key`` of its SSH (see `labctl.machine.hostkey`)."""

    context: DriverContext
    transcript: Transcript
    url: Url
    user: str
    password: Secret
    system: str = ""
    verify: bool | str = True
    entry: str = ""
    host_key: hostkey.HostKey = "pinned"

    _line: Line = field(init=False)
    _bmc: redfish.Bmc = field(init=False)
    _looks: redfish.Bmc = field(init=False)
    """The same, for the thread that looks whether the console is still good."""
    _entered: _Entered | None = field(default=None, init=False)
    _was_on: bool = field(default=False, init=False)
    """Seen on since the console was attached."""

    def __post_init__(self) -> None:
        where = (self.context.target.name, self.url, self.user, self.password, self.system, self.verify, "drivers.redfish_console")
        self._bmc, self._looks = redfish.Bmc(*where), redfish.Bmc(*where)
        self._line = Line(self.transcript, self.context.target.name, self._connect, self._look)

    @staticmethod
    def occupies(options: Mapping[str, Any]) -> str:
        return redfish.occupied(options)

    def attach(self, deadline: Deadline) -> None:
        self._was_on = False
        self._line.attach(deadline)

    def write(self, data: bytes) -> None:
        if self.transcript.ended == _OFF:
            raise ConsoleLost(f"{_OFF}: nobody takes what is typed", target=self.context.target.name)
        self._line.write(data)

    def detach(self) -> None:
        self._line.detach()

    # --- the connection

    def _connect(self, deadline: Deadline) -> _Entered:
        try:
            import paramiko
        except ImportError:
            remedy = "pip install 'labctl[hardware]'"
            raise HostToolMissing(
                "a console by SSH needs the Python package paramiko", remedy=remedy, target=self.context.target.name
            ) from None
        # What it has to say is in its errors; with no handler it would say it on our stderr.
        logging.getLogger("paramiko").addHandler(logging.NullHandler())
        self._line.stage = "the BMC has not said yet where its console is"
        console = self._described(deadline)
        where = f"the SSH of {self._bmc.host}:{console.port}"
        self._line.stage = f"the BMC has not let us in by SSH on port {console.port} yet"
        transport: paramiko.Transport | None = None
        try:
            patience = max(0.1, deadline.sooner(ANSWER).left)
            transport = paramiko.Transport(socket.create_connection((self._bmc.host, console.port), timeout=patience))
            transport.banner_timeout = transport.auth_timeout = transport.channel_timeout = patience
            transport.start_client(timeout=patience)
            self._check_host_key(transport, console.port)
            transport.auth_password(self.user, reveal(self.password))
            channel = transport.open_session()
            channel.get_pty()
            channel.invoke_shell()
            entered = _Entered(transport, channel, console.farewell)
            if console.entry:
                self._line.stage = "the BMC has not given its console yet"
                entered.enter(console.entry, deadline)
        except BaseException as error:
            if transport is not None:
                transport.close()
            if isinstance(error, paramiko.AuthenticationException):
                found = f"{where} refuses the user {self.user!r} or the password of {self.password}"
                raise self._bmc.wrong("drivers.redfish_console", found, "a user who may use the BMC's console by SSH") from None
            if isinstance(error, (OSError, EOFError, paramiko.SSHException, Broken)):
                words = redfish.plain(error) or type(error).__name__
                remedy = "see that SSH is switched on in the BMC, and nobody else has its console"
                raise ConsoleLost(f"{where} does not give the console: {words}", target=self.context.target.name, remedy=remedy) from None
            raise
        self._entered = entered
        return entered

    def _described(self, deadline: Deadline) -> redfish_serial.SshConsole:
        with self._bmc.asked(deadline) as system:
            system.refresh(force=True)
            try:
                return redfish_serial.ssh_console(system, self.entry)
            except redfish_serial.NotOffered as not_offered:
                found = f"{self._bmc} {not_offered.found}"
                if not_offered.disabled:
                    raise ManagementError(found, target=self.context.target.name, remedy=not_offered.allowed) from None
                raise self._bmc.wrong("drivers.redfish_console", found, not_offered.allowed) from None

    def _check_host_key(self, transport: paramiko.Transport, port: int) -> None:
        try:
            hostkey.check(transport.get_remote_server_key(), self.host_key, self.context.target.name, self._bmc.host, port)
        except hostkey.NotThisHost as error:
            allowed = "the key of the BMC; if it was given a new one, delete the file or set the option"
            raise self._bmc.wrong("drivers.redfish_console.host_key", str(error), allowed) from None

    # --- whether it is still good

    def _look(self) -> str | None:
        entered = self._entered
        if entered is not None and not entered.answers(ANSWER):
            return f"the BMC's SSH has not answered for {ANSWER:g} s"
        # The console is there: that Redfish is not, is no reason to leave it.
        with suppress(LabctlError), self._looks.asked(Deadline.after(ANSWER)) as system:
            system.refresh(force=True)
            state = redfish.power_of(system)
            if self._was_on and state == "Off":
                self.transcript.end(_OFF)
            self._was_on = state == "On"
        return None


DRIVER = RedfishConsole
