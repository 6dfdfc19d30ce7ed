"""Workers that begin before pytest asks for them: half a second of imports, done while the controller has its own to do.

xdist starts a worker's Python only when its own session has begun, and the worker then imports pytest and labctl from nothing. Here the
processes are started first, load what every worker needs, and are handed to xdist when it comes to make them.
"""

from __future__ import annotations

from typing import Any

import execnet

SPEC = "popen//execmodel=main_thread_only"
LOAD = """
import pytest, xdist.remote
import labctl.run.attempt, labctl.run.scheduler, labctl.run.work, labctl.store.host, labctl.store.reader, labctl.store.writer
"""
"""Not the plugin itself: pytest wants to rewrite its assertions when it loads it."""


class EarlyWorkers(execnet.Group):
    """An execnet group whose first ``count`` popen gateways exist already. What is not handed over ends with the others."""

    def __init__(self, count: int) -> None:
        super().__init__(execmodel="main_thread_only")
        self._early: list[tuple[Any, Any]] = []
        for _ in range(count):
            gateway = super().makegateway(SPEC)
            self._early.append((gateway, gateway.remote_exec(LOAD)))

    def makegateway(self, spec: Any = None) -> Any:
        """The next early worker for a plain popen spec, else a new gateway."""
        if self._early and getattr(spec, "popen", False) and not getattr(spec, "python", None) and not getattr(spec, "via", None):
            gateway, loading = self._early.pop(0)
            loading.waitclose()  # its one thread must be free before it is asked for more
            return gateway
        return super().makegateway(spec)
