"""What the lab adds to a BMC, on virtual servers. Reach: 100 ms beyond the BMC's own answers for each power verb; 50 BMCs checked in 5 s;
every byte of a flood over SOL, none lost or doubled.

A BMC's own answer time is the time between a request that was sent and the answer that came, summed over a verb; all the rest counts as
the lab's, its pauses between two questions too. Prints three tables. ``--only power``, ``check`` or ``sol``.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from labctl.config import Lab  # noqa: E402
from labctl.deadline import Deadline  # noqa: E402
from labctl.machine.drivers.ipmi import Ipmi  # noqa: E402
from labctl.machine.drivers.redfish import Redfish  # noqa: E402
from labctl.machine.drivers.sol import Sol  # noqa: E402
from labctl.machine.power import power_cycle  # noqa: E402
from labctl.machine.protocols import DriverContext, Power  # noqa: E402
from labctl.machine.transcript import Transcript  # noqa: E402
from labctl.virtualserver.client import VirtualServer  # noqa: E402
from tests import boot_sector  # noqa: E402

REACH_VERB_MS, REACH_CHECK_S = 100.0, 5.0
LINES = 105_000
"""Of ten bytes: 1 MiB and a little."""


@contextmanager
def server(root: Path, name: str, *, redfish: bool = False) -> Iterator[VirtualServer]:
    """Dies with the thread that calls."""
    (root / "lab.toml").write_text("schema = 1\n")
    virtual = VirtualServer(root, name)
    child = virtual.start(cpus=1, memory=128 << 20, disk=64 << 20, redfish=redfish, owned=True)
    assert child is not None
    try:
        yield virtual
    finally:
        virtual.stop()
        child.kill()


class Answers:
    """Seconds that were spent between a request and its answer."""

    def __init__(self, owner: Any, name: str) -> None:
        self.seconds = 0.0
        waits = getattr(owner, name)

        def timed(*words: Any, **named: Any) -> Any:
            began = time.monotonic()
            try:
                return waits(*words, **named)
            finally:
                self.seconds += time.monotonic() - began

        setattr(owner, name, timed)


def power(root: Path, times: int) -> bool:
    from pyipmi.interfaces.rmcp import Rmcp
    from requests import Session

    print(f"{'by':10}{'verb':8}{'median':>10}{'of it BMC':>11}{'the lab':>9}{'worst':>8}   ms, of {times}")
    good = True
    with server(root, "power", redfish=True) as virtual:
        settings, context = virtual.settings, DriverContext(Lab.find(root).target("power"), root)
        password = f"file:{virtual.files.password}"
        sides: dict[str, tuple[Power, Answers]] = {
            "ipmi": (Ipmi(context, "127.0.0.1", "admin", password, settings.bmc_port), Answers(Rmcp, "_receive_rmcp_msg")),
            "redfish": (Redfish(context, f"http://127.0.0.1:{settings.redfish_port}", "admin", password), Answers(Session, "send")),
        }
        sides["redfish"][0].state(Deadline.after(30))  # its client is made
        for name, (driver, answers) in sides.items():
            taken: dict[str, list[tuple[float, float]]] = {}
            for _ in range(times):
                verbs: list[tuple[str, Callable[[Deadline], object]]] = [
                    ("on", driver.on),
                    ("reset", driver.reset),
                    ("cycle", lambda deadline, driver=driver: power_cycle(driver, deadline)),
                    ("state", driver.state),
                    ("off", driver.off),
                ]
                for verb, does in verbs:
                    answers.seconds, began = 0.0, time.monotonic()
                    does(Deadline.after(60))
                    taken.setdefault(verb, []).append((time.monotonic() - began, answers.seconds))
            for verb, of_it in taken.items():
                whole, bmc = (1000 * statistics.median(column) for column in zip(*of_it, strict=True))
                ours = sorted(1000 * (w - b) for w, b in of_it)
                print(f"{name:10}{verb:8}{whole:10.0f}{bmc:11.0f}{statistics.median(ours):9.0f}{ours[-1]:8.0f}", flush=True)
                good &= statistics.median(ours) <= REACH_VERB_MS
    return good


def check(root: Path, servers: int, times: int) -> bool:
    with ExitStack() as stack:
        for number in range(servers):
            stack.enter_context(server(root, f"rack{number}"))
        taken, worked = [], []
        for _ in range(times):
            began, before = time.monotonic(), _cpu()
            words = [Path(sys.executable).with_name("labctl"), "targets", "check", "--json"]
            done = subprocess.run(words, cwd=root, capture_output=True, text=True, timeout=300, check=False)
            taken.append(time.monotonic() - began)
            worked.append(_cpu() - before)
            well = [target for target in json.loads(done.stdout)["targets"] if target["ok"] and target["readings"]]
            if done.returncode or len(well) != servers:
                raise SystemExit(f"{len(well)} of {servers} are well:\n{done.stderr[-2000:]}")
        each = ", ".join(f"{seconds:.1f} s ({cpu:.1f} s of CPU)" for seconds, cpu in zip(taken, worked, strict=True))
        print(f"targets check of {servers} BMCs: {each}")
    return min(taken) <= REACH_CHECK_S


def _cpu() -> float:
    """Seconds that the children which have ended worked, theirs included."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def _awake(console: Sol, transcript: Transcript) -> None:
    """The simulator takes the first packet of a session for a repetition where it has the number of the last session's last."""
    deadline, said = Deadline.after(60), transcript.size
    while not deadline.expired:
        console.write(b".")
        if transcript.wait_beyond(said, Deadline.after(1)):
            time.sleep(0.3)
            return
    raise SystemExit("the console does not echo")


