"""Does what one user copies reach another who looks at the same desktop, and the guest?"""

import re
import threading
from contextlib import contextmanager

import pytest

from labctl.deadline import Deadline

CLIPBOARD_S = 60.0
AGENT_S = 180.0
"""Seconds that the agent stays in the guest, under emulation on a busy host."""
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


@pytest.mark.requires(hypervisor=["Consoles"])
def test_between_user_and_guest(hypervisor, linux, client):
    """Text that a user copies comes to the guest whole, and what the guest copies comes to the user, in any script."""
    hypervisor.type(linux, f"clipboard {int(AGENT_S)}\n".encode(), Deadline.after(CLIPBOARD_S))
    since = hypervisor.heard(linux, "clipboard: ready", Deadline.after(AGENT_S)).offset
    with client() as vnc:
        vnc.attend(Deadline.after(1))
        if not vnc.extended_clipboard:
            pytest.skip("the display's server has no extended clipboard")
        vnc.offer(TEXT)
        with attended(vnc):
            hypervisor.heard(linux, "clipboard: gave", Deadline.after(AGENT_S), since)
        vnc.attend(Deadline.after(2))
        assert vnc.clipboard == f"guest: {TEXT}"
    said = re.search(rb"clipboard: got ([0-9a-f]+)", hypervisor.said(linux, Deadline.after(CLIPBOARD_S), since))
    # Lines end by CR LF on their way to the server, which hands them on as they are.
    assert bytes.fromhex(said[1].decode()).decode().replace("\r\n", "\n") == TEXT


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
