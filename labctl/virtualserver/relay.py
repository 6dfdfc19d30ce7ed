"""A TCP relay on the loopback: what it does with the bytes is its user's."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress

from labctl.virtualserver.settings import LOOPBACK

CHUNK = 65536
_KEPT = 1 << 18
"""Bytes of an answer that the kernel may hold before they are read: left to itself it takes megabytes, and whoever sends counts them as
arrived though the way is cut. A cable has no memory."""
Carry = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
"""Passes bytes on in one direction until they end."""


async def listen(port: int, upstream_port: int, ask: Carry, answer: Carry, upstream_host: str = LOOPBACK) -> asyncio.Server:
    """Each connection gets one of its own upstream, and ends when that has no more to say, or its client has gone."""
    serving: set[asyncio.Task[None]] = set()  # nobody else holds them: Python would collect a connection that waits

    async def serve(client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        try:
            with suppress(OSError):
                upstream, to_upstream = await _connected(upstream_host, upstream_port)
                asking = asyncio.create_task(_half(ask, client, to_upstream))
                try:
                    await answer(upstream, to_client)
                finally:
                    asking.cancel()
                    to_upstream.close()
        finally:
            to_client.close()

    def accept(client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(serve(client, to_client))
        serving.add(task)
        task.add_done_callback(serving.discard)

    return await asyncio.start_server(accept, LOOPBACK, port)


async def _connected(host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """OSError."""
    connection = socket.socket()
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _KEPT)  # before it connects, or it says more to the other side
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, (host, port))
        return await asyncio.open_connection(sock=connection)
    except BaseException:
        connection.close()
        raise


async def _half(ask: Carry, client: asyncio.StreamReader, to_upstream: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        await ask(client, to_upstream)
        to_upstream.write_eof()
