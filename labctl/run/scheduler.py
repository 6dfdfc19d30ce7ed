"""Cells → xdist workers, through xdist's own hook.

A cell's tests stay on one worker, in order. Cells go longest first by history; one whose CPUs are free now goes before one that would
wait for them. xdist's worker starts a test only once it knows the next one, so that the last test of a cell would wait for another cell
to be promised to that worker: an early promise is what makes long tails. Each cell is therefore followed by one idle item that does
nothing, and the next cell is given out only when the worker is really free.

A worker that dies costs one cell: what was left of the cell is tried once more on another worker, then given up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

IDLE = "labctl-idle"
"""Name of the item that follows each cell."""


class Node(Protocol):
    """What is used of xdist's WorkerController."""

    def send_runtest_some(self, indices: Sequence[int]) -> None: ...
    def shutdown(self) -> None: ...


@dataclass
class _Job:
    """What is left to run of one cell."""

    cell: str
    items: list[int]
    tries: int = 1


@dataclass
class CellScheduling:
    """xdist's ``Scheduling`` protocol (scheduler/protocol.py) over cells.

    ``order``: ids of the cells, longest first. ``cpus``: cell id → host CPUs it takes. ``capacity``: CPUs of the host.
    ``refused``: whether a file of the suites cannot be read, once they have been collected: then no cell is begun. A worker of xdist's
    would run what it could collect, where pytest alone stops.
    """

    order: Sequence[str]
    cpus: Mapping[str, int]
    capacity: int
    refused: Callable[[], bool] = lambda: False
    lost: list[str] = field(default_factory=list)
    """Cells given up because a worker died in them twice."""

    _collection: list[str] | None = None
    _cells: Mapping[str, str] = field(default_factory=dict)
    _queue: list[_Job] = field(default_factory=list)
    _running: dict[Node, _Job | None] = field(default_factory=dict)
    _ready: set[int] = field(default_factory=set)
    _stopped: set[int] = field(default_factory=set)

    def __hash__(self) -> int:
        return id(self)

    @property
    def nodes(self) -> list[Node]:
        return list(self._running)

    @property
    def collection_is_completed(self) -> bool:
        return self._collection is not None

    @property
    def tests_finished(self) -> bool:
        return self.collection_is_completed and not self.has_pending

    @property
    def has_pending(self) -> bool:
        return bool(self._queue) or any(job is not None and job.items for job in self._running.values())

    def add_node(self, node: Node) -> None:
        self._running[node] = None

    def add_node_collection(self, node: Node, collection: Sequence[str]) -> None:
        self._ready.add(id(node))
        if self._collection is None:
            self._collection = list(collection)
            by_cell: dict[str, list[int]] = {}
            for index, nodeid in enumerate(self._collection):
                if (cell := cell_in(nodeid, self.cpus)) is not None:
                    by_cell.setdefault(cell, []).append(index)
            self._queue = [] if self.refused() else [_Job(cell, by_cell[cell]) for cell in self.order if cell in by_cell]
        elif list(collection) != self._collection:
            # Suite files changed under a run: this worker's indices would mean other tests.
            self._stopped.add(id(node))
            node.shutdown()

    def schedule(self) -> None:
        for node in list(self._running):
            if id(node) in self._ready:
                self._feed(node)

    def mark_test_complete(self, node: Node, item_index: int, duration: float = 0) -> None:
        job = self._running.get(node)
        if job is not None and item_index in job.items:
            job.items.remove(item_index)
            if not job.items:
                self._running[node] = None
                self._feed(node)

    def mark_test_pending(self, item: str) -> None:
        raise NotImplementedError("a test is tried again inside its worker, never by xdist")

    def remove_pending_tests_from_node(self, node: Node, indices: Sequence[int]) -> None:
        raise NotImplementedError("nothing is stolen: a cell is given out only when a worker is free")

    def remove_node(self, node: Node) -> str | None:
        """A worker ended. Returns the test it died in if that cell is given up, else None."""
        job = self._running.pop(node)
        self._ready.discard(id(node))
        if job is None or not job.items or self._collection is None:
            return None
        if job.tries > 1:
            self.lost.append(job.cell)
            return self._collection[job.items[0]]
        self._queue.insert(0, _Job(job.cell, job.items, job.tries + 1))
        for other, current in list(self._running.items()):
            if current is None:
                self._feed(other)
        return None

    def _feed(self, node: Node) -> None:
        if id(node) in self._stopped or self._running.get(node) is not None or self._collection is None:
            return
        if not self._queue:
            return  # kept: a cell may come back from a worker that dies; all are told to stop when the last cell has ended
        free = self.capacity - sum(self._share(job) for job in self._running.values() if job is not None)
        job = next((job for job in self._queue if self._share(job) <= free), self._queue[0])
        self._queue.remove(job)
        self._running[node] = job
        node.send_runtest_some([*job.items, len(self._collection) - 1])

    def _share(self, job: _Job) -> int:
        return min(self.cpus.get(job.cell, 1), self.capacity)


def cell_in(nodeid: str, known: Mapping[str, object]) -> str | None:
    """The cell in a node id: ``file::test[CELL]`` or ``file::test[CELL-param]``."""
    _, bracket, inner = nodeid.partition("[")
    if not bracket:
        return None
    inner = inner.rstrip("]")
    while inner not in known:
        inner, dash, _ = inner.rpartition("-")
        if not dash:
            return None
    return inner
