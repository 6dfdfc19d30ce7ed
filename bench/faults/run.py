"""What a real server can do wrong, each so often, through whole runs: ``python -m bench faults [--times 20] [--only late] [--servers 4]``.

A virtual server misbehaves while ``labctl run matrix`` boots a small kernel on it over the network and listens to it for some seconds.
Of each run: is the cause told that it was, by an error of the lab's and not of the build's; did it end in time; is a lease left; is the
machine off. Prints a table, what was told wrongly in its own words, and exits with 1 if anything was.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue

from labctl.config import Lab
from labctl.errors import LabctlError
from labctl.machine import lease
from labctl.model import Outcome
from labctl.result import CellResult
from labctl.store.reader import read_run
from labctl.virtualserver.client import VirtualServer

HERE = Path(__file__).parent
FILL = 4_000_000
LIMIT = 300.0
"""Seconds after which a run hangs: two attempts, each with power verbs of 30 s, a deadline of 60 s, a console sought for 30 s."""
SUITE = '''"""The machine lives: it says a line twice a second."""


def test_it_beats(console):
    console.expect(rb"beat (\\w{4})\\r", timeout=20)
    first = int(console.match[1], 16)
    for number in range(first + 1, first + 8):
        console.expect(f"beat {number:04x}".encode(), timeout=20)
'''
BOOT = """[boot]
deadline = 60
silence = 25
"""
RECIPE = """schema = 1
builder = "path"
initramfs = false
[path]
kernel = "{kernel}"
[milestones]
kernel_entry = "beats: a kernel"
ready = "beats: ready"
"""
BLAMES_THE_BUILD = ("BootFailed", "KernelCrash", "TargetHung", "CommandFailed")
UNHARMED = (Outcome.PASS,)
HARMED = (Outcome.FLAKY, Outcome.ERROR)
EITHER = (*UNHARMED, *HARMED)


@dataclass(frozen=True)
class Case:
    """A fault, when it strikes, and what may be told of it."""

    fault: str
    argument: float | None
    outcomes: tuple[Outcome, ...]
    cause: str = ""
    """A regular expression over the name and the words of the error; empty where none may be told."""
    error: str = ""
    at: str = ""
    """What the machine has said when it strikes; empty: before the run."""
    note: str = ""
    """What must stand among the marks of the console, or the events of the machine's log."""
    lasts: float = 0.0
    """Seconds after which it is cleared; 0: once the run has ended."""
    powers: tuple[str, ...] = ("ipmi", "redfish")


CASES = {
    "none": Case("", None, UNHARMED),
    "drop-sol, before": Case("drop-sol", 600, HARMED, "SOL|console", "ConsoleLost"),
    "drop-sol, 10 s in the boot": Case("drop-sol", 10, EITHER, "console", "ConsoleLost|DeployError", at="iPXE"),
    "drop-sol, in the boot": Case("drop-sol", 600, HARMED, "SOL|console", "ConsoleLost", at="iPXE"),
    "drop-sol, in a test": Case("drop-sol", 600, HARMED, "SOL|console", "ConsoleLost", at="beat 0003"),
    "busy": Case("busy", None, UNHARMED, note="in use by another session", powers=("ipmi",)),  # by SSH nobody is in the way
    "ignore-power": Case("ignore-power", 1, HARMED, "said yes to power on", "PowerError"),
    "ignore-power, off": Case("ignore-power", 1, EITHER, "said yes to power off", "PowerError", at="beat 0006"),
    "refuse-power": Case("refuse-power", 1, HARMED, "power on: the BMC .* says", "PowerError"),
    "late, 2 s": Case(
        "late",
        2,
        EITHER,
        "the BMC has not|answers late|does not answer|does not give the console",
        "ManagementError|ConsoleLost|PowerError",
    ),
    "late, 12 s": Case("late", 12, HARMED, "does not answer", "ManagementError|ConsoleLost|PowerError"),
    "lose-network": Case("lose-network", 1_500_000, HARMED, "network was lost (in the middle of|behind) the kernel", "DeployError"),
    "corrupt": Case("corrupt", 100_000, HARMED, "kernel that arrived is not the one that was sent", "DeployError"),
    "flap": Case("flap", 2, EITHER, "does not answer|console", "ManagementError|ConsoleLost|PowerError"),
    "fill-sel": Case("fill-sel", None, UNHARMED, note="event log is full", powers=("ipmi",)),
    "fill-sel, in a test": Case("fill-sel", None, UNHARMED, at="beat 0003", note="event log is full", powers=("ipmi",)),
}


