"""Made-up runs for the tests of reports: they look like real ones, and are as hostile as a guest can be. No machine has run anything here.

``python -m tests.report_runs FOLDER`` writes the reports of three of them, to be looked at.
"""

from __future__ import annotations

import random
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from labctl.histogram import Histogram
from labctl.judge.density import HEALTHY, OF_VMS
from labctl.judge.distribution import merge
from labctl.judge.promise import judge
from labctl.judge.summary import summarise
from labctl.judge.vms import ISOLATION
from labctl.model import Cell, Channel, Direction, Milestone, Outcome
from labctl.report.beside import Beside
from labctl.report.suites import suites
from labctl.result import Attempt, CellResult, Distribution, LeftOut, RunResult, Sample, TestResult
from labctl.store.reader import end_record
from labctl.store.records import document

HOSTILE = (
    "<script>window.pwned=1</script>",
    "</script><script>window.pwned=1</script>",
    "<img src=x onerror='window.pwned=1'>",
    "\x1b[31mred\x1b[0m\x1b]0;title\x07",
    "\u202egnp.exe\u2066 \u200b\ufeff",
    "{{ 7*7 }} {% raw %} ${7*7}",
    "]]> &amp; &lt; \" ' ` \\",
    "line\u2028separator\u2029paragraph\x00nul\x85nel\uffff",
    "half \ud800 surrogate",
    "=HYPERLINK(\"http://127.0.0.1/\",\"x\")",
    "javascript:window.pwned=1",
    "long " + "A" * 10_000,
)  # fmt: skip

START = 1_790_000_000.0
TARGETS = {
    "qemu-1c-512m": (1, "512M", "10G"),
    "qemu-2c-1g": (2, "1G", "20G"),
    "qemu-4c-2g": (4, "2G", "40G"),
    "qemu-8c-4g": (8, "4G", "80G"),
}
BUILDS = {"debian-cloud": ("6.1.0-56-cloud-amd64", 1.0), "debian-cloud-previous": ("6.1.0-54-cloud-amd64", 1.07)}
TESTS = ("test_reaches_ready", "test_version", "test_cpus", "test_memory", "test_clean_power_off", "test_five_power_cycles")
PANIC = """[    1.204512] VFS: Cannot open root device "(null)" or unknown-block(0,0): error -6
[    1.204981] Please append a correct "root=" boot option; here are the available partitions:
[    1.205377] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)
[    1.205814] CPU: 3 PID: 1 Comm: swapper/0 Not tainted 6.1.0-54-cloud-amd64 #1  Debian 6.1.158-1
[    1.206296] Hardware name: QEMU Standard PC (Q35 + ICH9, 2009), BIOS 1.16.2-debian-1.16.2-1 04/01/2014
[    1.206820] Call Trace:
[    1.207001]  <TASK>
[    1.207166]  dump_stack_lvl+0x44/0x5c
[    1.207418]  panic+0x118/0x2ed
[    1.207633]  mount_block_root+0x1d3/0x1e6
[    1.207905]  prepare_namespace+0x136/0x165
[    1.208180]  kernel_init+0x15/0x120
[    1.208421]  ret_from_fork+0x1f/0x30
[    1.208675]  </TASK>
[    1.209020] ---[ end Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0) ]---"""
QEMU = (
    "qemu-system-x86_64 -machine q35,accel=tcg -smp 4 -m 2048M -display none -no-reboot -nodefaults -serial stdio"
    " -kernel ~/.cache/labctl/artefacts/3f9c0a/kernel -initrd ~/.cache/labctl/artefacts/3f9c0a/initrd"
    " -append 'console=ttyS0,115200 panic=-1 root=/dev/vda'"
)
SILENCES = ((0.412, "smp: Brought up 1 node"), (0.287, "Freeing unused kernel image (initmem) memory: 2748K"),
            (0.131, "pci 0000:00:02.0: vgaarb: setting as boot VGA device"), (0.088, "audit: initializing netlink subsys (disabled)"))  # fmt: skip


def ordinary_run(folder: Path, *, repeat: int = 1, seed: int = 7) -> RunResult:
    """8 cells that all passed: two builds on four targets."""
    chance = random.Random(seed)
    cells, began = [], START
    for repetition in range(1, repeat + 1):
        for build in BUILDS:
            for target in TARGETS:
                cells.append(_passed(Cell(build, target, "boot", repeat=repetition), folder, chance, began))
                began += cells[-1].duration_s / 2
    return _run(folder, cells, Outcome.PASS, began - START)


