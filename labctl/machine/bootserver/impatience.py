"""Presses a key where iPXE waits for one: it says who it is, then gives two seconds to whoever wants its command line.

Any key but Ctrl-B ends that wait (iPXE's usr/prompt.c), so a blank does, which whatever comes after ignores. Nothing else is answered.
UEFI's terminal loses a key now and then that comes just when it is asked for the first: it is pressed again until iPXE goes on.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import dataclass, field

from labctl.deadline import Deadline, DeadlineExpired
from labctl.errors import ConsoleLost, StorageError
from labctl.machine.protocols import Console
from labctl.machine.transcript import ConsoleEnded, Transcript

WAITS_FOR = b"Press Ctrl-B for the iPXE command line..."
_KEY = b" "
_AGAIN, _TIMES = 0.2, 9
"""Seconds without a word after which a key is taken to be lost, and how often it is pressed: iPXE goes on by itself after 2 s."""
_LOOK = 0.5
"""Seconds between two looks at whether it is over."""


@dataclass
class Impatience:
    transcript: Transcript
    console: Console

    _over: threading.Event = field(default_factory=threading.Event, init=False)
    _pressing: threading.Lock = field(default_factory=threading.Lock, init=False)

    def begin(self) -> None:
        """From what the console says next until `end`. Begun already is no error: what was begun is over."""
        self.end()
        self._over = threading.Event()
        arguments = (self._over, self.transcript.size)
        threading.Thread(target=self._press, args=arguments, name="impatience", daemon=True).start()

    def end(self) -> None:
        """No key is pressed from now on. The thread, which may still wait for words, sees that at its next look."""
        with self._pressing:
            self._over.set()

    def _press(self, over: threading.Event, since: int) -> None:
        with self.transcript.watch([WAITS_FOR], since) as prompts, suppress(ConsoleEnded, ConsoleLost, StorageError):
            while not over.is_set():
                with suppress(DeadlineExpired):
                    prompts.next(Deadline.after(_LOOK))
                    self._press_until_it_goes_on(over)

    def _press_until_it_goes_on(self, over: threading.Event) -> None:
        for _ in range(_TIMES):
            said = self.transcript.size
            with self._pressing:
                if over.is_set():
                    return
                self.console.write(_KEY)
            if self.transcript.wait_beyond(said, Deadline.after(_AGAIN)):
                return
