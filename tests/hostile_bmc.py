"""A BMC's web server as none should be, on loopback: what it says to a request is a test's own, byte by byte, for as long as it likes."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

Says = Callable[[str], Iterable[bytes]]
"""What is sent for the path that was asked for, in pieces. The connection ends behind the last one."""

ROOT = {
    "@odata.id": "/redfish/v1",
    "Id": "RootService",
    "Name": "x",
    "RedfishVersion": "1.6.0",
    "Systems": {"@odata.id": "/redfish/v1/Systems"},
}
SYSTEM = {"@odata.id": "/redfish/v1/Systems/1", "Id": "1", "Name": "x", "PowerState": "On", "Links": {"Chassis": [{"@odata.id": "/c"}]}}
RESOURCES: dict[str, object] = {
    "/redfish/v1": ROOT,
    "/redfish/v1/Systems": {"@odata.id": "/redfish/v1/Systems", "Name": "x", "Members": [{"@odata.id": "/redfish/v1/Systems/1"}]},
    "/redfish/v1/Systems/1": SYSTEM,
}
"""Of a BMC that is well, with one machine that is on: as much of it as is asked for."""


@dataclass
class Heard:
    """Requests, as they came."""

    url: str
    requests: list[str] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    """Set at the end of the test: what a server does without end ends then."""


@contextmanager
def hostile_bmc(says: Says, tls: ssl.SSLContext | None = None) -> Iterator[Heard]:
    """Serve on a free port of 127.0.0.1, each request in a thread of its own."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        heard = Heard(f"{'https' if tls else 'http'}://127.0.0.1:{listening.getsockname()[1]}")
        threading.Thread(target=_accept, args=(listening, tls, says, heard), daemon=True).start()
        try:
            yield heard
        finally:
            heard.ended.set()
            with suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)


def _accept(listening: socket.socket, tls: ssl.SSLContext | None, says: Says, heard: Heard) -> None:
    with suppress(OSError):
        while True:
            connection, _ = listening.accept()
            threading.Thread(target=_serve, args=(connection, tls, says, heard), daemon=True).start()


def _serve(plain: socket.socket, tls: ssl.SSLContext | None, says: Says, heard: Heard) -> None:
    with suppress(OSError), plain, tls.wrap_socket(plain, server_side=True) if tls else plain as connection:
        request = b""
        while b"\r\n\r\n" not in request:
            if not (data := connection.recv(1 << 16)):
                return
            request += data
        heard.requests.append(request.decode("latin-1"))
        for piece in says(request.split(b" ", 2)[1].decode("latin-1")):
            if heard.ended.is_set():
                return
            connection.sendall(piece)


# --- what such a server says


def answer(body: bytes, kind: str = "application/json", status: str = "200 OK", **headers: str) -> bytes:
    """A whole answer."""
    more = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n{more}\r\n".encode() + body


def well(path: str, instead: dict[str, object] | None = None) -> bytes:
    """What a BMC says that is well, but for the resources that are given."""
    resources = RESOURCES | (instead or {})
    found = resources.get(path.rstrip("/"))
    return answer(b"{}", status="404 Not Found") if found is None else answer(json.dumps(found).encode())
