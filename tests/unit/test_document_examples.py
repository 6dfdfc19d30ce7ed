"""The target files shown in docs/real-servers.md are right: their drivers take these options."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from labctl.machine.protocols import Power
from labctl.machine.registry import check, load, roles_of
from labctl.model import Target, TargetConfig

EXAMPLES = re.findall(r"```toml\n(.*?)```", (Path(__file__).parents[2] / "docs/real-servers.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_example(example: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXAMPLE", "secret")
    content: dict[str, Any] = {"schema": 1, "cpus": 1, "memory": "1G", **tomllib.loads(example)}
    for options in content["drivers"].values():
        if "password" in options:
            assert options["password"].startswith("file:/etc/labctl/")  # which this host does not have
            options["password"] = "env:EXAMPLE"
    if not any(Power in roles_of(load(name)) for name in content["drivers"]):
        content["drivers"]["manual"] = {}  # an example of one driver is shown without those it stands beside
    check(Target("rack1", TargetConfig.model_validate(content)))


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 3
