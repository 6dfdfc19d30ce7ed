"""Virtual servers for tests: each in a lab of its own, gone with the test however it ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from labctl.config import Lab
from labctl.model import Target
from labctl.virtualserver.client import VirtualServer
from tests.leftovers import machine_name


@contextmanager
def virtual_server(
    root: Path, *, redfish: bool = False, uefi: bool = False, memory: int = 256 << 20, name: str = ""
) -> Iterator[VirtualServer]:
    """A running virtual server in the lab at ``root``, which is made if there is none. It dies with the thread that calls."""
    if not (root / "lab.toml").exists():
        root.mkdir(parents=True, exist_ok=True)
        (root / "lab.toml").write_text("schema = 1\n")
    server = VirtualServer(root, name or machine_name("vs"))
    child = server.start(cpus=1, memory=memory, disk=1 << 30, redfish=redfish, uefi=uefi, owned=True)
    assert child is not None
    try:
        yield server
    finally:
        try:
            server.stop()
        finally:
            child.kill()


def target_of(server: VirtualServer) -> Target:
    """As the lab reads the file that was written for it."""
    return Lab.find(server.lab_root).target(server.name)
