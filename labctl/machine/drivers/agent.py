"""Shell and files over the lab's agent in the machine (docs/agent-protocol.md): a channel of its own, which the console's noise is no part
of. The agent, and the modules that its port needs, come behind the build's initramfs (`labctl.build.agent`)."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import IO, Annotated, Any, Literal

from pydantic import Field

from labctl.deadline import Deadline, DeadlineExpired
from labctl.errors import CommandFailed, ConsoleLost, LabctlError, Problem, TargetHung
from labctl.machine.agentclient import AgentClient, AgentLost, AgentRefused, StreamEnded
from labctl.machine.boot import explain
from labctl.machine.endpoint import Host, Port
from labctl.machine.protocols import CommandResult, DriverContext, Forwards, Ports, Power
from labctl.machine.transcript import Pattern, Transcript, Watch
from labctl.machine.unended import Unended, processes
from labctl.model import Target
from labctl.parsers.crash import PATTERNS as CRASHES
from labctl.parsers.crash import find_crash

_PAUSE_S = 0.1
"""Seconds between two tries to connect to an agent that listens."""
_SILENT_S = 1.0
"""Seconds without a byte after which an agent is not only slow to say what a command has said."""
_GONE_S = 10.0
"""Seconds that an agent may take to come back once its port was closed in the machine: the machine may have been reset, and boot."""
_CRASHES = [Pattern(regex, literal) for regex, literal in CRASHES]


@dataclass
class Agent:
    """Options: ``channel`` (``virtio``: a virtio-serial port; ``serial``: the machine's second ISA serial port, a hundred times slower,
    where there is no virtio; ``tcp``: the agent listens, on a network of the lab's own, for whoever reaches it commands the machine),
    ``name`` of the virtio port, ``device`` of the serial port in the machine, ``host`` and ``port`` to connect to; of an emulated machine
    a card forwards that port, and the host is this one."""

    transcript: Transcript
    context: DriverContext
    ports: Ports | None
    power: Power | None
    channel: Literal["virtio", "serial", "tcp"] = "virtio"
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")] = "labctl.agent"
    device: Annotated[str, Field(pattern=r"^/dev/[A-Za-z0-9/]{1,60}$")] = "/dev/ttyS1"
    host: Host = "127.0.0.1"
    port: Port = 7007

    _client: AgentClient | None = field(default=None, init=False)
    _gone: Deadline | None = field(default=None, init=False)
    """When it will have been gone for too long; None while somebody holds its port."""

    def __post_init__(self) -> None:
        if self.ports is not None and self.channel != "tcp":
            self.ports.want_port(self.name, self.channel)

    @staticmethod
    def in_guest(options: Mapping[str, Any]) -> str:
        """What the agent is started with, in the machine."""
        match options.get("channel", "virtio"):
            case "serial":
                return f"serial:{options.get('device', '/dev/ttyS1')}"
            case "tcp":
                return f"tcp:{options.get('port', 7007)}"
        return f"virtio:{options.get('name', 'labctl.agent')}"

    @staticmethod
    def problems(target: Target, options: Mapping[str, Any]) -> list[Problem]:
        """A channel that the machine does not have."""
        where, channel = f"targets/{target.name}.toml", options.get("channel", "virtio")
        qemu = target.config.drivers.get("qemu")
        if channel == "tcp":
            port = options.get("port", 7007)
            by_hand = any("hostfwd" in str(word) for word in (qemu or {}).get("extra", ()))
            reached = by_hand or any(port in nic.forward for nic in target.config.nics.values())
            found = f"tcp, and no card of the emulated machine forwards port {port}"
            allowed = f'forward = [{port}] on a card to the host; "virtio" and "serial" need no network'
            return [] if qemu is None or reached else [Problem(where, "drivers.agent.channel", found, allowed)]
        if qemu is None:
            return [Problem(where, "drivers.agent.channel", f"{channel}: only a machine of the driver qemu has such a port", '"tcp"')]
        if qemu.get("machine") == "microvm":
            return [Problem(where, "drivers.agent.channel", f"{channel}: QEMU's microvm has no such port", 'machine = "q35", or "tcp"')]
        return []

    # --- Shell

    def open(self, deadline: Deadline) -> None:
        if self._client is not None:
            return
        began = self.transcript.size
        client = AgentClient(self._connect(deadline))
        try:
            with self._told("no command yet", began, client):
                client.synchronise(deadline)
        except DeadlineExpired:
            raise self._hung(f"no answer from the agent ({self._where}) within {deadline.seconds:g} s", 0) from None
        self._client = client

    def run(self, command: str, deadline: Deadline) -> CommandResult:
        client, said, began = self._ready(deadline), self.transcript.size, time.monotonic()
        try:
            with self._told(repr(command[:200]), said, client):
                ended = client.execute(command, deadline)
        except DeadlineExpired:
            ended = None
        if ended is None or ended.late:
            told = Unended(command, deadline.seconds, bytes(client.heard.out), bytes(client.heard.err), processes(client.heard.state))
            if client.heard.full if ended is None else ended.cut:  # an agent that is kept from answering by the flood says nothing of it
                told = replace(told, flooded=max(len(client.heard.out), len(client.heard.err)))
            mute = ", and the agent does not answer either" if ended is None and client.silent_for > _SILENT_S else ""
            raise self._hung(told.title + mute, said, told.details)
        if ended.cut:
            raise self._failed(f"{command[:200]!r} said more than {len(ended.out) >> 20} MiB: have it write a file, and get that")
        out, err = ended.out.decode(errors="replace"), ended.err.decode(errors="replace")
        return CommandResult(command, ended.status, out, time.monotonic() - began, err)

    def close(self) -> None:
        """The stream stays where it is the machine's; what is still in it is passed over by whoever opens it next."""
        client, self._client = self._client, None
        if client is not None and self.channel == "tcp":
            client.stream.close()

    # --- Files

    def put(self, content: IO[bytes], path: str, deadline: Deadline, mode: int = 0o644) -> None:
        self._transfer(f"put {path}", deadline, lambda client: client.put(content, path, mode, deadline))

    def get(self, path: str, into: IO[bytes], deadline: Deadline) -> None:
        self._transfer(f"get {path}", deadline, lambda client: client.get(path, into, deadline))

    # --- what only an agent can do

    def ping(self, deadline: Deadline, payload: bytes = b"") -> float:
        """Seconds for a round trip."""
        taken: list[float] = []
        self._transfer("ping", deadline, lambda client: taken.append(client.ping(deadline, payload)))
        return taken[0]

    def set_clock(self, deadline: Deadline) -> None:
        """The machine's clock becomes the host's."""
        self._transfer("clock", deadline, lambda client: client.set_clock(time.time_ns(), deadline))

    def reseed(self, entropy: bytes, deadline: Deadline) -> None:
        """Random numbers that no copy of the machine has."""
        self._transfer("reseed", deadline, lambda client: client.reseed(entropy, deadline))

    def _transfer(self, what: str, deadline: Deadline, work: Callable[[AgentClient], object]) -> None:
        client, said = self._ready(deadline), self.transcript.size
        try:
            with self._told(what, said, client):
                work(client)
        except DeadlineExpired:
            raise self._hung(f"{what} did not end within {deadline.seconds:g} s", said) from None

    # --- the stream

    @property
    def _where(self) -> str:
        return {"virtio": f"port {self.name}", "serial": self.device, "tcp": f"{self.host}:{self.port}"}[self.channel]

    def _ready(self, deadline: Deadline) -> AgentClient:
        self.open(deadline)
        assert self._client is not None  # noqa: S101  # for the type checker
        return self._client

    def _connect(self, deadline: Deadline) -> socket.socket:
        if self.channel != "tcp":
            assert self.ports is not None  # noqa: S101  # `problems` has seen to it
            return self.ports.port(self.name)
        place = self._place(deadline)
        while True:
            try:
                stream = socket.create_connection(place, timeout=max(0.1, deadline.left))
                stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return stream
            except OSError as error:
                if deadline.expired:
                    raise self._hung(f"no agent on {self._where} within {deadline.seconds:g} s: {error}", 0) from None
            time.sleep(min(_PAUSE_S, deadline.left))

    def _place(self, deadline: Deadline) -> tuple[str, int]:
        """Where the agent is reached: in an emulated machine behind a port of the host's that is another one at each power-on."""
        cards = self.context.target.config.nics
        card = next((name for name, nic in cards.items() if self.port in nic.forward), "")
        power: object = self.power
        return power.forwarded(card, self.port, deadline) if card and isinstance(power, Forwards) else (self.host, self.port)

    @contextmanager
    def _told(self, what: str, said: int, client: AgentClient) -> Iterator[None]:
        """What the client raises, as errors of the lab; a crash on the console wins, and is told as soon as it is there."""
        target = self.context.target.name
        with self.transcript.watch(_CRASHES, said) as crashes:
            client.watch = lambda: self._look(crashes, what, said)
            try:
                yield
            except AgentRefused as error:
                about = what.partition(" ")[2]  # the path, which the agent says too
                raise self._failed(f"{what}: {str(error).removeprefix(f'{about}: ')}") from None
            except AgentLost as error:
                self.close()
                lost: LabctlError
                if isinstance(error, StreamEnded):
                    lost = ConsoleLost(f"the agent's channel broke in the middle of {what}: {error}", target=target)
                else:
                    lost = CommandFailed(f"{error}, in the middle of {what}", target=target, remedy="dmesg, for whether memory ran out")
                raise explain(self.transcript, said, lost) from None
            finally:
                client.watch = lambda: None

    def _look(self, crashes: Watch, what: str, said: int) -> None:
        if any(self._is_fatal(match.end) for match in crashes.pending()):
            raise self._hung(f"the kernel crashed in the middle of {what}", said)
        if self.ports is None or self.channel != "virtio" or self.ports.held(self.name) is not False:
            self._gone = None
        elif self._gone is None:
            self._gone = Deadline.after(_GONE_S)
        elif self._gone.expired:
            raise self._hung(f"the agent is gone, killed with what would start it again, in the middle of {what}", said)

    def _is_fatal(self, end: int) -> bool:
        crash = find_crash(self.transcript.read(max(0, end - (1 << 16)), end + (1 << 10)))
        return crash is not None and crash.fatal

    def _failed(self, message: str) -> CommandFailed:
        return CommandFailed(message, target=self.context.target.name)

    def _hung(self, message: str, said: int, details: str = "") -> LabctlError:
        with suppress(OSError):
            self.close()
        tail = "\n".join(filter(None, (details, "--- console" if details else "", self.transcript.tail(10))))
        return explain(self.transcript, said, TargetHung(message, target=self.context.target.name, tail=tail))


DRIVER = Agent
