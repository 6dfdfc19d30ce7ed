"""Eight boots of a Debian cloud kernel to a prompt, ``uname -r``, off: labctl against bare QEMU over pipes, and against labgrid.

Whole processes, their start included, in turn (A B C A B C ...), so that a host whose speed drifts treats all alike. Run by hand:

    .venv/bin/python bench/boots/compare.py --rounds 3 --labgrid

Prints one JSON object: seconds of each round, medians, and the ratios to bare.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BOOTS = 8
APPEND = "console=ttyS0,115200 panic=-1"
MACHINE = ["-machine", "q35,graphics=off", "-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", "512M"]

LAB_TARGET = """schema = 1
cpus = 1
memory = "512M"
instances = 8
append = "console=ttyS0,115200"
[drivers.qemu]
accel = "tcg"
[drivers.console_shell]
"""
LAB_SUITE = """def test_uname(shell, target, build):
    assert shell("uname -r") == build.version
    target.power_off()
"""
LABGRID_ENV = """targets:
  main:
    drivers:
      - QEMUDriver:
          qemu_bin: qemu
          machine: q35,graphics=off
          cpu: max
          memory: 512M
          kernel: kernel
          boot_args: '{append}'
          extra_args: '-accel tcg -smp 1 -initrd {initrd}'
          display: none
      - ShellDriver:
          prompt: 'labctl# '
          login_prompt: ' login: '
          username: root
tools:
  qemu: {qemu}
images:
  kernel: {kernel}
"""
LABGRID_TEST = """import pytest

@pytest.mark.parametrize("boot", range({boots}))
def test_uname(boot, env):
    target = env.get_target("main")
    qemu = target.get_driver("QEMUDriver")
    target.activate(qemu)
    qemu.on()
    shell = target.get_driver("ShellDriver")
    out, _, status = shell.run("uname -r")
    # The kernel's messages come in between what the command said.
    assert status == 0 and any("{version}" in line for line in out)
    qemu.off()
    target.deactivate(qemu)
"""


def bare_boot(kernel: Path, initrd: Path, version: str) -> None:
    """One boot over pipes: prompt, ``uname -r``, its answer, ``poweroff -f``, the process's end."""
    command = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", *MACHINE]
    command += ["-kernel", str(kernel), "-initrd", str(initrd), "-append", APPEND]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as qemu:
        assert qemu.stdin is not None
        assert qemu.stdout is not None
        seen = b""

        def until(text: bytes) -> None:
            nonlocal seen
            while text not in seen:
                data = os.read(qemu.stdout.fileno(), 65536)
                if not data:
                    raise SystemExit(f"bare QEMU ended before {text!r}: {seen[-500:]!r}")
                seen += data
            seen = seen.partition(text)[2]

        def type_in(text: bytes) -> None:
            qemu.stdin.write(text)
            qemu.stdin.flush()

        until(b"labctl# ")
        type_in(b"uname -r\n")
        until(version.encode() + b"\r\n")
        until(b"labctl# ")
        type_in(b"poweroff -f\n")
        while os.read(qemu.stdout.fileno(), 65536):
            pass
        qemu.wait()


def run_bare(arguments: list[str]) -> None:
    """The bare side as a process of its own, so that its start is counted too."""
    kernel, initrd, version, at_a_time = arguments
    with ThreadPoolExecutor(int(at_a_time)) as pool:
        list(pool.map(lambda _: bare_boot(Path(kernel), Path(initrd), version), range(BOOTS)))


def timed(command: list[str], cwd: Path) -> float:
    began = time.monotonic()
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=300)
    took = time.monotonic() - began
    if done.returncode != 0:
        raise SystemExit(f"{command} ended with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return took


def make_lab(folder: Path) -> Path:
    lab = folder / "lab"
    for name in ("targets", "suites/uname", "kernel", "matrix"):
        (lab / name).mkdir(parents=True)
    (lab / "lab.toml").write_text("schema = 1\n")
    (lab / "targets/one.toml").write_text(LAB_TARGET)
    (lab / "suites/uname/test_uname.py").write_text(LAB_SUITE)
    shutil.copy(ROOT / "kernel/debian-cloud.toml", lab / "kernel/debian-cloud.toml")
    (lab / "matrix/default.toml").write_text('schema = 1\nbuilds = ["*"]\ntargets = ["*"]\nsuites = ["*"]\n')
    return lab


def make_labgrid(folder: Path, kernel: Path, initrd: Path, version: str) -> list[str]:
    """labgrid in a venv of its own; returns the command, without the number of workers."""
    environment = Path(tempfile.gettempdir()) / "labctl-bench-labgrid"
    python = environment / "bin/python"
    if not (environment / "bin/labgrid-client").exists():
        venv.create(environment, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "labgrid", "pytest-xdist"], check=True)
    qemu = shutil.which("qemu-system-x86_64")
    (folder / "env.yaml").write_text(LABGRID_ENV.format(append=APPEND, initrd=initrd, kernel=kernel, qemu=qemu))
    (folder / "test_uname.py").write_text(LABGRID_TEST.format(boots=BOOTS, version=version))
    return [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "--lg-env", "env.yaml", "test_uname.py", "-n"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--labgrid", action="store_true", help="compare with labgrid too (installs it in a venv of its own)")
    options = parser.parse_args()
    labctl = Path(sys.executable).parent / "labctl"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lab = make_lab(folder)
        sys.path.insert(0, str(ROOT))
        from labctl.build.obtain import obtain
        from labctl.config import Lab

        build = obtain(Lab.find(lab), "debian-cloud", progress=lambda line: print(line, file=sys.stderr))
        assert build.initrd is not None
        sides: dict[str, list[str]] = {
            "bare": [sys.executable, __file__, "--bare", str(build.kernel), str(build.initrd), build.version],
            "labctl": [str(labctl), "run", "matrix", "--repeat", str(BOOTS), "-n"],
        }
        if options.labgrid:
            (folder / "labgrid").mkdir()
            sides["labgrid"] = make_labgrid(folder / "labgrid", build.kernel, build.initrd, build.version)
        result: dict[str, object] = {"boots": BOOTS, "kernel": build.version, "rounds": options.rounds}
        for at_a_time in ("1", "2"):
            seconds: dict[str, list[float]] = {side: [] for side in sides}
            for number in range(options.rounds + 1):
                for side, command in sides.items():
                    took = timed([*command, at_a_time], folder / "labgrid" if side == "labgrid" else lab)
                    print(f"{at_a_time} at a time, round {number}: {side} {took:.2f} s", file=sys.stderr)
                    if number:  # the first round warms the caches
                        seconds[side].append(took)
            ratios = {
                side: statistics.median(a / b for a, b in zip(values, seconds["bare"], strict=True))
                for side, values in seconds.items()
                if side != "bare"
            }
            result[f"{at_a_time} at a time"] = {
                "seconds": {side: [round(v, 2) for v in values] for side, values in seconds.items()},
                "ratio to bare, median of pairs": {side: round(ratio, 3) for side, ratio in ratios.items()},
            }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--bare"]:
        run_bare(sys.argv[2:])
    else:
        main()
