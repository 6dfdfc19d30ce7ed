"""The lab's own machines that hypervisors run on, as their files describe them."""

from pathlib import Path

import pytest

from labctl.config import Lab
from labctl.model import TargetConfig

LAB = Lab.find(Path(__file__).parents[2])
CONFIGS = {name: LAB.target(name).config for name in LAB.target_files}
EMULATED = {
    name: config
    for name, config in CONFIGS.items()
    if isinstance(config, TargetConfig) and "svm=on" in config.drivers.get("qemu", {}).get("cpu", "")
}


@pytest.mark.parametrize("name", EMULATED)
def test_the_cpus_of_an_emulated_hypervisor_do_not_take_turns(name: str) -> None:
    """QEMU's SVM gives a VM an interrupt twice where its CPUs are kicked, and those that share a thread are, ten times a second."""
    config = EMULATED[name]
    assert config.cpus == 1 or config.drivers["qemu"].get("tcg_thread") == "multi"


def test_there_are_such_machines() -> None:
    assert {"hv-2c-2g", "hv-2c-4g-iommu"} <= set(EMULATED)
