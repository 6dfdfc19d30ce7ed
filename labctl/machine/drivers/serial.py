"""A console on a serial port: of this host, or of a terminal server over the network.

``/dev/ttyUSB0`` is a port of this host, locked for us alone; ``rfc2217://HOST:PORT`` one of a terminal server that lets its clients set
the speed (RFC 2217: ser2net, and most devices sold as terminal servers); ``socket://HOST:PORT`` plain bytes over TCP (ser2net's raw mode,
conserver behind it, a virtual machine's serial port), where the speed is set at the other end.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from labctl.deadline import Deadline
from labctl.errors import ConsoleLost, HostToolMissing, InfraError, TargetBusy
from labctl.machine.line import Broken, Line
from labctl.machine.protocols import DriverContext
from labctl.machine.transcript import Transcript

if TYPE_CHECKING:
    import serial

_CHUNK = 1 << 16
_PIECE = 4096
_RFC2217_LOOK_S = 0.2
_BITS = r"^[5-8][NEO][12]$"
_PATTERN = r"^(/dev/\S+|(rfc2217|socket)://[^\s/]+:[0-9]{1,5})$"


class _Opened:
    """One life of an open port."""

    def __init__(self, port: serial.SerialBase, name: str) -> None:
        self._port = port
        self._name = name
        # RFC 2217 is undone by a thread of the library, whose queue has no descriptor.
        self._descriptor: int | None = None if name.startswith("rfc2217:") else port.fileno()

    def read(self, seconds: float) -> bytes:
        import serial

        try:
            if self._descriptor is not None:
                return bytes(self._port.read(_CHUNK)) if select.select([self._descriptor], [], [], seconds)[0] else b""
            first = bytes(self._port.read(1))  # waits as long as was said when it was opened: to say otherwise is to set the port anew
            return first + bytes(self._port.read(self._port.in_waiting)) if first else b""
        except (serial.SerialException, OSError, TypeError) as error:  # TypeError: the library's, where a port was closed meanwhile
            raise Broken(f"{self._name}: {_plain(error)}") from None

    def write(self, data: bytes, deadline: Deadline) -> None:
        import serial

        try:
            for start in range(0, len(data), _PIECE):
                if self._descriptor is not None:  # the library knows no time limit for RFC 2217
                    self._port.write_timeout = max(0.001, deadline.left)
                self._port.write(data[start : start + _PIECE])
        except (serial.SerialException, OSError) as error:
            raise Broken(f"{self._name}: {_plain(error)}") from None

    def close(self) -> None:
        import serial

        with suppress(serial.SerialException, OSError):  # it may be gone already
            self._port.close()


@dataclass
class Serial:
    """Options: ``port`` (``/dev/…``, ``rfc2217://HOST:PORT`` or ``socket://HOST:PORT``), ``baud``, ``bits`` (``8N1``: data bits, parity,
    stop bits), ``flow`` (``none``, ``rtscts`` or ``xonxoff``)."""

    context: DriverContext
    transcript: Transcript
    port: Annotated[str, Field(pattern=_PATTERN)]
    baud: Annotated[int, Field(ge=50, le=4_000_000)] = 115200
    bits: Annotated[str, Field(pattern=_BITS)] = "8N1"
    flow: Literal["none", "rtscts", "xonxoff"] = "none"

    _line: Line = field(init=False)

    def __post_init__(self) -> None:
        self._line = Line(self.transcript, self.context.target.name, self._connect)

    @staticmethod
    def occupies(options: Mapping[str, Any]) -> str:
        """A port of this host may have several names."""
        port = str(options.get("port"))
        return f"the serial port {os.path.realpath(port) if port.startswith('/') else port.lower()}"

    def attach(self, deadline: Deadline) -> None:
        self._line.attach(deadline)

    def write(self, data: bytes) -> None:
        self._line.write(data)

    def detach(self) -> None:
        self._line.detach()

    def _connect(self, deadline: Deadline) -> _Opened:
        name = self.context.target.name
        try:
            import serial
        except ImportError:
            remedy = "pip install 'labctl[hardware]'"
            raise HostToolMissing("serial ports need the Python package pyserial", remedy=remedy, target=name) from None
        local = self.port.startswith("/dev/")
        try:
            opened = serial.serial_for_url(
                # Ports without modem lines never say that DTR and RTS are set: it is not waited for.
                f"{self.port}?ign_set_control" if self.port.startswith("rfc2217:") else self.port,
                baudrate=self.baud,
                bytesize=int(self.bits[0]),
                parity=self.bits[1],
                stopbits=int(self.bits[2]),
                rtscts=self.flow == "rtscts",
                xonxoff=self.flow == "xonxoff",
                timeout=_RFC2217_LOOK_S if self.port.startswith("rfc2217:") else 0,
                **({"exclusive": True} if local else {}),
            )
        except (serial.SerialException, OSError, ValueError) as error:
            raise self._not_opened(error) from None
        if self.port.startswith("socket:"):
            _keep_alive(opened.fileno())
        return _Opened(opened, self.port)

    def _not_opened(self, error: Exception) -> InfraError:
        name, words = self.context.target.name, _plain(error)
        if "exclusively lock" in str(error):
            return TargetBusy(f"{self.port} is held by {_holders(Path(self.port))}", target=name, remedy=f"fuser -v {self.port}")
        remedy = {
            "Permission denied": "be a member of the group that owns it (Debian: adduser $USER dialout)",
            "No such file or directory": "see that the adapter is plugged in: ls -l /dev/serial/by-id",
        }.get(words, "see the address, and that nobody else holds the port of the terminal server")
        return ConsoleLost(f"{self.port} cannot be opened: {words}", target=name, remedy=remedy)


def _keep_alive(descriptor: int) -> None:
    """A terminal server that lost its power says nothing: notice it within half a minute (tcp(7))."""
    connection = socket.socket(fileno=os.dup(descriptor))
    with connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3)):
            connection.setsockopt(socket.IPPROTO_TCP, option, value)


def _holders(port: Path) -> str:
    """Who has the device open: as far as this user may see."""
    device, found = port.resolve(), []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        try:
            if any(link.resolve() == device for link in (process / "fd").iterdir()):
                program = (process / "comm").read_text().strip()
                since = time.strftime("%H:%M:%S", time.localtime(process.stat().st_mtime))
                found.append(f"{program} (pid {process.name}, user {process.owner()}) since {since}")
        except (OSError, KeyError):
            continue
    return "; ".join(found) or "another program"


def _plain(error: Exception) -> str:
    """The system's own words inside the library's."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    text = str(error)
    _, found, rest = text.partition("[Errno ")
    return rest.partition("] ")[2].partition(":")[0].strip("'\")") if found else text


DRIVER = Serial
