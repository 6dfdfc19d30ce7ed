"""What a test requires of its cell: each value is checked where it is read, and then held against the cell."""

from __future__ import annotations

from typing import Any

import pytest

from labctl.run.requirements import mistakes

PLACE = "suites/mine/test_mine.py::test_x"


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ({"cpus": "two"}, "(cpus=…): found 'two'; a whole number of CPUs, at least 1"),
        ({"cpus": 0}, "(cpus=…): found 0; a whole number of CPUs, at least 1"),
        ({"cpus": True}, "(cpus=…): found True; a whole number of CPUs, at least 1"),
        ({"memory": "1Q"}, "(memory=…): found '1Q'; a size is a number of bytes or text like 512M, 4G"),
        ({"memory": None}, "(memory=…): found None; a size is a number of bytes or text like 512M, 4G"),
        ({"disk": -1}, "(disk=…): found -1; a size of at least 1 byte, such as 512M or 4G"),
        ({"arch": "x86"}, "(arch=…): found 'x86'; did you mean 'x86_64'? (known: aarch64, riscv64, x86_64)"),
        ({"tags": "gpu"}, "(tags=…): found 'gpu'; a list of tags, such as [\"nvme\"]"),
        ({"tags": ["gpu", 3]}, "(tags=…): found ['gpu', 3]; a list of tags, such as [\"nvme\"]"),
        ({"build": 3}, '(build=…): found 3; a build by name or glob, such as "debian-*"'),
        ({"channel": "wal"}, "(channel=…): found 'wal'; did you mean 'wall'? (known: icount, wall)"),
        ({"hypervisor": "Snapshots"}, "(hypervisor=…): found 'Snapshots'; a list, such as [\"Snapshots\"]"),
        ({"driver": "kwm"}, "(driver=…): found 'kwm'; did you mean 'kvm'? (known: kvm, xl)"),
        ({"driver": ["kvm"]}, "(driver=…): found ['kvm']; one of 'kvm', 'xl'"),
        ({"cpu": 2}, "(cpu=…): unknown; known: cpus, memory, disk, arch, tags, build, channel, driver, hypervisor"),
    ],
)
def test_a_value_that_is_none_is_told_with_its_place_and_what_is_allowed(wanted: dict[str, Any], told: str) -> None:
    assert [str(wrong) for wrong in mistakes((), wanted, PLACE)] == [f"{PLACE}: @pytest.mark.requires{told}"]


def test_all_mistakes_of_a_marker_are_told_at_once() -> None:
    found = mistakes((1, "x"), {"cpus": 2, "memory": "1Q", "channel": "wal", "hypervisor": ["Teleports"]}, PLACE)
    assert [wrong.found for wrong in found] == [
        "found 1 without a name",
        "found 'x' without a name",
        "found '1Q'",
        "found 'wal'",
        "unknown: Teleports",
    ]


def test_what_is_right_is_let_be() -> None:
    right: dict[str, Any] = {
        "cpus": 2,
        "memory": "1G",
        "disk": 1 << 20,
        "arch": "aarch64",
        "tags": ("nvme", "gpu"),
        "build": "debian-*",
        "channel": "icount",
        "hypervisor": ["Snapshots"],
        "driver": "xl",
    }
    assert mistakes((), right, PLACE) == []
