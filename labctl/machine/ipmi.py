"""A session with a BMC over IPMI 2.0 (RMCP+), for whatever speaks to one: power, boot device, sensors, event log.

The library is python-ipmi, whose import name is ``pyipmi``; its errors end here and become the lab's, with the BMC's own words and codes.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from labctl.deadline import Deadline
from labctl.errors import ConfigError, HostToolMissing, ManagementError, Problem
from labctl.machine.lockfile import printable
from labctl.secrets import Secret, at_most, reveal

if TYPE_CHECKING:
    import pyipmi

ANSWER = 5.0
"""Seconds that a BMC may take for one answer; a busy one takes two or three."""
QUICK = 0.5
"""Seconds that it usually does not take."""
KEPT = 10.0
"""Seconds after which a session that was not used is no longer relied on."""
_NO_TIME = 0.2
"""Seconds in which nobody can be asked: what came before has used up the time, and that is what there is to say."""
_LONGEST = 20
"""Bytes of a password (IPMI 2.0, 22.30): a longer one is never the right one, and each wrong one counts."""
Password = Annotated[Secret, at_most(_LONGEST, "IPMI")]
"""A driver's option."""
_BMC = 0x20
_WRONG_PASSWORD = (0x0D, 0x0F)
"""RAKP status codes: unauthorized name, invalid integrity check value (IPMI 2.0, table 13-15)."""
_NO_SENSE = (struct.error, IndexError, KeyError, ValueError, TypeError, AttributeError, AssertionError)
"""What the library raises on bytes that are no answer."""


@dataclass(frozen=True)
class Address:
    """Where a BMC is and who asks. ``cipher_suite``: 3 or 17; None: the best that the BMC takes."""

    target: str
    host: str
    port: int
    user: str
    password: str
    """A reference of `labctl.secrets`."""
    cipher_suite: int | None
    key: str = "drivers.ipmi"
    """Of the target's file: what is wrong there is said of it."""

    def __str__(self) -> str:
        return f"the BMC at {self.host}:{self.port}"


class Refused(ManagementError):
    """The BMC understood and said no: ``code`` is its completion code (IPMI 2.0, table 5-2)."""

    def __init__(self, message: str, *, code: int = 0, target: str = "") -> None:
        super().__init__(message, target=target)
        self.code = code


@contextmanager
def session(address: Address, deadline: Deadline) -> Iterator[pyipmi.Ipmi]:
    """Log in for this block. ManagementError if the BMC does not answer, or without a sense; Refused if it says no; ConfigError if
    it refuses user or password: trying again would lock the account."""
    with _understood(address, deadline):
        ipmi = _connection(address)
        try:
            _log_in(ipmi, deadline)
            yield ipmi
        finally:
            _close(ipmi)


class Conversation:
    """A session for several things in a row: the first one logs in. It is closed behind an error, and by `close`. For one thread.

    A BMC ends a session of which it has heard nothing for a minute (IPMI 2.0, 6.12.15); `KEPT` is far below that.
    """

    def __init__(self, address: Address) -> None:
        self._address = address
        self._ipmi: pyipmi.Ipmi | None = None
        self._used = 0.0

    @contextmanager
    def session(self, deadline: Deadline) -> Iterator[pyipmi.Ipmi]:
        """As the function of that name, but that the session stays."""
        if time.monotonic() - self._used > KEPT:
            self.close()
        try:
            with _understood(self._address, deadline):
                if self._ipmi is None:
                    self._ipmi = _connection(self._address)
                    _log_in(self._ipmi, deadline)
                else:
                    self._ipmi.interface.set_timeout(max(0.001, min(ANSWER, deadline.left)))
                yield self._ipmi
        except BaseException:
            self.close()
            raise
        self._used = time.monotonic()

    def close(self) -> None:
        """Closed already is no error."""
        ipmi, self._ipmi = self._ipmi, None
        if ipmi is not None:
            _close(ipmi)


