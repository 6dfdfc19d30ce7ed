"""Deploy: this build is what the next power-on boots."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from labctl.errors import DeployError
from labctl.machine.protocols import Carries, Deploy, StartsFromWithin
from tests.contract.conftest import Bench

ROLE = Deploy
pytestmark = pytest.mark.qemu


TOGETHER = "each put takes a boot: asked with the latest"


def test_put_says_which_build_it_was(bench: Bench) -> None:
    if bench.rig.slow:
        pytest.skip(TOGETHER)
    assert bench.deploy.put(bench.build, "console=ttyS0", bench.deadline()) == bench.build.digest


def test_the_command_line_arrives(bench: Bench) -> None:
    if bench.rig.slow:
        pytest.skip(TOGETHER)
    words = bench.target.config.append + ' labctl.word="a, b" panic=-1'
    bench.deploy.put(bench.build, words, bench.deadline())
    bench.start()
    bench.transcript.wait([b'labctl.word="a, b"'], deadline=bench.deadline())


def test_the_latest_counts(bench: Bench) -> None:
    for word in ("first=1", 'second="2, two"'):
        assert bench.deploy.put(bench.build, f"{bench.target.config.append} {word} panic=-1", bench.deadline()) == bench.build.digest
    before = bench.transcript.size
    bench.start()
    if isinstance(bench.deploy, StartsFromWithin):
        before = bench.deploy.began()
    line = bench.transcript.wait([b"Command line:"], since=before, deadline=bench.deadline())
    bench.transcript.wait([b'second="2, two"'], since=line.offset, deadline=bench.deadline())
    ready = bench.transcript.wait([b"labctl-guest: ready"], since=line.offset, deadline=bench.deadline())
    assert b"first=1" not in bench.transcript.read(before, ready.end)
    if isinstance(bench.deploy, Carries):
        assert bench.deploy.arrived(True) == bench.build.digest


def test_a_machine_that_is_on_takes_no_build(bench: Bench) -> None:
    bench.power.on(bench.deadline())
    with pytest.raises(DeployError, match="on"):
        bench.deploy.put(bench.build, "", bench.deadline())


@pytest.mark.parametrize("part", ["kernel", "initrd"])
def test_a_file_that_has_gone(bench: Bench, tmp_path: Path, part: str) -> None:
    lost = replace(bench.build, **{part: tmp_path / "gone"})  # type: ignore[arg-type]
    with pytest.raises(DeployError, match="gone") as error:
        bench.deploy.put(lost, "", bench.deadline())
    assert bench.build.name in error.value.remedy


def test_the_command_that_reproduces_it_is_runnable_as_pasted(bench: Bench) -> None:
    command = bench.deploy.reproduce(bench.build, f"{bench.target.config.append} {bench.build.append}")
    if not command:
        pytest.skip("this driver has none")
    with subprocess.Popen(
        command, shell=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    ) as shown:
        try:
            assert b"labctl-guest: ready" in _until(shown, b"labctl-guest: ready", 60)
        finally:
            os.killpg(shown.pid, signal.SIGKILL)


def _until(process: subprocess.Popen[bytes], words: bytes, seconds: float) -> bytes:
    assert process.stdout is not None
    said, end = b"", time.monotonic() + seconds
    while words not in said and (left := end - time.monotonic()) > 0:
        if select.select([process.stdout], [], [], left)[0]:
            data = os.read(process.stdout.fileno(), 65536)
            if not data:
                break
            said += data
    return said
