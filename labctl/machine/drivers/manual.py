"""Power by a person: says on the terminal what is to be done, and takes Enter for done. For a machine that nothing else can switch."""

from __future__ import annotations

import fcntl
import os
import select
import time
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from labctl.deadline import Deadline
from labctl.errors import InfraError, PowerError
from labctl.machine.protocols import DriverContext
from labctl.model import PowerState


@dataclass
class Manual:
    """Options: ``patience`` (seconds that a person has for each step; the lab's own deadlines are for machines), ``terminal`` (where that
    person is; usually the terminal that labctl was started from)."""

    context: DriverContext
    patience: Annotated[float, Field(gt=0, le=86400)] = 600.0
    terminal: str = "/dev/tty"

    _state: PowerState = field(default=PowerState.UNKNOWN, init=False)
    """As the person said it last."""

    stays_on = True
    asks_a_person = True

    def on(self, deadline: Deadline) -> int:
        if self.state(deadline) is PowerState.ON:
            raise PowerError("the machine is on already", target=self.context.target.name)
        self._ask("press Enter, then switch it on at once")
        t0_ns = time.monotonic_ns()
        self._state = PowerState.ON
        return t0_ns

    def off(self, deadline: Deadline) -> None:
        if self.state(deadline) is not PowerState.OFF:
            self._ask("switch it off, then press Enter")
            self._state = PowerState.OFF

    def reset(self, deadline: Deadline) -> int:
        if self.state(deadline) is not PowerState.ON:
            raise PowerError("the machine is off: there is nothing to reset", target=self.context.target.name)
        self._ask("press Enter, then its reset button at once")
        return time.monotonic_ns()

    def state(self, deadline: Deadline) -> PowerState:
        while self._state is PowerState.UNKNOWN:
            match self._ask("is it on or off?").strip().lower():
                case "on":
                    self._state = PowerState.ON
                case "off":
                    self._state = PowerState.OFF
        return self._state

    def _ask(self, what: str) -> str:
        """The line that the person typed. PowerError without a terminal, or when nobody answers."""
        target = self.context.target.name
        try:
            terminal = os.open(self.terminal, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError:
            raise PowerError(
                f"a person must act ({what}), and there is no terminal to ask on",
                target=target,
                remedy="run it from a terminal, or give the target a driver that can switch it",
            ) from None
        try:
            fcntl.flock(terminal, fcntl.LOCK_EX)  # one question at a time, of many workers
            os.write(terminal, f"\r\n{target}: {what} \a".encode())
            answer = b""
            end = Deadline.after(self.patience)
            while not answer.endswith(b"\n"):
                if not select.select([terminal], [], [], end.left)[0]:
                    raise PowerError(f"nobody answered within {self.patience:g} s: {what}", target=target)
                more = os.read(terminal, 256)
                if not more:
                    raise PowerError(f"the terminal has gone: {what}", target=target)
                answer += more
            return answer.decode(errors="replace")
        except OSError as error:
            raise InfraError(f"the terminal cannot be used: {error.strerror}", target=target) from None
        finally:
            os.close(terminal)


DRIVER = Manual
