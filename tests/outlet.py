"""A switched outlet that speaks HTTP, as many do: it switches a virtual server."""

from __future__ import annotations

import base64
import http.server
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from labctl.virtualserver.client import VirtualServer

USER, PASSWORD, OUTLET = "admin", "outlet-password", "rack 1/left; poweroff"
"""An outlet whose name would be a command, if a shell read it, and another path, if it were not quoted."""


@contextmanager
def outlet(server: VirtualServer) -> Iterator[int]:
    """Its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            given = self.headers.get("Authorization", "")
            status, answer = 404, "no such outlet"
            if given != "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode():
                status, answer = 401, "who are you?"
            elif self.path.startswith("/outlet/rack%201%2Fleft%3B%20poweroff/"):
                status, answer = switch(server, self.path.rsplit("/", 1)[1])
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer.encode())

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http_server:
        thread = threading.Thread(target=http_server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield http_server.server_address[1]
        http_server.shutdown()
        thread.join()


def switch(server: VirtualServer, verb: str) -> tuple[int, str]:
    """What a hand, or a relay, does to the machine."""
    words = {"on": "set power 1", "off": "set power 0", "state": "get power", "reset": "set reset 1"}[verb]
    with socket.socket(socket.AF_UNIX) as keeper:
        keeper.connect(str(server.socket))
        keeper.sendall(f"chassis {words}\n".encode())
        said = keeper.makefile().readline()
    state = {"power:1": "ON", "power:0": "OFF"}.get(said[2:].strip(), "done")
    return (200, f'{{"POWER": "{state}"}}') if said.startswith("0") else (500, "relay stuck")