@contextmanager
def _understood(address: Address, deadline: Deadline) -> Iterator[None]:
    """What the library raises in this block becomes the lab's own."""
    try:
        import pyipmi
        import pyipmi.errors
        import pyipmi.interfaces
    except ImportError:
        raise HostToolMissing(
            "IPMI needs the Python package python-ipmi", remedy="pip install 'labctl[hardware]'", target=address.target
        ) from None
    errors = pyipmi.errors
    waited = Deadline.after(deadline.left)
    try:
        yield
    except errors.CompletionCodeError as error:
        raise Refused(f"{address} says {error.cc:#04x}: {_plain(error.cc_desc)}", code=error.cc, target=address.target) from None
    except errors.MessageStatusCodeError as error:
        if error.msc in _WRONG_PASSWORD:
            raise _not_let_in(address) from None
        raise ManagementError(f"{address} opens no session: {error.msc:#04x}: {_plain(error.msc_desc)}", target=address.target) from None
    except (errors.AuthenticationError, errors.IpmiLongPasswordError):
        raise _not_let_in(address) from None
    except (errors.IpmiConnectionError, errors.RetryError, errors.IpmiTimeoutError, OSError) as error:
        remedy = "see its address, its cable, and that IPMI over LAN is switched on"
        raise ManagementError(f"{address} does not answer{_reason(error, waited)}", target=address.target, remedy=remedy) from None
    except errors.NotSupportedError as error:
        raise ManagementError(f"{address}: {error}", target=address.target) from None
    except (errors.DecodingError, *_NO_SENSE) as error:
        what = f"{type(error).__name__}: {printable(str(error)[:100])}"
        raise ManagementError(f"{address} answers without a sense ({what})", target=address.target, remedy="reset the BMC") from None


def _connection(address: Address) -> pyipmi.Ipmi:
    import pyipmi
    import pyipmi.interfaces

    if len((password := reveal(address.password)).encode()) > _LONGEST:
        raise _mistake(address, f"{address.password} is longer than {_LONGEST} bytes", "as long as IPMI takes")
    interface = pyipmi.interfaces.create_interface("rmcpplus", keep_alive_interval=0, max_retries=1, cipher_suite=address.cipher_suite)
    ipmi = pyipmi.create_connection(interface)
    ipmi.session.set_session_type_rmcp(address.host, port=address.port)
    ipmi.session.set_auth_type_user(address.user, password)
    ipmi.session.set_priv_level("administrator")
    ipmi.target = pyipmi.Target(ipmb_address=_BMC)
    return ipmi


def _log_in(ipmi: pyipmi.Ipmi, deadline: Deadline) -> None:
    """One lost packet is no dead BMC, and a BMC that takes its time is none either: a first try is short, a second one patient."""
    import pyipmi.errors

    errors = pyipmi.errors
    for patience in (QUICK, ANSWER):
        ipmi.interface.open()
        ipmi.interface.set_timeout(max(0.001, min(patience, deadline.left)))
        try:
            ipmi.session.establish()
        except (errors.IpmiConnectionError, errors.RetryError, TimeoutError) as error:
            if patience == ANSWER or deadline.expired or "refused" in str(error):
                raise
            ipmi.interface.close()
        else:
            ipmi.interface.set_timeout(max(0.001, min(ANSWER, deadline.left)))
            return


def _close(ipmi: pyipmi.Ipmi) -> None:
    """A BMC that does not answer any more is not waited for."""
    import pyipmi.errors

    errors = pyipmi.errors
    with suppress(
        OSError,
        errors.CompletionCodeError,
        errors.RetryError,
        errors.IpmiTimeoutError,
        errors.DecodingError,
        errors.AuthenticationError,
        *_NO_SENSE,
    ):
        if ipmi.session.activated:
            ipmi.interface.max_retries = 0
            ipmi.interface.set_timeout(0.5)
            ipmi.session.close()
    ipmi.interface.close()


def _not_let_in(address: Address) -> ConfigError:
    found = f"{address} refuses the user {address.user!r} or the password of {address.password}"
    return _mistake(address, found, "a user with administrator rights over LAN")


def _mistake(address: Address, found: str, allowed: str) -> ConfigError:
    error = ConfigError([Problem(f"targets/{address.target}.toml", address.key, found, allowed)])
    error.target = address.target
    return error


def _reason(error: BaseException, waited: Deadline) -> str:
    if "refused" in str(error):
        return ": nothing listens there"
    if isinstance(error, OSError) and error.strerror and not isinstance(error, TimeoutError):
        return f": {error.strerror}"
    if waited.seconds < _NO_TIME:
        return f": of the time for it {waited.seconds:.1f} s were left when it was asked"
    return f" within {waited.seconds - waited.left:.1f} s"


def _plain(text: object) -> str:
    return str(text).rstrip(".").lower()