def failing_run(folder: Path, *, seed: int = 7) -> RunResult:
    """One of each outcome, an icount suite beside the wall one, cells left out."""
    chance = random.Random(seed)
    cells, began = list(ordinary_run(folder).cells), START + 60
    worst = cells[6]
    panicked = _attempt(worst.cell, folder, 1, Outcome.FAIL, START + 31, 6.21, "Kernel panic - not syncing: VFS: Unable to mount root fs", "KernelCrash",
                        (TestResult("test_reaches_ready", Outcome.FAIL, 6.1, "KernelCrash: Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)",
                                    "booted = <Session qemu-4c-2g>\n\n    def test_reaches_ready(booted, record):\n>       assert 'ready' in booted.milestones\nE       labctl.errors.KernelCrash"),),
                        milestones={"firmware": 0.31, "kernel_entry": 0.93}, excerpt=PANIC)  # fmt: skip
    cells[6] = CellResult(worst.cell, Outcome.FAIL, 6.21, panicked.reason, (panicked,))

    lost = _attempt(
        cells[3].cell,
        folder,
        1,
        Outcome.ERROR,
        START + 9,
        2.0,
        "the console ended while the machine did not",
        "ConsoleLost",
        (),
        excerpt="[    0.411234] smpboot: CPU0",
    )
    cells[3] = CellResult(
        cells[3].cell, Outcome.FLAKY, cells[3].duration_s + 2.0, "passed at attempt 2", (lost, _again(cells[3].attempts[0]))
    )

    busy = Cell("debian-cloud", "qemu-1c-512m", "storage")
    error = _attempt(busy, folder, 1, Outcome.ERROR, began, 30.0, "qemu-1c-512m is held by anna since 02:10: bisecting", "TargetBusy", ())
    cells.append(CellResult(busy, Outcome.ERROR, 30.0, error.reason, (error,)))
    skip = Cell("debian-cloud", "qemu-2c-1g", "storage")
    skipped = _attempt(
        skip,
        folder,
        1,
        Outcome.SKIP,
        began,
        0.01,
        "needs the driver role Disk",
        "",
        (TestResult("test_iops", Outcome.SKIP, 0.0, "needs the driver role Disk"),),
    )
    cells.append(CellResult(skip, Outcome.SKIP, 0.01, skipped.reason, (skipped,)))
    noisy = Cell("debian-cloud", "qemu-4c-2g", "storage")
    invalid = _attempt(noisy, folder, 1, Outcome.INVALID, began, 12.4, "host load 9.8 while measuring", "MeasurementInvalid",
                       (TestResult("test_iops", Outcome.INVALID, 12.0, "host load 9.8 while measuring"),),
                       samples=(_sample("storage.iops", 812.0, "1/s", Direction.HIGHER, "test_iops", chance),))  # fmt: skip
    cells.append(CellResult(noisy, Outcome.INVALID, 12.4, invalid.reason, (invalid,)))
    for build, (_, factor) in BUILDS.items():
        cell = Cell(build, "qemu-1c-512m", "count", Channel.ICOUNT)
        count = Sample(
            "boot.instructions", round(1_402_331_207 * factor), "1", Direction.EXACT, Channel.ICOUNT, "test_instructions", at=began
        )
        attempt = _attempt(cell, folder, 1, Outcome.PASS, began, 9.0, "", "", (TestResult("test_instructions", Outcome.PASS, 8.8),), samples=(count,),
                           milestones={"firmware": 0.2, "kernel_entry": 0.5, "init": 1.3, "ready": 1.4})  # fmt: skip
        cells.append(CellResult(cell, Outcome.PASS, 9.0, "", (attempt,)))
    left = (LeftOut(Cell("debian-cloud-previous", "qemu-1c-512m", "storage"), "excluded by matrix/default.toml: only the newest is measured"),
            LeftOut(Cell("debian-cloud-previous", "qemu-2c-1g", "storage"), "excluded by matrix/default.toml: only the newest is measured"))  # fmt: skip
    return _run(folder, cells, Outcome.FAIL, 101.5, left)


