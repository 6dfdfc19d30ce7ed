"""Speaks to the agent in a machine over a connected stream: docs/agent-protocol.md, the host's side.

A request is answered or its end is told: by the agent (`AgentRefused`), by one that says hello in the middle, so that what was asked of
the one before is lost (`AgentLost`), by a stream that ends (`AgentLost`), or by the deadline (`DeadlineExpired`).
"""

from __future__ import annotations

import hashlib
import io
import os
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO

from labctl.deadline import Deadline, DeadlineExpired
from labctl.machine.agentframe import CHUNK, MAX_PAYLOAD, Decoder, Frame, encode

STALL_S = 2.0
"""Seconds after which the rest of a frame that has begun is not waited for."""
_LOOK_S = 0.2
"""Seconds between two looks at what else may have happened."""
_FIRST_SYNC_S, _SYNC_S = 1.0, 3.0
"""Seconds until an agent that is not there yet is called again: then long enough for it to give up a frame that was cut off."""
MOST_COMMAND = MAX_PAYLOAD - 64
"""Bytes of a command; a longer one is a file."""
MOST_OUTPUT = 16 << 20
"""Bytes of each of a command's two outputs, unless the caller says otherwise."""
MOST_FILE = 1 << 30
"""Bytes of a file that is fetched, unless the caller says otherwise."""
_GRACE_S = 5.0
"""Seconds that the answer to a command may come after the command's own deadline, at which the agent has looked at it and killed it: on a
busy host an emulated machine takes a while for that."""
_MOST_WAITING = 20_000
"""Frames that are there before one of them is taken: more than fit into what is read at once."""


class AgentRefused(Exception):
    """The agent says why it does not do what it was asked for."""


class AgentLost(Exception):
    """Nobody will answer any more."""


