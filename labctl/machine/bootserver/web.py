"""Serves offers over HTTP (RFC 9112), with ranges (RFC 9110, 14) so that what was cut can go on.

==============================  ==========================================================================================
``GET /boot.ipxe``              the script of the one machine that is served, or how iPXE asks for its own by its address
``GET /machine/MAC.ipxe``       the script of that machine; if nobody offers it anything: boot from the next device
``GET /offer/TOKEN/NAME``       a file of an offer, whose ETag is its digest; with ``?bytes=FIRST-LAST`` a part of it as if it were a
                                file, for clients that know no ranges (busybox)
``POST /offer/TOKEN/report``    what the machine says of itself, at most `REPORT` bytes
==============================  ==========================================================================================
"""

from __future__ import annotations

import errno
import itertools
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO

from labctl.deadline import Deadline
from labctl.errors import DeployError
from labctl.machine.bootserver.offer import Fetch, File, Offer, Shelf, now

REPORT = 4096
PATIENCE = 30.0
"""Seconds that a machine may take for a request, or leave bytes unread, before its connection is closed."""
_ANSWER = 3.0
"""Seconds until a boot server that is asked has answered."""
_CHUNK = 1 << 18
_NOTED = 0.2
"""Seconds between two notes of a transfer that goes on, and until one that stalls is noted as far as it came."""
_BUFFER = 1 << 18
"""Bytes under way at most: what is noted as sent has almost arrived."""
_CONNECTIONS = 256
_RANGE = re.compile(r"bytes=(\d{1,15})-(\d{1,15})?$")
_OFFER = re.compile(r"/offer/([0-9a-f]{32})/([a-z0-9._-]{1,64})(?:\?(bytes=\d{1,15}-\d{1,15}))?$")
_MACHINE = re.compile(r"/machine/([0-9a-fA-F]{2}(?:[-:][0-9a-fA-F]{2}){5})\.ipxe$")
_ASK_FOR_YOURS = "#!ipxe\nchain machine/${netX/mac:hexhyp}.ipxe\n"
_NOTHING = "#!ipxe\necho labctl: nothing is offered to ${netX/mac}: on to the next boot device\nexit 1\n"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "labctl"
    sys_version = ""
    timeout = PATIENCE
    disable_nagle_algorithm = True
    """A small file would wait until the head of its answer is acknowledged: up to 40 ms, where that is put off (RFC 1122, 4.2.3.2)."""
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)

    def log_message(self, *args: Any) -> None:
        """The journal tells what matters."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if found := _OFFER.match(self.path):
            offer = self._offer(found[1])
            if offer is None or found[2] not in offer.files:
                self._text(404, "not offered\n")
            else:
                self._file(offer, found[2], offer.files[found[2]], found[3] or "")
        elif self.path == "/boot.ipxe":
            self._script(next((o for o in self.server.shelf.live() if not o.mac), None), _ASK_FOR_YOURS)
        elif found := _MACHINE.match(self.path):
            mac = found[1].lower().replace("-", ":")
            self._script(next((o for o in self.server.shelf.live() if o.mac == mac), None), _NOTHING)
        else:
            self._text(404, "not here\n")

    def do_POST(self) -> None:
        found = _OFFER.match(self.path)
        offer = self._offer(found[1]) if found and found[2] == "report" else None
        length = self.headers.get("Content-Length", "")
        if offer is None or not length.isdigit() or int(length) > REPORT:
            self.close_connection = True
            self._text(404 if offer is None else 413, "not taken\n")
            return
        said = self.rfile.read(int(length)).decode(errors="replace")
        self._note(offer, Fetch("report", len(said), len(said), now(), True, said))
        self._text(200, "ok\n")

    def _offer(self, token: str) -> Offer | None:
        return next((offer for offer in self.server.shelf.live() if offer.token == token), None)

    def _note(self, offer: Offer, fetch: Fetch, number: int | None = None) -> int:
        number = next(self.server.numbers) if number is None else number
        self.server.shelf.note(offer.token, number, fetch)
        return number

    def _script(self, offer: Offer | None, otherwise: str) -> None:
        text = otherwise if offer is None else offer.script
        if offer is not None:
            self._note(offer, Fetch("script", len(text), len(text), now(), True))
        self._text(200, text)

    def _text(self, status: int, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _file(self, offer: Offer, name: str, file: File, part: str) -> None:
        first, last = 0, file.size - 1
        asked = _RANGE.match(part or self.headers.get("Range", ""))
        if asked:
            first, last = int(asked[1]), min(last, int(asked[2] or last))
            if first > last:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{file.size}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        with ExitStack() as stack:
            try:
                stream = stack.enter_context(Path(file.path).open("rb"))
            except OSError as error:
                self._text(500, f"{error.strerror}\n")
                return
            self.send_response(206 if asked and not part else 200)
            self.send_header("Content-Length", str(last - first + 1))
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("ETag", f'"{file.digest}"')
            if asked and not part:
                self.send_header("Content-Range", f"bytes {first}-{last}/{file.size}")
            self.end_headers()
            if self.command == "HEAD":
                return
            stream.seek(first)
            self._send_file(stream, offer, Fetch(name, 0, last - first + 1, now(), False))

    def _send_file(self, stream: BinaryIO, offer: Offer, fetch: Fetch) -> None:
        number, noted, moved = self._note(offer, fetch), fetch, time.monotonic()
        due = moved + _NOTED
        self.connection.settimeout(_NOTED)
        try:
            while fetch.sent < fetch.size and (data := stream.read(min(_CHUNK, fetch.size - fetch.sent))):
                left = memoryview(data)
                while left:
                    with suppress(TimeoutError):
                        taken = self.connection.send(left)
                        fetch, left, moved = replace(fetch, sent=fetch.sent + taken, at=now()), left[taken:], time.monotonic()
                    if time.monotonic() - moved > PATIENCE:
                        raise TimeoutError
                    if fetch is not noted and time.monotonic() >= due:
                        self._note(offer, fetch, number)
                        noted, due = fetch, time.monotonic() + _NOTED
            self.connection.settimeout(PATIENCE)
        except OSError:
            self.close_connection = True  # the machine has gone, or takes nothing any more
        finally:
            self._note(offer, replace(fetch, ended=True), number)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], shelf: Shelf) -> None:
        self.shelf = shelf
        self.numbers = itertools.count(1)
        self._open: set[socket.socket] = set()
        self._slots = threading.BoundedSemaphore(_CONNECTIONS)
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Without the question for our own name that the base class asks of the DNS."""
        socket.socket.setsockopt(self.socket, socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def verify_request(self, request: Any, client_address: Any) -> bool:
        return self._slots.acquire(blocking=False)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._open.discard(request)
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes in the middle of a request is no news."""

    def hang_up(self) -> None:
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def answers(address: str, port: int, target: str, deadline: Deadline) -> str:
    """The URL at which a boot server answers with a script for iPXE, asked now from this host. DeployError."""
    host = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1"}.get(address, address)  # noqa: S104  # asked, not listened on
    url, remedy = f"http://{host}:{port}/boot.ipxe", "is it running, and at an address of this host? labctl boot-server --help"
    connection = HTTPConnection(host, port, timeout=max(0.1, deadline.sooner(_ANSWER).left))
    try:
        connection.request("GET", "/boot.ipxe")
        said = connection.getresponse().read(16)
    except (OSError, HTTPException) as error:
        raise DeployError(f"the boot server does not answer at {url}: {error}", target=target, remedy=remedy) from None
    finally:
        connection.close()
    if not said.startswith(b"#!ipxe"):
        raise DeployError(f"what answers at {url} is no boot server", target=target, remedy=remedy)
    return url


def _remedy(error: OSError, port: int) -> str:
    if error.errno == errno.EACCES:
        return "a port from 1024 on, or as root"
    if error.errno == errno.EADDRNOTAVAIL or isinstance(error, socket.gaierror):
        return "ip -br address lists the addresses of this host; 0.0.0.0 is all of them"
    return f"ss -ltnp 'sport = :{port}' says who has the port; or another port, in the target's file and in your DHCP"


@contextmanager
def serving(shelf: Shelf, address: str, port: int, target: str = "") -> Iterator[int]:
    """Serve the shelf's offers within this block, from threads of this process; gives the port. DeployError if it cannot be had."""
    try:
        server = _Server((address, port), shelf)
    except OSError as error:
        raise DeployError(
            f"the boot server cannot listen on {address}:{port}: {error.strerror}",
            target=target,
            remedy=_remedy(error, port),
        ) from None
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, name="boot-server", daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.hang_up()
        server.server_close()