PROMISES = {
    "boot.ready median": {"limit": "<= 3 s", "tags": [], "gate": False},
    "network.rtt p99": {"limit": "<= 1 ms", "tags": [], "gate": False},
    "uptime.availability": {"limit": ">= 99.99 %", "tags": [], "gate": False},
    "vm.density": {"limit": ">= 200", "tags": [], "gate": True},
    "storage.iops median pattern=randread qd=32": {"limit": ">= 100000", "tags": [], "gate": False},
    "storage.latency p99.9 pattern=read qd=1": {"limit": "<= 50 us", "tags": [], "gate": False},
    "storage.latency max pattern=read qd=1": {"limit": "<= 1 s", "tags": [], "gate": False},
    "memory.available": {"limit": ">= 512 MiB", "tags": [], "gate": True},
    "uptime.gap max": {"limit": "<= 5 s", "tags": [], "gate": False},
}


def of_suites(run: RunResult) -> dict[str, Any]:
    """What the page shows of the suites."""
    judged, summary, merged = judge([run]), summarise(run), merge([run])
    return suites(run, summary, merged, judged, Beside(judged, [*(one.group for one in summary.groups), *(one.group for one in merged)]))


def suites_run(folder: Path, *, seed: int = 5, repeat: int = 3) -> RunResult:
    """What the suites for memory, storage, network and endurance record, beside boots, of builds with promises."""
    chance = random.Random(seed)
    cells, began = list(ordinary_run(folder).cells), START + 60
    for build, (_, factor) in BUILDS.items():
        for repetition in range(1, repeat + 1):
            for suite, record in (("memory", _memory), ("storage", _storage), ("network", _network), ("soak", _soak)):
                cell = Cell(build, "qemu-2c-1g", suite, repeat=repetition)
                samples, distributions = record(factor, chance)
                tests = (TestResult("test_it", Outcome.PASS, 60.0),)
                attempt = _attempt(
                    cell, folder, 1, Outcome.PASS, began, 61.0, "", "", tests, samples=samples, milestones={"firmware": 0.3, "ready": 2.8}
                )
                cells.append(CellResult(cell, Outcome.PASS, 61.0, "", (replace(attempt, distributions=distributions),)))
                began += 61
    run = _run(folder, cells, Outcome.PASS, began - START)
    return replace(run, builds={name: {**table, "promises": PROMISES} for name, table in run.builds.items()})


STORIES = {
    "US-14": "Create a VM", "US-15": "Start a VM", "US-16": "Stop a VM", "US-17": "List the VMs", "US-18": "Make a template of a VM and clone it",
    "US-19": "Pin a VM's CPUs", "US-22": "Console of a VM", "US-24": "Pass a GPU through", "US-25": "Pass a device through (PCI, USB)",
    "US-27": "60 frames a second on the desktop", "US-34": "VMs isolated from each other", "US-36": "Snapshot and restore", "US-37": "Live migration",
    "US-38": "Restart on failure", "US-39": "Backup and restore", "US-40": "Audit log",
}  # fmt: skip
HYPERVISORS = {"debian-kvm": 1.0, "debian-xen": 1.8}
NO_GPU = 'needs a GPU to pass through: the target declares none (tags = ["gpu"])'
NO_MIGRATION = "debian-xen: the driver xl does not migrate to another machine (Migrates)"
PANIC_XEN = """(XEN) [  183.402117] d57v0 Over-allocation for domain 57: 4097 > 4096
(XEN) [  183.516802] ----[ Xen-4.17.5  x86_64  debug=n  Not tainted ]----
(XEN) [  183.517244] CPU:    1
(XEN) [  183.517398] RIP:    e008:[<ffff82d04022b1c3>] common/page_alloc.c#free_heap_pages+0x1f3/0x660
(XEN) [  183.519807] Xen call trace:
(XEN) [  183.520011]    [<ffff82d04022b1c3>] R common/page_alloc.c#free_heap_pages+0x1f3/0x660
(XEN) [  183.521250] ****************************************
(XEN) [  183.521410] Panic on CPU 1:
(XEN) [  183.521533] FATAL TRAP: vector = 6 (invalid opcode)
(XEN) [  183.521702] ****************************************"""
HYPERVISOR_PROMISES = {
    "boot.ready median": {"limit": "<= 3 s", "tags": [], "gate": False},
    "density.healthy": {"limit": ">= 200", "tags": [], "gate": False},
    "network.rtt p99": {"limit": "<= 1 ms", "tags": [], "gate": False},
    "uptime.availability": {"limit": ">= 99.99 %", "tags": [], "gate": False},
    "desktop.fps": {"limit": ">= 60 fps", "tags": [], "gate": False},
}


