"""Kept machines as files: one maker, bounded room, and whatever is broken is told, removed and made anew."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from labctl.deadline import Deadline
from labctl.machine.warm import KeptMachines, Unkeepable, Unusable

MEMORY = 1 << 20


def machine(content: bytes = b"m", made: list[str] | None = None) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        if made is not None:
            made.append(folder.name)
        (folder / "memory").write_bytes(content * MEMORY)
        (folder / "state").write_bytes(b"state")
        (folder / "session").mkdir()
        (folder / "session" / "console.log").write_text("left behind")

    return make


def borrow(kept: KeptMachines, name: str, make: Callable[[Path], None], seconds: float = 20) -> list[str]:
    with kept.borrow({"name": name}, make, MEMORY, Deadline.after(seconds)) as folder:
        return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def kept(tmp_path: Path) -> KeptMachines:
    return KeptMachines(tmp_path / "warm")


def test_it_is_made_once_and_holds_only_what_a_copy_needs(kept: KeptMachines) -> None:
    made: list[str] = []
    for _ in range(3):
        assert borrow(kept, "a", machine(made=made)) == ["last", "manifest.json", "memory", "state"]
    assert len(made) == 1
    borrow(kept, "b", machine(made=made))
    assert len(made) == 2


def test_two_that_want_the_same_one_at_once(kept: KeptMachines) -> None:
    made: list[str] = []

    def slowly(folder: Path) -> None:
        time.sleep(0.3)
        machine(made=made)(folder)

    threads = [threading.Thread(target=borrow, args=(kept, "a", slowly)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(made) == 1


def test_one_that_is_being_made_for_too_long(kept: KeptMachines) -> None:
    began, end = threading.Event(), threading.Event()

    def for_ever(folder: Path) -> None:
        began.set()
        end.wait(20)
        machine()(folder)

    thread = threading.Thread(target=borrow, args=(kept, "a", for_ever))
    thread.start()
    began.wait(20)
    with pytest.raises(Unusable, match="has been making the machine to copy for over"):
        borrow(kept, "a", machine(), seconds=0.1)
    end.set()
    thread.join(20)


def vanish(folder: Path) -> None:
    (folder / "memory").unlink()


def truncate(folder: Path) -> None:
    os.truncate(folder / "state", 2)


def change(folder: Path) -> None:
    (folder / "state").write_bytes(b"stale")


def touch(folder: Path) -> None:
    with (folder / "memory").open("r+b") as file:
        file.write(b"x")


def forget(folder: Path) -> None:
    (folder / "manifest.json").write_text("{")


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (vanish, "has lost its memory"),
        (truncate, "has another state"),
        (change, "has another state"),
        (touch, "has another memory"),
        (forget, "has no manifest"),
    ],
)
def test_what_is_broken_is_told_and_made_anew(kept: KeptMachines, harm: Callable[[Path], None], why: str) -> None:
    borrow(kept, "a", machine())
    borrow(kept, "b", machine())
    (folder,) = [path for path in kept.root.iterdir() if path.is_dir() and '"a"' in (path / "manifest.json").read_text()]
    harm(folder)
    with pytest.raises(Unusable, match=why):
        borrow(kept, "a", machine())
    made: list[str] = []
    borrow(kept, "a", machine(made=made))
    borrow(kept, "b", machine(made=made))
    assert len(made) == 1, "the other one was left alone"


def test_the_room_that_they_take_is_bounded(tmp_path: Path) -> None:
    kept = KeptMachines(tmp_path, most_bytes=int(2.5 * MEMORY))
    for name in "abc":
        borrow(kept, name, machine())
        time.sleep(0.02)
        borrow(kept, "a", machine())  # the one that is used again and again stays
        time.sleep(0.02)
    assert kept.bytes <= kept.most_bytes
    made: list[str] = []
    borrow(kept, "a", machine(made=made))
    assert made == []
    with pytest.raises(Unusable, match="larger than all"), kept.borrow({"name": "x"}, machine(), 3 * MEMORY, Deadline.after(5)):
        pass


def test_no_copy_is_foreseen_where_there_is_no_room_for_the_machine(tmp_path: Path) -> None:
    """Also before anything was ever kept there."""
    kept = KeptMachines(tmp_path / "not" / "made" / "yet", most_bytes=1 << 60)
    assert "is booted first" in kept.foreseen({"name": "x"}, MEMORY)
    with pytest.raises(Unusable, match="MiB free, and keeping it needs"):
        kept.foreseen({"name": "x"}, 1 << 59)
    assert not (tmp_path / "not").exists()


def test_one_that_is_in_use_is_not_cleaned_away(tmp_path: Path) -> None:
    kept = KeptMachines(tmp_path, most_bytes=int(1.5 * MEMORY))
    with kept.borrow({"name": "a"}, machine(), MEMORY, Deadline.after(5)) as folder:
        borrow(kept, "b", machine())
        assert (folder / "memory").exists()


def test_a_maker_that_fails_leaves_nothing_and_one_that_never_can_is_not_asked_again(kept: KeptMachines) -> None:
    def fails(folder: Path) -> None:
        machine()(folder)
        raise OSError("no")

    def never(folder: Path) -> None:
        raise Unkeepable("a device cannot be kept")

    with pytest.raises(OSError, match="no"):
        borrow(kept, "a", fails)
    assert [path for path in kept.root.iterdir() if path.is_dir()] == []
    with pytest.raises(Unkeepable):
        borrow(kept, "a", never)
    with pytest.raises(Unusable, match="a device cannot be kept"):
        borrow(kept, "a", machine())