@dataclass
class Tally:
    seconds: list[float] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    right: int = 0
    wrong: Counter[str] = field(default_factory=Counter)
    hangs: int = 0
    leases: int = 0
    left_on: int = 0


def kernel(folder: Path) -> Path:
    made, compiled = folder / "beats", folder / "beats.o"
    subprocess.run(["as", "--32", "--defsym", f"FILL={FILL}", "-o", compiled, HERE / "beats.S"], check=True)
    words = ["ld", "-m", "elf_i386", "-Ttext", "0", "--oformat", "binary", "-e", "_start", "-o", made, compiled]
    subprocess.run(words, check=True, stderr=subprocess.DEVNULL)
    return made


def make_lab(root: Path) -> None:
    for name in ("kernel", "matrix", "suites/beats", "targets"):
        (root / name).mkdir(parents=True)
    (root / "lab.toml").write_text("schema = 1\n")
    (root / "kernel" / "beats.toml").write_text(RECIPE.format(kernel=kernel(root)))
    (root / "matrix" / "default.toml").write_text('schema = 1\nbuilds = ["*"]\ntargets = ["*"]\nsuites = ["*"]\n')
    (root / "suites" / "beats" / "test_beats.py").write_text(SUITE)


@contextmanager
def server(root: Path, power: str, number: int) -> Iterator[VirtualServer]:
    virtual = VirtualServer(root, f"faulty-{power}-{number}")
    child = virtual.start(cpus=1, memory=256 << 20, disk=1 << 30, redfish=power == "redfish", owned=True)
    with virtual.target_file.open("a") as target:
        target.write(BOOT)
    try:
        yield virtual
    finally:
        virtual.stop()
        if child is not None:
            child.kill()


def strike(virtual: VirtualServer, case: Case, since: int, over: threading.Event) -> None:
    """The fault, once the machine has said what it waits for."""
    while case.at:
        with virtual.files.serial_log.open("rb") as log:
            log.seek(since)
            if case.at.encode() in log.read():
                break
        if over.wait(0.1):
            return
    virtual.fault(case.fault, case.argument)
    if case.lasts and not over.wait(case.lasts):
        virtual.clear()


