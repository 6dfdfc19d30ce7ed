"""A run as its workers know it: one JSON text from the controller. Apart from prepare.py, so that a worker starts without what plans."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from labctl.model import Build, Cell, Channel, Target, target_config


@dataclass(frozen=True)
class Work:
    """What `labctl.run.prepare.Prepared.for_workers` wrote."""

    lab_root: Path
    folder: Path
    retries: int
    cells: tuple[Cell, ...]
    costs: Mapping[str, float | None]
    builds: Mapping[str, Build]
    suited: Mapping[str, Build]
    """``BUILD/SUITE`` → what the suite boots of the build, where that is not the build as it is."""
    targets: Mapping[str, Target]
    warm: frozenset[str]
    """Suites whose machines may be copies."""
    cold: bool
    """None may, in this run."""
    stories: tuple[str, ...] = ()
    """Only tests that prove one of these; empty: all tests."""

    @classmethod
    def from_json(cls, text: str) -> Work:
        data = json.loads(text)
        return cls(
            Path(data["lab"]),
            Path(data["folder"]),
            data["retries"],
            tuple(Cell(**{**cell, "channel": Channel(cell["channel"])}) for cell in data["cells"]),
            data["costs"],
            {name: Build.from_fields(fields) for name, fields in data["builds"].items()},
            {name: Build.from_fields(fields) for name, fields in data["suited"].items()},
            {name: Target(name, target_config(config)) for name, config in data["targets"].items()},
            frozenset(data["warm"]),
            data["cold"],
            tuple(data["stories"]),
        )


def suited_key(cell: Cell) -> str:
    return f"{cell.build}/{cell.suite}"
