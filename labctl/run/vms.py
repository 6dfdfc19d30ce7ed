"""VMs that a test makes on the machine under test are gone at its end, unless it says that others are to have them too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from labctl.deadline import Deadline
from labctl.errors import ConfigError, Problem, VmFailed
from labctl.hypervisor import registry
from labctl.hypervisor.protocols import CAPABILITIES, Hypervisor
from labctl.machine.session import Session
from labctl.model import Build

TIDY_S = 60.0
"""Seconds in which all that a test has left behind is to be gone, and for one look at what there is."""


def why_no_hypervisor(build: Build) -> str:
    """Why there are no VMs of a build; empty if there are."""
    return "" if build.hypervisor else f"needs a hypervisor: {build.name} is none (hypervisor in its recipe)"


def wrong_abilities(wanted: object) -> Problem | None:
    """What is wrong with a list of `CAPABILITIES` that a test requires."""
    where, key = "@pytest.mark.requires", "hypervisor"
    if not isinstance(wanted, (list, tuple)) or not all(isinstance(name, str) for name in wanted):
        return Problem(where, key, f"found {wanted!r}", 'a list, such as ["Snapshots"]')
    unknown = [name for name in wanted if name not in CAPABILITIES]
    return Problem(where, key, f"unknown: {', '.join(unknown)}", f"known: {', '.join(CAPABILITIES)}") if unknown else None


def why_not_able(build: Build, wanted: Sequence[str]) -> str:
    """What of these abilities (`CAPABILITIES`) a build's hypervisor lacks; empty if nothing. ConfigError for one that does not exist."""
    if wrong := wrong_abilities(wanted):
        raise ConfigError([wrong])
    if why := why_no_hypervisor(build):
        return why
    driver = registry.load(build.hypervisor)
    able = registry.declared(driver)
    lacking = [registry.half_declared(driver, name) or name for name in wanted if name not in able]
    return f"the hypervisor {build.hypervisor} has no {', '.join(lacking)}" if lacking else ""


@dataclass
class Vms:
    """The VMs of one machine through the tests of a cell."""

    session: Session
    kept: dict[str, int] = field(default_factory=dict)
    """VMs that outlive the test that made them → the boot of the machine in which they were made."""

    def keep(self, name: str) -> None:
        """The VM of that name is there for the tests that follow, as long as the machine is up."""
        self.kept[name] = len(self.session.boots)

    def is_kept(self, name: str) -> bool:
        return self.kept.get(name) == len(self.session.boots)

    @contextmanager
    def tidied(self, hypervisor: Hypervisor) -> Iterator[Hypervisor]:
        """At the end everything that is not kept is destroyed. VmFailed for what cannot be, or is there all the same."""
        yield hypervisor
        if not self.session.up:
            return  # the next test has a fresh boot
        deadline = Deadline.after(TIDY_S)
        for vm in hypervisor.list(deadline):
            if not self.is_kept(vm.name):
                hypervisor.destroy(vm.name, deadline)
        if left := [vm.name for vm in hypervisor.list(deadline) if not self.is_kept(vm.name)]:
            raise VmFailed(f"still there after it was destroyed: {', '.join(left)}", target=self.session.name)
