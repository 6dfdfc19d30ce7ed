"""Shell over SSH, by Fabric: exact exit status and output, on a channel that no kernel message shares.

A machine that has just booted refuses connections for a while, so opening tries again until its deadline; what will not change by waiting
(a key that is refused, a host that is not the one it was) is told at once.

Whose host key is believed, ``host_key``: see `labctl.machine.hostkey`. ``pinned`` is right for a system that stays.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from labctl.deadline import Deadline
from labctl.errors import CommandFailed, ConfigError, ConsoleLost, HostToolMissing, LabctlError, Problem, TargetHung
from labctl.machine import hostkey
from labctl.machine.boot import explain
from labctl.machine.endpoint import Host, Port
from labctl.machine.protocols import CommandResult, DriverContext
from labctl.machine.transcript import Pattern, Transcript
from labctl.machine.unended import Unended
from labctl.parsers.crash import PATTERNS as CRASHES
from labctl.parsers.crash import find_crash
from labctl.secrets import Secret, reveal

if TYPE_CHECKING:
    import fabric
    import paramiko

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 1.0
_CONNECT = 10.0
"""Seconds for one try."""
_TRIES = 4
"""For a channel, before anything is told to it."""
_CHUNK = 1 << 16
_LOOK_S = 0.2
_RUN = 'c=$(cat); sh -c "$c" </dev/null; exit $?'
"""One shell for each command, whatever the login shell is; nothing to read, as on every other Shell; a signal's status as shells say it."""


