"""How long a verb may take does not depend on what was done before it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from labctl.deadline import Deadline
from labctl.machine import session
from labctl.model import Build, Target, TargetConfig


def test_a_build_that_takes_long_to_write_leaves_time_for_the_power_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    left: list[float] = []

    def start(_machine: object, *, warm: bool, deadline: Deadline) -> int:  # as the session calls it
        left.append(deadline.left)
        return 7

    monkeypatch.setattr(session, "POWER_DEADLINE", 0.2)
    monkeypatch.setattr(session, "start", start)
    monkeypatch.setattr(session.Session, "_deploy", lambda _self, deadline: time.sleep(deadline.left + 0.1))
    target = Target("one", TargetConfig.model_validate({"schema": 1, "cpus": 1, "memory": "64M", "drivers": {"qemu": {"accel": "tcg"}}}))
    build = Build("one", "", "x86_64", tmp_path / "kernel", None, "", "", {}, None)  # type: ignore[arg-type]
    with session.Session(target, build, tmp_path) as held:
        assert held.power_on() == 7
    assert left[0] > 0.1