def hypervisor_run(folder: Path, *, seed: int = 9, began: float = START, migration_fails: bool = True) -> RunResult:
    """Suites of hypervisors on two builds: the lifecycle with its stories, a curve of density that ends in a panic, what VMs were measured by."""
    chance = random.Random(seed)
    cells: list[CellResult] = []
    for build, factor in HYPERVISORS.items():
        for suite, target, (samples, distributions) in (
            ("density", "hv-2c-1g", (_density("kvm" if factor == 1 else "xen", 200 if factor == 1 else 57, 0.021 * factor, factor == 1, chance), ())),
            ("isolation", "hv-2c-2g", (_isolation(factor, chance), ())),
            ("desktop", "hv-2c-2g", _desktop(factor, chance)),
            ("lifecycle", "hv-2c-2g", _vms(factor, chance)),
        ):  # fmt: skip
            cell = Cell(build, target, suite)
            tests = _lifecycle(build) if suite == "lifecycle" else (TestResult("test_it", Outcome.PASS, 31.0),)
            outcome, reason, excerpt = Outcome.PASS, "", ""
            if suite == "density" and factor > 1:
                outcome, reason, excerpt = Outcome.FAIL, "KernelCrash: Panic on CPU 1: FATAL TRAP: vector = 6 (invalid opcode)", PANIC_XEN
                tests = (TestResult("test_it", Outcome.FAIL, 31.0, reason),)
            boot = {"firmware": 0.4, "kernel_entry": 1.1, "init": 4.2 * factor, "ready": 5.9 * factor}
            attempt = _attempt(cell, folder, 1, outcome, began, 40.0, reason, "KernelCrash" if excerpt else "", tests, samples=samples,
                               milestones=boot, excerpt=excerpt)  # fmt: skip
            cells.append(CellResult(cell, outcome, 40.0, reason, (replace(attempt, distributions=distributions),)))
    cells.append(_migration(folder, began, chance, fails=migration_fails))
    run = _run(folder, cells, Outcome.FAIL, 431.0)
    builds = {
        name: {**table, "name": build, "hypervisor": "kvm" if build == "debian-kvm" else "xl", "promises": HYPERVISOR_PROMISES}
        for build, (name, table) in zip(HYPERVISORS, run.builds.items(), strict=True)
    }
    targets = {name: {**run.targets["qemu-2c-1g"], "tags": ["qemu", "hypervisor"]} for name in ("hv-2c-1g", "hv-2c-2g", "hv-pair")}
    named = dict(zip(HYPERVISORS, builds.values(), strict=True))
    return replace(run, id=folder.name, started_at=began, matrix="hypervisor", builds=named, targets=targets, stories=STORIES)


def hypervisor_history(folder: Path) -> None:
    """Earlier runs beside it, of which little is kept: in the last of them the migration was still proven."""
    for day, fails in ((9, False), (6, True), (3, False), (2, False), (1, True)):
        began = START - day * 86400
        run = hypervisor_run(folder.with_name(f"2026091{9 - day}-141320-past"), began=began, migration_fails=fails)
        run.folder.mkdir(parents=True, exist_ok=True)
        (run.folder / "end.json").write_bytes(document(end_record(run)))
        earlier = {name: {**table, "version": "6.1.0-54", "digest": f"sha256:{name}"} for name, table in run.builds.items()}
        asked = {"schema": 1, "version": run.version, "host": {**run.host, "qemu": "7.2.17"}, "builds": earlier, "targets": run.targets}
        (run.folder / "run.json").write_bytes(document(asked))


def _lifecycle(build: str) -> tuple[TestResult, ...]:
    found = []
    for story in STORIES:
        if story in ("US-27", "US-37"):
            continue
        skip = NO_GPU if story == "US-24" else "xl has no snapshots of running guests" if story == "US-36" and build == "debian-xen" else ""
        name = f"test_vm.py::test_{STORIES[story].split()[0].lower()}_{story[3:]}"
        found.append(TestResult(name, Outcome.SKIP if skip else Outcome.PASS, 1.2, skip, stories=(story,)))
    return (*found, TestResult("test_vm.py::test_usb", Outcome.SKIP, 0.0, "needs a USB device on the target", stories=("US-25",)))


