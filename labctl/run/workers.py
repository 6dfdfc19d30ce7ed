"""xdist workers that are forked from the process that starts the run, once it has imported what all of them need.

xdist starts a worker as a new Python, which then imports pytest and labctl from nothing: some 0.3 s of a CPU each, at the very time when
the first machines could boot. A fork has it all already, and shares the memory of it.
"""

from __future__ import annotations

import gc
import os
import signal
from contextlib import suppress
from typing import Any

import execnet
from execnet.gateway_base import Popen2IO, get_execmodel, serve

from labctl.process import fork, interrupt_once

MODEL = "main_thread_only"


class ForkedWorkers(execnet.Group):
    """An execnet group whose first ``count`` popen gateways are forks of this process, made now: it must have one thread only.

    They are handed to xdist when it asks for gateways; any more (a worker has died) are started as xdist does. What is not handed over
    ends with this process.
    """

    def __init__(self, count: int) -> None:
        super().__init__(execmodel=MODEL)
        gc.collect()
        gc.freeze()  # what exists by now is not touched by the forks' garbage collection, and so not copied
        self._forks: list[_ForkIO] = []
        for _ in range(count):
            self.allocate_id(execnet.XSpec("popen"))  # xdist has given them gw0, gw1, ... itself; a later one is not to be called so again
            self._forks.append(_fork([fd for io in self._forks for fd in io.fds]))

    def makegateway(self, spec: Any = None) -> Any:
        """The next fork for a plain popen spec, else a new gateway."""
        plain = getattr(spec, "popen", False) and not any(getattr(spec, key, None) for key in ("python", "via", "chdir", "nice", "env"))
        if not self._forks or not plain:
            return super().makegateway(spec)
        gateway = execnet.Gateway(self._forks.pop(0), spec)
        gateway.spec = spec
        self._register(gateway)
        return gateway

    def interrupt(self) -> None:
        """SIGINT to every worker: Ctrl-C reaches them by itself, a signal to the run's process alone does not."""
        for gateway in self:
            pid = getattr(gateway._io, "pid", None) or getattr(getattr(gateway._io, "popen", None), "pid", None)
            if pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGINT)


class _ForkIO(Popen2IO):
    """This process' side of the two pipes to a fork, as `execnet.gateway_io.Popen2IOMaster` is for a program."""

    def __init__(self, pid: int, write: int, read: int) -> None:
        super().__init__(os.fdopen(write, "wb"), os.fdopen(read, "rb"), get_execmodel(MODEL))
        self.pid = pid
        self.fds = (write, read)

    def wait(self) -> int | None:
        """Until the fork has ended: its status, or None if somebody else took it."""
        try:
            return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        except ChildProcessError:
            return None

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


def _fork(others: list[int]) -> _ForkIO:
    """A process that serves execnet over pipes; ``others`` are this process' ends of the pipes to earlier forks."""
    theirs_in, write = os.pipe()
    read, theirs_out = os.pipe()

    def serve_it() -> None:
        for fd in (write, read, *others):
            os.close(fd)  # an end of a pipe that is kept open here would hide its end from the fork on the other side
        # Also where the run itself ignores it: a worker is told so by the run, which ends it.
        interrupt_once(always=(signal.SIGINT, signal.SIGTERM))
        io: Any = Popen2IO(os.fdopen(theirs_out, "wb"), os.fdopen(theirs_in, "rb"), get_execmodel(MODEL))
        serve(io, id=f"fork-{os.getpid()}-worker")

    pid = fork(serve_it)
    os.close(theirs_in)
    os.close(theirs_out)
    return _ForkIO(pid, write, read)
