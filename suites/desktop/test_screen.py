"""Does a VM's screen come up for who looks at it from elsewhere, and is a key that is typed there seen on it?"""

import pytest
from desktop_screen import COLUMNS, LAST_LINE, TITLE, cell

from labctl.deadline import Deadline

KEY_S = 60.0
"""Seconds in which a key is to be seen, under emulation on a busy host."""
QUIET = "vga nobeat"
"""What is typed is shown, and nothing else changes but the cursor."""

pytestmark = pytest.mark.requires(hypervisor=["Consoles"])


@pytest.mark.story("US-23")
def test_screen(shown, client, keep_file):
    """A VNC client sees what the guest has drawn: the coloured title of a text screen, and nothing at its end."""
    shown(QUIET)
    with client() as vnc:
        vnc.until(lambda: (vnc.canvas.width, vnc.canvas.height) == (9 * COLUMNS, 400), Deadline.after(KEY_S))
        vnc.until(lambda: len(colours(vnc.canvas.crop(cell(0, TITLE, 33)))) > 1, Deadline.after(KEY_S))
        keep_file("screen.png", vnc.canvas.png())
        assert len(colours(vnc.canvas.crop(cell(0, TITLE, 33)))) == 2, "the title has a colour of its own and one behind it"
        assert not any(vnc.canvas.crop(cell(0, LAST_LINE, COLUMNS)))


@pytest.mark.story("US-23")
def test_key(hypervisor, shown, client):
    """Keys typed into a VNC client reach the guest, and are seen: each in its place, the same key twice as the same picture."""
    guest = shown(QUIET)
    with client() as vnc:
        for column, key in enumerate("xabca"):
            vnc.press(key)
            guest.since = hypervisor.heard(guest.name, f"tiny: key {ord(key):02x}", Deadline.after(KEY_S), guest.since).offset
            if column:  # the cursor may blink where the first one stands
                vnc.until(lambda column=column: any(vnc.canvas.crop(cell(column, guest.line))), Deadline.after(KEY_S))
        first, second, third, fourth, behind = (vnc.canvas.crop(cell(column, guest.line)) for column in range(1, 6))
    assert first == fourth
    assert len({first, second, third}) == 3
    assert not any(behind)


@pytest.mark.story("US-26")
def test_key_in_a_browser(hypervisor, shown, client, browser, keep_file):
    """A key typed into noVNC in a real browser reaches the guest; the browser shows it, and so does a second client."""
    guest = shown(QUIET)
    with client() as vnc, browser() as seen:
        for column, key in enumerate("xq7"):
            took = seen.press(key, KEY_S, within=cell(column, guest.line))
            assert took is not None, f"the browser does not show the key {key!r}"
            guest.since = hypervisor.heard(guest.name, f"tiny: key {ord(key):02x}", Deadline.after(KEY_S), guest.since).offset
        keep_file("browser.png", seen.screenshot())
        vnc.until(lambda: all(any(vnc.canvas.crop(cell(column, guest.line))) for column in (1, 2)), Deadline.after(KEY_S))


def colours(pixels):
    """Of 32-bit pixels."""
    return {pixels[at : at + 4] for at in range(0, len(pixels), 4)}
