"""Presses a key where iPXE waits for one: it says who it is, then gives two seconds to whoever wants its command line.

Any key but Ctrl-B ends that wait (iPXE's usr/prompt.c), so a blank does, which whatever comes after ignores. Nothing else is answered.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import dataclass, field

from labctl.deadline import Deadline, DeadlineExpired
from labctl.errors import ConsoleLost
from labctl.machine.protocols import Console
from labctl.machine.transcript import ConsoleEnded, Transcript

WAITS_FOR = b"Press Ctrl-B for the iPXE command line"
_KEY = b" "
_LOOK = 0.5
"""Seconds between two looks at whether it is over."""


@dataclass
class Impatience:
    transcript: Transcript
    console: Console

    _over: threading.Event = field(default_factory=threading.Event, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)

    def begin(self) -> None:
        """From what the console says next until `end`. Begun already is no error: what was begun is over."""
        self.end()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._press, args=(self._over, self.transcript.size), name="impatience", daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _press(self, over: threading.Event, since: int) -> None:
        with self.transcript.watch([WAITS_FOR], since) as prompts, suppress(ConsoleEnded, ConsoleLost):
            while not over.is_set():
                with suppress(DeadlineExpired):
                    prompts.next(Deadline.after(_LOOK))
                    self.console.write(_KEY)
