"""Where iPXE waits for a key: it is pressed, again if it was lost, and not once more when iPXE goes on or the boot is over."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from labctl.deadline import Deadline
from labctl.machine.bootserver.impatience import WAITS_FOR, Impatience
from labctl.machine.transcript import Transcript


class Keyboard:
    """``on_key`` is told how many keys were pressed."""

    def __init__(self, on_key: Callable[[int], None]) -> None:
        self.on_key, self.pressed, self.enough = on_key, 0, threading.Event()

    def attach(self, deadline: Deadline) -> None: ...

    def write(self, data: bytes) -> None:
        assert data == b" "
        self.pressed += 1
        self.on_key(self.pressed)

    def detach(self) -> None: ...


@pytest.mark.parametrize("lost", [0, 2])
def test_a_key_that_was_lost_is_pressed_again(lost: int) -> None:
    gone_on = threading.Event()
    with Transcript() as transcript:

        def on_key(pressed: int) -> None:
            if pressed > lost:
                transcript.feed(b"\b \b")
                gone_on.set()

        keyboard = Keyboard(on_key)
        impatience = Impatience(transcript, keyboard)  # type: ignore[arg-type]
        impatience.begin()
        try:
            transcript.feed(b"iPXE 1.0\r\n" + WAITS_FOR)
            assert gone_on.wait(5)
        finally:
            impatience.end()
        assert keyboard.pressed == lost + 1


def test_no_key_is_pressed_once_the_boot_is_over() -> None:
    with Transcript() as transcript:
        first = threading.Event()
        keyboard = Keyboard(lambda pressed: first.set())
        impatience = Impatience(transcript, keyboard)  # type: ignore[arg-type]
        impatience.begin()
        transcript.feed(WAITS_FOR)
        assert first.wait(5)
        impatience.end()
        before = keyboard.pressed
        assert not threading.Event().wait(0.5)
        assert keyboard.pressed == before < 9
