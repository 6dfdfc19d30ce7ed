"""HTTP with a device that nobody vouches for: an answer has one deadline and one size, and the password goes to one address.

What requests itself bounds is each single read: a device that sends a byte a second is read for ever, and one that never ends fills the
memory. Imported only where requests is there.
"""

from __future__ import annotations

import io
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from http.client import HTTPResponse
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from labctl.deadline import Deadline

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MOST = 8 << 20
"""Bytes of one answer. The longest that a BMC has reason for, a page of a full event log, is a tenth of it."""
_PIECE = 1 << 16


class Unfit(requests.RequestException):
    """An answer that is none. ``words`` go on from "the BMC at …"; ``remedy`` as of the lab's errors."""

    def __init__(self, words: str, remedy: str = "") -> None:
        super().__init__(words)
        self.words = words
        self.remedy = remedy


def cause(error: BaseException, handled: BaseException | None) -> BaseException:
    """The innermost reason of an error of requests, or of a library that stands on it; Unfit, if that is one. ``handled``:
    `sys.exception` before the question, which is of another matter: Python hangs it to the end of the chain."""
    while not isinstance(error, Unfit) and (inner := error.__cause__ or error.__context__) not in (None, handled):
        error = inner
    return error


@dataclass
class _Question:
    words: str
    limit: Deadline


_question: ContextVar[_Question] = ContextVar("_question")
"""What is being asked, for the connection that this takes: requests hands nothing of it down."""


class Bounded(HTTPAdapter):
    """For a session of requests, mounted in place of its own. ``url``: where the device is; whoever else is told no password. ``answer``:
    seconds that it may take for one answer, where `within` leaves as many. ``wrong``: what an answer is instead of one, if it is none."""

    def __init__(self, url: str, answer: float, wrong: Callable[[requests.Response], str] = lambda _: "") -> None:
        self._origin = _origin(url)
        self._answer = answer
        self._wrong = wrong
        self._here = threading.local()
        super().__init__()

    @property
    def asked(self) -> str:
        """What this thread asked last within the block, such as ``GET /redfish/v1``."""
        return str(getattr(self._here, "asked", "") or "what it was asked")

    @contextmanager
    def within(self, limit: Deadline) -> Iterator[None]:
        """What this thread asks in this block is answered by then, or Unfit."""
        before = getattr(self._here, "limit", None)
        self._here.limit, self._here.asked = limit, ""
        try:
            yield
        finally:
            self._here.limit = before

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:  # type: ignore[override]
        parts = urlsplit(request.url or "")
        if _origin(request.url or "") != self._origin:  # sent there by a redirect, or by a link in what was read
            raise Unfit(
                f"answers {self.asked} by leading to {parts.scheme}://{parts.netloc}{parts.path}, which is told no password",
                "if that is its true address, give it as the option url",
            )
        self._here.asked = words = f"{request.method} {parts.path}"
        whole: Deadline | None = getattr(self._here, "limit", None)
        limit = Deadline.after(self._answer if whole is None else min(self._answer, whole.left))
        if whole is not None and whole.expired:
            raise Unfit(f"was not asked {words}: what came before took all the time")
        connect = options.get("timeout")
        connect = connect[0] if isinstance(connect, tuple) else connect
        options["timeout"] = (min(connect or limit.left, limit.left), limit.left)
        asking = _question.set(_Question(words, limit))
        try:
            answer = super().send(request, **{**options, "stream": True})
            with answer:
                self._read(answer, words)
        finally:
            _question.reset(asking)
        if wrong := self._wrong(answer):
            raise Unfit(
                f"answers without a sense: {words} gave {wrong}", "see that this is its address, and the service is switched on there"
            )
        return answer

    def _read(self, answer: requests.Response, words: str) -> None:
        content = bytearray()
        for piece in answer.iter_content(_PIECE):
            content += piece
            if len(content) > MOST:  # what was read is less, for it was compressed
                raise _endless(words)
        answer._content = bytes(content)
        answer._content_consumed = True  # type: ignore[attr-defined,unused-ignore]

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        manager.pool_classes_by_scheme = _POOLS
        return manager


def _endless(words: str) -> Unfit:
    return Unfit(f"answers {words} without an end: {MOST >> 20} MiB and more")


def _origin(url: str) -> tuple[str, str, int]:
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = 0
    return parts.scheme, (parts.hostname or "").lower(), port or (443 if parts.scheme == "https" else 80)


# --- the way of an answer's bytes: requests, urllib3, http.client, and below them this


class _Bytes(io.RawIOBase):
    """All that a device says to one question, headers and all."""

    def __init__(self, inner: io.RawIOBase, connection: socket.socket, question: _Question) -> None:
        self._inner = inner
        self._connection = connection
        self._question = question
        self._came = 0

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._inner.fileno()

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        question = self._question
        try:
            if question.limit.expired:
                raise TimeoutError
            self._connection.settimeout(max(0.001, question.limit.left))
            count = cast(int, self._inner.readinto(buffer)) or 0  # type: ignore[attr-defined,unused-ignore]
        except TimeoutError:
            came = f": {self._came} bytes of it came" if self._came else ""
            raise Unfit(
                f"does not answer {question.words} within {question.limit.seconds:.2g} s{came}", "see its address and its cable; reset it"
            ) from None
        self._came += count
        if self._came > MOST:
            raise _endless(question.words)
        return count

    def close(self) -> None:
        self._inner.close()
        super().close()


class _Answer(HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_Bytes(self.fp.detach(), sock, _question.get()))  # type: ignore[attr-defined,unused-ignore]


class _Connection(HTTPConnection):
    response_class = _Answer


class _TlsConnection(HTTPSConnection):
    response_class = _Answer


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


_POOLS = {"http": _Pool, "https": _TlsPool}
