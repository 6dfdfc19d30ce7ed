"""Shell over a serial console that kernel messages share.

The command goes in base64, so that no quoting or line editor touches it. Its output is kept in a file of the guest and sent back in
base64 too, with a digest: base64 has no ``[``, so that a kernel message (``[    1.234567] …`` to the end of its line), wherever it
breaks in, can be cut out exactly. A reply whose digest does not fit is asked for again; the command itself never runs twice.

Needs ``sh``, ``base64`` and ``sha256sum`` in the guest, and a prompt's worth of patience: nothing is typed before ``ready``.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
import time
from dataclasses import dataclass, field

from labctl.deadline import Deadline, DeadlineExpired
from labctl.errors import ConsoleLost, TargetHung
from labctl.machine.boot import explain
from labctl.machine.protocols import CommandResult, Console, DriverContext
from labctl.machine.transcript import ConsoleEnded, Match, Pattern, Transcript
from labctl.parsers.crash import PATTERNS as CRASHES
from labctl.parsers.crash import find_crash

KERNEL_MESSAGE = re.compile(rb"\[ *\d+\.\d{6}\][^\n]*\n")
PLAIN = re.compile(r"[A-Za-z0-9_./=,:+ -]{1,200}")
"""Commands that mean the same however they are read."""
FILE = "/tmp/.labctl"  # noqa: S108  # in the guest
"""With a number behind it: holds a command's output until the next has ended. One each, for a process that a command left behind may
still write to its own."""
PIECE = 700
"""Characters typed a line: under the 1,024 of busybox' line editor and the 4,096 of a terminal in canonical mode."""
RESEND_AFTER = 3.0
"""Seconds without a byte in the middle of a reply before it is asked for again."""


@dataclass
class ConsoleShell:
    """Options: ``open_deadline``, the seconds until the shell must have answered for the first time."""

    console: Console
    transcript: Transcript
    context: DriverContext
    open_deadline: float = 30.0

    _open: bool = field(default=False, init=False)
    _commands: int = field(default=0, init=False)

    def open(self, deadline: Deadline) -> None:
        deadline = deadline.sooner(self.open_deadline)
        while not self._open:
            # A shell that is only just starting throws away what was typed before: ask until it answers.
            said = self._listen()
            try:
                self._type_and_await("", secrets.token_hex(4), said, deadline.sooner(RESEND_AFTER))
                self._open = True
            except DeadlineExpired:
                if deadline.expired:
                    raise self._hung(f"no shell answers on the console within {deadline.seconds:g} s", said) from None
            except ConsoleEnded as ended:
                raise self._lost("before the shell answered", ended, said) from None

    def run(self, command: str, deadline: Deadline) -> CommandResult:
        if not self._open:
            self.open(deadline)
        return self._exchange(command, deadline)

    def close(self) -> None:
        self._open = False

    def _exchange(self, command: str, deadline: Deadline) -> CommandResult:
        nonce = secrets.token_hex(4)
        began = time.monotonic()
        # The markers are typed in two halves, so that the terminal's echo never looks like a reply.
        before, file = f"{FILE}{self._commands}", f"{FILE}{self._commands + 1}"
        self._commands += 1
        show = f'echo "lab""ctl<{nonce}"; base64 {file}; echo ":$L:$(sha256sum <{file})"; echo "lab""ctl>{nonce}"'
        tidy = f"; rm -f {before}" if self._commands > 1 else ""  # after the reply, while it is being read
        said = self._listen()
        try:
            typed = self._typed(command, nonce, deadline)
            said = self._listen()
            self.console.write(f"({typed})</dev/null >{file} 2>&1; L=$?; {show}{tidy}\n".encode())
            while (reply := self._reply(said, nonce, deadline)) is None:
                said = self._listen()
                self.console.write(f"{show}\n".encode())
        except DeadlineExpired:
            raise self._hung(f"no answer within {deadline.seconds:g} s to the command {_shown(command)}", said) from None
        except ConsoleEnded as ended:
            raise self._lost(f"in the middle of the command {_shown(command)}", ended, said) from None
        status, output = reply
        return CommandResult(command, status, output.decode(errors="replace"), time.monotonic() - began)

    def _typed(self, command: str, nonce: str, deadline: Deadline) -> str:
        """What to type for a command: itself where nothing in it needs care (each character costs an interrupt), else its base64.

        A long one is first put into the shell's ``$E`` in pieces, each acknowledged: a terminal holds 4 KiB of input, a UART has no flow
        control.
        """
        if PLAIN.fullmatch(command):
            return command
        encoded = base64.b64encode(command.encode()).decode()
        text, rest = (encoded[:-PIECE], encoded[-PIECE:]) if len(encoded) > PIECE else ("", encoded)
        for number, start in enumerate(range(0, len(text), PIECE)):
            before = "${E}" if number else ""
            self._type_and_await(f"E={before}{text[start : start + PIECE]}; ", f"{nonce}{number}", self._listen(), deadline)
        return f'eval "$(echo {"${E}" if text else ""}{rest} | base64 -d)"'

    def _type_and_await(self, line: str, token: str, said: _Hearing, deadline: Deadline) -> None:
        self.console.write(f'{line}echo "lab""ctl+{token}."\n'.encode())
        while f"labctl+{token}.".encode() not in said.clean:
            said.hear(deadline)

    def _hung(self, message: str, said: _Hearing) -> TargetHung:
        self._open = False
        return TargetHung(message, target=self.context.target.name, tail=self.transcript.tail(10, said.since))

    def _lost(self, when: str, ended: ConsoleEnded, said: _Hearing) -> ConsoleLost:
        self._open = False
        return ConsoleLost(
            f"the console ended {when}: {ended.reason}", target=self.context.target.name, tail=self.transcript.tail(10, said.since)
        )

    def _listen(self) -> _Hearing:
        return _Hearing(self.transcript, self.context.target.name)

    def _reply(self, said: _Hearing, nonce: str, deadline: Deadline) -> tuple[int, bytes] | None:
        """Status and output, or None if the reply came broken. Raises DeadlineExpired, ConsoleEnded, KernelCrash."""
        begin, end = f"labctl<{nonce}".encode(), f"labctl>{nonce}".encode()
        while True:
            try:
                said.hear(deadline.sooner(RESEND_AFTER))
            except DeadlineExpired:
                if deadline.expired:
                    raise
            if said.ends_with_line(end):
                return parse_reply(bytes(said.clean), begin, end)
            if said.silent_for > RESEND_AFTER and begin in said.clean:
                return None  # it began and its end was lost


