"""A build's promises from its recipe to the run's end: what a gate does, and that a mistake is found before anything runs."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.temporary_lab import TemporaryLab

pytestmark = pytest.mark.qemu  # its builds are those of the tests that boot; nothing is booted here

# Nothing asks for the machine, so none is started.
SUITE = """
from labctl.histogram import Histogram
from labctl.model import Direction, Metric

RTT = Metric("network.rtt", "s", Direction.LOWER)
DENSITY = Metric("vm.density", "1", Direction.HIGHER)


def test_figures(cell, record, record_histogram):
    record(DENSITY, 150)
    record_histogram(RTT, Histogram.of([0.0002] * 400), path="guest-host")
"""


def promising(lab: TemporaryLab, density: str) -> None:
    recipe = lab.root / "kernel" / "debian.toml"
    lab.write("kernel/debian.toml", f'{recipe.read_text()}\n[promises]\n"network.rtt p99" = "<= 1 ms"\n"vm.density" = {density}\n')
    lab.suite("figures", SUITE)


def test_a_broken_promise_informs_and_one_with_a_gate_fails_the_run(new_lab: Callable[[], TemporaryLab]) -> None:
    lab = new_lab()
    plain = (lab.root / "kernel" / "debian.toml").read_text()
    promising(lab, '">= 200"')
    ran = lab.labctl("run", "matrix")
    assert ran.status == 0, ran.err
    assert "broken" in ran.out
    assert "-25 %" in ran.out.replace("−", "-")
    lab.write("kernel/debian.toml", plain)
    promising(lab, '{ limit = ">= 200", gate = true }')
    ran = lab.run()
    assert (ran.status, ran.data["outcome"], ran.data["cells"][0]["outcome"]) == (1, "fail", "pass"), ran.err
    verdicts = {found["promise"]: (found["verdict"], found["gate"]) for found in ran.data["promises"]}
    assert verdicts == {"network.rtt p99": ("kept", False), "vm.density": ("broken", True)}
    told = lab.labctl("report", "promises", "--last", "2", "--json")
    assert [(found["verdict"], found["count"]) for found in told.data["promises"]] == [("kept", 800), ("broken", 2)]
    by_pytest = lab.pytest("suites/figures", "--build", "debian", "--target", lab.target)
    assert by_pytest.status == 1, by_pytest.out + by_pytest.err
    assert "1 passed" in by_pytest.out
    latest = max(lab.root.glob("results/2*/end.json"))
    assert json.loads(latest.read_text())["outcome"] == "fail"


def test_a_mistake_in_a_promise_is_found_before_anything_runs(new_lab: Callable[[], TemporaryLab]) -> None:
    lab = new_lab()
    promising(lab, '">= 200 VMs"')
    ran = lab.labctl("run", "matrix", "--dry-run")
    assert ran.status == 2
    assert "kernel/debian.toml: promises.vm.density" in ran.err
    assert "the unit 'VMs' is not known" in ran.err
