"""Headless Chromium, driven over a pipe by the DevTools protocol (``--remote-debugging-pipe``: JSON, each message ended by a NUL).

https://chromedevtools.github.io/devtools-protocol/ . There is no port that others could connect to, and the browser ends with its owner.
"""

from __future__ import annotations

import base64
import binascii
import fcntl
import json
import os
import select
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from labctl.deadline import Deadline
from labctl.errors import ManagementError
from labctl.process import Child, find, start

PROGRAM = "chromium"
_MOST = 64 << 20
"""Bytes of one answer: a screenshot is the largest."""
_ENDING = 5.0
_FLAGS = (
    *("--headless", "--remote-debugging-pipe", "--no-first-run", "--disable-gpu", "--disable-dev-shm-usage", "--mute-audio"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions", "--no-proxy-server"),
    "--window-size=1100,900",
)


class Page:
    """One tab. Calls raise ManagementError where the browser does not answer in time, or refuses; what a page's own script throws too."""

    def __init__(self, browser: _Pipe, session: str) -> None:
        self._browser = browser
        self._session = session

    def evaluate(self, expression: str, deadline: Deadline) -> Any:
        """The value of a JavaScript expression in the page; of a promise what it resolves to."""
        asked = {"expression": expression, "returnByValue": True, "awaitPromise": True, "userGesture": True}
        said = self._browser.call("Runtime.evaluate", asked, deadline, self._session)
        if thrown := said.get("exceptionDetails"):
            text = thrown.get("exception", {}).get("description") or thrown.get("text", "")
            raise ManagementError(f"the page's script fails: {text[:500]}")
        return said.get("result", {}).get("value")

    def press(self, key: str, deadline: Deadline) -> None:
        """Press a key and let it go, as a keyboard does: a small letter or a digit."""
        if not (len(key) == 1 and key.isascii() and (key.islower() or key.isdigit())):
            raise ValueError(f"{key!r} is no key that is known here: a small letter or a digit")
        event = {"key": key, "code": f"Digit{key}" if key.isdigit() else f"Key{key.upper()}", "windowsVirtualKeyCode": ord(key.upper())}
        self._browser.call("Input.dispatchKeyEvent", {"type": "keyDown", "text": key, **event}, deadline, self._session)
        self._browser.call("Input.dispatchKeyEvent", {"type": "keyUp", **event}, deadline, self._session)

    def screenshot(self, deadline: Deadline) -> bytes:
        """What it looks like, as PNG."""
        said = self._browser.call("Page.captureScreenshot", {"format": "png"}, deadline, self._session)
        try:
            return base64.b64decode(said["data"], validate=True)
        except (KeyError, TypeError, binascii.Error):
            raise ManagementError("Chromium gives no picture of the page") from None


@contextmanager
def open_page(url: str, deadline: Deadline) -> Iterator[Page]:
    """A browser of its own, without a profile, that shows a page. HostToolMissing, ManagementError."""
    find(PROGRAM)
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="labctl-browser-", ignore_cleanup_errors=True)))
        browser = _Pipe(stack, home)
        tab = browser.call("Target.createTarget", {"url": "about:blank"}, deadline)["targetId"]
        session = browser.call("Target.attachToTarget", {"targetId": tab, "flatten": True}, deadline)["sessionId"]
        browser.call("Page.enable", {}, deadline, session)
        said = browser.call("Page.navigate", {"url": url}, deadline, session)
        if said.get("errorText"):
            raise ManagementError(f"Chromium cannot open {url}: {said['errorText']}")
        yield Page(browser, session)


class _Pipe:
    """The browser's process and both pipes to it, until the stack is closed."""

    def __init__(self, stack: ExitStack, home: Path) -> None:
        self._buffer = bytearray()
        self._number = 0
        self._log = home / "chromium.log"
        its_in, self._to = _pipe()
        self._from, its_out = _pipe()
        os.set_blocking(self._to, False)
        for mine in (self._to, self._from):
            stack.callback(os.close, mine)
        # It wants to read at 3 and to write at 4: a shell puts them there, and is gone then. Not every shell can duplicate what has a
        # number of two digits.
        places = f'exec "$@" 3</proc/self/fd/{its_in} 4>/proc/self/fd/{its_out}'
        rootless = ["--no-sandbox"] if os.geteuid() == 0 else []  # its sandbox refuses root
        environment = {**os.environ, "HOME": str(home), "XDG_CONFIG_HOME": str(home), "XDG_CACHE_HOME": str(home)}
        with self._log.open("wb") as log:
            self._child: Child = stack.enter_context(
                start(
                    ["sh", "-c", places, "sh", PROGRAM, *_FLAGS, *rootless, f"--user-data-dir={home / 'profile'}", "about:blank"],
                    pass_fds=[its_in, its_out],
                    stderr=log,
                    env=environment,
                )
            )
        os.close(its_in)
        os.close(its_out)
        stack.callback(self._end)

    def _end(self) -> None:
        """It is asked to end, so that its helpers end before it and its folder can be removed."""
        try:
            self.call("Browser.close", {}, Deadline.after(_ENDING))
        except ManagementError:
            return
        self._child.wait(Deadline.after(_ENDING))

    def call(self, method: str, parameters: dict[str, Any], deadline: Deadline, session: str = "") -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters} | ({"sessionId": session} if session else {})
        self._write(json.dumps(message).encode() + b"\0", method, deadline)
        while True:
            said = self._message(method, deadline)
            if said.get("id") != self._number:
                continue  # an event, or an answer that came too late for its question
            if "error" in said:
                raise ManagementError(f"Chromium refuses {method}: {said['error'].get('message', said['error'])}")
            result = said.get("result")
            return result if isinstance(result, dict) else {}

    def _write(self, data: bytes, method: str, deadline: Deadline) -> None:
        view = memoryview(data)
        while view:
            if not select.select([], [self._to], [], deadline.left)[1]:
                raise ManagementError(f"Chromium takes nothing for {deadline.seconds:g} s ({method})")
            try:
                view = view[os.write(self._to, view) :]
            except OSError as error:
                raise self._gone(method, error.strerror or str(error)) from None

    def _message(self, method: str, deadline: Deadline) -> dict[str, Any]:
        while (end := self._buffer.find(b"\0")) < 0:
            if len(self._buffer) > _MOST:
                raise ManagementError("Chromium sends a message without an end")
            if not select.select([self._from], [], [], deadline.left)[0]:
                raise ManagementError(f"Chromium does not answer within {deadline.seconds:g} s ({method})")
            if not (data := os.read(self._from, 1 << 20)):
                raise self._gone(method, "it has closed the pipe")
            self._buffer += data
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        try:
            message = json.loads(line)
        except ValueError:
            raise ManagementError(f"Chromium sends no JSON: {line[:100]!r}") from None
        return message if isinstance(message, dict) else {}

    def _gone(self, method: str, why: str) -> ManagementError:
        words = self._log.read_bytes()[-2000:].decode(errors="replace").strip()
        return ManagementError(f"Chromium is gone ({method}: {why})", tail=words)


def _pipe() -> tuple[int, int]:
    """A pipe's ends (to read, to write), neither of them at a number that the browser's own pipes are to have."""
    ends: list[int] = []
    for end in os.pipe():
        ends.append(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10))
        os.close(end)
    return ends[0], ends[1]
