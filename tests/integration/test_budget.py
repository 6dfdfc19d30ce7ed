"""The host's CPUs and memory: real processes, real kernel locks."""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from labctl.deadline import Deadline
from labctl.errors import ConfigError, InfraError
from labctl.machine import budget
from labctl.machine.budget import Share, capacity, fits, take
from labctl.machine.lockfile import LockFile

ROOT = Path(__file__).parents[2]
M = 1 << 20
CPUS = 4


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LABCTL_LOCKS", str(tmp_path / "locks"))
    monkeypatch.setenv("LABCTL_CPUS", str(CPUS))


def soon() -> Deadline:
    return Deadline.after(10)


def now() -> Deadline:
    return Deadline.after(0)


OWNER = textwrap.dedent(
    """
    import subprocess, sys
    from labctl.deadline import Deadline
    from labctl.machine.budget import take
    cpus, memory, exclusive, why = sys.argv[1:]
    print("begun", flush=True)
    with take(int(cpus), int(memory), exclusive=exclusive == "yes", why=why, deadline=Deadline.after(30)) as share:
        # The emulator's place: it inherits whatever is not close-on-exec.
        sleeper = subprocess.Popen(["sleep", "60"], close_fds=False, stdout=subprocess.DEVNULL)
        print("has", len(share.cpus), sleeper.pid, flush=True)
        sys.stdin.read()
    """
)


class Owner:
    """Another process that takes a share, and keeps it until it is killed."""

    def __init__(self, cpus: int, memory: int, exclusive: bool, why: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", OWNER, str(cpus), str(memory), "yes" if exclusive else "no", why],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        self.sleeper = 0
        assert self._line() == ["begun"]

    def wait_for_share(self) -> None:
        _, _, pid = self._line()
        self.sleeper = int(pid)

    def _line(self) -> list[str]:
        assert self.process.stdout is not None
        return self.process.stdout.readline().split()

    def kill(self) -> None:
        self.process.kill()

    def end(self) -> None:
        with self.process:
            self.process.kill()
        if self.sleeper:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.sleeper, 9)


@contextlib.contextmanager
def owner(cpus: int, memory: int = M, *, exclusive: bool = False, why: str = "", has_it: bool = True) -> Iterator[Owner]:
    other = Owner(cpus, memory, exclusive, why)
    try:
        if has_it:
            other.wait_for_share()
        yield other
    finally:
        other.end()


def waits(seconds: float = 0.05, **wanted: int) -> bool:
    """Whether a share cannot be had now."""
    try:
        with take(wanted.get("cpus", 1), wanted.get("memory", M), deadline=Deadline.after(seconds)):
            return False
    except InfraError:
        return True


@contextlib.contextmanager
def in_thread(work: Callable[[], None]) -> Iterator[threading.Thread]:
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield thread
    finally:
        thread.join()


def until(true: Callable[[], bool]) -> None:
    deadline = soon()
    while not true():
        assert not deadline.expired
        time.sleep(0.002)


def until_there_are(count: int, things: list[Any]) -> None:
    until(lambda: len(things) == count)


# --- capacity ---


def test_capacity_is_that_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LABCTL_CPUS")
    found = capacity()
    assert set(found.cpus) <= os.sched_getaffinity(0)
    assert len(set(found.cpus)) == len(found.cpus) >= 1
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < found.memory <= total - 256 * M


def test_labctl_cpus_oversubscribes_real_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    real = len(os.sched_getaffinity(0))
    monkeypatch.setenv("LABCTL_CPUS", str(real * 2 + 1))
    found = capacity().cpus
    assert len(found) == real * 2 + 1
    assert set(found) == os.sched_getaffinity(0)


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "4097", "²"])
def test_labctl_cpus_that_is_no_number(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("LABCTL_CPUS", text)
    with pytest.raises(ConfigError, match="LABCTL_CPUS: found"):
        capacity()


def groups(tmp_path: Path, membership: str, files: dict[str, str]) -> tuple[float, int]:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "cgroup").write_text(membership)
    return budget._cgroup_limits(tmp_path / "cgroup", tmp_path / "fs")


def test_control_groups_version_2(tmp_path: Path) -> None:
    files = {
        "fs/a/memory.max": "1073741824\n",
        "fs/a/cpu.max": "max 100000\n",
        "fs/a/b/memory.max": "max\n",
        "fs/a/b/cpu.max": "150000 100000\n",
    }
    assert groups(tmp_path, "0::/a/b\n", files) == (1.5, 1 << 30)


def test_control_groups_version_1_in_a_container(tmp_path: Path) -> None:
    files = {
        "fs/memory/memory.limit_in_bytes": "536870912\n",
        "fs/cpu,cpuacct/cpu.cfs_quota_us": "200000\n",
        "fs/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
    }
    assert groups(tmp_path, "4:memory:/docker/1\n3:cpu,cpuacct:/docker/1\n2:name=systemd:/\n", files) == (2.0, 512 * M)


