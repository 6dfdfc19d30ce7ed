"""The BMC's network cable: a UDP relay before its simulator, in which packets are lost, late or garbled as a fault asks."""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import dataclass, field
from typing import cast

from labctl.virtualserver.pace import Pace, is_sol
from labctl.virtualserver.relay import CHUNK, listen
from labctl.virtualserver.settings import LOOPBACK, SIMULATOR

IDLE = 120.0
"""Seconds after which a client that says nothing is forgotten."""
Address = tuple[str, int]


@dataclass
class Cable:
    """What happens to packets now."""

    late: float = 0.0
    """Seconds by which each answer comes late."""
    cut: bool = False
    """Nothing passes, in either direction."""
    sol_cut: bool = False
    """Nor does the console: SOL, or what carries it over TCP."""
    garbage: bool = False
    """Answers are bytes without a sense."""
    answers: int = field(default=0, init=False)

    def passes(self, packet: bytes) -> bool:
        if self.cut:
            return False
        return not (self.sol_cut and is_sol(packet))


class _Upstream(asyncio.DatagramProtocol):
    """One client's own socket towards the simulator."""

    def __init__(self, relay: Relay, client: Address) -> None:
        self._relay = relay
        self._client = client
        self.transport: asyncio.DatagramTransport | None = None
        self.used = time.monotonic()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: Address) -> None:
        self._relay.answer(data, self._client)

    def error_received(self, exc: Exception) -> None:
        """The simulator is not listening: the client hears nothing, as from a dead BMC."""


class Relay(asyncio.DatagramProtocol):
    def __init__(self, cable: Cable, port: int, pace: Pace) -> None:
        self._cable = cable
        self._port = port
        self._pace = pace
        self._transport: asyncio.DatagramTransport | None = None
        self._clients: dict[Address, asyncio.Task[_Upstream]] = {}

    @classmethod
    async def listen(cls, cable: Cable, port: int, pace: Pace) -> Relay:
        """``pace`` is told of each packet that passes to the simulator, and of each that comes from it."""
        relay = cls(cable, port, pace)
        await asyncio.get_running_loop().create_datagram_endpoint(lambda: relay, local_addr=(LOOPBACK, port))
        return relay

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: Address) -> None:
        if not self._cable.passes(data):
            return
        self._pace.heard(data)
        if addr not in self._clients:
            self._forget_the_idle()
            self._clients[addr] = asyncio.create_task(self._connect(addr))
        connecting = self._clients[addr]
        if connecting.done():
            self._send(connecting.result(), data)
        else:
            connecting.add_done_callback(lambda done: self._send(done.result(), data))

    def answer(self, data: bytes, client: Address) -> None:
        self._pace.said(data)
        if not self._cable.passes(data):
            return
        self._cable.answers += 1
        if self._cable.garbage:
            data = secrets.token_bytes(len(data))
        asyncio.get_running_loop().call_later(self._cable.late, self._deliver, data, client)

    def _deliver(self, data: bytes, client: Address) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.sendto(data, client)

    async def _connect(self, client: Address) -> _Upstream:
        _, upstream = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: _Upstream(self, client), remote_addr=(SIMULATOR, self._port)
        )
        return upstream

    def _send(self, upstream: _Upstream, data: bytes) -> None:
        upstream.used = time.monotonic()
        if upstream.transport is not None:
            upstream.transport.sendto(data)

    def _forget_the_idle(self) -> None:
        now = time.monotonic()
        for client, connecting in list(self._clients.items()):
            if connecting.done() and now - connecting.result().used > IDLE:
                del self._clients[client]
                if (transport := connecting.result().transport) is not None:
                    transport.close()


async def relay_tcp(cable: Cable, port: int, upstream_port: int, upstream_host: str = LOOPBACK, *, console: bool = False) -> asyncio.Server:
    """The same cable, for what the BMC says over TCP: Redfish, or its ``console``. There a packet that is lost comes later, and no byte is
    missing."""

    async def let_through() -> None:
        while cable.cut or (console and cable.sol_cut):
            await asyncio.sleep(0.05)

    async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(CHUNK):
            await let_through()
            writer.write(data)
            await writer.drain()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(CHUNK):
            await let_through()
            await asyncio.sleep(cable.late)
            writer.write(secrets.token_bytes(len(data)) if cable.garbage else data)
            await writer.drain()

    return await listen(port, upstream_port, ask, answer, upstream_host)
