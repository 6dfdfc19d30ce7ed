"""The machine's serial console by SSH to its BMC, as a manager with Redfish offers it: at a command line, behind one command.

``python -m labctl.virtualserver.sshconsole FOLDER``: a process of its own, for it serves with threads. It listens behind the BMC's cable
(`SIMULATOR`), lets in who knows the account of the BMC, and is a listener of the serial hub for as long as somebody has the console. The
command line is the smallest that is one: prompt, echo, ``exit``, and the command that enters the console (DMTF DSP0214, 6.4: ``start``).
"""

from __future__ import annotations

import hmac
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labctl.errors import HostToolMissing, InfraError
from labctl.virtualserver import bmc
from labctl.virtualserver.settings import LOOPBACK, SIMULATOR, Files, Settings, load

if TYPE_CHECKING:
    import paramiko

ENTRY = "start /system1/sol1"
PROMPT = b"/admin1-> "
FAREWELL = "the console is left by ending the connection"
_CHUNK = 1 << 15
_PATIENCE = 30.0
"""Seconds that a client may take to log in and ask for a shell."""
_LONGEST = 200
"""Characters of a command."""


def make_host_key(files: Files) -> None:
    """Once for each virtual server: its clients know it again. HostToolMissing."""
    if files.host_key.exists():
        return
    try:
        import paramiko
    except ImportError:
        remedy = "pip install 'labctl[virtual]'"
        raise HostToolMissing("a BMC's console by SSH needs the Python package paramiko", remedy=remedy) from None
    key = paramiko.ECDSAKey.generate()
    draft = files.host_key.with_suffix(".new")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        key.write_private_key(file)
    files.public_host_key.write_text(f"{key.get_name()} {key.get_base64()}\n")
    draft.rename(files.host_key)


def description(settings: Settings) -> dict[str, Any]:
    """``SerialConsole`` of a ComputerSystem (DMTF DSP2046)."""
    ssh = {
        "ServiceEnabled": True,
        "Port": settings.ssh_console_port,
        "SharedWithManagerCLI": True,
        "ConsoleEntryCommand": ENTRY,
        "HotKeySequenceDisplay": FAREWELL,
    }
    return {"SSH": ssh, "IPMI": {"ServiceEnabled": True, "Port": settings.bmc_port}}


@dataclass
class SshConsole:
    """``serial``: a new connection to the machine's serial port. ``entry``: what enters the console; empty: it is there at once."""

    host_key: paramiko.PKey
    user: str
    password: str
    serial: Callable[[], socket.socket]
    entry: str = ENTRY

    def serve(self, listener: socket.socket) -> None:
        """Until the listener is closed."""
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=self._talk, args=(client,), daemon=True).start()

    def _talk(self, client: socket.socket) -> None:
        import paramiko

        account = _account(self)
        with closing(paramiko.Transport(client)) as transport, suppress(OSError, EOFError, paramiko.SSHException):
            transport.add_server_key(self.host_key)
            transport.start_server(server=account)
            channel = transport.accept(_PATIENCE)
            if channel is None or not account.asked.wait(_PATIENCE):
                return
            with closing(channel):
                if not self.entry or self._is_entered(channel):
                    self._carry(channel)

    def _is_entered(self, channel: paramiko.Channel) -> bool:
        """The command line, until it is left."""
        channel.sendall(PROMPT)
        line = b""
        while data := channel.recv(1):
            if data not in b"\r\n":
                line = (line + data)[:_LONGEST]
                channel.sendall(data)
                continue
            said = line.decode(errors="replace").strip()
            line = b""
            channel.sendall(b"\r\n")
            if said == self.entry:
                return True
            if said == "exit":
                return False
            channel.sendall((b"unknown command: exit, or " + self.entry.encode() + b"\r\n" if said else b"") + PROMPT)
        return False

    def _carry(self, channel: paramiko.Channel) -> None:
        with self.serial() as serial:
            typing = threading.Thread(target=self._type, args=(channel, serial), daemon=True)
            typing.start()
            try:
                while data := serial.recv(_CHUNK):
                    channel.sendall(data)
            finally:
                channel.close()
                typing.join()

    @staticmethod
    def _type(channel: paramiko.Channel, serial: socket.socket) -> None:
        with suppress(OSError, EOFError):
            while data := channel.recv(_CHUNK):
                serial.sendall(data)
        with suppress(OSError):
            serial.shutdown(socket.SHUT_RDWR)  # whoever reads it has no client any more


def _account(console: SshConsole) -> Any:
    import paramiko

    class Account(paramiko.ServerInterface):  # type: ignore[misc]  # imported only when it is needed
        """What a client may ask for: to log in with the password, a terminal, and a shell."""

        def __init__(self) -> None:
            self.asked = threading.Event()

        def get_allowed_auths(self, username: str) -> str:
            return "password"

        def check_auth_password(self, username: str, password: str) -> int:
            right = hmac.compare_digest(password.encode(), console.password.encode()) and username == console.user
            return int(paramiko.AUTH_SUCCESSFUL if right else paramiko.AUTH_FAILED)

        def check_channel_request(self, kind: str, chanid: int) -> int:
            return int(paramiko.OPEN_SUCCEEDED if kind == "session" else paramiko.OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED)

        def check_channel_pty_request(self, *_: Any) -> bool:
            return True

        def check_channel_shell_request(self, channel: Any) -> bool:
            self.asked.set()
            return True

    return Account()


def main(folder: Path) -> None:
    import paramiko

    files = Files(folder)
    settings = load(files)
    if settings is None:
        raise InfraError(f"{files.settings} is gone")
    logging.getLogger("paramiko").addHandler(logging.NullHandler())  # clients come and go as they like
    console = SshConsole(
        paramiko.ECDSAKey(filename=str(files.host_key)),
        bmc.USER,
        files.password.read_text(),
        lambda: socket.create_connection((LOOPBACK, settings.serial_port)),
    )
    with socket.create_server((SIMULATOR, settings.ssh_console_port)) as listener:
        console.serve(listener)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
