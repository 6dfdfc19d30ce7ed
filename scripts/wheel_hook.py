"""Puts into the wheel what a new lab begins with and what runs inside a machine; a checkout has them beside the package already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SHIPPED = ("conftest.py", "guest", "hypervisor", "kernel", "matrix", "suites", "targets")
"""`labctl.config.shipped` finds them under labctl/_lab."""


class WheelHook(BuildHookInterface[Any]):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        for name in SHIPPED:
            build_data["force_include"][str(Path(self.root) / name)] = f"labctl/_lab/{name}"