def once(virtual: VirtualServer, case: Case, tally: Tally, keep: Path | None) -> None:
    log, over = virtual.files.serial_log, threading.Event()
    since = log.stat().st_size if log.exists() else 0
    striking = threading.Thread(target=strike, args=(virtual, case, since, over))
    if case.fault:
        striking.start()
        if not case.at:
            time.sleep(0.5)
    labctl = Path(sys.executable).with_name("labctl")
    words = [labctl, "run", "matrix", "--fresh", "--target", virtual.name, "--json"]
    began = time.monotonic()
    done = None
    try:
        done = subprocess.run(words, cwd=virtual.lab_root, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        tally.hangs += 1
    tally.seconds.append(time.monotonic() - began)
    over.set()
    if case.fault:
        striking.join()
    found = Lab.find(virtual.lab_root)
    tally.leases += bool(lease.holders(found.target(virtual.name), virtual.lab_root))
    tally.left_on += (virtual.status() or {}).get("power") != "off"
    virtual.clear()
    subprocess.run([labctl, "power", "off", virtual.name], cwd=virtual.lab_root, capture_output=True)
    why = "no result within the limit" if done is None else judge(case, done, tally)
    if why:
        tally.wrong[why] += 1
        if keep is not None:
            print(f"    {case.fault}: {why}", file=sys.stderr, flush=True)
    else:
        tally.right += 1


def in_turn(free: SimpleQueue[VirtualServer], case: Case, tally: Tally, keep: Path | None) -> None:
    """On a server that is free now."""
    virtual = free.get()
    try:
        once(virtual, case, tally, keep)
    finally:
        free.put(virtual)


def judge(case: Case, done: subprocess.CompletedProcess[str], tally: Tally) -> str:
    """Empty if what was told is right, else what was told."""
    try:
        result: CellResult = read_run(Path(json.loads(done.stdout)["results"])).cells[0]
    except (ValueError, KeyError, LabctlError, IndexError):
        return f"no run: {(done.stderr.strip().splitlines() or ['it says nothing'])[-1]}"
    tally.outcomes[result.outcome.value] += 1
    told = [f"{attempt.error or attempt.outcome}: {attempt.reason}" for attempt in result.attempts]
    said = f"{result.outcome}, " + "; ".join(told)
    if result.outcome not in case.outcomes:
        return said
    bad = [attempt for attempt in result.attempts if attempt.outcome is not Outcome.PASS]
    for attempt in bad:
        words = f"{attempt.reason} {' '.join(test.reason for test in attempt.tests)}"
        if attempt.error in BLAMES_THE_BUILD or not re.search(case.cause or "^$", words) or not re.fullmatch(case.error, attempt.error):
            return said
    if case.note and not any(case.note in words for attempt in result.attempts for words in notes(attempt.folder)):
        return f"{said} (and {case.note!r} is noted nowhere)"
    return ""


def notes(folder: Path) -> Iterator[str]:
    for name in ("console.marks.jsonl", "events.jsonl"):
        with suppress(OSError):
            yield (folder / name).read_text(errors="replace")


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--times", type=int, default=20)
    options.add_argument("--only", action="append", default=[], help="Faults whose name begins so; repeatable.")
    options.add_argument("--power", choices=("ipmi", "redfish"), action="append", help="By which interface; absent: both.")
    options.add_argument("--servers", type=int, default=2, help="Virtual servers at a time: they mostly wait.")
    options.add_argument("--json", action="store_true")
    options.add_argument("--keep", type=Path, help="A new folder for the lab and its runs, which is left there.")
    asked = options.parse_args()
    wanted = {name: case for name, case in CASES.items() if not asked.only or name.startswith(tuple(asked.only))}
    if not wanted:
        options.error(f"there are: {', '.join(CASES)}")
    tallies: dict[tuple[str, str], Tally] = {}
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        root = asked.keep.absolute() if asked.keep else Path(name)
        os.environ |= {"LABCTL_CACHE": str(root / ".cache"), "LABCTL_LOCKS": str(root / ".cache" / "locks"), "LABCTL_CPUS": "64"}
        make_lab(root)
        for power in asked.power or ("ipmi", "redfish"):
            with ExitStack() as stack:
                free: SimpleQueue[VirtualServer] = SimpleQueue()
                for number in range(asked.servers):
                    free.put(stack.enter_context(server(root, power, number)))
                turns = stack.enter_context(ThreadPoolExecutor(asked.servers))
                mine = {fault: case for fault, case in wanted.items() if power in case.powers}
                tallies |= {(power, fault): Tally() for fault in mine}
                going = {
                    fault: [turns.submit(in_turn, free, case, tallies[power, fault], asked.keep) for _ in range(asked.times)]
                    for fault, case in mine.items()
                }
                for fault, of_it in going.items():
                    for one in of_it:
                        one.result()
                    if not asked.json:
                        show(power, fault, tallies[power, fault], first=(power, fault) == next(iter(tallies)))
    if asked.json:
        print(json.dumps([{"power": power, "fault": fault, **vars(tally)} for (power, fault), tally in tallies.items()], indent=2))
    return int(any(tally.wrong or tally.hangs or tally.leases or tally.left_on for tally in tallies.values()))


def show(power: str, fault: str, tally: Tally, *, first: bool) -> None:
    if first:
        print(f"{'power':8}{'fault':28}{'times':>6}{'right':>6}{'hangs':>6}{'leases':>7}{'left on':>8}{'median':>8}{'max s':>7}  outcomes")
    outcomes = ", ".join(f"{count} {name}" for name, count in tally.outcomes.items())
    print(
        f"{power:8}{fault:28}{len(tally.seconds):6}{tally.right:6}{tally.hangs:6}{tally.leases:7}{tally.left_on:8}"
        f"{statistics.median(tally.seconds):8.1f}{max(tally.seconds):7.1f}  {outcomes}",
        flush=True,
    )
    for words, count in tally.wrong.items():
        print(f"    {count} x {words}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
