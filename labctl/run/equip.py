"""A build as it is put on one target: with the agent in its initramfs where a driver of the target speaks to one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from labctl.build.cache import Cache
from labctl.machine import registry
from labctl.model import Build, Cell, Target
from labctl.run.work import Work, suited_key


def equipped(build: Build, target: Target, progress: Callable[[str], None] = lambda _: None, cache: Cache | None = None) -> Build:
    """What the target boots of that build. HostToolMissing, BuildFailed, InfraError, StorageError; NotMade of a cache that only looks."""
    argument = registry.in_guest(target)
    if not argument:
        return build
    from labctl.build.agent import equip

    return equip(build, argument, progress, cache=cache)


@dataclass
class Equipment:
    """What the cells of a run boot. A process finds each build but once: to see what it is made of takes a hundredth of a second, and a
    copy of a machine starts in twenty."""

    work: Work
    _found: dict[tuple[str, str], Build] = field(default_factory=dict, init=False)

    def of(self, cell: Cell, target: Target) -> Build:
        """What that cell boots of its build, on its target. Raises as `equipped`."""
        name = suited_key(cell) if suited_key(cell) in self.work.suited else cell.build
        key = name, registry.in_guest(target)
        found = self._found.get(key)
        if found is None or found.initrd is None or not found.initrd.is_file():  # the cache can be emptied at any time
            found = self._found[key] = equipped(self.work.suited.get(name) or self.work.builds[name], target)
        return found
