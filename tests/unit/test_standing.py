"""Reserved targets and unhealthy ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from labctl.deadline import Deadline
from labctl.errors import TargetBusy
from labctl.machine import lease, standing
from labctl.model import Target, TargetConfig

RACK = Target("rack1", TargetConfig.model_validate({"schema": 1, "cpus": 1, "memory": "1G", "drivers": {"qemu": {}}}))


@pytest.fixture
def as_user(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(standing, "user_name", lambda: "ada")
    return monkeypatch


def _now_somebody_else(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(standing, "user_name", lambda: "grace")


def test_a_reservation_keeps_others_out_and_not_its_owner(tmp_path: Path, as_user: pytest.MonkeyPatch) -> None:
    standing.reserve(tmp_path, "rack1", "until \x1b[2JFriday")
    assert standing.why_left_out(tmp_path, "rack1") == ""
    with lease.hold(RACK, tmp_path, why="mine", deadline=Deadline.after(5)):
        pass
    _now_somebody_else(as_user)
    assert standing.why_left_out(tmp_path, "rack1").startswith("reserved by ada since 2")
    for refused in (
        lambda: standing.reserve(tmp_path, "rack1", "me too"),
        lambda: standing.release(tmp_path, "rack1"),
        lambda: lease.hold(RACK, tmp_path, why="", deadline=Deadline.after(5)).__enter__(),
    ):
        with pytest.raises(TargetBusy, match=r"rack1 is reserved by ada since \d{4}-\d\d-\d\d \d\d:\d\d: until  \[2JFriday") as error:
            refused()
        assert "release --force rack1" in error.value.remedy
    assert standing.why_left_out(tmp_path, "rack2") == ""


def test_it_is_given_back(tmp_path: Path, as_user: pytest.MonkeyPatch) -> None:
    assert not standing.release(tmp_path, "rack1")
    standing.reserve(tmp_path, "rack1", "")
    standing.reserve(tmp_path, "rack1", "renewed")
    found = standing.reservation(tmp_path, "rack1")
    assert found is not None
    assert found.note == "renewed"
    _now_somebody_else(as_user)
    assert standing.release(tmp_path, "rack1", force=True)
    standing.reserve(tmp_path, "rack1", "")


def test_unhealthy_until_it_is_healthy(tmp_path: Path) -> None:
    standing.set_unhealthy(tmp_path, "rack1", "first")
    began = standing.unhealthy(tmp_path, "rack1")
    standing.set_unhealthy(tmp_path, "rack1", "again")
    found = standing.unhealthy(tmp_path, "rack1")
    assert began is not None
    assert found is not None
    assert (found.since, found.reason) == (began.since, "again")
    assert "unhealthy since" in standing.why_left_out(tmp_path, "rack1")
    standing.set_healthy(tmp_path, "rack1")
    standing.set_healthy(tmp_path, "rack1")
    assert standing.why_left_out(tmp_path, "rack1") == ""


@pytest.mark.parametrize("text", ["", "{", "[]", '{"user": 1}', '{"user": "a", "since": "x", "note": ""}', "[" * 4000])
def test_a_spoilt_file_is_no_reservation(tmp_path: Path, text: str) -> None:
    folder = tmp_path / ".labctl/targets"
    folder.mkdir(parents=True)
    (folder / "rack1.reserved.json").write_text(text)
    (folder / "rack1.unhealthy.json").write_text(text)
    assert standing.why_left_out(tmp_path, "rack1") == ""
    standing.reserve(tmp_path, "rack1", "mine")
    assert standing.reservation(tmp_path, "rack1") is not None


def test_since_when_and_when_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason is that of the last time, and nobody takes it for that of the first."""
    now = [1_800_000_000.0]
    monkeypatch.setattr(standing.time, "time", lambda: now[0])
    standing.set_unhealthy(tmp_path, "t", "the power command was ignored")
    assert str(standing.unhealthy(tmp_path, "t")).count(":") == 2
    now[0] += 3600
    standing.set_unhealthy(tmp_path, "t", "the kernel is another one")
    found = standing.unhealthy(tmp_path, "t")
    assert found is not None
    assert (found.since, found.seen) == (1_800_000_000.0, 1_800_003_600.0)
    first, last = str(found).split("; at ")
    assert first.startswith("unhealthy since ")
    assert last.endswith(": the kernel is another one")
