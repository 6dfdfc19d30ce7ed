"""What the tests of a hypervisor share: a tiny guest, and how long a verb may take."""

import pytest

from labctl.deadline import Deadline
from labctl.hypervisor.protocols import VmSpec

TINY = "/usr/bin/tinyguest"
MIB = 1 << 20
VERB_S = 60.0
"""Seconds for one verb under emulation, on a busy host."""


@pytest.fixture
def soon():
    """``soon()``: until when a verb is to have become true."""
    return lambda seconds=VERB_S: Deadline.after(seconds)


@pytest.fixture
def tiny(hypervisor, soon):
    """``tiny("one", "hz=10", memory=...)``: a tiny guest that runs and is ready."""

    def start(name, append="", **more):
        spec = VmSpec(name, TINY, append=append, **more)
        hypervisor.create(spec, soon())
        hypervisor.start(name, soon())
        hypervisor.heard(name, "tiny: ready", soon())
        return name

    return start
