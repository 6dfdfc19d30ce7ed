"""A console carried by a BMC: Serial over LAN, by ipmitool on a terminal of its own.

A SOL has one user at a time, so it is deactivated before it is activated: what holds it is a session that died, or somebody who is told
so by their BMC. Whether it is still ours is asked of the BMC every few seconds, for ipmitool itself notices a dead BMC only after more
than a minute. Commands: IPMI 2.0, 24.2 (Deactivate Payload), 24.4 and 24.5 (Get Payload
Activation Status, Get Payload Instance Info), 28.2 (Get Chassis Status).

What IPMI cannot tell: packets of the SOL alone that are lost while all others pass are noticed only when something is typed.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from labctl.deadline import Deadline
from labctl.errors import ConsoleLost, InfraError
from labctl.machine.endpoint import Host, Port
from labctl.machine.ipmi import Address, Password, session
from labctl.machine.line import CHECKED_EVERY, Broken, Line
from labctl.machine.protocols import DriverContext
from labctl.machine.transcript import Transcript
from labctl.model import Target
from labctl.process import Child, start_on_terminal
from labctl.secrets import reveal

_APP = 0x06
_DEACTIVATE = bytes([0x49, 1, 1, 0, 0, 0, 0])
_STATUS = bytes([0x4A, 1])
_OWNER = bytes([0x4B, 1, 1])
_OPERATIONAL = rb"\[SOL Session operational\.[^\n]*\n"
_ESCAPE = ord("~")
"""Of ipmitool: means itself only where it is typed twice, or not at the beginning of a line."""
_PIECE = 1024
"""Bytes typed at a time: less than a terminal holds."""
_CHUNK = 1 << 16
_FAREWELL = 1.0
"""Seconds for ipmitool to close its session."""
UNANSWERED = 2
"""Looks in a row that a BMC may leave unanswered."""
UNACKNOWLEDGED = 12.0
"""Seconds after which ipmitool has given up a packet that nobody acknowledges: it sends it several times."""
_LATE = 5.0
"""Seconds to log in and to free the SOL that are too long for ipmitool, which does the first again: it waits a second for each answer."""
_OFF = "the machine is off"


class _Activated:
    """One ipmitool with an active SOL."""

    def __init__(self, child: Child, terminal: int, said: bytes) -> None:
        self._child = child
        self._terminal = terminal
        self._said = said
        """Read already: what the machine said right after the activation."""
        self._tail = b""
        self._line_begins = True

    def read(self, seconds: float) -> bytes:
        if self._said:
            said, self._said = self._said, b""
            return said
        if not select.select([self._terminal], [], [], seconds)[0]:
            return b""
        try:
            data = os.read(self._terminal, _CHUNK)
        except BlockingIOError:
            return b""
        except OSError:  # EIO: ipmitool has gone
            data = b""
        if not data:
            raise Broken(_last_words(self._tail) or f"ipmitool ended with status {self._child.wait(Deadline.after(_FAREWELL))}")
        self._tail = (self._tail + data)[-200:]
        return data

    def write(self, data: bytes, deadline: Deadline) -> None:
        typed = self._escaped(data)
        while typed:
            if not select.select([], [self._terminal], [], deadline.left)[1]:
                raise Broken("ipmitool takes no more bytes")
            try:
                typed = typed[os.write(self._terminal, typed[:_PIECE]) :]
            except BlockingIOError:
                time.sleep(0.01)  # room was there, but not for so much
                if deadline.expired:
                    raise Broken("ipmitool takes no more bytes") from None
            except OSError as error:
                raise Broken(f"ipmitool has gone: {error.strerror}") from None

    def _escaped(self, data: bytes) -> bytes:
        out = bytearray()
        for byte in data:
            if byte == _ESCAPE and self._line_begins:
                out.append(byte)
            out.append(byte)
            self._line_begins = byte in b"\r\n"
        return bytes(out)

    def close(self) -> None:
        if self._terminal < 0:
            return
        self._child.interrupt(signal.SIGINT)  # it closes its session then
        limit = Deadline.after(_FAREWELL)
        while self._child.status is None and not limit.expired:  # a full terminal would keep it from ending
            if select.select([self._terminal], [], [], 0.02)[0]:
                try:
                    os.read(self._terminal, _CHUNK)
                except OSError:
                    break
        self._child.kill()
        os.close(self._terminal)
        self._terminal = -1


def _last_words(tail: bytes) -> str:
    """What ipmitool said of its end, as it stands behind what the machine said."""
    for words in (b"SOL session closed by BMC", b"Error sending SOL data", b"SOL payload deactivated"):
        if words in tail:
            return words.decode()
    return ""


@dataclass
class Sol:
    """Options: ``host``, ``port``, ``user``, ``password`` (a reference: ``env:``, ``file:``, ``keyring:`` or ``vault:``),
    ``cipher_suite`` (3 or 17)."""

    context: DriverContext
    transcript: Transcript
    host: Host
    user: str
    password: Password
    port: Port = 623
    cipher_suite: Literal[3, 17] = 3

    _line: Line = field(init=False)
    _was_on: bool | None = field(default=None, init=False)
    """At the last look; None: there was none since the console was attached."""
    _unanswered: int = field(default=0, init=False)
    """Looks in a row that the BMC did not answer."""
    _owner: bytes | None = field(default=None, init=False)
    """The BMC's name of the session that has the SOL."""

    def __post_init__(self) -> None:
        self._line = Line(self.transcript, self.context.target.name, self._connect, self._look)

    @staticmethod
    def host_programs(target: Target, options: Mapping[str, Any]) -> list[str]:  # noqa: ARG004  # as the registry calls it
        return ["ipmitool", "setpriv"]

    @staticmethod
    def occupies(options: Mapping[str, Any]) -> str:
        return f"the BMC {str(options.get('host')).lower()}:{options.get('port', 623)}"

    @property
    def _address(self) -> Address:
        name = self.context.target.name
        return Address(name, self.host, self.port, self.user, self.password, self.cipher_suite, "drivers.sol")

    def attach(self, deadline: Deadline) -> None:
        self._was_on = None
        self._line.attach(deadline)

    def write(self, data: bytes) -> None:
        if self.transcript.ended == _OFF:
            raise ConsoleLost(f"{_OFF}: nobody takes what is typed", target=self.context.target.name)
        self._line.write(data)

    def prove(self, deadline: Deadline) -> None:
        """Each packet that is typed has to be acknowledged by the BMC; ipmitool ends if none is."""
        self._line.prove(deadline.sooner(UNACKNOWLEDGED))

    def detach(self) -> None:
        self._line.detach()

    # --- the connection

    def _connect(self, deadline: Deadline) -> _Activated:
        """Errors of the session say what ipmitool would not: wrong password, no answer, no SOL."""
        began = time.monotonic()
        self._line.stage = "the BMC has not let us in yet"
        with session(self._address, deadline) as bmc:
            answer = bytes(bmc.send_raw(0, _APP, _STATUS))
            if len(answer) >= 3 and answer[0] == 0 and answer[2] & 1:
                self.transcript.note("the SOL was in use by another session, which was ended")
            # A BMC may forget to say that it is active. One that has nothing to deactivate says 0x80: no harm.
            bmc.send_raw(0, _APP, _DEACTIVATE)
        took = time.monotonic() - began
        self._line.stage = f"the BMC has not given its SOL yet, and took {took:.1f} s to log in and to free it"
        # The password passes through a nameless file in memory: on no command line, in no environment, on no disk.
        secret = os.memfd_create("ipmitool", os.MFD_CLOEXEC)
        try:
            os.write(secret, reveal(self.password).encode() + b"\n")
            where = ["-H", self.host, "-p", str(self.port), "-U", self.user, "-f", f"/proc/{os.getpid()}/fd/{secret}"]
            child, terminal = start_on_terminal(["ipmitool", "-I", "lanplus", "-C", str(self.cipher_suite), *where, "sol", "activate"])
            try:
                said = self._await_operational(child, terminal, took, deadline)
            except BaseException:
                _Activated(child, terminal, b"").close()
                raise
        finally:
            os.close(secret)
        self._unanswered, self._owner = 0, None
        return _Activated(child, terminal, said)

    def _await_operational(self, child: Child, terminal: int, took: float, deadline: Deadline) -> bytes:
        """What the machine said since SOL was activated. ConsoleLost with ipmitool's own words if it is not, and with the cause where that
        is a BMC which answers late (``took``: seconds, for some ten answers before): ipmitool does not wait for it, and does not say so."""
        from pexpect import EOF, TIMEOUT, fdpexpect

        heard = fdpexpect.fdspawn(terminal, timeout=deadline.left)
        found = heard.expect([_OPERATIONAL, EOF, TIMEOUT])
        if found == 0:
            return bytes(heard.buffer)
        words = (heard.before or b"").decode(errors="replace").strip().splitlines()
        said = words[-1] if words else f"nothing within {deadline.seconds:g} s" if found == 2 else f"status {child.status}"
        late = f"; it answers late: logging in and freeing its SOL took {took:.1f} s" if took > _LATE else ""
        raise ConsoleLost(
            f"{self._address} does not give its SOL: ipmitool says {said}{late}",
            target=self.context.target.name,
            remedy="see that SOL is enabled for the user: ipmitool … sol info; sol payload status 1 USERID",
        )

    # --- whether it is still good

    def _look(self) -> str | None:
        try:
            with session(self._address, Deadline.after(CHECKED_EVERY)) as bmc:
                active = bytes(bmc.send_raw(0, _APP, _STATUS))
                owner = bytes(bmc.send_raw(0, _APP, _OWNER))[1:5]
                on = bool(bmc.get_chassis_status().power_on)
        except InfraError as error:
            return self._not_answered(error)
        self._unanswered = 0
        if self._was_on and not on:
            self.transcript.end(_OFF)
        self._was_on = on
        if active[:1] == b"\0" and len(active) > 2 and not active[2] & 1:
            return "the BMC says that its SOL is not active"
        self._owner = self._owner or owner
        return "another session has taken the SOL" if owner != self._owner else None

    def _not_answered(self, error: InfraError) -> str | None:
        """Once is an accident, but bytes may have been lost in it too."""
        self._unanswered += 1
        if self._unanswered == 1:
            self.transcript.gap(f"{error.message}: bytes of the console may be missing here")
        return error.message if self._unanswered >= UNANSWERED else None


DRIVER = Sol
