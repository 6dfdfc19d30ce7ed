"""What kernels say of themselves, from recorded consoles and from hostile ones."""

from __future__ import annotations

import gzip
import time
from itertools import pairwise
from pathlib import Path

import pytest

from labctl.parsers.dmesg import MESSAGE_WIDTH, cpus_brought_up, kernel_version, memory_kib, slow_phases, stamps

CONSOLES = Path(__file__).parents[1] / "data" / "consoles"


def console(name: str) -> bytes:
    return gzip.decompress((CONSOLES / f"{name}.txt.gz").read_bytes())


@pytest.mark.parametrize(
    ("name", "cpus", "memory"),
    [("ready", 1, 261624), ("ready-q35-smp4", 4, 261624), ("ready-microvm", 2, 261752), ("panic-no-time", 1, 261624)],
)
def test_what_a_recorded_kernel_says_of_itself(name: str, cpus: int, memory: int) -> None:
    data = console(name)
    assert kernel_version(data) == "6.1.0-56-cloud-amd64"
    assert cpus_brought_up(data) == cpus
    assert memory_kib(data) == memory


@pytest.mark.parametrize("data", [b"", b"\xff\xfe\x00[", console("ready-quiet"), console("no-boot-device")])
def test_silence_is_none(data: bytes) -> None:
    assert kernel_version(data) is None
    assert cpus_brought_up(data) is None
    assert memory_kib(data) is None
    assert slow_phases(stamps(data)) == ()


def test_stamps_of_a_recorded_boot() -> None:
    messages = stamps(console("ready"))
    assert messages[0][0] == 0.0
    # The firmware leaves its line unfinished, with escapes behind it: the first message is found all the same.
    assert messages[0][1].startswith("Linux version 6.1.0-56-cloud-amd64 ")
    assert messages[-1][1] == "reboot: Power down"
    assert len(messages) == console("ready").count(b"[    ")
    assert [at for at, _ in messages] == sorted(at for at, _ in messages)


def test_the_slow_phases_of_a_recorded_boot_are_its_longest_gaps() -> None:
    messages = stamps(console("ready"))
    phases = slow_phases(messages, 3)
    gaps = sorted((round(b[0] - a[0], 6) for a, b in pairwise(messages)), reverse=True)
    assert [length for length, _ in phases] == gaps[:3]
    assert phases[0][1].endswith("before: Freeing SMP alternatives memory: 36K")


def test_slow_phases_name_the_message_that_ended_each_gap() -> None:
    messages = [(0.0, "entry"), (0.5, "a"), (0.6, "b"), (2.0, "c"), (2.0, "d")]
    assert slow_phases(messages, 2) == ((1.4, "at 2.000 s, before: c"), (0.5, "at 0.500 s, before: a"))
    assert slow_phases(messages, 0) == ()
    assert len(slow_phases(messages)) == 3


def test_a_second_boot_ends_no_gap() -> None:
    assert slow_phases([(5.0, "reboot: Restarting system"), (0.0, "Linux version"), (0.25, "x")]) == ((0.25, "at 0.250 s, before: x"),)


def test_the_caller_behind_the_stamp_is_no_message() -> None:
    assert stamps(b"[    1.500000][    T1] Run /init as init process\r\n") == [(1.5, "Run /init as init process")]


def test_hostile_bytes_are_left_out_or_made_visible() -> None:
    data = (
        b"[99999999999999999999.000000] too long\n[    1.0000] too short\n[\xff 1.000000] no\n"
        b"[    2.000000] \x1b[2Jgone\xe2\x80\xae\n[    3.000000] " + b"A" * 100_000 + b"\n[    4.000000] last"
    )
    messages = stamps(data)
    assert [at for at, _ in messages] == [2.0, 3.0, 4.0]
    assert messages[0][1] == "␛[2Jgone<U+202E>"
    assert len(messages[1][1]) == 400
    assert all(len(text) < MESSAGE_WIDTH + 40 for _, text in slow_phases(messages))


def test_a_version_is_only_what_the_kernel_prints() -> None:
    assert kernel_version(b"echo Linux version 9.9.9 (x)\n[    0.000000] Linux version 6.12.1-x (gcc)\n") == "6.12.1-x"
    assert kernel_version(b"[    0.000000] Linux version " + b"9" * 500) == "9" * 128


def test_a_flood_of_stamps_costs_little() -> None:
    data = b"[    1.000001] x\n" * 100_000
    start = time.thread_time()
    assert len(slow_phases(stamps(data))) == 0
    assert time.thread_time() - start < 5
