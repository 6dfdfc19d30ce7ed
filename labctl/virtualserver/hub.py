"""The serial hub: a machine's serial port on one side, any number of listeners on the other, among them the BMC's SOL.

It is always connected, whether the machine is on or off. Everything the machine says is logged before anybody is told, so that loss can
be judged. What a listener has not taken yet is kept for it: Linux's console waits 10 ms for a serial port that is full, and then writes
over what is there, so a machine must not be made to wait for its listeners. Only where `BACKLOG` bytes are kept it is; a listener that has
taken nothing for `STALLED` s then misses bytes until it has taken what was kept, and how many it missed is counted.
"""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress
from pathlib import Path

from labctl.machine.serialline import SerialLine
from labctl.virtualserver.pace import Pace

CHUNK = 4096
BACKLOG = 8 << 20
STALLED = 10.0


class _Listener:
    def __init__(self, writer: asyncio.StreamWriter, pace: Pace | None) -> None:
        self._writer = writer
        self._pace = pace
        self._kept = bytearray()
        self._news = asyncio.Event()
        self._taken = asyncio.Event()
        self._stalled = False
        self._lives = 0
        """Of the machine, that were begun without what was kept of the one before."""

    async def tell(self, data: bytes) -> int:
        """Bytes that it misses."""
        if self._stalled and self._kept:
            return len(data)
        self._stalled = False
        self._kept += data
        self._news.set()
        while len(self._kept) > BACKLOG:
            self._taken.clear()
            try:
                await asyncio.wait_for(self._taken.wait(), STALLED)
            except TimeoutError:
                self._stalled = True
                break
        return 0

    async def pass_on(self) -> None:
        """Until it has gone. OSError."""
        while True:
            await self._news.wait()
            while self._kept:
                piece, lives = bytes(self._kept[:CHUNK]), self._lives
                if self._pace is not None:
                    await self._pace.take(len(piece))
                    if lives != self._lives:
                        self._pace.forget()  # it took this piece for told
                        continue
                self._writer.write(piece)
                del self._kept[: len(piece)]  # before anything is waited for: what is kept then may be another life's
                await self._writer.drain()
                self._taken.set()
            self._news.clear()

    def begin_life(self) -> None:
        """The machine is about to start. What an earlier life said, and who listened to it went without taking, is for nobody: a BMC gives
        whoever comes next what is said from then on, and a console that began with an old boot's end would be taken for this one's."""
        if self._pace is not None and self._kept and self._pace.abandoned:
            self._kept.clear()
            self._lives += 1
            self._pace.forget()
            self._taken.set()

    def leave(self) -> None:
        """Nobody waits for it any longer."""
        self._kept.clear()
        self._taken.set()
        self._writer.close()


class _Typing(asyncio.BaseProtocol):
    """Whether a machine takes what is typed at it."""

    def __init__(self) -> None:
        self.room = asyncio.Event()
        self.room.set()

    def pause_writing(self) -> None:
        self.room.clear()

    def resume_writing(self) -> None:
        self.room.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.room.set()


class Hub:
    def __init__(self, log: Path) -> None:
        self._log = log.open("ab", buffering=0)
        self._listeners: set[_Listener] = set()
        self._machine: asyncio.WriteTransport | None = None
        self._typing = _Typing()
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

    async def attach(self, serial: SerialLine) -> None:
        """The serial port of a machine that is about to start; that of an earlier one is read to its end first."""
        await self.detach()
        for listener in self._listeners:
            listener.begin_life()
        loop, reader = asyncio.get_running_loop(), asyncio.StreamReader()
        said, typed = os.fdopen(serial.reads, "rb", buffering=0), os.fdopen(serial.writes, "wb", buffering=0)
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), said)
        self._machine, self._typing = await loop.connect_write_pipe(_Typing, typed)
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
                self.missed += sum(await asyncio.gather(*(listener.tell(data) for listener in self._listeners)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pace: Pace | None) -> None:
        writer.transport.set_write_buffer_limits(high=CHUNK)
        with suppress(OSError):
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, CHUNK)
        listener = _Listener(writer, pace)
        self._listeners.add(listener)
        passing = asyncio.create_task(listener.pass_on())
        try:
            with suppress(OSError):
                while data := await reader.read(CHUNK):
                    await self._typing.room.wait()  # where it does not listen, nor do we
                    if self._machine is not None:
                        self._machine.write(data)
        finally:
            self._listeners.discard(listener)
            passing.cancel()
            with suppress(OSError, asyncio.CancelledError):
                await passing
            listener.leave()
