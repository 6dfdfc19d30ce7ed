"""The serial hub: a machine's serial port on one side, any number of listeners on the other, among them the BMC's SOL.

It is always connected, whether the machine is on or off. Everything the machine says is logged before anybody is told, so that loss can
be judged. A listener that is slow slows the machine down, as hardware flow control does; one that has taken nothing for `STALLED` s no
longer does: it misses bytes from then on until it has taken what it was sent, and how many it missed is counted.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from labctl.virtualserver.pace import Pace

CHUNK = 4096
STALLED = 10.0


@dataclass(eq=False)
class _Listener:
    writer: asyncio.StreamWriter
    pace: Pace | None
    stalled: bool = False


class Hub:
    def __init__(self, log: Path) -> None:
        self._log = log.open("ab", buffering=0)
        self._listeners: set[_Listener] = set()
        self._machine: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self.heard = asyncio.Event()
        """Set by each chunk that the machine says."""
        self.missed = 0
        """Bytes that some listener was not told."""

    @property
    def listeners(self) -> int:
        return len(self._listeners)

    async def listen(self, host: str, port: int, pace: Pace | None = None) -> asyncio.Server:
        """``pace``: of those who connect here and take more than they can keep."""
        return await asyncio.start_server(lambda reader, writer: self._serve(reader, writer, pace), host, port)

    async def attach(self, serial: socket.socket) -> None:
        """The serial port of a machine that is about to start; that of an earlier one is read to its end first."""
        await self.detach()
        reader, self._machine = await asyncio.open_connection(sock=serial)
        self._reading = asyncio.create_task(self._tell(reader))

    async def detach(self) -> None:
        """Once the machine is gone: until its last words are passed on."""
        if self._reading is not None:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._reading, STALLED + 1)
            self._reading = None
        if self._machine is not None:
            self._machine.close()
            self._machine = None

    async def _tell(self, machine: asyncio.StreamReader) -> None:
        with suppress(OSError):
            while data := await machine.read(CHUNK):
                self._log.write(data)
                self.heard.set()
                await asyncio.gather(*(self._pass_on(listener, data) for listener in list(self._listeners)))

    async def _pass_on(self, listener: _Listener, data: bytes) -> None:
        if listener.stalled:
            if listener.writer.transport.get_write_buffer_size():
                self.missed += len(data)
                return
            listener.stalled = False
        with suppress(OSError):
            if listener.pace is not None:
                await listener.pace.take(len(data))
            listener.writer.write(data)
            try:
                await asyncio.wait_for(listener.writer.drain(), STALLED)
            except TimeoutError:
                listener.stalled = True

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pace: Pace | None) -> None:
        writer.transport.set_write_buffer_limits(high=CHUNK)
        with suppress(OSError):
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, CHUNK)
        listener = _Listener(writer, pace)
        self._listeners.add(listener)
        try:
            with suppress(OSError):
                while data := await reader.read(CHUNK):
                    if self._machine is not None:
                        self._machine.write(data)
                        await self._machine.drain()
        finally:
            self._listeners.discard(listener)
            writer.close()