def _migration(folder: Path, began: float, chance: random.Random, *, fails: bool) -> CellResult:
    cell = Cell("debian-kvm", "hv-pair", "migration")
    reason = "HypervisorFailed: the destination went off after 61 % of the memory: Connection reset by peer" if fails else ""
    test = TestResult("test_migration.py::test_live", Outcome.FAIL if fails else Outcome.PASS, 9.0, reason, stories=("US-37",))
    samples = () if fails else (
        _sample("migration.downtime", 0.041, "s", Direction.LOWER, test.name, chance), _sample("migration.total", 2.4, "s", Direction.LOWER, test.name, chance),
    )  # fmt: skip
    attempt = _attempt(cell, folder, 1, test.outcome, began, 12.0, reason, "", (test,), samples=samples, milestones={"ready": 6.0})
    return CellResult(cell, test.outcome, 12.0, reason, (attempt,))


def _density(runner: str, vms: int, start: float, ends: bool, chance: random.Random) -> tuple[Sample, ...]:
    """Flat up to 120, then each further VM costs more; ``ends``: it came to its end, else the machine died in the middle."""

    def of(metric: str, value: float, unit: str, direction: Direction, **params: str) -> Sample:
        return _sample(metric, value, unit, direction, "test_it", chance, params={"runner": runner, **params})

    found = [
        of("density.start", (start + max(0, n - 120) * 0.0009) * chance.lognormvariate(0, 0.18) * (6 if chance.random() < 0.02 else 1), "s", Direction.LOWER, vms=str(n))
        for n in range(1, vms + 1)
    ]  # fmt: skip
    for n in (*range(10, vms, 10), vms):
        found += (
            of("density.gap", 1.002 + max(0, n - 130) * 0.004 * chance.uniform(0.9, 1.1), "s", Direction.LOWER, vms=str(n)),
            of("density.pss", 2.9e6 * chance.uniform(0.98, 1.02), "B", Direction.LOWER, vms=str(n)),
            of("density.available", 8.1e8 - n * 3.05e6, "B", Direction.NONE, vms=str(n)),
            of("density.cpu", min(1.0, 0.04 + n / 210), "1", Direction.NONE, vms=str(n)),
        )
    return (*found, of("density.healthy", vms, "1", Direction.HIGHER, limit="target")) if ends else tuple(found)


def _isolation(factor: float, chance: random.Random) -> tuple[Sample, ...]:
    worse = {"none": 1.0, "cpu": 1.31, "memory": 1.12, "disk": 1.9, "console": 1.05}
    return tuple(
        _sample("isolation.beat_gap", 0.1 * factor * by * chance.uniform(0.97, 1.03), "s", Direction.LOWER, "test_it", chance, params={"neighbour": name})
        for name, by in worse.items()
        for _ in range(3)
    )  # fmt: skip


def _desktop(factor: float, chance: random.Random) -> tuple[tuple[Sample, ...], tuple[Distribution, ...]]:
    fps = tuple(_sample("desktop.fps", chance.uniform(58, 62) / factor, "1/s", Direction.HIGHER, "test_it", chance) for _ in range(5))
    late = _latencies(0.018 * factor, chance, 400)
    return fps, (Distribution("desktop.latency", late, "s", Direction.LOWER, Channel.WALL, "test_it", {"path": "browser"}),)


def _vms(factor: float, chance: random.Random) -> tuple[tuple[Sample, ...], tuple[Distribution, ...]]:
    test = "test_vm.py::test_create_14"
    found = [
        _sample("vm.start", typical * factor * chance.lognormvariate(0, 0.2), "s", Direction.LOWER, test, chance, params={"guest": guest})
        for guest, typical in (("tiny", 0.08), ("linux", 2.6))
        for _ in range(20)
    ]
    found.append(_sample("restart.time", 0.6 * factor, "s", Direction.LOWER, "test_vm.py::test_restart_38", chance))
    beats = Histogram.of(0.1 * chance.lognormvariate(0, 0.01) for _ in range(3000))
    return tuple(found), (Distribution("vm.beat_gap", beats, "s", Direction.LOWER, Channel.WALL, test, {"guest": "tiny"}),)


