"""The console's record under load: ``python bench/transcript.py [--gigabytes 1] [--markers 2000]``; one JSON object on stdout.

Latency: another process writes markers that carry its monotonic clock to a socket, one at a time; the time is taken when the code
that waits for the marker runs. Beside it, alternating, a bare blocking read of the same markers: what the host gives just then.
Ingest: another process writes console-like text through a socket to the `Reader`, while a watch with 25 prefiltered patterns
searches all of it; until both are through. RSS is this process's own, its peak against before.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import socket
import statistics
import tempfile
import time
from pathlib import Path

from labctl.deadline import Deadline
from labctl.machine.reader import Reader
from labctl.machine.transcript import ConsoleEnded, Pattern, Transcript

WORDS = [
    rb"Kernel panic - not syncing: (.*)",
    rb"BUG: unable to handle (.*)",
    rb"BUG: KASAN: (\S+) in (\S+)",
    rb"BUG: KFENCE: (.*)",
    rb"BUG: soft lockup - CPU#(\d+) stuck for (\d+)s",
    rb"BUG: workqueue lockup",
    rb"BUG: scheduling while atomic: (.*)",
    rb"BUG: sleeping function called from invalid context",
    rb"watchdog: BUG: soft lockup",
    rb"NMI watchdog: Watchdog detected hard LOCKUP on cpu (\d+)",
    rb"rcu: INFO: rcu_(\w+) detected stalls",
    rb"INFO: task (.*) blocked for more than (\d+) seconds",
    rb"INFO: possible circular locking dependency detected",
    rb"Oops: ([0-9a-f]{4}) \[#(\d+)\]",
    rb"general protection fault(.*)",
    rb"Unable to handle kernel (.*)",
    rb"kernel BUG at (\S+)!",
    rb"Out of memory: Killed process (\d+) \((.*)\)",
    rb"UBSAN: (.*) in (\S+)",
    rb"double fault: (.*)",
    rb"Unable to mount root fs on (.*)",
    rb"No working init found",
    rb"Linux version (\S+)",
    rb"Run (\S+) as init process",
    rb"labctl: ready (\S+)",
]


def patterns() -> list[Pattern]:
    """Boot milestones and a crash table as they are in use, each with its longest run of plain letters."""
    return [Pattern(re.compile(word), max(re.split(rb"[(\\\[]", word), key=len)) for word in WORDS]


def console_text(size: int) -> bytes:
    """Lines as a kernel prints them."""
    lines = [
        b"[%5d.%06d] pci 0000:00:%02x.%d: [8086:%04x] type 00 class 0x%06x Unknown device, BAR %d: assigned [mem 0x%08x]\r\n"
        % (n // 97, n * 7919 % 1000000, n % 32, n % 8, n * 31 % 65536, n * 17 % 0xFFFFFF, n % 6, n * 4096)
        for n in range(size // 90)
    ]
    return b"".join(lines)[:size]


def markers(count: int) -> tuple[int, socket.socket]:
    """A process that writes ``count`` markers, each once the one before was answered; its id, and our end."""
    ours, theirs = socket.socketpair()
    if child := os.fork():
        theirs.close()
        return child, ours
    ours.close()
    for number in range(count):
        theirs.send(b"[    1.0] something before it\r\n")
        time.sleep(0.001 + number % 7 * 0.0007)
        theirs.send(b"marker %d %d\r\n" % (number, time.monotonic_ns()))
        theirs.recv(1)
    os._exit(0)


def by_transcript(count: int) -> list[float]:
    """Microseconds from just before a marker's write until the code that waits for it in a watch runs."""
    took = []
    child, ours = markers(count)
    marker = Pattern(re.compile(rb"marker (\d+) (\d+)\r\n"), b"marker ")
    with (
        ours,
        tempfile.TemporaryDirectory() as folder,
        Transcript(Path(folder)) as transcript,
        Reader(ours.fileno(), transcript),
        transcript.watch([*patterns(), marker]) as watch,
    ):
        for _ in range(count):
            match = watch.next(Deadline.after(10))
            took.append((time.monotonic_ns() - int(match.groups[1] or 0)) / 1000)
            ours.send(b"k")
    os.waitpid(child, 0)
    return took


def by_bare_read(count: int) -> list[float]:
    """The same with nothing but a blocking read."""
    took: list[float] = []
    child, ours = markers(count)
    with ours:
        while len(took) < count:
            data = ours.recv(1 << 16)
            now = time.monotonic_ns()
            if found := re.search(rb"marker (\d+) (\d+)\r\n", data):
                took.append((now - int(found[2])) / 1000)
                ours.send(b"k")
    os.waitpid(child, 0)
    return took


def latency(count: int, rounds: int = 4) -> dict[str, object]:
    """Both, in turn."""
    lab: list[float] = []
    bare: list[float] = []
    for _ in range(rounds):
        lab += by_transcript(count // rounds)
        bare += by_bare_read(count // rounds)
    return {"transcript": figures(lab), "bare_read": figures(bare)}


def figures(took: list[float]) -> dict[str, float]:
    """Count, median, 99th percentile and maximum, in microseconds."""
    took.sort()
    return {
        "count": len(took),
        "p50_us": round(statistics.median(took), 1),
        "p99_us": round(took[int(len(took) * 0.99)], 1),
        "max_us": round(took[-1], 1),
    }


def rss_kb() -> int:
    """Resident size of this process now."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1])  # type: ignore[index]


def ingest(total: int) -> dict[str, float]:
    """A flood through the reader with a watch over all of it, and what it does to the memory."""
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        ours.close()
        block = console_text(1 << 20)
        sent = 0
        while sent < total:
            theirs.sendall(block)
            sent += len(block)
        theirs.sendall(b"Kernel panic - not syncing: the end\n")
        os._exit(0)
    theirs.close()
    with ours, tempfile.TemporaryDirectory(dir=".") as folder:
        with Transcript(Path(folder)) as transcript:
            before = rss_kb()
            began = time.monotonic()
            cpu = time.process_time()
            with Reader(ours.fileno(), transcript), transcript.watch(patterns()) as watch:
                found = []
                try:
                    while True:
                        found.append(watch.next(Deadline.after(600)))
                except ConsoleEnded:
                    pass
            took = time.monotonic() - began
            size = transcript.size
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    os.waitpid(child, 0)
    assert [match.text for match in found] == [b"Kernel panic - not syncing: the end"], found
    return {
        "bytes": size,
        "patterns": len(WORDS),
        "seconds": round(took, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "mb_per_s": round(size / took / 1e6, 1),
        "rss_growth_mb": round((peak - before) / 1024, 1),
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--gigabytes", type=float, default=1.0)
    options.add_argument("--markers", type=int, default=2000)
    asked = options.parse_args()
    print(json.dumps({"latency": latency(asked.markers), "ingest": ingest(int(asked.gigabytes * 1e9))}, indent=2))


if __name__ == "__main__":
    main()
