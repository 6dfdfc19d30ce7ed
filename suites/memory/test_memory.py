"""Is the machine's memory what it should be, does it hold what is written, and does the kernel give back and take away what it must?"""

import re

import pytest

from labctl.model import Direction, Metric

TOTAL = Metric("memory.total", "B", Direction.HIGHER, "what the kernel has to give, of the target's memory")
AVAILABLE = Metric("memory.available", "B", Direction.HIGHER, "what a program could have, with nothing else running")
LIFE = Metric("memory.kept_by_a_life", "B", Direction.LOWER, "memory available before and after, by process that lived and ended")

LIVES = 1000
KEPT = 2 << 20
"""Bytes that may be gone after LIVES processes: 2 KiB for each. Counters that each CPU keeps for itself make some hundred KiB of it."""
MOST = 0.8
"""Of what is available, that much is written to: what is left is for the kernel and the shell."""


def kib(text, key):
    """A figure of /proc/meminfo, in KiB."""
    return int(re.search(rf"^{key}:\s+(\d+) kB", text, re.MULTILINE)[1])


def fields(line):
    """``a=1 b=2`` → what it says."""
    return dict(word.split("=", 1) for word in line.split())


def assert_right(told):
    """What ``memory patterns`` says of each pattern: every byte was written, and none was wrong when it was read."""
    found = [fields(line) for line in told.output.splitlines() if line.startswith("pattern=")]
    wrong = [f"{each['wrong']} wrong with {each['pattern']}, the first at {each['first']}" for each in found if each["wrong"] != "0"]
    assert not wrong, "; ".join(wrong)
    assert told.status == 0, told.output
    assert [each["pattern"] for each in found] == ["own", "inverse", "stripes"]


def test_figures(target, shell, record):
    """The kernel has the target's memory, but for an eighth and 64 MiB at most, and a program can have most of that."""
    text = shell("cat /proc/meminfo")
    total, available = kib(text, "MemTotal") << 10, kib(text, "MemAvailable") << 10
    record(TOTAL, total)
    record(AVAILABLE, available)
    assert target.config.memory * 7 // 8 - (64 << 20) <= total <= target.config.memory
    assert total * 3 // 4 <= available <= total


def test_patterns(shell):
    """Most of the machine's memory in one piece: three patterns written and read back."""
    size = int(kib(shell("cat /proc/meminfo"), "MemAvailable") * MOST) << 10
    assert_right(shell.run(f"memory patterns {size}", deadline=30 + size / 4e6, check=False))


def test_huge_pages(shell):
    """The same in pages of 2 MiB, as many as a quarter of the memory."""
    if shell.run("[ -d /sys/kernel/mm/hugepages/hugepages-2048kB ]", check=False).status:
        pytest.skip("the kernel or the machine has no pages of 2 MiB")
    before = shell("cat /proc/meminfo")
    pages = kib(before, "MemAvailable") // 4 // 2048
    shell(f"echo {pages} >/proc/sys/vm/nr_hugepages")
    got = int(shell("cat /proc/sys/vm/nr_hugepages"))
    assert got >= pages // 2, f"{got} of {pages} huge pages, with nothing else running"
    assert_right(shell.run(f"memory patterns {got << 21} --huge", deadline=30 + got, check=False))
    shell("echo 0 >/proc/sys/vm/nr_hugepages")
    assert kib(shell("cat /proc/meminfo"), "Hugetlb") == 0, "huge pages are not given back"


def test_no_leak(shell, record):
    """What is available after 1,000 processes is what it was before: each had memory, a pipe and a file of its own."""
    told = [fields(line) for line in shell(f"memory lives {LIVES}", deadline=300).splitlines()]
    before, after = ({key: int(value) << 10 for key, value in each.items() if key != "when"} for each in told)
    gone = before["available"] - after["available"]
    record(LIFE, gone / LIVES)
    grown = ", ".join(f"{key} {after[key] - before[key]:+d}" for key in before if key != "available")
    assert gone <= KEPT, f"{gone} bytes less after {LIVES} processes ({grown})"
    assert after["unreclaimable"] - before["unreclaimable"] <= KEPT, f"the kernel's own memory has grown: {grown}"


def test_out_of_memory(target, shell):
    """Who takes more than there is is killed, and nobody else; the kernel says so; the machine has its memory back."""
    before = kib(shell("cat /proc/meminfo"), "MemAvailable")
    said = target.transcript.size
    greedy = shell.run("memory greedy", deadline=120, check=False)
    assert greedy.status == 128 + 9, f"it was not killed: status {greedy.status}, {greedy.output}"
    killed = re.findall(rb"Killed process \d+ \(([^)]*)\)", target.transcript.read(said))
    assert killed == [b"memory"], f"the kernel says that it killed {killed}"
    after = kib(shell("cat /proc/meminfo"), "MemAvailable")
    assert after >= before * 9 // 10, f"{after} KiB available, {before} KiB before"
