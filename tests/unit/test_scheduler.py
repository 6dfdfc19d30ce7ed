"""Cells to workers: one worker a cell, longest first, no early promises, a dead worker costs one cell."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from labctl.run.scheduler import CellScheduling, cell_in


class Worker:
    """Remembers what it was told, as xdist's WorkerController passes it on."""

    def __init__(self) -> None:
        self.sent: list[list[int]] = []
        self.stopped = False

    def send_runtest_some(self, indices: Sequence[int]) -> None:
        self.sent.append(list(indices))

    def shutdown(self) -> None:
        self.stopped = True


CELLS = {"a/t/s": 1, "b/t/s": 1, "c/t/s": 1}


def collection(cells: Sequence[str], tests: int = 2) -> list[str]:
    return [f"suites/s/test_s.py::test_{n}[{cell}]" for cell in cells for n in range(tests)] + ["labctl-idle"]


def scheduling(workers: int, cells: dict[str, int] | None = None, capacity: int = 8) -> tuple[CellScheduling, list[Worker]]:
    cells = cells or CELLS
    made = CellScheduling(order=list(cells), cpus=cells, capacity=capacity)
    nodes = [Worker() for _ in range(workers)]
    for node in nodes:
        made.add_node(node)
        made.add_node_collection(node, collection(list(cells)))
    made.schedule()
    return made, nodes


def test_each_cell_goes_whole_to_one_worker_followed_by_the_idle_item() -> None:
    _, (one, two) = scheduling(2)
    assert one.sent == [[0, 1, 6]]
    assert two.sent == [[2, 3, 6]]


def test_the_next_cell_is_given_only_when_the_last_test_of_the_one_before_has_ended() -> None:
    made, (one, two) = scheduling(2)
    made.mark_test_complete(one, 0)
    assert len(one.sent) == 1
    made.mark_test_complete(two, 2)
    made.mark_test_complete(two, 3)
    assert two.sent[1:] == [[4, 5, 6]]
    made.mark_test_complete(one, 1)
    assert len(one.sent) == 1
    assert not made.tests_finished
    for index in (4, 5):
        made.mark_test_complete(two, index)
    assert made.tests_finished


def test_a_cell_that_fits_the_free_cpus_goes_before_a_larger_one_that_would_wait() -> None:
    _, (one, two) = scheduling(2, {"small/t/s": 1, "large/t/s": 8, "tiny/t/s": 1}, capacity=2)
    assert one.sent == [[0, 1, 6]]
    assert two.sent == [[4, 5, 6]]


def test_a_cell_larger_than_the_host_runs_all_the_same() -> None:
    _, (one,) = scheduling(1, {"large/t/s": 64}, capacity=2)
    assert one.sent == [[0, 1, 2]]


def test_a_worker_that_dies_costs_its_cell_one_try() -> None:
    made, (one, two) = scheduling(2)
    made.mark_test_complete(one, 0)
    assert made.remove_node(one) is None
    for index in (2, 3):
        made.mark_test_complete(two, index)
    assert two.sent[1] == [1, 6], "what was left of the lost cell comes first"


def test_a_cell_that_kills_two_workers_is_given_up_and_named() -> None:
    made, (one, two) = scheduling(2)
    made.remove_node(one)
    for index in (2, 3):
        made.mark_test_complete(two, index)
    assert made.remove_node(two) == "suites/s/test_s.py::test_0[a/t/s]"
    assert made.lost == ["a/t/s"]
    fresh = Worker()
    made.add_node(fresh)
    made.add_node_collection(fresh, collection(list(CELLS)))
    made.schedule()
    assert fresh.sent == [[4, 5, 6]]


def test_a_worker_that_collected_other_tests_is_stopped() -> None:
    made, _ = scheduling(1)
    other = Worker()
    made.add_node(other)
    made.add_node_collection(other, ["suites/s/test_s.py::test_new[a/t/s]"])
    made.schedule()
    assert other.stopped
    assert not other.sent


@pytest.mark.parametrize(
    ("nodeid", "cell"),
    [
        ("s/t.py::t[a/t/s]", "a/t/s"),
        ("s/t.py::t[a/t/s-4k-randread]", "a/t/s"),
        ("s/t.py::t[a-1/t-2/s#2-x]", "a-1/t-2/s#2"),
        ("s/t.py::t[other]", None),
        ("s/t.py::t", None),
    ],
)
def test_cell_in(nodeid: str, cell: str | None) -> None:
    assert cell_in(nodeid, {"a/t/s": 1, "a-1/t-2/s#2": 1, "a-1/t-2/s": 1}) == cell