@dataclass
class Ssh:
    """Options: ``host``, ``port``, ``user``, ``key`` (a file with a private key) or ``password`` (a reference: ``env:``, ``file:``,
    ``keyring:`` or ``vault:``; with neither, the user's own agent and keys are tried), ``host_key`` (see `labctl.machine.hostkey`)."""

    transcript: Transcript
    context: DriverContext
    host: Host
    port: Port = 22
    user: str = "root"
    key: str = ""
    password: Secret | None = None
    host_key: hostkey.HostKey = "pinned"

    _connection: Any = field(default=None, init=False)

    def open(self, deadline: Deadline) -> None:
        if self._connection is not None and self._connection.is_connected:
            return
        pause, last = _FIRST_PAUSE, ""
        while True:
            try:
                self._connection = self._connect(deadline)
                return
            except (OSError, EOFError) as error:  # refused, reset, no route, no banner: it is still booting
                last = str(error) or type(error).__name__
            if deadline.expired:
                hung = TargetHung(f"no SSH on {self._where} within {deadline.seconds:g} s: {last}", target=self.context.target.name)
                raise explain(self.transcript, 0, hung)
            time.sleep(min(pause, deadline.left))
            pause = min(2 * pause, _LONGEST_PAUSE)

    def run(self, command: str, deadline: Deadline) -> CommandResult:
        import paramiko

        began, said = time.monotonic(), self.transcript.size
        output = bytearray()
        try:
            with self._channel(_begin, deadline) as channel:
                channel.sendall(command.encode())
                channel.shutdown_write()
                channel.settimeout(_LOOK_S)
                self._collect(channel, output, command, deadline, said)
                status = channel.recv_exit_status()
                if status < 0:
                    raise EOFError("the connection ended without a status")
                return CommandResult(command, status, output.decode(errors="replace"), time.monotonic() - began)
        except (OSError, EOFError, paramiko.SSHException) as error:
            self.close()
            lost = ConsoleLost(f"SSH to {self._where} broke in the middle of {command[:200]!r}: {error}", target=self.context.target.name)
            raise explain(self.transcript, said, lost) from None

    def _channel(self, begin: Callable[[paramiko.Channel], None], deadline: Deadline) -> paramiko.Channel:
        """A channel on which ``begin`` has asked for a program. SSHException, OSError or EOFError where the server gives none.

        A channel that breaks so early is asked for again, for nothing has been told to the program yet. dropbear closes one that has no
        program so far at the moment when a program of an earlier channel ends (seen with 2022.83), and a connection may be long gone.
        """
        import paramiko

        for tries_left in reversed(range(_TRIES)):
            self.open(deadline)
            assert self._connection is not None  # noqa: S101  # for the type checker
            try:
                channel: paramiko.Channel = self._connection.transport.open_session(timeout=max(0.1, deadline.left))
                channel.settimeout(max(0.1, deadline.left))
                # Paramiko would wait for the server's word forever; that the channel is closed ends it.
                late = threading.Timer(deadline.left, channel.close)
                late.daemon = True
                late.start()
                try:
                    begin(channel)
                finally:
                    late.cancel()
                return channel
            except (OSError, EOFError, paramiko.SSHException):
                if not tries_left or deadline.expired:
                    raise
                if not self._connection.is_connected:
                    self.close()
        raise AssertionError

    def _collect(self, channel: paramiko.Channel, output: bytearray, command: str, deadline: Deadline, said: int) -> None:
        """All of its output, until it has ended. KernelCrash as soon as the console says that there is one."""
        looked = time.monotonic()
        with self.transcript.watch([Pattern(regex, literal) for regex, literal in CRASHES], said) as crashes:
            while True:
                try:
                    data = channel.recv(_CHUNK)
                except TimeoutError:
                    # What a command leaves running may keep its output open: it has ended all the same.
                    if channel.exit_status_ready() and not channel.recv_ready():
                        return
                else:
                    if not data:
                        break
                    output += data
                if deadline.expired:
                    raise self._hung(Unended(command, deadline.seconds, bytes(output)).title, said)
                if time.monotonic() - looked >= _LOOK_S:
                    looked = time.monotonic()
                    if any(self._is_fatal(match.end) for match in crashes.pending()):
                        raise self._hung(f"the kernel crashed in the middle of {command[:200]!r}", said)
        if not channel.status_event.wait(deadline.left):
            raise EOFError("its output ended, and no status came")

    def _is_fatal(self, end: int) -> bool:
        crash = find_crash(self.transcript.read(max(0, end - (1 << 16)), end + (1 << 10)))
        return crash is not None and crash.fatal

    def _hung(self, message: str, said: int) -> LabctlError:
        self.close()
        return explain(self.transcript, said, TargetHung(message, target=self.context.target.name))

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(OSError, EOFError):
                connection.close()

    # --- Files, by SFTP

    def put(self, content: IO[bytes], path: str, deadline: Deadline, mode: int = 0o644) -> None:
        draft = f"{path}.labctl-{os.getpid()}"
        try:
            with self._sftp(deadline) as files:
                files.putfo(content, draft)
                files.chmod(draft, mode)
                files.posix_rename(draft, path)
        except TimeoutError:
            raise self._late(f"put {path}", deadline) from None
        except (OSError, EOFError) as error:
            raise CommandFailed(f"put {path}: {error}", target=self.context.target.name) from None

    def get(self, path: str, into: IO[bytes], deadline: Deadline) -> None:
        try:
            with self._sftp(deadline) as files:
                files.getfo(path, into)
        except TimeoutError:
            raise self._late(f"get {path}", deadline) from None
        except (OSError, EOFError) as error:
            raise CommandFailed(f"get {path}: {error}", target=self.context.target.name) from None

    @contextmanager
    def _sftp(self, deadline: Deadline) -> Iterator[paramiko.SFTPClient]:
        import paramiko

        try:
            files = paramiko.SFTPClient(self._channel(lambda channel: channel.invoke_subsystem("sftp"), deadline))
        except (EOFError, paramiko.SSHException) as error:
            lost = ConsoleLost(f"SSH to {self._where} carries no files: {error}", target=self.context.target.name)
            raise explain(self.transcript, 0, lost) from None
        with files:
            yield files

    def _late(self, what: str, deadline: Deadline) -> LabctlError:
        return self._hung(f"no end within {deadline.seconds:g} s of {what[:200]!r}", 0)

    # --- the connection

    @property
    def _where(self) -> str:
        return f"{self.user}@{self.host}:{self.port}"

    def _connect(self, deadline: Deadline) -> fabric.Connection:
        try:
            import fabric
            import paramiko
        except ImportError:
            remedy = "pip install 'labctl[hardware]'"
            raise HostToolMissing("SSH needs the Python package fabric", remedy=remedy, target=self.context.target.name) from None
        connection = fabric.Connection(
            self.host,
            self.user,
            self.port,
            config=fabric.Config(overrides={"load_ssh_configs": False}, lazy=True),
            connect_timeout=max(0.1, min(_CONNECT, deadline.left)),
            connect_kwargs=self._credentials(),
        )
        connection.client.set_missing_host_key_policy(_policy(self, paramiko))
        try:
            connection.open()
        except hostkey.NotThisHost as error:
            connection.close()
            raise self._wrong("host_key", str(error), "the key of the machine, or `any` where each boot makes a new one") from None
        except paramiko.AuthenticationException:
            connection.close()
            what = f"the key {self.key}" if self.key else f"the password of {self.password}" if self.password else "the keys of your agent"
            raise self._wrong("key" if self.key else "password", f"{self._where} refuses {what}", "what the machine was given") from None
        except paramiko.SSHException as error:
            connection.close()
            raise OSError(str(error)) from None
        connection.transport.set_keepalive(5)
        return connection

    def _credentials(self) -> dict[str, Any]:
        more: dict[str, Any] = {"banner_timeout": _CONNECT, "auth_timeout": _CONNECT}
        if self.key:
            file = Path(self.key).expanduser()
            if not file.is_file():
                raise self._wrong("key", f"{file} is no file", "a private key")
            return {**more, "key_filename": str(file), "look_for_keys": False, "allow_agent": False}
        if self.password:
            return {**more, "password": reveal(self.password), "look_for_keys": False, "allow_agent": False}
        return more

    def _wrong(self, key: str, found: str, allowed: str) -> ConfigError:
        error = ConfigError([Problem(f"targets/{self.context.target.name}.toml", f"drivers.ssh.{key}", found, allowed)])
        error.target = self.context.target.name
        return error


def _begin(channel: paramiko.Channel) -> None:
    channel.set_combine_stderr(True)
    # The command is no part of what is asked for: servers bound the length of that.
    channel.exec_command(_RUN)


def _policy(driver: Ssh, paramiko: Any) -> Any:
    class Policy(paramiko.MissingHostKeyPolicy):  # type: ignore[misc]  # imported only when it is needed
        def missing_host_key(self, client: Any, hostname: str, key: Any) -> None:
            hostkey.check(key, driver.host_key, driver.context.target.name, driver.host, driver.port)

    return Policy()


DRIVER = Ssh
