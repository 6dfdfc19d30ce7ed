"""What the cells of a run boot is found once in a process, and again where the cache has lost it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from labctl.model import Build, Cell, Provenance, Target, target_config
from labctl.run import equip
from labctl.run.equip import Equipment
from labctl.run.work import Work


def target(channel: str) -> Target:
    drivers = {"qemu": {}, "agent": {"channel": channel}}
    return Target(channel, target_config({"schema": 1, "arch": "x86_64", "cpus": 1, "memory": "128M", "drivers": drivers}))


def test_each_build_is_equipped_once_for_each_way_to_its_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def equipped(build: Build, target: Target) -> Build:
        made.append(f"{build.version} {target.name}")
        initrd = tmp_path / f"{build.version}-{target.name}"
        initrd.touch()
        return replace(build, initrd=initrd)

    monkeypatch.setattr(equip, "equipped", equipped)
    plain = Build("b", "sha256:0", "x86_64", tmp_path / "kernel", None, "plain", "", {}, Provenance("files", "b"))
    with_tools = replace(plain, version="with tools")
    suites = ("one", "two", "tooled")
    cells = tuple(Cell("b", "virtio", suite) for suite in suites)
    work = Work(tmp_path, tmp_path, 1, cells, {}, {"b": plain}, {"b/tooled": with_tools}, {}, frozenset(suites), cold=False)
    equipment = Equipment(work)
    for cell in (*cells, *cells):
        assert equipment.of(cell, target("virtio")).version == ("with tools" if cell.suite == "tooled" else "plain")
    assert made == ["plain virtio", "with tools virtio"]
    equipment.of(cells[0], target("serial"))
    assert made[2:] == ["plain serial"]
    (tmp_path / "plain-virtio").unlink()
    assert equipment.of(cells[1], target("virtio")).initrd == tmp_path / "plain-virtio"
    assert made[3:] == ["plain virtio"]
