"""A TCP relay on the loopback: what it does with the bytes is its user's."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from labctl.virtualserver.settings import LOOPBACK

CHUNK = 65536
Carry = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
"""Passes bytes on in one direction until they end."""


async def listen(port: int, upstream_port: int, ask: Carry, answer: Carry, upstream_host: str = LOOPBACK) -> asyncio.Server:
    """Each connection gets one of its own upstream, and ends when that has no more to say, or its client has gone."""
    serving: set[asyncio.Task[None]] = set()  # nobody else holds them: Python would collect a connection that waits

    async def serve(client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        try:
            with suppress(OSError):
                upstream, to_upstream = await asyncio.open_connection(upstream_host, upstream_port)
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


async def _half(ask: Carry, client: asyncio.StreamReader, to_upstream: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        await ask(client, to_upstream)
        to_upstream.write_eof()