class StreamEnded(AgentLost):
    """The stream itself is over."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    status: int
    """As shells say it: 128 and the number of the signal that ended it."""
    out: bytes
    err: bytes
    late: bool
    """Its time was over: it and what it had started in its process group were killed."""
    cut: bool
    """It said more than was asked for."""


@dataclass(slots=True)
class Heard:
    """What has come of a command so far."""

    out: bytearray = field(default_factory=bytearray)
    err: bytearray = field(default_factory=bytearray)
    state: str = ""
    """What its processes were at when its time was over, as the agent says it."""
    full: bool = False
    """As much of one of the two as was asked for: what else it says is not sent."""


@dataclass
class AgentClient:
    """``watch`` is called now and then while an answer is awaited: it raises what makes waiting senseless."""

    stream: socket.socket
    watch: Callable[[], None] = lambda: None
    heard: Heard = field(default_factory=Heard, init=False)
    """Of the last command, also of one that has not ended."""

    _decoder: Decoder = field(default_factory=Decoder, init=False)
    _frames: list[Frame] = field(default_factory=list, init=False)
    _last: int = field(default_factory=lambda: int.from_bytes(os.urandom(3)), init=False)
    _heard_at: float = field(default_factory=time.monotonic, init=False)

    def __post_init__(self) -> None:
        self.stream.setblocking(False)

    @property
    def silent_for(self) -> float:
        """Seconds since its last byte."""
        return time.monotonic() - self._heard_at

    def synchronise(self, deadline: Deadline) -> None:
        """Until the agent answers with a token that was not used before: what it and the stream held from earlier is gone then."""
        pause = _FIRST_SYNC_S
        while True:
            request, token = self._next(), os.urandom(8).hex().encode()
            # A line end ends whatever an echoing line discipline may hold; a frame that was cut off is given up by the agent in time.
            self._send(b"\n" + encode(request, "sync", token), deadline)
            until, pause = deadline.sooner(pause), _SYNC_S
            try:
                while True:
                    frame = self._frame(until)
                    if (frame.id, frame.kind, frame.payload) == (request, "synced", token):
                        return
            except DeadlineExpired:
                if deadline.expired:
                    raise

    def ping(self, deadline: Deadline, payload: bytes = b"") -> float:
        """Seconds for a round trip. AgentLost if other bytes come back."""
        began = time.monotonic()
        request = self._ask("ping", payload, deadline)
        if self._reply(request, "pong", deadline=deadline).payload != payload:
            raise AgentLost("another payload came back than was sent")
        return time.monotonic() - began

    def execute(self, command: str, deadline: Deadline, most: int = MOST_OUTPUT) -> Ended:
        """Run a command to its end. AgentRefused for one that is too long or holds a NUL, and if the machine cannot start it."""
        words = command.encode(errors="surrogateescape")
        if len(words) > MOST_COMMAND:
            raise AgentRefused(f"a command has at most {MOST_COMMAND} bytes, not {len(words)}: put a script there and run that")
        request = self._ask("exec", b"%d %d\n%s" % (max(1, int(deadline.left * 1000)), most, words), deadline)
        answer = Deadline(deadline.at + _GRACE_S, deadline.seconds)
        self.heard = Heard()
        said = {"out": self.heard.out, "err": self.heard.err}
        while (frame := self._reply(request, "out", "err", "state", "end", deadline=answer)).kind != "end":
            if frame.kind == "state":
                self.heard.state = frame.text
                continue
            if len(said[frame.kind]) + len(frame.payload) > most:
                raise AgentLost("the agent sends more than it was asked for")
            said[frame.kind] += frame.payload
            self.heard.full = self.heard.full or len(said[frame.kind]) == most
        try:
            status, how, out, err, _ = frame.text.split()
            told = int(out), int(err)
            ended = Ended(int(status), bytes(said["out"]), bytes(said["err"]), how == "late", max(told) > most)
        except ValueError:
            raise AgentLost(f"the agent ends a command with {frame.text[:100]!r}") from None
        if (len(ended.out), len(ended.err)) != (min(told[0], most), min(told[1], most)):
            raise AgentLost("output is missing")
        return ended

    def put(self, content: IO[bytes], path: str, mode: int, deadline: Deadline) -> str:
        """Write a file; whole or not at all. Returns its SHA-256, which the agent has compared. AgentRefused: no room, no such folder."""
        request = self._ask("put", b"%o\n%s" % (mode, os.fsencode(path)), deadline)
        self._reply(request, "ready", deadline=deadline)
        digest = hashlib.sha256()
        while data := content.read(CHUNK):
            digest.update(data)
            self._send(encode(request, "data", data), deadline)
            self._refused(request)
        self._send(encode(request, "close", digest.hexdigest().encode()), deadline)
        self._same(self._reply(request, "done", deadline=deadline), digest.hexdigest())
        return digest.hexdigest()

    def get(self, path: str, into: IO[bytes], deadline: Deadline, most: int = MOST_FILE) -> str:
        """Read a regular file into ``into``. Returns its SHA-256. AgentRefused: no such file, larger than ``most`` bytes."""
        request = self._ask("get", b"%d\n%s" % (most, os.fsencode(path)), deadline)
        digest, size = hashlib.sha256(), 0
        while (frame := self._reply(request, "data", "done", deadline=deadline)).kind == "data":
            size += len(frame.payload)
            if size > most:
                raise AgentLost("the agent sends more than it was asked for")
            digest.update(frame.payload)
            into.write(frame.payload)
        self._same(frame, digest.hexdigest())
        return digest.hexdigest()

    def set_clock(self, nanoseconds: int, deadline: Deadline) -> None:
        """Set the machine's clock, in nanoseconds since 1970."""
        self._reply(self._ask("clock", b"%d" % nanoseconds, deadline), "done", deadline=deadline)

    def reseed(self, entropy: bytes, deadline: Deadline) -> None:
        """Mix 16 to 512 bytes into the kernel's random numbers, and begin them anew from there."""
        self._reply(self._ask("reseed", entropy, deadline), "done", deadline=deadline)

    # --- requests and replies

    def _next(self) -> int:
        self._last = self._last % 0xFFFFFFFF + 1
        return self._last

    def _ask(self, kind: str, payload: bytes, deadline: Deadline) -> int:
        # What has come unasked is of nobody's: one that was killed and started anew before this can do it as well.
        while self._receive():
            self._frames.clear()
        self._frames.clear()
        request = self._next()
        self._send(encode(request, kind, payload), deadline)
        return request

    def _reply(self, request: int, *kinds: str, deadline: Deadline) -> Frame:
        """The next frame that answers the request: one of those kinds. What is left of earlier requests is passed over."""
        while True:
            frame = self._frame(deadline)
            if frame.kind == "hello" and frame.id == 0:
                raise AgentLost("the agent was killed, and has started anew")
            if frame.id == request and frame.kind == "error":
                raise AgentRefused(frame.text[:500])
            if frame.id == request and frame.kind in kinds:
                return frame

    def _refused(self, request: int) -> None:
        """Raise what has come while we were only sending."""
        self._receive()
        for frame in self._frames:
            if frame.kind == "hello" and frame.id == 0:
                raise AgentLost("the agent was killed, and has started anew")
            if frame.id == request and frame.kind == "error":
                raise AgentRefused(frame.text[:500])
        self._frames.clear()

    def _same(self, frame: Frame, digest: str) -> None:
        if frame.text != digest:
            raise AgentLost(f"the digest is not that of what arrived: {frame.text[:64]!r} for {digest!r}")

    # --- bytes

    def _send(self, data: bytes, deadline: Deadline) -> None:
        left = memoryview(data)
        while left:
            try:
                left = left[self.stream.send(left) :]
            except BlockingIOError:
                self._receive()  # it may wait for us as we wait for it
                self._wait(deadline, writing=True)
            except OSError as error:
                raise StreamEnded(f"the stream takes no bytes: {error.strerror or error}") from None

    def _frame(self, deadline: Deadline) -> Frame:
        while not self._frames:
            if not self._receive():
                if self._decoder.partial and time.monotonic() - self._heard_at > STALL_S:
                    self._frames += self._decoder.give_up()
                    continue
                self._wait(deadline)
            elif deadline.expired:
                break  # a flood of what is no frame
        if not self._frames:
            raise DeadlineExpired
        return self._frames.pop(0)

    def _receive(self) -> bool:
        """Take what is there; whether there was something."""
        try:
            data = self.stream.recv(1 << 18)
        except BlockingIOError:
            return False
        except OSError as error:
            raise StreamEnded(f"the stream broke: {error.strerror or error}") from None
        if not data:
            raise StreamEnded("the stream has ended")
        self._heard_at = time.monotonic()
        self._frames += self._decoder.feed(data)
        if len(self._frames) > _MOST_WAITING:
            raise AgentLost("the agent sends what nobody has asked for")
        return True

    def _wait(self, deadline: Deadline, *, writing: bool = False) -> None:
        """Until there is something to read, or room to write. DeadlineExpired."""
        readable, writable, _ = select.select([self.stream], [self.stream] if writing else [], [], min(_LOOK_S, deadline.left))
        if not readable and not writable:
            self.watch()
            if deadline.expired:
                raise DeadlineExpired


def as_stream(content: bytes) -> IO[bytes]:
    return io.BytesIO(content)
