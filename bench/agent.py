"""The agent on its virtio-serial port: round trip (reach: p50 0.5 ms), files each way (10 MB/s), and 100,000 requests while the kernel
floods its log, no answer lost or broken. Prints one JSON object. ``--requests N`` for fewer."""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

from labctl.build.obtain import obtain
from labctl.config import Lab
from labctl.deadline import Deadline
from labctl.machine.drivers.agent import Agent
from labctl.machine.session import Session
from labctl.run.equip import equipped

PINGS, ROUNDS, FILE_BYTES = 2000, 5, 32 << 20
REACH_PING_MS, REACH_MB_S = 0.5, 10.0
FLOOD = "echo on >/proc/sys/kernel/printk_devkmsg; dmesg -n 8; (while :; do echo flood of words >/dev/kmsg; done) >/dev/null 2>&1 & echo $!"


def megabytes_a_second(session: Session) -> dict[str, float]:
    """Median of the rounds, both ways, each file compared."""
    taken: dict[str, list[float]] = {"put": [], "get": []}
    content = random.Random(1).randbytes(FILE_BYTES)
    for _ in range(ROUNDS):
        began = time.monotonic()
        session.put(content, "/tmp/file")
        taken["put"].append(FILE_BYTES / 1e6 / (time.monotonic() - began))
        back = io.BytesIO()
        began = time.monotonic()
        session.get("/tmp/file", back)
        taken["get"].append(FILE_BYTES / 1e6 / (time.monotonic() - began))
        assert back.getvalue() == content
    return {way: round(statistics.median(rates), 1) for way, rates in taken.items()}


def flooded(session: Session, agent: Agent, requests: int) -> dict[str, object]:
    """Requests, every thousandth a command, while the console is flooded; whatever is not the right answer is counted."""
    since, began, broken = session.transcript.size, time.monotonic(), 0
    flood = session.run(FLOOD).output.strip()
    rng = random.Random(2)
    for number in range(requests):
        if number % 1000 == 999:
            result = session.run(f"echo {number}; echo {number} >&2; exit 7", check=False)
            broken += (result.output, result.stderr, result.status) != (f"{number}\n", f"{number}\n", 7)
        else:
            agent.ping(Deadline.after(60), rng.randbytes(rng.randrange(200)))  # raises if other bytes come back
    session.run(f"kill {flood}; dmesg -n 1")
    lines = sum(
        session.transcript.read(at, at + (1 << 20)).count(b"flood of words") for at in range(since, session.transcript.size, 1 << 20)
    )
    return {"requests": requests, "broken": broken, "flood_lines": lines, "seconds": round(time.monotonic() - began, 1)}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--build", default="debian-cloud")
    parser.add_argument("--target", default="agent-1c-512m")
    given = parser.parse_args()
    lab = Lab.find(Path(__file__).parents[1])
    target = lab.target(given.target)
    build = equipped(obtain(lab, given.build), target)
    with tempfile.TemporaryDirectory() as folder, Session(target, build, Path(folder)) as session:
        session.run("true")
        agent = session.machine.shell
        assert isinstance(agent, Agent)
        pings = sorted(agent.ping(Deadline.after(60)) * 1000 for _ in range(PINGS))
        rates = megabytes_a_second(session)
        flood = flooded(session, agent, given.requests)
    p50 = statistics.median(pings)
    figures = {
        "bench": "agent",
        "ping_p50_ms": round(p50, 3),
        "ping_p99_ms": round(pings[int(0.99 * PINGS)], 3),
        "reach_ping_p50_ms": REACH_PING_MS,
        "put_mb_s": rates["put"],
        "get_mb_s": rates["get"],
        "reach_mb_s": REACH_MB_S,
        "flood": flood,
        "load": round(os.getloadavg()[0], 1),
        "pass": p50 <= REACH_PING_MS and min(rates.values()) >= REACH_MB_S and not flood["broken"],
    }
    print(json.dumps(figures))
    return 0 if figures["pass"] else 1


if __name__ == "__main__":
    sys.exit(main())
