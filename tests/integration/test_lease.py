"""One owner a target: real processes, real kernel locks."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from labctl.deadline import Deadline
from labctl.errors import InfraError, TargetBusy
from labctl.machine.lease import Holder, Lease, hold, hold_all, holders
from labctl.model import Target, TargetConfig

ROOT = Path(__file__).parents[2]


def make_target(name: str = "qemu-1c", instances: int = 1) -> Target:
    config = {"schema": 1, "cpus": 1, "memory": "64M", "instances": instances, "drivers": {"qemu": {}}}
    return Target(name, TargetConfig.model_validate(config))


@pytest.fixture(autouse=True)
def locks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    # Not below tmp_path: that is closed to other users.
    folder = Path(tempfile.mkdtemp(prefix="labctl-test-locks-"))
    folder.chmod(0o755)
    monkeypatch.setenv("LABCTL_LOCKS", str(folder / "locks"))
    yield folder / "locks"
    shutil.rmtree(folder)


OWNER = textwrap.dedent(
    """
    import os, subprocess, sys, time
    from pathlib import Path
    from labctl.deadline import Deadline
    from labctl.machine.lease import hold
    from labctl.model import Target, TargetConfig
    name, instances, lab, why, child, uid = sys.argv[1:]
    if uid != "0":
        os.setgid(int(uid)); os.setuid(int(uid))
    config = {"schema": 1, "cpus": 1, "memory": "64M", "instances": int(instances), "drivers": {"qemu": {}}}
    target = Target(name, TargetConfig.model_validate(config))
    with hold(target, Path(lab), why=why, deadline=Deadline.after(10)) as lease:
        # The emulator's place: it inherits whatever is not close-on-exec.
        pid = subprocess.Popen(["sleep", "60"], close_fds=False, stdout=subprocess.DEVNULL).pid if child == "yes" else 0
        print(lease.slot, lease.fence, pid, flush=True)
        sys.stdin.read()
    """
)


@contextlib.contextmanager
def owner(
    lab: Path, *, name: str = "qemu-1c", instances: int = 1, why: str = "a test", child: bool = False, uid: int = 0
) -> Iterator[tuple[subprocess.Popen[str], int, int, int]]:
    """Another process that holds the target; ends at the end of the block. Gives it, its slot, its fence and its child's pid."""
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, name, str(instances), str(lab), why, "yes" if child else "no", str(uid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        assert process.stdout is not None
        slot, fence, sleeper = map(int, process.stdout.readline().split())
        try:
            yield process, slot, fence, sleeper
        finally:
            process.kill()
            if sleeper:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(sleeper, signal.SIGKILL)


@contextlib.contextmanager
def after(seconds: float, action: Callable[[], object]) -> Iterator[None]:
    timer = threading.Timer(seconds, action)
    timer.start()
    try:
        yield
    finally:
        timer.join()


def test_a_free_target_is_had_even_when_the_deadline_has_passed(tmp_path: Path) -> None:
    with hold(make_target(), tmp_path, why="x", deadline=Deadline.after(0)) as lease:
        assert isinstance(lease, Lease)
        assert (lease.target, lease.slot) == ("qemu-1c", 0)
        assert lease.holder.pid == os.getpid()


def test_a_busy_target_says_who_since_when_and_why(tmp_path: Path) -> None:
    with owner(tmp_path, why="nightly: boot") as (process, *_):
        start = time.monotonic()
        with pytest.raises(TargetBusy) as caught, hold(make_target(), tmp_path, why="me", deadline=Deadline.after(0.3)):
            pass
        assert 0.3 <= time.monotonic() - start < 0.6
        user = pwd.getpwuid(os.getuid()).pw_name
        pattern = rf"target qemu-1c is held by {user} \(pid {process.pid}\) since \d\d:\d\d:\d\d \(\d s\): nightly: boot"
        assert str(process.pid) in caught.value.remedy
        assert caught.value.target == "qemu-1c"
        assert re.fullmatch(pattern, caught.value.message)


def test_threads_of_one_process_exclude_each_other(tmp_path: Path) -> None:
    with (
        hold(make_target(), tmp_path, why="one", deadline=Deadline.after(1)),
        pytest.raises(TargetBusy, match="one"),
        hold(make_target(), tmp_path, why="two", deadline=Deadline.after(0)),
    ):
        pass


def test_kill_9_frees_it_within_100_ms_though_a_child_lives_on(tmp_path: Path) -> None:
    target = make_target()
    with owner(tmp_path, child=True) as (process, _, fence, sleeper):
        killed: list[float] = []

        def kill() -> None:
            killed.append(time.monotonic())
            process.kill()

        with after(0.3, kill), hold(target, tmp_path, why="next", deadline=Deadline.after(5)) as lease:
            got = time.monotonic()
            os.kill(sleeper, 0)  # the child is alive
            assert lease.fence > fence
            assert [h.pid for h in holders(target, tmp_path)] == [os.getpid()]
        assert got - killed[0] < 0.1


def test_waiting_costs_little_and_says_once_for_whom(tmp_path: Path) -> None:
    told: list[str] = []
    with owner(tmp_path, why="the other") as (process, *_), after(1.2, process.kill):
        spent = time.process_time()
        with hold(make_target(), tmp_path, why="x", deadline=Deadline.after(5), on_wait=told.append):
            spent = time.process_time() - spent
    assert len(told) == 1
    assert "the other" in told[0]
    assert spent < 0.1


def test_the_end_of_the_block_frees_it_also_after_an_error(tmp_path: Path) -> None:
    target = make_target()
    with pytest.raises(ZeroDivisionError), hold(target, tmp_path, why="x", deadline=Deadline.after(1)):
        raise ZeroDivisionError
    assert holders(target, tmp_path) == []
    with hold(target, tmp_path, why="x", deadline=Deadline.after(0)):
        pass


def test_instances(tmp_path: Path) -> None:
    target = make_target(instances=2)
    with owner(tmp_path, instances=2, why="first") as (process, slot, fence, _):
        with hold(target, tmp_path, why="second", deadline=Deadline.after(1)) as lease:
            assert {slot, lease.slot} == {0, 1}
            assert lease.fence > fence
            assert [(h.slot, h.why) for h in holders(target, tmp_path)] == [(0, "first"), (1, "second")]
            with (
                pytest.raises(TargetBusy, match=r"all 2 instances of target qemu-1c are held: by .*first; by .*second"),
                hold(target, tmp_path, why="third", deadline=Deadline.after(0)),
            ):
                pass
        process.kill()
        process.wait()
        with hold(target, tmp_path, why="third", deadline=Deadline.after(0)) as lease:
            assert lease.slot == 0


def test_fences_grow(tmp_path: Path) -> None:
    fences = []
    for _ in range(3):
        with hold(make_target(instances=3), tmp_path, why="x", deadline=Deadline.after(1)) as lease:
            fences.append(lease.fence)
            with hold(make_target(instances=3), tmp_path, why="y", deadline=Deadline.after(1)) as other:
                fences.append(other.fence)
    assert fences == sorted(set(fences))


def test_no_two_own_it_when_many_want_it(tmp_path: Path) -> None:
    target = make_target()
    inside: list[int] = []
    worst = 0

    def want() -> None:
        nonlocal worst
        for _ in range(20):
            with hold(target, tmp_path, why="x", deadline=Deadline.after(30)) as lease:
                inside.append(lease.fence)
                worst = max(worst, len(inside))
                time.sleep(0)
                inside.pop()

    threads = [threading.Thread(target=want) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert worst == 1
    with hold(target, tmp_path, why="x", deadline=Deadline.after(1)) as lease:
        assert lease.fence == 81


def test_two_labs_with_equal_names_do_not_meet_but_a_link_to_one_lab_does(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "link").symlink_to("a")
    with hold(make_target(), tmp_path / "a", why="x", deadline=Deadline.after(1)):
        with hold(make_target(), tmp_path / "b", why="x", deadline=Deadline.after(0)):
            pass
        with pytest.raises(TargetBusy), hold(make_target(), tmp_path / "link", why="x", deadline=Deadline.after(0)):
            pass


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", "x" * 300, "", "né\n"])
def test_no_name_leaves_the_folder(tmp_path: Path, locks: Path, name: str) -> None:
    with hold(make_target(name), tmp_path, why="x", deadline=Deadline.after(0)):
        assert len(list(locks.iterdir())) == 1


def test_asking_who_holds_it_makes_nothing(tmp_path: Path, locks: Path) -> None:
    assert holders(make_target(), tmp_path) == []
    assert not locks.exists()


def test_asking_who_holds_it_never_disturbs_who_takes_it(tmp_path: Path) -> None:
    target = make_target()
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            holders(target, tmp_path)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        for _ in range(300):
            with hold(target, tmp_path, why="x", deadline=Deadline.after(0)):
                pass
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize(
    "torn",
    [b"", b'{"user": "al', b"\xff\xfe\x00", b"[1, 2]", b"[" * 400, b'{"user": 1, "pid": "x", "since": NaN, "why": []}', b"null"],
)
def test_a_torn_record_is_borne(tmp_path: Path, locks: Path, torn: bytes) -> None:
    target = make_target()
    with owner(tmp_path):
        (file,) = locks.iterdir()
        with file.open("r+b") as raw:
            raw.write(torn.ljust(512) + torn.ljust(512))
        assert holders(target, tmp_path) == [Holder("unknown", 0, 0.0, "", 0)]
        with (
            pytest.raises(TargetBusy, match="somebody who left no name"),
            hold(target, tmp_path, why="x", deadline=Deadline.after(0)),
        ):
            pass
    with hold(target, tmp_path, why="x", deadline=Deadline.after(1)) as lease:
        assert lease.fence > 0


def test_a_spoilt_fence_goes_on_above_every_count(tmp_path: Path, locks: Path) -> None:
    target = make_target()
    with hold(target, tmp_path, why="x", deadline=Deadline.after(1)):
        pass
    (file,) = locks.iterdir()
    with file.open("r+b") as raw:
        raw.write(b'{"fence": "many"}'.ljust(512))
    with hold(target, tmp_path, why="x", deadline=Deadline.after(1)) as lease:
        assert lease.fence > 1_000_000_000


def test_what_an_owner_says_cannot_drive_a_terminal_and_is_cut(tmp_path: Path) -> None:
    target = make_target()
    with hold(target, tmp_path, why="\x1b[2J\nok " + "ü" * 5000, deadline=Deadline.after(1)):
        (holder,) = holders(target, tmp_path)
    assert holder.why.startswith(" [2J ok üüüüüüüüüüüüüüüüüüüü")
    assert len(holder.why) < 512


def plant_link(file: Path) -> None:
    file.symlink_to(file.parent.parent / "victim")


def plant_dangling(file: Path) -> None:
    file.symlink_to(file.parent.parent / "not-there")


def plant_hard_link(file: Path) -> None:
    file.hardlink_to(file.parent.parent / "victim")


def plant_pipe(file: Path) -> None:
    os.mkfifo(file)


def plant_folder(file: Path) -> None:
    file.mkdir()


@pytest.mark.parametrize("plant", [plant_link, plant_dangling, plant_hard_link, plant_pipe, plant_folder])
def test_something_planted_is_refused_and_left_alone(tmp_path: Path, locks: Path, plant: Callable[[Path], None]) -> None:
    with hold(make_target(), tmp_path, why="x", deadline=Deadline.after(1)):
        (file,) = locks.iterdir()
    file.unlink()
    victim = locks.parent / "victim"
    victim.write_text("precious")
    plant(file)
    with (
        pytest.raises(InfraError, match="is no lock file") as caught,
        hold(make_target(), tmp_path, why="x", deadline=Deadline.after(1)),
    ):
        pass
    assert str(file) in caught.value.remedy
    assert victim.read_text() == "precious"
    assert not (locks.parent / "not-there").exists()
    assert holders(make_target(), tmp_path) == []


def test_a_lock_folder_that_is_a_file(tmp_path: Path, locks: Path) -> None:
    locks.write_text("")
    with (
        pytest.raises(InfraError, match="is no folder of its own"),
        hold(make_target(), tmp_path, why="x", deadline=Deadline.after(1)),
    ):
        pass


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to be two users")
class TestTwoUsers:
    nobody = 65534

    def test_root_waits_for_another_user_and_the_other_way_round(self, tmp_path: Path, locks: Path) -> None:
        lab = Path("/usr")  # a folder that both may read
        with owner(lab, uid=self.nobody, why="theirs"):
            assert locks.stat().st_mode & 0o7777 == 0o1777
            (file,) = locks.iterdir()
            assert file.stat().st_mode & 0o7777 == 0o666
            assert file.stat().st_uid == self.nobody
            with (
                pytest.raises(TargetBusy, match=r"held by nobody \(pid .*theirs"),
                hold(make_target(), lab, why="x", deadline=Deadline.after(0)),
            ):
                pass
        with hold(make_target(), lab, why="mine", deadline=Deadline.after(1)) as lease:
            assert lease.fence == 2
        with owner(lab, uid=self.nobody, why="theirs") as (_, _, fence, _):
            assert fence == 3

    @pytest.fixture(autouse=True)
    def open_to_both(self, locks: Path) -> None:
        locks.parent.chmod(0o1777)


# --- several targets at once -------------------------------------------------------------------------------------------------


def test_several_are_held_together_and_given_back_together(tmp_path: Path) -> None:
    pair, other = make_target("pair", instances=2), make_target("other")
    with hold_all([pair, other, pair], tmp_path, why="test", deadline=Deadline.after(5)) as leases:
        assert [(lease.target, lease.slot) for lease in leases] == [("other", 0), ("pair", 0), ("pair", 1)]
        with pytest.raises(TargetBusy), hold(pair, tmp_path, why="one more", deadline=Deadline.after(0)):
            pass
    assert not holders(pair, tmp_path)
    assert not holders(other, tmp_path)


def test_what_was_held_is_given_back_where_the_rest_cannot_be_had(tmp_path: Path) -> None:
    first, second = make_target("a"), make_target("b")
    with hold(second, tmp_path, why="before", deadline=Deadline.after(5)):
        with (
            pytest.raises(TargetBusy, match="target b is held by"),
            hold_all([second, first], tmp_path, why="x", deadline=Deadline.after(0)),
        ):
            pass
        assert not holders(first, tmp_path)


def test_those_who_gather_do_not_wait_for_each_other_for_ever(tmp_path: Path) -> None:
    """Three instances, and four who want two each, beside a second target that they name in different orders."""
    several, one = make_target("several", instances=3), make_target("one")
    wanted = [[several, several], [several, one, several], [one, several, several], [several, several, one]]
    done: list[int] = []

    def work(index: int) -> None:
        for _ in range(15):
            with hold_all(wanted[index], tmp_path, why=f"worker {index}", deadline=Deadline.after(60)):
                time.sleep(0.001)  # others get a chance to be in the way
        done.append(index)

    threads = [threading.Thread(target=work, args=(index,), daemon=True) for index in range(len(wanted))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(done) == [0, 1, 2, 3]


# --- one server in two labs --------------------------------------------------------------------------------------------------


def rack(name: str, **drivers: dict[str, object]) -> Target:
    """A real server as a lab describes it."""
    bmc = {"host": "bmc7.example", "user": "admin", "password": "env:BMC"}
    return Target(name, TargetConfig.model_validate({"schema": 1, "cpus": 1, "memory": "64M", "drivers": drivers or {"ipmi": bmc}}))


def test_two_labs_that_describe_one_server_exclude_each_other(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    same = {"host": "BMC7.example", "port": 623, "user": "root", "password": "env:OTHER"}
    said: list[str] = []
    with hold(rack("rack7"), ours, why="a run of ours", deadline=Deadline.after(5)):
        with (
            pytest.raises(TargetBusy, match=rf"spare \(the BMC bmc7.example:623\) is held by .*a run of ours \(target rack7 of {ours}\)"),
            hold(rack("spare", sol=same), theirs, why="a run of theirs", deadline=Deadline.after(0.2), on_wait=said.append),
        ):
            pytest.fail("it was had twice")
        assert said
        assert [holder.why for holder in holders(rack("spare", sol=same), theirs)] == [f"a run of ours (target rack7 of {ours})"]
        assert len(holders(rack("rack7"), ours)) == 1
        with hold(rack("other", ipmi={**same, "port": 6230}), theirs, why="another machine", deadline=Deadline.after(0.2)):
            pass
    with hold(rack("spare", sol=same), theirs, why="now", deadline=Deadline.after(0.2)):
        pass


def test_a_dead_owner_in_another_lab_frees_the_server(tmp_path: Path) -> None:
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        with hold(rack("rack7"), tmp_path / "ours", why="to be killed", deadline=Deadline.after(5)):
            os.write(write, b"!")
            time.sleep(60)
        os._exit(0)
    assert os.read(read, 1) == b"!"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(read)
    os.close(write)
    with hold(rack("spare"), tmp_path / "theirs", why="after it", deadline=Deadline.after(5)):
        assert [holder.why.split(" (")[0] for holder in holders(rack("rack7"), tmp_path / "ours")] == ["after it"]
