"""A whole cell by network boot, on a virtual server behind a BMC, against the same cell by ``-kernel``. Reach: 1.3 x, and 10 s more.

Whole processes of ``labctl run matrix``, in turn, for two suites: one boot with a command, and the suite ``boot`` with its seven power
cycles, each of which is one. Then one boot of each side, to show where its time goes. Prints a table. With ``--uefi`` both sides have that
firmware: by ``-kernel`` it takes the kernel from QEMU.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
NAME = "rack1"
RATIO, MORE = 1.3, 10.0
"""The reach: times as long, and seconds more, at most."""
SAME = """schema = 1
cpus = 1
memory = "512M"
disk = "2G"
append = "console=ttyS0,115200"
[drivers.qemu]
{firmware}
[drivers.console_shell]
"""
UEFI = """extra = ["-drive", "if=pflash,format=raw,readonly=on,file={code}", "-drive", "if=pflash,format=raw,file={variables}"]"""
ONE = """def test_uname(shell, build):
    assert shell("uname -r") == build.version
"""
STAGES = {
    "firmware": b"SeaBIOS (version",
    "UEFI speaks": b"\x1b[2J",
    "iPXE speaks": b"Open Source Network Boot Firmware",
    "it has an address": b"Next server",
    "kernel asked for": b"/kernel...",
    "all was fetched": b"/initrd...",
    "loader: all is right": b"labctl-loader: initrd",
    "kernel": b"Linux version",
    "ready": b"labctl-guest: ready",
}


def labctl(lab: Path, *words: str) -> float:
    """Seconds of the whole process."""
    began = time.monotonic()
    done = subprocess.run(
        [Path(sys.executable).parent / "labctl", *words], cwd=lab, capture_output=True, text=True, check=False, timeout=600
    )
    took = time.monotonic() - began
    if done.returncode != 0:
        raise SystemExit(f"labctl {' '.join(words)} ended with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return took


@contextmanager
def a_lab(uefi: bool) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        lab = Path(name)
        for folder in ("targets", "suites/one", "kernel", "matrix"):
            (lab / folder).mkdir(parents=True)
        (lab / "lab.toml").write_text("schema = 1\n")
        (lab / "matrix/default.toml").write_text('schema = 1\nbuilds = ["*"]\ntargets = ["*"]\nsuites = ["*"]\n')
        firmware = ""
        if uefi:
            variables = lab / "variables.fd"
            shutil.copyfile("/usr/share/OVMF/OVMF_VARS_4M.fd", variables)
            firmware = UEFI.format(code="/usr/share/OVMF/OVMF_CODE_4M.fd", variables=variables)
        (lab / "targets/kernel.toml").write_text(SAME.format(firmware=firmware))
        (lab / "suites/one/test_one.py").write_text(ONE)
        shutil.copytree(ROOT / "suites/boot", lab / "suites/boot")
        shutil.copy(ROOT / "kernel/debian-cloud.toml", lab / "kernel/debian-cloud.toml")
        labctl(lab, "virtual-server", "start", NAME, "--cpus", "1", "--memory", "512M", *(["--uefi"] if uefi else []))
        try:
            yield lab
        finally:
            labctl(lab, "virtual-server", "delete", NAME)


def stages(lab: Path, target: str) -> dict[str, float]:
    """Seconds from power-on to each, of one boot."""
    from labctl.build.obtain import obtain
    from labctl.config import Lab
    from labctl.machine.session import Session

    with tempfile.TemporaryDirectory() as folder:
        here = Lab.find(lab)
        with Session(here.target(target), obtain(here, "debian-cloud", progress=print), Path(folder)) as session:
            boot = session.booted()
            said = session.transcript.read(0)
            found = {name: said.find(words) for name, words in STAGES.items()}
            return {name: (session.transcript.time_of(at) - boot.t0_ns) / 1e9 for name, at in found.items() if at >= 0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--uefi", action="store_true")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    with a_lab(options.uefi) as lab:
        labctl(lab, "build", "debian-cloud")
        print(f"{'cell':22} {'by -kernel':>12} {'by network':>12} {'more':>8} {'ratio':>7}   of each round; reach {RATIO}, {MORE:g} s")
        for suite in ("one", "boot"):
            sides: dict[str, list[float]] = {"kernel": [], NAME: []}
            for _ in range(options.rounds):
                for target, taken in sides.items():
                    taken.append(labctl(lab, "run", "matrix", "--fresh", "--target", target, "--suite", suite))
            kernel, network = (statistics.median(taken) for taken in sides.values())
            ratios = [n / k for k, n in zip(*sides.values(), strict=True)]
            ratio, each = statistics.median(ratios), " ".join(f"{ratio:.2f}" for ratio in ratios)
            kept = "kept" if ratio <= RATIO and network - kernel <= MORE else "NOT kept"
            print(f"{suite:22} {kernel:10.1f} s {network:10.1f} s {network - kernel:6.1f} s {ratio:7.2f}   {each}; {kept}", flush=True)
        print("\nseconds from power-on to   by -kernel   by network")
        one, other = stages(lab, "kernel"), stages(lab, NAME)
        for stage in STAGES:
            print(f"{stage:24} {_seconds(one, stage)} {_seconds(other, stage)}")
        print(f"\nload: {os.getloadavg()[0]:.1f}, medians of {options.rounds} rounds")


def _seconds(times: dict[str, float], stage: str) -> str:
    return f"{times[stage]:12.2f}" if stage in times else f"{'-':>12}"


if __name__ == "__main__":
    main()
