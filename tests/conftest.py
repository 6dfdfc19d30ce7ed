"""What the tests that boot a machine share: the build, and a way to see that nothing is left running."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from labctl.build.obtain import obtain
from labctl.config import Lab
from labctl.model import Build
from tests.leftovers import our_machines
from tests.temporary_lab import TemporaryLab

REPOSITORY = Path(__file__).parents[1]

# What is started in the background, or by nohup, ignores these, and so would all that the tests start and then interrupt.
for _number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        with suppress(ValueError):  # not in the main thread
            signal.signal(_number, signal.SIG_DFL)

# How long an example takes says how busy the host is.
settings.register_profile("any-host", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any-host")


@pytest.fixture(scope="session")
def repository() -> Lab:
    """The lab that the checkout is."""
    return Lab.find(REPOSITORY)


@pytest.fixture(scope="session")
def debian(repository: Lab) -> Build:
    """A Debian cloud kernel with the lab's own initramfs, from the user's cache: made by the first test that needs it, once."""
    return obtain(repository, "debian-cloud", progress=print)


@pytest.fixture(scope="session", autouse=True)
def no_machine_is_left() -> Iterator[None]:
    """Whatever the tests did, none of the machines that they started outlives them."""
    yield
    end = time.monotonic() + 2
    while (left := our_machines()) and time.monotonic() < end:
        time.sleep(0.05)
    assert not left, f"still running: {left}"


@pytest.fixture(scope="session")
def fault_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """These builds are worth nothing tomorrow: they do not go to the user's cache."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def new_lab(debian: Build, fault_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], TemporaryLab]:
    return lambda: TemporaryLab(tmp_path_factory.mktemp("lab"), debian, fault_cache)


@pytest.fixture
def lab(new_lab: Callable[[], TemporaryLab]) -> TemporaryLab:
    return new_lab()