def sol(root: Path, times: int) -> bool:
    good, size = True, len(boot_sector.lines(LINES))
    with server(root, "sol") as virtual, Transcript(root / "sol") as transcript:
        boot_sector.make_disk(virtual.files.disk, LINES)
        context, password = DriverContext(Lab.find(root).target("sol"), root), f"file:{virtual.files.password}"
        console = Sol(context, transcript, "127.0.0.1", "admin", password, virtual.settings.bmc_port)
        console.attach(Deadline.after(60))
        try:
            Ipmi(context, "127.0.0.1", "admin", password, virtual.settings.bmc_port).on(Deadline.after(60))
            transcript.wait([boot_sector.READY.strip()], since=0, deadline=Deadline.after(60))
            for _ in range(times):
                _awake(console, transcript)
                before, since, began = virtual.files.serial_log.stat().st_size, transcript.size, time.monotonic()
                console.write(boot_sector.FLOOD)
                transcript.wait([boot_sector.READY.strip()], since=since, deadline=Deadline.after(300))
                took, said = time.monotonic() - began, transcript.read(since)
                same = said == boot_sector.lines(LINES) == virtual.files.serial_log.read_bytes()[before:]
                stamps = len({transcript.time_of(at) for at in range(since, since + size, 1000)})
                good &= same and not transcript.gap_since(0)
                words = "the very bytes of the serial port" if same else "NOT the bytes of the serial port"
                print(f"SOL: {len(said)} bytes in {took:.1f} s, {len(said) / 1024 / took:.0f} KiB/s, {words}; {stamps} stamps", flush=True)
        finally:
            console.detach()
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("power", "check", "sol"))
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--servers", type=int, default=50)
    options = parser.parse_args()
    good = True
    for name, does in {
        "power": lambda root: power(root, options.times),
        "sol": lambda root: sol(root, min(3, options.times)),
        "check": lambda root: check(root, options.servers, min(3, options.times)),
    }.items():
        if options.only in (None, name):
            with tempfile.TemporaryDirectory(prefix="servers-") as folder:
                (Path(folder) / "sol").mkdir()
                good &= does(Path(folder))
                print(f"load: {os.getloadavg()[0]:.1f}\n", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