def test_control_groups_that_say_nothing(tmp_path: Path) -> None:
    assert groups(tmp_path, "0::/../outside\n1:cpu:/\n", {"fs/cpu/cpu.cfs_quota_us": "-1\n", "fs/memory.max": "what\n"}) == (
        math.inf,
        1 << 62,
    )
    assert budget._cgroup_limits(tmp_path / "none", tmp_path) == (math.inf, 1 << 62)


def test_fits() -> None:
    most = capacity().memory
    assert fits(1, most) == ""
    assert fits(100_000, M) == ""
    assert "the host has" in fits(1, most + 1)
    assert fits(-1, 0)


# --- shares ---


def test_shares_do_not_overlap() -> None:
    with take(2, M, deadline=soon()) as one, take(2, M, deadline=soon()) as two:
        assert len(one.cpus) == len(two.cpus) == 2
        assert sorted(one.cpus + two.cpus) == sorted(capacity().cpus)
        assert waits(cpus=1)
    assert not waits(cpus=4)


def test_more_cpus_than_there_are_are_all() -> None:
    with take(100, M, deadline=soon()) as share:
        assert sorted(share.cpus) == sorted(capacity().cpus)


def test_cpus_run_out_in_other_processes() -> None:
    with owner(3, why="three"):
        assert waits(cpus=2)
        assert not waits(cpus=1)


def test_memory_runs_out_to_the_byte() -> None:
    most = capacity().memory
    with take(1, most - M, deadline=soon()):
        assert waits(memory=M + 1)
        assert not waits(memory=M)


def test_memory_need_not_be_in_one_piece() -> None:
    third = capacity().memory // 3
    with contextlib.ExitStack() as middle:
        with take(1, third, deadline=soon()):
            middle.enter_context(take(1, third, deadline=soon()))
        assert waits(memory=third * 2 + 3)
        with take(1, third * 2, deadline=now()) as share:
            assert share == Share(share.cpus, third * 2)
            assert waits(memory=3)


def test_more_memory_than_the_host_has_is_told_at_once() -> None:
    start = time.monotonic()
    with pytest.raises(InfraError, match="the host has"), take(1, capacity().memory + 1, deadline=soon()):
        pass
    assert time.monotonic() - start < 1


def test_the_deadline_says_who_has_what() -> None:
    with owner(4, 64 * M, why="nightly \x1b[2J") as other:
        start = time.monotonic()
        with pytest.raises(InfraError) as caught, take(1, M, deadline=Deadline.after(0.3)):
            pass
        assert 0.3 <= time.monotonic() - start < 0.6
    message = caught.value.message
    assert "no room on the host for 1 CPU and 1M within 0.3 s" in message
    assert f"(pid {other.process.pid}) has 4 CPUs and 64M: nightly  [2J" in message
    assert message.count("nightly") == 1
    assert "\x1b" not in message


def test_who_has_the_whole_host_has_a_size_that_can_be_read() -> None:
    with owner(1, M, exclusive=True), pytest.raises(InfraError) as caught, take(1, M, deadline=now()):
        pass
    assert f"has {CPUS} CPUs and {capacity().memory / (1 << 30):.1f}G" in caught.value.message
    assert [budget._brief(size) for size in (64 * M, 4 << 30, 1536 * M, 23696309760, 100100 << 10, 5)] == (
        ["64M", "4G", "1536M", "22.1G", "97.8M", "0.0M"]
    )


def test_a_killed_owner_frees_its_share_within_100_ms_though_a_child_lives_on() -> None:
    told: list[str] = []
    got: list[float] = []

    def want() -> None:
        with take(4, M, deadline=soon(), on_wait=told.append):
            got.append(time.monotonic())

    with owner(1, why="first") as other, in_thread(want):
        until(lambda: bool(told))
        killed = time.monotonic()
        other.kill()
        until(lambda: bool(got))
        os.kill(other.sleeper, 0)
        assert got[0] - killed < 0.1
    assert len(told) == 1
    assert told[0].startswith("waits for 4 CPUs and 1M: ")
    assert "first" in told[0]


def test_an_error_in_the_block_frees_the_share() -> None:
    with pytest.raises(ZeroDivisionError), take(4, M, deadline=soon()):
        raise ZeroDivisionError
    assert not waits(cpus=4)


# --- exclusive ---


def test_exclusive_is_alone() -> None:
    with take(1, M, exclusive=True, deadline=soon()) as share:
        assert share == Share(capacity().cpus, capacity().memory)
        assert waits(cpus=1)
        assert waits(cpus=0, memory=1)
        with pytest.raises(InfraError, match="the whole host"), take(1, M, exclusive=True, deadline=now()):
            pass
    with owner(1), pytest.raises(InfraError, match="the whole host"), take(1, M, exclusive=True, deadline=now()):
        pass


