"""A desktop in a browser: noVNC on a page of the lab's own, served from loopback, connected to a display's WebSocket."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

from labctl.deadline import Deadline
from labctl.display.canvas import Box
from labctl.display.chromium import Page, open_page
from labctl.errors import DisplayFailed

_ASSETS = Path(__file__).parent / "assets"
_KINDS = {".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8"}
_PAUSE = 0.05
_MOST_FRAMES = 200_000
_OVERHEAD = 20.0
"""Seconds that a busy host may need beside what is measured."""


@dataclass(frozen=True, slots=True)
class Frames:
    """What a browser showed in some seconds."""

    times: tuple[float, ...]
    """Seconds, by the browser's own clock, of each repaint that showed another picture than the one before."""
    repaints: int
    """All of them: no more pictures than that could have been seen."""


class Desktop:
    """A display in the browser, connected. Raises DisplayFailed where the display has gone, ManagementError where the browser fails."""

    def __init__(self, page: Page, where: str, target: str) -> None:
        self.page = page
        self.where = where
        self.target = target

    @property
    def size(self) -> tuple[int, int]:
        """Of the screen in pixels."""
        width, height = self._ask("desktop.size", Deadline.after(_OVERHEAD))
        return int(width), int(height)

    def lit(self) -> int:
        """How many pixels are not black."""
        return int(self._ask("desktop.lit", Deadline.after(_OVERHEAD)))

    def press(self, key: str, seconds: float = 10.0, within: Box | None = None) -> float | None:
        """Press a key as a keyboard does, a small letter or a digit. Returns seconds from the browser's event to the repaint that shows
        another picture, in that part of the screen if one is named; None if none does in that time."""
        deadline = Deadline.after(seconds + _OVERHEAD)
        self._ask(f"desktop.focus(), desktop.arm({seconds}, {_part(within)}), true", deadline)
        self.page.press(key, deadline)
        took = self._ask("desktop.answer", deadline)
        return None if took is None else float(took) / 1000

    def frames(self, seconds: float, within: Box | None = None) -> Frames:
        """What is seen in so many seconds from now, in that part of the screen if one is named."""
        said = self._ask(f"desktop.frames({seconds}, {_part(within)})", Deadline.after(seconds + _OVERHEAD))
        times = said["times"][:_MOST_FRAMES]
        return Frames(tuple(float(at) / 1000 for at in times), int(said["repaints"]))

    def screenshot(self) -> bytes:
        """Of the whole page, as PNG."""
        return self.page.screenshot(Deadline.after(_OVERHEAD))

    def await_connected(self, deadline: Deadline) -> None:
        """Until a picture with something on it is there."""
        while not self._ask("window.desktop?.connected && desktop.lit > 0", deadline):
            if deadline.expired:
                raise DisplayFailed(f"noVNC shows nothing of {self.where} within {deadline.seconds:g} s", target=self.target)
            time.sleep(_PAUSE)

    def _ask(self, expression: str, deadline: Deadline) -> Any:
        if ended := self.page.evaluate("window.desktop?.ended ?? ''", deadline):
            raise DisplayFailed(f"the connection of noVNC to {self.where} is {str(ended)[:200]}", target=self.target)
        return self.page.evaluate(expression, deadline)


def _part(box: Box | None) -> str:
    return "null" if box is None else f"[{box.x}, {box.y}, {box.width}, {box.height}]"


@contextmanager
def desktop(modules: Mapping[str, Path], host: str, port: int, deadline: Deadline, *, target: str = "") -> Iterator[Desktop]:
    """A browser of its own that shows the display whose WebSocket is there. ``modules``: noVNC's, by their paths.

    HostToolMissing without Chromium; DisplayFailed, ManagementError."""
    where = f"ws://{host}:{port}/"
    with _served(modules) as address, open_page(f"{address}?display={quote(where, safe='')}", deadline) as page:
        shown = Desktop(page, where, target)
        shown.await_connected(deadline)
        yield shown


@contextmanager
def _served(modules: Mapping[str, Path]) -> Iterator[str]:
    """The page and noVNC's modules on a port of the loopback. Gives the page's address."""
    files = {"/": _ASSETS / "desktop.html", "/desktop.js": _ASSETS / "desktop.js"}
    files |= {f"/novnc/{name}": path for name, path in modules.items()}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if (file := files.get(path)) is None:
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            body = file.read_bytes()
            self.send_response(HTTPStatus.OK)
            # What lies in the cache has lost its ending.
            self.send_header("Content-Type", _KINDS.get(Path(path).suffix, _KINDS[".html"]))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # http.server's word
            """Nobody reads it."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()
