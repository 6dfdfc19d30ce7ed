"""Does what one user copies reach another who looks at the same desktop, and the guest?"""

import threading
from contextlib import contextmanager

import pytest

from labctl.deadline import Deadline

CLIPBOARD_S = 30.0
TEXT = "Grüße, 世界\nsecond line"

pytestmark = pytest.mark.story("US-29")


def test_between_two_users(shown, client):
    """Text that one client copies comes to another of the same display, whole, in any script. The guest takes no part in it."""
    shown("vga nobeat")
    with client() as one, client() as other:
        for vnc in (one, other):
            vnc.attend(Deadline.after(1))
        if not (one.extended_clipboard and other.extended_clipboard):
            pytest.skip("the display's server has no extended clipboard")
        other.offer(TEXT)
        with attended(other):
            assert one.await_clipboard(Deadline.after(CLIPBOARD_S)) == TEXT


@contextmanager
def attended(vnc):
    """Somebody answers what the server asks of that client, for this block."""
    done = threading.Event()

    def attend():
        while not done.is_set():
            vnc.attend(Deadline.after(0.2))

    thread = threading.Thread(target=attend)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