def _memory(factor: float, chance: random.Random) -> tuple[tuple[Sample, ...], tuple[Distribution, ...]]:
    total = (1 << 30) - 43_000_000
    return (
        _sample("memory.total", total, "B", Direction.HIGHER, "test_it", chance),
        _sample("memory.available", round((total - 9e7) / factor) + chance.randrange(1 << 20), "B", Direction.HIGHER, "test_it", chance),
    ), ()  # fmt: skip


def _storage(factor: float, chance: random.Random) -> tuple[tuple[Sample, ...], tuple[Distribution, ...]]:
    samples, distributions = [], []
    for pattern in ("randread", "randwrite", "read", "randrw"):
        for qd in (1, 8, 32):
            params = {"pattern": pattern, "bs": "4k", "qd": str(qd), "disk": "virtio-blk"}
            typical = 9e-5 * factor * qd**0.6 * (1.6 if "write" in pattern else 1)
            found = _latencies(typical, chance)
            iops = qd / typical * chance.uniform(0.95, 1.0)
            samples.append(_sample("storage.iops", iops, "1/s", Direction.HIGHER, "test_it", chance, params=params))
            samples.append(_sample("storage.bandwidth", iops * 4096, "B/s", Direction.HIGHER, "test_it", chance, params=params))
            distributions.append(Distribution("storage.latency", found, "s", Direction.LOWER, Channel.WALL, "test_it", params))
    return tuple(samples), tuple(distributions)


def _network(factor: float, chance: random.Random) -> tuple[tuple[Sample, ...], tuple[Distribution, ...]]:
    found = {"guest-host": _latencies(2.2e-4 * factor, chance), "guest-guest": _latencies(6e-4 * factor, chance)}
    return (
        tuple(_sample("network.throughput", 4e8 * chance.uniform(0.9, 1), "B/s", Direction.HIGHER, "test_it", chance, params={"path": path}) for path in found),
        tuple(Distribution("network.rtt", h, "s", Direction.LOWER, Channel.WALL, "test_it", {"path": path}) for path, h in found.items()),
    )  # fmt: skip


def _soak(factor: float, chance: random.Random) -> tuple[tuple[Sample, ...], tuple[Distribution, ...]]:
    figures = (
        ("uptime.seconds", 3600.0, "s"),
        ("uptime.failures", 0.0 if factor == 1 else 1.0, "1"),
        ("uptime.gap", chance.uniform(1, 1.3), "s"),
    )
    return tuple(_sample(name, value, unit, Direction.NONE, "test_it", chance) for name, value, unit in figures), ()


def _latencies(typical: float, chance: random.Random, count: int = 6000) -> Histogram:
    """Most near the middle, one in two hundred much later: as a host that does something else now and then."""
    return Histogram.of(
        typical * chance.lognormvariate(0, 0.25) * (1 if chance.random() > 0.005 else chance.uniform(3, 40)) for _ in range(count)
    )


def hostile_run(folder: Path) -> RunResult:
    """Every text of a run is an attack, and numbers are not finite."""
    cells = []
    for i, text in enumerate(HOSTILE):
        cell = Cell(text, HOSTILE[(i + 1) % len(HOSTILE)], HOSTILE[(i + 2) % len(HOSTILE)])
        samples = tuple(
            Sample(text, value, text, Direction.LOWER, Channel.WALL, text, {text: text}, at=START, conditions={text: 1.0, "load1": value})
            for value in (1.0, 1.7e308, -1.7e308, 5e-324, float("nan"), float("inf"))
        )
        samples += tuple(
            Sample(metric, value, text if metric == "vm.start" else "s", Direction.LOWER, Channel.WALL, text, {"vms": vms, "runner": text, "limit": text, "neighbour": text, text: text}, at=START)
            for metric in (*OF_VMS, HEALTHY, ISOLATION, "vm.start", "desktop.fps")
            for value, vms in ((1.0, "1"), (0.0, "2"), (1.7e308, "3"), (5e-324, "4"), (float("nan"), "5"), (float("inf"), text))
        )  # fmt: skip
        attempt = Attempt(1, text, Outcome.FAIL, START, 1.0, text, text, (TestResult(text, Outcome.FAIL, 1.0, text, text), TestResult("ok " + text, Outcome.PASS, 1.0)),
                          tuple(Sample(s.metric, s.value, s.unit, s.direction, s.channel, "ok " + text, s.params, 0, s.at, s.conditions) for s in samples),
                          {"firmware": 0.1, "ready": 2.0, text: 1.0}, ((0.5, text),), text + "\n" + "B" * 10_000 + "\n" + text, text, folder / "cells" / f"hostile {i}", False, 0.0, _hostile_figures(text))  # fmt: skip
        cells.append(CellResult(cell, Outcome.FAIL, 1.0, text, (attempt,)))
    left = tuple(LeftOut(Cell(text, "t", "s"), text) for text in HOSTILE)
    promises = dict.fromkeys((*HOSTILE, "network.rtt p99", "uptime.availability"), "<= 1 ms")
    table = {text: {text: text, "promises": promises, "provenance": {text: [text, {text: text}]}} for text in HOSTILE}
    every = "".join(HOSTILE)
    return RunResult(every[:200], folder, every, START, 1.0, Outcome.FAIL, False, True, HOSTILE, every, dict.fromkeys(HOSTILE, every), table, table, tuple(cells), left, 3)  # fmt: skip


