"""A tiny guest, and a Linux one for all tests of a cell."""

from functools import partial

import pytest

from labctl.hypervisor.guests import start_linux, start_tiny


@pytest.fixture
def tiny(hypervisor):
    """``tiny("one", "hz=10", memory=...)``: a tiny guest that runs and is ready."""
    return partial(start_tiny, hypervisor)


@pytest.fixture
def linux(hypervisor, keep_vm):
    """A Linux that runs and has a shell on its console: ``linux.run("uname -r")``. It is dear: all tests of a cell share it."""
    guest = start_linux(hypervisor)
    keep_vm(guest.name)
    return guest