class _Hearing:
    """What a machine says from now on, the kernel's messages taken out as they come, so that a flood of them costs no memory."""

    def __init__(self, transcript: Transcript, target: str) -> None:
        self._transcript = transcript
        self._target = target
        self.since = self._taken = transcript.size
        self._watch = transcript.watch([b"\n", *(Pattern(regex, literal) for regex, literal in CRASHES)], self.since)
        self._heard_at = time.monotonic()
        self._news = 0
        self.clean = bytearray()

    def hear(self, deadline: Deadline) -> None:
        """The next line. Raises DeadlineExpired, ConsoleEnded; KernelCrash as soon as the kernel says that it is lost."""
        match = self._watch.next(deadline)
        if match.pattern > 0:
            self._check_crash(match)
        elif match.end > self._taken:
            # A message ends with its line, so what is cut out of each line by itself is what would be cut out of the whole.
            before = len(self.clean)
            self.clean += strip(self._transcript.read(self._taken, match.end))
            self._taken = match.end
            if len(self.clean) > before:
                self._news, self._heard_at = before, time.monotonic()

    @property
    def silent_for(self) -> float:
        """Seconds since something came that was no message of the kernel's."""
        return time.monotonic() - self._heard_at

    def ends_with_line(self, words: bytes) -> bool:
        """Whether the words came with the latest news; they may have begun before a message broke in."""
        return self.clean.find(words, max(0, self._news - len(words))) >= 0

    def _check_crash(self, match: Match) -> None:
        crash = find_crash(self._transcript.read(max(self.since, match.offset - (1 << 16)), match.end + (1 << 10)))
        if crash is not None and crash.fatal:
            fallback = TargetHung("the kernel crashed in the middle of a command", target=self._target)
            raise explain(self._transcript, self.since, fallback)


def _shown(command: str, most: int = 200) -> str:
    return repr(command if len(command) <= most else f"{command[: most - 1]}…")


def strip(data: bytes) -> bytes:
    """Console bytes without the kernel's messages and carriage returns."""
    return KERNEL_MESSAGE.sub(b"", data).replace(b"\r", b"")


def parse_reply(data: bytes, begin: bytes, end: bytes) -> tuple[int, bytes] | None:
    """The framed reply in stripped console bytes: exit status and output; None if it is not whole."""
    _, found, rest = data.rpartition(begin + b"\n")
    body, found_end, _ = rest.partition(end)
    encoded, colon, trailer = body.rpartition(b"\n:")
    if not colon:
        encoded, colon, trailer = b"", body[:1], body[1:]
    parts = re.fullmatch(rb"\s*(\d{1,3})\s*:([0-9a-f]{64})\s*-?\s*", trailer)
    if not (found and found_end and colon and parts):
        return None
    try:
        output = base64.b64decode(b"".join(encoded.split()), validate=True)
    except ValueError:
        return None
    if hashlib.sha256(output).hexdigest().encode() != parts[2]:
        return None
    return int(parts[1]), output


DRIVER = ConsoleShell