def _hostile_figures(text: str) -> tuple[Distribution, ...]:
    found = Histogram.of([0.0, 1e-9, 1e6])
    names = ((text, text), ("storage.latency", text), ("network.rtt", "s"))
    return tuple(
        Distribution(metric, found, unit, Direction.LOWER, Channel.WALL, "ok " + text, {text: text, "qd": text, "disk": text})
        for metric, unit in names
    )


def large_run(folder: Path, *, cells: int = 10_000, samples: int = 100_000, seed: int = 3) -> RunResult:
    """Builds × 20 targets × 4 suites; 3 of 100 cells failed; several metrics."""
    chance = random.Random(seed)
    each, found = samples // cells, []
    for i in range(cells):
        cell = Cell(
            f"linux-{i // 80 // 10 + 6}.{i // 80 % 10}", f"qemu-{i % 20 + 1}c", ("boot", "storage", "network", "density")[i // 20 % 4]
        )
        began, fate = START + i * 2.0, chance.random()
        outcome = Outcome.FAIL if fate < 0.02 else Outcome.ERROR if fate < 0.03 else Outcome.PASS
        name = {"boot": "boot.ready", "storage": "storage.latency", "network": "net.latency", "density": "density.start"}[cell.suite]
        observed = tuple(
            _sample(name, chance.lognormvariate(0.5 + i % 20 / 40, 0.15), "s", Direction.LOWER, "test_measure", chance) for _ in range(each)
        )
        results = (
            TestResult("test_measure", Outcome.PASS, 2.0),
            TestResult("test_rest", outcome, 1.0, "" if outcome is Outcome.PASS else "assert 3 == 4"),
        )
        attempt = _attempt(cell, folder, 1, outcome, began, chance.uniform(2, 9), results[1].reason, "", results, samples=observed, excerpt=PANIC if outcome is Outcome.FAIL else "",
                           milestones={"firmware": 0.3, "kernel_entry": 0.8, "init": 1.4, "ready": chance.uniform(1.5, 2.5)}, stamps=SILENCES)  # fmt: skip
        found.append(CellResult(cell, outcome, attempt.duration_s, attempt.reason, (attempt,)))
    return _run(folder, found, Outcome.FAIL, cells * 2.0)


def _passed(cell: Cell, folder: Path, chance: random.Random, began: float) -> CellResult:
    cpus = TARGETS[cell.target][0]
    samples: list[Sample] = []
    boots: list[dict[str, float]] = []
    for i in range(6):
        boots.append(_boot(BUILDS[cell.build][1] * (1 + cpus / 12), chance))
        test = "test_reaches_ready" if i == 0 else "test_five_power_cycles"
        samples.append(_sample("boot.ready", boots[-1]["ready"], "s", Direction.LOWER, test, chance, began + i))
        samples += (
            _sample("boot.milestone", at, "s", Direction.LOWER, test, chance, began + i, {"milestone": name})
            for name, at in boots[-1].items()
        )
    samples.append(_sample("power.off", chance.uniform(0.11, 0.19), "s", Direction.LOWER, "test_clean_power_off", chance))
    tests = tuple(
        TestResult(name, Outcome.PASS, chance.uniform(0.01, 0.2) + (3.0 if "ready" in name else 14.0 if "five" in name else 0.0))
        for name in TESTS
    )
    stamps = tuple((gap * (1 + cpus / 10), f"at {0.4 + gap * 3:.3f} s, before: {message}") for gap, message in SILENCES)
    attempt = _attempt(
        cell,
        folder,
        1,
        Outcome.PASS,
        began,
        sum(t.duration_s for t in tests),
        "",
        "",
        tests,
        samples=tuple(samples),
        milestones=boots[0],
        stamps=stamps,
    )
    return CellResult(cell, Outcome.PASS, attempt.duration_s, "", (attempt,))


def _boot(factor: float, chance: random.Random) -> dict[str, float]:
    at, reached = 0.0, {}
    for milestone, share in zip(Milestone, (0.3, 0.62, 1.1, 0.2), strict=True):
        at += share * factor * chance.lognormvariate(0, 0.06)
        reached[milestone.value] = round(at, 6)
    return reached


def _sample(
    metric: str,
    value: float,
    unit: str,
    direction: Direction,
    test: str,
    chance: random.Random,
    at: float = START,
    params: dict[str, str] | None = None,
) -> Sample:
    conditions = {"load1": round(chance.uniform(0.6, 2.4), 2), "steal": 0.0, "cpu_pressure": round(chance.uniform(0, 30), 1), "mhz": 2445.4}
    return Sample(metric, round(value, 6), unit, direction, Channel.WALL, test, params or {}, 0, at, conditions)


def _attempt(cell: Cell, folder: Path, number: int, outcome: Outcome, began: float, duration: float, reason: str, error: str, tests: tuple[TestResult, ...], *,
             samples: tuple[Sample, ...] = (), milestones: dict[str, float] | None = None, stamps: tuple[tuple[float, str], ...] = (), excerpt: str = "") -> Attempt:  # fmt: skip
    place = folder / "cells" / "~".join((cell.build, cell.target, cell.suite)) / f"attempt-{number}"
    return Attempt(number, "gw0", outcome, began, duration, reason, error, tests, samples, milestones or {}, stamps, excerpt,
                   "" if outcome in (Outcome.PASS, Outcome.SKIP) else QEMU, place, True)  # fmt: skip


def _again(attempt: Attempt) -> Attempt:
    return Attempt(
        **{**{f: getattr(attempt, f) for f in attempt.__dataclass_fields__}, "number": 2, "folder": attempt.folder.with_name("attempt-2")}
    )


def _run(folder: Path, cells: list[CellResult], outcome: Outcome, duration: float, left_out: tuple[LeftOut, ...] = ()) -> RunResult:
    host = {
        "cpu": "AMD EPYC 7763 64-Core Processor",
        "cores": "2",
        "memory": "8589934592",
        "kernel": "6.1.0-30-amd64",
        "python": "3.11.7",
        "qemu": "7.2.19",
        "labctl": "0.1.0",
    }
    builds = {
        name: {"name": name, "digest": "sha256:" + f"{zlib.crc32(name.encode()):08x}" * 8, "arch": "x86_64", "version": version, "append": "",
               "provenance": {"builder": "deb", "source": f"linux-image-{version}", "version": "6.1.158-1", "commit": "", "toolchain": "gcc 12.2.0", "built_at": "2026-11-20T21:14:02Z",
                              "details": {"archive": "bookworm-security"}}}
        for name, (version, _) in BUILDS.items()
    }  # fmt: skip
    targets = {
        name: {"schema": 1, "arch": "x86_64", "cpus": cpus, "memory": memory, "disk": disk, "tags": ["qemu", "plan"], "append": "console=ttyS0,115200",
               "boot": {"deadline": 120.0, "silence": 45.0}, "drivers": {"qemu": {"machine": "q35"}, "console_shell": {}}}
        for name, (cpus, memory, disk) in TARGETS.items()
    }  # fmt: skip
    return RunResult("20260921-141320-x7k2", folder, "default", START, duration, outcome, True, False, ("labctl", "run", "matrix", "default", "-n", "2"), "0.1.0",
                     host, builds, targets, tuple(cells), left_out)  # fmt: skip


if __name__ == "__main__":
    from labctl.report.write import write_reports

    hypervisor_history(Path(sys.argv[1]).absolute() / "hypervisor_run")
    for kind in (ordinary_run, failing_run, suites_run, hypervisor_run, hostile_run, large_run):
        print(write_reports(kind(Path(sys.argv[1]).absolute() / kind.__name__)))
