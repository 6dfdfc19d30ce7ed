"""What the tests of a desktop share: the way to a VM's display, a guest that shows something, a client and a browser that look at it."""

from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
from desktop_screen import LAST_LINE, TYPED

from labctl.build.novnc import novnc
from labctl.deadline import Deadline
from labctl.display.chromium import PROGRAM
from labctl.display.novnc import desktop
from labctl.display.vnc import ENTER, Vnc
from labctl.errors import HostToolMissing
from labctl.hypervisor.protocols import VmDisplay, VmSpec, VmState
from labctl.machine.addressing import bring_up
from labctl.process import find

TINY = "/usr/bin/tinyguest"
LINUX = "/usr/lib/labctl/linuxguest"
MIB = 1 << 20
NAME = "desktop"
DISPLAY = VmDisplay(port=5900, websocket=5700)
VM_S = 180.0
"""Seconds until a VM whose firmware sets up a screen is ready, under emulation on a busy host."""


@dataclass
class Guest:
    """The tiny guest that is shown, and where on its text screen the next key will stand."""

    name: str
    words: str
    since: int
    """Offset in its console of what it has said so far."""
    line: int = TYPED


@pytest.fixture(scope="session")
def guests():
    """The guest that is there from test to test: one with a screen is dear to start."""
    return []


@pytest.fixture
def way(target, shell):
    """To the displays of VMs: the machine's card that leads to this host is up."""
    if not (card := target.leads_to(DISPLAY.port)):
        pytest.skip(f'needs a way to a VM\'s display: forward = [{DISPLAY.port}, {DISPLAY.websocket}] on a card to = "host" of the target')
    bring_up(target, card, target.config.nics[card].address)


@pytest.fixture
def shown(hypervisor, way, keep_vm, guests, client):
    """``shown("vga")``: a tiny guest with a screen, ready; the words are those of its command line. Its display can be reached.

    It is the one of the test before, at the start of a new line, if that is like it and still well."""

    def start(words):
        there = {vm.name: vm.state for vm in hypervisor.list(Deadline.after(VM_S))}
        guest = guests.pop() if guests else None
        well = guest is not None and there.get(guest.name) is VmState.RUNNING
        if not well or guest.words != words or guest.line >= LAST_LINE:
            if NAME in there:
                hypervisor.destroy(NAME, Deadline.after(VM_S))
            hypervisor.create(VmSpec(NAME, TINY, append=words, memory=16 * MIB, display=DISPLAY), Deadline.after(VM_S))
            hypervisor.start(NAME, Deadline.after(VM_S))
            guest = Guest(NAME, words, hypervisor.heard(NAME, "tiny: ready", Deadline.after(VM_S)).offset)
            keep_vm(NAME)
        elif "vga" in words.split():
            with client() as vnc:
                vnc.press(ENTER)
                guest.since = hypervisor.heard(NAME, "tiny: key 0a", Deadline.after(VM_S), guest.since).offset
                guest.line += 1
        guests.append(guest)
        return guest

    return start


@pytest.fixture
def linux(hypervisor, target, way, shell):
    """A Linux with a display and, in place of a desktop, the agent of its clipboard; it ends with the test."""
    # The agent is put over its initramfs, as another archive behind it (Documentation/driver-api/early-userspace/buffer-format.rst).
    shell(
        f"rm -rf /run/desktop && mkdir -p /run/desktop/over/usr/bin && cd /run/desktop/over && cp /usr/bin/clipboard usr/bin && "
        f"cp {LINUX}/initrd ../initrd && find . | cpio -o -H newc >>../initrd 2>/dev/null",
        deadline=VM_S,
    )
    display = replace(DISPLAY, clipboard=True)
    spec = VmSpec("linux", f"{LINUX}/kernel", "/run/desktop/initrd", "console=ttyS0 quiet", memory=160 * MIB, display=display)
    for vm in hypervisor.list(Deadline.after(VM_S)):
        hypervisor.destroy(vm.name, Deadline.after(VM_S))  # its display is at the same port
    hypervisor.create(spec, Deadline.after(VM_S))
    hypervisor.start("linux", Deadline.after(VM_S))
    hypervisor.heard("linux", "labctl-guest: ready", Deadline.after(2 * VM_S))
    return "linux"


@pytest.fixture
def client(target):
    """``with client() as vnc``: somebody who looks at the display with a VNC client."""

    @contextmanager
    def connect():
        with Vnc(*target.endpoint(DISPLAY.port), Deadline.after(60), target=target.name) as vnc:
            vnc.next_change(Deadline.after(60))
            yield vnc

    return connect


@pytest.fixture
def browser(target):
    """``with browser() as desktop``: somebody who looks at it with noVNC in a real browser."""
    try:
        find(PROGRAM)
        modules = novnc(Deadline.after(300))
    except HostToolMissing as missing:
        pytest.skip(f"needs a browser with noVNC on the host: {missing.message} ({missing.remedy}; labctl doctor tells)")
    if not target.leads_to(DISPLAY.websocket):
        pytest.skip(f"needs a way to the display's web socket: {DISPLAY.websocket} in forward of the target's card")

    @contextmanager
    def connect():
        with desktop(modules, *target.endpoint(DISPLAY.websocket), Deadline.after(300), target=target.name) as seen:
            yield seen

    return connect


@pytest.fixture
def viewer(request):
    """``with viewer("vnc") as seen``: as `client` or as `browser`."""
    return lambda seen_by: request.getfixturevalue({"vnc": "client", "browser": "browser"}[seen_by])()
