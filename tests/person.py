"""A person at a terminal who does what a machine asks for, on a virtual server."""

from __future__ import annotations

import os
import pty
import select
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from labctl.virtualserver.client import VirtualServer
from tests.outlet import switch


@contextmanager
def person(server: VirtualServer) -> Iterator[str]:
    """The terminal that he sits at."""
    master, slave = pty.openpty()
    ended = threading.Event()

    def sit() -> None:
        heard = b""
        while not ended.is_set():
            if not select.select([master], [], [], 0.05)[0]:
                continue
            heard += os.read(master, 4096)
            if b"\a" not in heard:
                continue
            asked, _, heard = heard.partition(b"\a")
            if b"on or off?" in asked:
                os.write(master, b"on" if "ON" in switch(server, "state")[1] else b"off")
            if b"switch it off" in asked:
                switch(server, "off")
            os.write(master, b"\n")
            if b"then switch it on" in asked:
                switch(server, "on")
            elif b"reset button" in asked:
                switch(server, "reset")

    sitting = threading.Thread(target=sit, daemon=True)
    sitting.start()
    try:
        yield os.ttyname(slave)
    finally:
        ended.set()
        sitting.join()
        os.close(master)
        os.close(slave)
