"""Shell over a serial console that kernel messages share.

The command goes in base64 where a quote or a line editor could touch it. Its output is kept in a file of the guest. A short text is
first said as it is, with its length, for that takes no process of the guest's; kernel messages (``[    1.234567] …`` to the end of the
line) are cut out of what arrives. If the length does not fit then (the output has such lines of its own, something else broke in), the
file is asked for in base64 with a digest: base64 has no ``[``, so that what a kernel message breaks into can be put together exactly. A
reply whose digest does not fit is asked for again. The command itself never runs twice.

Needs ``sh``, ``base64`` and ``sha256sum`` in the guest, and a prompt's worth of patience: nothing is typed before ``ready``.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
import time
from collections.abc import Callable
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
"""With a number behind it: holds a command's output. One each, for a process that a command left behind may still write to its own.
Short ones stay until the next long one: a process to remove them would cost more than they do."""
PIECE = 700
"""Characters typed a line: under the 1,024 of busybox' line editor and the 4,096 of a terminal in canonical mode."""
SHORT = 1000
"""Bytes of output that a guest says as they are; a shell reads them one by one."""
PROMPT = re.compile(rb"[^\r\n]{0,60}[#$>] {1,2}(?:\x1b\[6n)?\Z")
"""The last words of a console whose shell waits for a line. `\\x1b[6n` is busybox' line editor asking where the cursor is."""
PROMPT_PATIENCE = 0.3
"""Seconds for a prompt to come behind ``ready``, before the shell is asked whether it is there."""
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
        if not self._open:
            self.console.write(b" ")  # see `_type`
            self._open = self._prompts(deadline.sooner(PROMPT_PATIENCE))
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

    def _prompts(self, deadline: Deadline) -> bool:
        """Whether the console's last words are a prompt, by the deadline."""
        try:
            while not PROMPT.search(self.transcript.read(size - 80 if (size := self.transcript.size) > 80 else 0)):
                if not self.transcript.wait_beyond(size, deadline):
                    return False
        except ConsoleEnded:
            return False  # asking tells it better
        return True

    def run(self, command: str, deadline: Deadline) -> CommandResult:
        if not self._open:
            self.open(deadline)
        return self._exchange(command, deadline)

    def close(self) -> None:
        self._open = False

    def _exchange(self, command: str, deadline: Deadline) -> CommandResult:
        nonce = secrets.token_hex(4)
        began = time.monotonic()
        file = f"{FILE}{self._commands}"
        self._commands += 1
        said = self._listen()
        try:
            typed = self._typed(command, nonce, deadline)
            said = self._listen()
            self._type(f"({typed})</dev/null >{file} 2>&1; L=$?; {_say_short(file, nonce)}")
            reply = self._reply(said, nonce, deadline, parse_short)
            while reply is None:
                nonce = secrets.token_hex(4)
                said = self._listen()
                # Gone after the reply, while that is being read: what a running process still writes to it is nobody's.
                self._type(_say_encoded(file, nonce) + f"; rm -f {FILE}*")
                reply = self._reply(said, nonce, deadline, parse_reply)
        except DeadlineExpired:
            raise self._hung(f"the command {_shown(command)} did not end within {deadline.seconds:g} s", said) from None
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
        self._type(f'{line}echo "lab""ctl+{token}."')
        while f"labctl+{token}.".encode() not in said.clean:
            said.hear(deadline)

    def _type(self, line: str) -> None:
        # The blank is the next line's first. Where nothing is typed yet when it prompts, busybox' line editor asks the terminal where the
        # cursor is, and waits 20 ms for the answer when the line has come.
        self.console.write(f"{line}\n ".encode())

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

    def _reply(
        self, said: _Hearing, nonce: str, deadline: Deadline, parse: Callable[[bytes, bytes, bytes], tuple[int, bytes] | None]
    ) -> tuple[int, bytes] | None:
        """Status and output, or None if the reply came broken. Raises DeadlineExpired, ConsoleEnded, KernelCrash."""
        begin, end = f"labctl<{nonce}".encode(), f"labctl>{nonce}".encode()
        while True:
            try:
                said.hear(deadline.sooner(RESEND_AFTER))
            except DeadlineExpired:
                if deadline.expired:
                    raise
            if said.ends_with_line(end):
                return parse(bytes(said.clean), begin, end)
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


# The markers are typed in two halves, so that the terminal's echo never looks like a reply.


def _say_short(file: str, nonce: str) -> str:
    """A line that says status and output of a command, the output only if it is short and of letters that nothing on the way changes.

    Only builtins, for a process costs an emulated machine 10 ms. ``read`` fails at the end of the file, and does not at a NUL or at the
    limit. No message of a crashing kernel is without blanks, so what has none is never taken for one.
    """
    return (
        f"IFS= read -rn{SHORT} -d '' O <{file}; R=$?; case $O in *[!$'\\n'\\ -Z_a-z]*)R=0;; esac; [ $R = 1 ]||O=; "
        f'echo "lab""ctl<{nonce}:$L:$R:${{#O}}:${{O// /^}}:$L:lab""ctl>{nonce}"'
    )


def _say_encoded(file: str, nonce: str) -> str:
    return f'echo "lab""ctl<{nonce}"; base64 {file}; echo ":$L:$(sha256sum <{file})"; echo "lab""ctl>{nonce}"'


def strip(data: bytes) -> bytes:
    """Console bytes without the kernel's messages and carriage returns."""
    return KERNEL_MESSAGE.sub(b"", data).replace(b"\r", b"")


def parse_short(data: bytes, begin: bytes, end: bytes) -> tuple[int, bytes] | None:
    """The short reply in stripped console bytes: exit status and output; None if the output was kept back, or something broke in."""
    head = re.search(re.escape(begin) + rb":(\d{1,3}):1:(\d{1,5}):", data)
    if head is None:
        return None
    stop = head.end() + int(head[2])
    whole = data[stop:].startswith(b":%s:%s" % (head[1], end))
    return (int(head[1]), data[head.end() : stop].replace(b"^", b" ")) if whole else None


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