def test_exclusive_keeps_out_who_sees_more_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    with take(1, M, exclusive=True, deadline=soon()):
        monkeypatch.setenv("LABCTL_CPUS", "64")
        assert waits(cpus=1)


# --- first come, first served ---


def test_a_large_request_is_not_starved_by_small_ones() -> None:
    """Small ones that fit come while a large one waits: they must not pass it."""
    order: list[str] = []
    waiting: list[str] = []

    def want(name: str, cpus: int) -> Callable[[], None]:
        def work() -> None:
            with take(cpus, M, deadline=soon(), on_wait=lambda text: waiting.append(name)):
                order.append(name)
                time.sleep(0.01)

        return work

    with contextlib.ExitStack() as threads, owner(1):
        for count, (name, cpus) in enumerate([("large", 4), ("small 0", 1), ("small 1", 1), ("small 2", 1)], 1):
            threads.enter_context(in_thread(want(name, cpus)))
            until_there_are(count, waiting)
        assert order == []
    assert order[0] == "large"
    assert sorted(order[1:]) == ["small 0", "small 1", "small 2"]


def test_who_waits_is_served_in_the_order_of_coming() -> None:
    order: list[int] = []
    waiting: list[int] = []

    def want(index: int) -> Callable[[], None]:
        def work() -> None:
            with take(4, M, deadline=soon(), on_wait=lambda text: waiting.append(index) if index not in waiting else None):
                order.append(index)

        return work

    with contextlib.ExitStack() as threads, owner(1):
        for index in range(5):
            threads.enter_context(in_thread(want(index)))
            until_there_are(index + 1, waiting)
    assert order == [0, 1, 2, 3, 4]


def test_who_waits_is_told_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of one who has just taken his share, and where nobody has one yet of those who were there before."""
    told: list[str] = []
    write = LockFile.write_record

    def slowly(file: LockFile, index: int, values: dict[str, Any]) -> None:
        time.sleep(0.02)
        write(file, index, values)

    monkeypatch.setattr(LockFile, "write_record", slowly)

    def want() -> None:
        for _ in range(3):
            with take(4, M, why="one of them", deadline=soon(), on_wait=told.append):
                time.sleep(0.01)

    with contextlib.ExitStack() as threads:
        for _ in range(4):
            threads.enter_context(in_thread(want))
    assert told
    assert [text for text in told if "has 4 CPUs and 1M: one of them" not in text] == []


def test_a_waiter_that_is_killed_or_gives_up_does_not_block_the_queue() -> None:
    with owner(3), owner(4, has_it=False) as killed:
        until(lambda: waits(0, cpus=1))  # it stands in the queue
        killed.kill()
        killed.process.wait()
        assert not waits(cpus=1)
        assert waits(cpus=4)
        assert not waits(cpus=1)


def test_many_processes_never_take_more_than_there_is(tmp_path: Path) -> None:
    """Each writes down what it has while it has it; the sum is checked by every one."""
    script = textwrap.dedent(
        """
        import os, random, sys, time
        from pathlib import Path
        from labctl.deadline import Deadline
        from labctl.machine.budget import take
        folder, seed = Path(sys.argv[1]), int(sys.argv[2])
        chance = random.Random(seed)
        for turn in range(15):
            with take(chance.randint(1, 3), 1, exclusive=chance.random() < 0.1, deadline=Deadline.after(60)) as share:
                mine = folder / f"{seed}-{len(share.cpus)}"
                mine.touch()
                there = [p.name for p in folder.iterdir()]
                time.sleep(0.001)
                mine.unlink()
                used = sum(int(name.split("-")[1]) for name in there)
                if used > 4:
                    sys.exit(f"{used} CPUs: {there}")
        """
    )
    folder = tmp_path / "in-use"
    folder.mkdir()
    processes = [
        subprocess.Popen([sys.executable, "-c", script, str(folder), str(seed)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for seed in range(4)
    ]
    for process in processes:
        with process:
            _, words = process.communicate(timeout=60)
            assert (process.returncode, words) == (0, "")


# --- cost ---


def test_taking_and_giving_back_costs_less_than_a_millisecond() -> None:
    with take(1, M, deadline=soon()):
        pass
    costs = []
    for _ in range(200):
        start = time.perf_counter()
        with take(2, 512 * M, deadline=soon()):
            pass
        costs.append(time.perf_counter() - start)
    assert sorted(costs)[100] < 0.001


def test_waiting_costs_little() -> None:
    with owner(4):
        spent = time.process_time()
        assert waits(1.0, cpus=1)
        assert time.process_time() - spent < 0.1


def test_an_oversubscribed_host_has_room_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABCTL_CPUS", "4096")
    with take(4095, M, deadline=soon()):
        assert waits(cpus=2)
        assert not waits(cpus=1)
