"""Counted instructions: the same on a busy host, exact to one, by function, and refused where they cannot be counted."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from labctl.build.obtain import obtain
from labctl.config import Lab
from labctl.errors import ConfigError, HostToolMissing, PowerError
from labctl.machine import icount, profiling, registry
from labctl.machine.session import Session
from labctl.model import Build, Channel, Target, TargetConfig
from tests.leftovers import machine_name
from tests.temporary_lab import LABCTL

pytestmark = pytest.mark.qemu

SLOW = 4_000_000
"""Instructions; the command lines of one more and of one less are as long, so that reading them costs the same."""


@pytest.fixture(scope="module")
def kernel(repository: Lab) -> Build:
    return obtain(repository, "quetzalcore", progress=print)


def target(channel: str = "icount", cpus: int = 1, append: str = "console=ttyS0,115200", **qemu: object) -> Target:
    config = {
        "schema": 1,
        "cpus": cpus,
        "memory": "256M",
        "append": append,
        "channel": channel,
        "boot": {"deadline": 120, "silence": 60},
        "drivers": {"qemu": {"machine": "q35", "bios": "qboot.rom", "debug_exit": True, **qemu}, "console_shell": {}},
    }
    return Target(machine_name("icount"), TargetConfig.model_validate(config))


def counted(build: Build, on: Target, folder: Path, boots: int = 1) -> list[dict[str, int]]:
    with Session(on, build, folder) as session:
        return [dict(session.boot().instructions) for _ in range(boots)]


@contextmanager
def every_core_busy() -> Iterator[None]:
    with ExitStack() as stack:
        for _ in range(2 * len(os.sched_getaffinity(0))):
            busy = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            stack.callback(busy.kill)
        yield


def test_one_instruction_more_is_seen_and_a_busy_host_is_not(kernel: Build, tmp_path: Path) -> None:
    on = target()
    slow, slower = (replace(kernel, append=f"variant=slow:{count}") for count in (SLOW, SLOW + 1))
    (alone,) = counted(slow, on, tmp_path / "alone")
    with every_core_busy():
        loaded = counted(slow, on, tmp_path / "loaded", boots=6)
    assert loaded == [alone] * 6
    assert list(alone) == ["kernel_entry", "init", "ready"]
    assert list(alone.values()) == sorted(alone.values())
    (more,) = counted(slower, on, tmp_path / "slower")
    assert more == alone | {"ready": alone["ready"] + 1}


def test_a_debian_kernel_counts_the_same_alone_and_on_a_busy_host(debian: Build, tmp_path: Path) -> None:
    on = target(machine="microvm", bios="")
    (alone,) = counted(debian, on, tmp_path / "alone")
    with every_core_busy():
        (loaded,) = counted(debian, on, tmp_path / "loaded")
    assert loaded == alone
    assert {"kernel_entry", "init", "ready"} <= set(alone)


def test_each_cpu_is_counted(kernel: Build, tmp_path: Path) -> None:
    # SeaBIOS starts the second CPU; qboot lets it sleep.
    with Session(target(cpus=2, bios=""), kernel, tmp_path) as session:
        first, second = session.boot(), session.boot()
    assert first.instructions_by_cpu == second.instructions_by_cpu
    assert all(len(counts) == 2 and sum(counts) == first.instructions[name] for name, counts in first.instructions_by_cpu.items())
    assert min(first.instructions_by_cpu["ready"]) > 0


def test_another_function_is_never_blamed(kernel: Build, tmp_path: Path) -> None:
    """Through the command line: the profile's parts are its whole, and the difference names the one function that grew."""
    (tmp_path / "lab.toml").write_text("schema = 1\n")
    for folder in ("targets", "kernel"):
        (tmp_path / folder).mkdir()
    on = machine_name("profile")
    (tmp_path / f"targets/{on}.toml").write_text(
        'schema = 1\ncpus = 1\nmemory = "256M"\nappend = "console=ttyS0,115200"\n'
        '[drivers.qemu]\nmachine = "q35"\nbios = "qboot.rom"\ndebug_exit = true\n'
    )
    milestones = "".join(f"{name} = '{pattern}'\n" for name, pattern in kernel.milestones.items())
    for name, count in (("before", SLOW), ("after", SLOW + 1234)):
        (tmp_path / f"kernel/{name}.toml").write_text(
            f'schema = 1\nbuilder = "path"\ninitramfs = false\nappend = "variant=slow:{count}"\n'
            f'[milestones]\n{milestones}[path]\nkernel = "{kernel.kernel}"\n'
        )
    subprocess.run([LABCTL, "profile", "before", "--target", on, "--out", "profiled"], cwd=tmp_path, check=True, timeout=120)
    ran = subprocess.run(
        [LABCTL, "profile", "diff", "profiled", "after", "--target", on, "--out", "compared"],
        cwd=tmp_path, check=True, timeout=120, text=True, capture_output=True,
    )  # fmt: skip
    assert "+1,234" in ran.stdout
    assert [line.split()[-1] for line in ran.stdout.splitlines() if line.startswith(" ") and "+1,234" in line] == ["boot_delay"] * 2
    for count in (SLOW, SLOW + 1234):
        assert f"variant=slow:{count}\n" in ran.stdout, "what tells the two apart"
    for page in ("profiled/profile.html", "compared/diff.html"):
        assert "boot_delay" in (tmp_path / page).read_text()


def test_a_plugin_that_qemu_cannot_load(kernel: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABCTL_CACHE", str(tmp_path / "cache"))
    icount.plugin().write_bytes(b"no shared object")
    with Session(target(), kernel, tmp_path / "machine") as session, pytest.raises(PowerError, match="plugin"):
        session.boot()


def test_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABCTL_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(HostToolMissing, match="gcc") as caught:
        icount.plugin()
    assert "apt-get install -y gcc" in str(caught.value)


def test_a_build_without_symbols(kernel: Build, tmp_path: Path) -> None:
    stripped = tmp_path / "kernel"
    subprocess.run(["strip", "-s", "-o", stripped, kernel.kernel], check=True, timeout=60)
    with pytest.raises(ConfigError, match="no symbols of quetzalcore: its kernel file has no symbol table"):
        profiling.symbols(target("wall"), replace(kernel, kernel=stripped, digest="sha256:0"), tmp_path / "machine", print)


def test_a_machine_that_is_not_emulated_is_left_out(repository: Lab) -> None:
    assert registry.why_not_counted(Target("t", target().config.model_copy(update={"drivers": {"console_shell": {}}})))
    assert registry.on_channel(target(), Channel.WALL).config.channel is Channel.WALL
