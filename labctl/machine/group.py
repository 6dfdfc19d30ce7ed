"""Several machines of one cell: a session each, the cables between them, all off at the end whatever happens to any of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from labctl.errors import ConfigError, KernelCrash, LabctlError, TargetFailure
from labctl.machine import registry
from labctl.machine.boot import Boot
from labctl.machine.impairment import Counts, Impairment, impaired
from labctl.machine.session import Session, Watcher
from labctl.machine.wires import Cable, Wire, laid
from labctl.model import Build, GroupConfig, Target


@dataclass
class Machines(Mapping[str, Session]):
    """The machines of a target of several, by the names that its file gives them: ``machines["a"]`` is what ``target`` is elsewhere."""

    target: Target
    build: Build
    workdir: Path
    """Each machine's transcript lies in a folder of its name in there."""
    host_cpus: tuple[int, ...] = ()
    watcher: Callable[[str], Watcher] = lambda machine: Watcher()
    """What is told of the machine of that name."""

    _sessions: dict[str, Session] = field(default_factory=dict, init=False)
    cables: tuple[Cable, ...] = field(default=(), init=False)
    """As the target's ``links``."""

    def __enter__(self) -> Self:
        config = self.target.config
        if not isinstance(config, GroupConfig):
            raise ConfigError(f"target {self.target.name} is one machine")
        with ExitStack() as stack:
            self.cables = stack.enter_context(laid(config.links))
            for name, machine in self.target.machines.items():
                wires = self._wires(name)
                session = Session(machine, self.build, self.workdir / name, self.host_cpus, self.watcher(name), wires)
                self._sessions[name] = stack.enter_context(session)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def __getitem__(self, name: str) -> Session:
        return self._sessions[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sessions)

    def __len__(self) -> int:
        return len(self._sessions)

    def _wires(self, machine: str) -> dict[str, Wire]:
        ends = {end: wire for cable in self.cables for end, wire in cable.ends.items()}
        return {end.partition(".")[2]: wire for end, wire in ends.items() if end.partition(".")[0] == machine}

    @property
    def failure(self) -> TargetFailure | None:
        """Why one of the machines did not boot."""
        return next((session.failure for session in self.values() if session.failure is not None), None)

    def booted(self) -> dict[str, Boot]:
        """The current boot of each; those that are not up are booted, all at once. Raises what says most about why one did not boot."""
        if self.failure is not None:
            raise self.failure
        # Switched on one after another, which takes no time; from then on all boot, whichever is looked at first.
        waits = {name: partial(session.wait, session.power_on()) for name, session in self.items() if not session.up}
        errors: list[LabctlError] = []
        for wait in waits.values():
            try:
                wait()
            except LabctlError as error:
                errors.append(error)
        if errors:
            raise min(errors, key=_rank)
        return {name: session.boots[-1] for name, session in self.items()}

    @property
    def emulated(self) -> bool:
        """Whether the lab itself carries what they send to each other: then it can stand in the way (`impaired`)."""
        return all(registry.takes_wires(part) for part in self.target.parts)

    def check_crash(self) -> None:
        """Raise KernelCrash if the kernel of one of them has crashed since its boot, or since the last call."""
        for session in self.values():
            session.check_crash()

    @contextmanager
    def impaired(self, impairment: Impairment, link: int = 0) -> Iterator[dict[str, Counts]]:
        """Loss, delay, reordering on one of the target's ``links`` for this block. Gives what was done to how many frames, by MACHINE.CARD.

        For emulated machines: nobody stands in the way of a real cable."""
        with impaired(self.cables[link], impairment) as counts:
            yield counts

    def tail(self, lines: int) -> str:
        """The last lines of each console, under the machine's name."""
        return "\n".join(f"--- {name}\n{session.transcript.tail(lines)}" for name, session in self.items())

    @property
    def reproduce(self) -> str:
        """A shell command for each that shows the same boot by hand; without the cable between them."""
        return "\n".join(session.reproduce for session in self.values())


def _rank(error: LabctlError) -> int:
    """Smaller says more about what went wrong."""
    return 0 if isinstance(error, KernelCrash) else 1 if isinstance(error, TargetFailure) else 2
