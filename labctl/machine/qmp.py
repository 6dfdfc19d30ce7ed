"""A synchronous QMP client over a connected socket: greeting, commands, events.

Protocol: QEMU's docs/interop/qmp-spec.rst. One JSON object a line each way; events come in between replies.
"""

from __future__ import annotations

import json
import select
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any

from labctl.deadline import Deadline
from labctl.errors import ManagementError

MAX_MESSAGE = 16 << 20


class Qmp:
    """Speak QMP. Every call raises ManagementError when QEMU is gone, answers an error, or not in time."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sock.setblocking(False)
        self._buffer = bytearray()
        self._draining = threading.Lock()
        self.events: list[Mapping[str, Any]] = []
        """Events seen so far, oldest first."""

    def handshake(self, deadline: Deadline) -> str:
        """Take the greeting and leave negotiation mode. Returns QEMU's version."""
        greeting = self._message(deadline)
        if "QMP" not in greeting:
            raise ManagementError(f"QMP did not greet but said {json.dumps(greeting)[:200]}")
        version = greeting["QMP"]["version"]["qemu"]
        self.command("qmp_capabilities", deadline)
        return f"{version['major']}.{version['minor']}.{version['micro']}"

    def give(self, name: str, descriptor: int, deadline: Deadline) -> None:
        """Hand QEMU a file descriptor, which the next command names (``getfd``)."""
        self.command("getfd", deadline, descriptor, fdname=name)

    def command(self, name: str, deadline: Deadline, /, *descriptors: int, **arguments: Any) -> Any:
        """Execute a command and return what it returns."""
        request = {"execute": name, "arguments": arguments} if arguments else {"execute": name}
        try:
            self._sock.setblocking(True)
            self._sock.settimeout(deadline.left or 0.001)
            line = json.dumps(request).encode() + b"\n"
            sent = socket.send_fds(self._sock, [line], descriptors) if descriptors else 0
            self._sock.sendall(line[sent:])
        except OSError as error:
            raise ManagementError(f"QMP {name}: QEMU is gone ({error.strerror or error})") from None
        finally:
            self._sock.setblocking(False)
        while True:
            message = self._message(deadline)
            if "event" in message:
                self.events.append(message)
            elif "error" in message:
                raise ManagementError(f"QMP {name}: QEMU says: {message['error'].get('desc', message['error'])}")
            elif "return" in message:
                return message["return"]

    def drain(self) -> list[Mapping[str, Any]]:
        """Take what has arrived without waiting; returns all events so far. A closed socket is no error here. From any thread, while no
        command is under way."""
        with self._draining:
            try:
                while True:
                    message = self._message(Deadline.after(0))
                    if "event" in message:
                        self.events.append(message)
            except ManagementError:
                return self.events

    def wait_event(
        self, name: str, deadline: Deadline, found: Callable[[Mapping[str, Any]], bool] = lambda data: True
    ) -> Mapping[str, Any]:
        """The first event of that name, and with such ``data``, seen before or still to come."""
        looked = 0
        while True:
            for event in self.events[looked:]:
                if event["event"] == name and found(event.get("data", {})):
                    return event
            looked = len(self.events)
            message = self._message(deadline)
            if "event" in message:
                self.events.append(message)

    def close(self) -> None:
        self._sock.close()

    def _message(self, deadline: Deadline) -> dict[str, Any]:
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > MAX_MESSAGE:
                raise ManagementError("QMP sent a message without an end")
            readable, _, _ = select.select([self._sock], [], [], deadline.left)
            if not readable:
                raise ManagementError(f"QMP did not answer within {deadline.seconds:g} s")
            try:
                data = self._sock.recv(65536)
            except OSError as error:
                raise ManagementError(f"QMP: QEMU is gone ({error.strerror or error})") from None
            if not data:
                raise ManagementError("QMP: QEMU is gone")
            self._buffer += data
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        try:
            message = json.loads(line)
        except ValueError:
            raise ManagementError(f"QMP sent no JSON: {line[:200]!r}") from None
        if not isinstance(message, dict):
            raise ManagementError(f"QMP sent no object: {line[:200]!r}")
        return message
