"""A build as it is put on one target: with the agent in its initramfs where a driver of the target speaks to one."""

from __future__ import annotations

from collections.abc import Callable

from labctl.build.cache import Cache
from labctl.machine import registry
from labctl.model import Build, Target


def equipped(build: Build, target: Target, progress: Callable[[str], None] = lambda _: None, cache: Cache | None = None) -> Build:
    """What the target boots of that build. HostToolMissing, BuildFailed, InfraError, StorageError; NotMade of a cache that only looks."""
    argument = registry.in_guest(target)
    if not argument:
        return build
    from labctl.build.agent import equip

    return equip(build, argument, progress, cache=cache)
