"""labctl doctor: what this host lacks, and the one line that mends each."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

import typer

from labctl.cli.verb import Json, new_app, print_json, printable
from labctl.errors import ConfigError, HostToolMissing, InfraError

app = new_app()

ENOUGH_DISK = 2 << 30
"""Bytes: the default matrix' kernels, and a run or two."""

REQUIRED = {
    "qemu-system-x86_64": "starts the emulated machines",
    "qemu-img": "makes their disks",
    "busybox": "is the userland of the small initramfs",
    "apt-get": "fetches Debian's kernels",
    "dpkg-deb": "unpacks them",
    "setpriv": "ends a machine whose owner died",
    "taskset": "pins a measurement to its CPUs",
}
OPTIONAL = {
    "make": "builds kernels from source",
    "gcc": "builds kernels from source",
    "git": "names the commit of a source tree",
    "ipmi_sim": "is the BMC of a virtual server",
    "ipmitool": "carries a real server's console over its BMC",
    "chromium": "opens the desktop of a virtual machine, as its user would",
    "ld.lld": "links it",
    "qemu-system-aarch64": "is the machine of targets for Arm",
    "qemu-system-riscv64": "is the machine of targets for RISC-V",
}


class State(StrEnum):
    OK = "ok"
    NOTE = "note"
    """Works without, though slower or with less."""
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Check:
    what: str
    state: State
    found: str
    mend: str = ""
    """The one line that mends it."""


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check this host: what labctl needs, whether it is there, the line that mends it. Exit status 3 if a thing is missing.

    \b
    $ labctl doctor
    $ labctl doctor --json
    """
    checks = list(_checks())
    if as_json:
        print_json(ok=all(check.state is not State.MISSING for check in checks), checks=[asdict(check) for check in checks])
    else:
        _print(checks)
    if any(check.state is State.MISSING for check in checks):
        raise typer.Exit(InfraError.exit_code)


def _print(checks: list[Check]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    width = max(len(check.what) for check in checks)
    colours = {State.OK: "green", State.NOTE: "yellow", State.MISSING: "bold red"}
    for check in checks:
        line = Text.assemble((f"{check.state:8}", colours[check.state]), f"{check.what:{width}}  {printable(check.found)}")
        console.print(line)
        if check.mend:
            console.print(Text(f"{'':8}{'':{width}}  mend: {check.mend}"))
    lacking = sum(check.state is State.MISSING for check in checks)
    console.print(f"{lacking} of {len(checks)} missing" if lacking else "this host has all that labctl needs")


def _checks() -> Iterator[Check]:
    yield Check("Python", State.OK, f"{sys.version.split()[0]} at {sys.executable}")
    for program, why in REQUIRED.items():
        yield _program(program, why, State.MISSING)
    for program, why in OPTIONAL.items():
        yield _program(program, why, State.NOTE)
    yield _rust()
    yield _kvm()
    yield from _folders()
    yield from _targets()


def _program(program: str, why: str, absent: State) -> Check:
    from labctl import process

    try:
        return Check(program, State.OK, process.find(program))
    except HostToolMissing as error:
        return Check(program, absent, f"not found; it {why}", f"sudo {error.remedy}")


def _rust() -> Check:
    """By the check of the builder itself: a compiler that is there may be too old, or lack what a kernel needs."""
    from labctl.build.rust import usable_compiler
    from labctl.deadline import Deadline

    try:
        return Check("rustc", State.OK, usable_compiler(Deadline.after(60.0)))
    except InfraError as error:
        return Check("rustc", State.NOTE, f"{error.message}; it builds the reference kernel", f"sudo {error.remedy}")


def _kvm() -> Check:
    """KVM makes a lab fast; without it the machines are emulated, so its absence is a note."""
    from labctl.machine.accel import KVM, probe_kvm

    try:
        accel = probe_kvm()
    except InfraError as error:
        return Check("KVM", State.NOTE, error.message, error.remedy)
    if accel.name == "kvm":
        return Check("KVM", State.OK, accel.why)
    if not KVM.exists():
        mend = "sudo modprobe kvm_intel || sudo modprobe kvm_amd  # in a VM: switch nested virtualisation on in its host"
    elif not os.access(KVM, os.R_OK | os.W_OK):
        mend = 'sudo usermod -aG kvm "$USER"  # then log in again'
    else:
        mend = "nothing to do here: use a host, or a kind of VM, whose KVM works"
    return Check("KVM", State.NOTE, f"{accel.why}; machines are emulated (TCG), some ten times slower", mend)


def _folders() -> Iterator[Check]:
    from labctl.config import Lab, cache_folder

    yield _writable("cache", cache_folder(), "export LABCTL_CACHE=/some/folder")
    try:
        lab = Lab.find()
    except ConfigError as error:
        yield Check("lab", State.NOTE, error.problems[0].found, "labctl init new-lab && cd new-lab")
        return
    yield Check("lab", State.OK, str(lab.root))
    yield _writable("results", lab.results, "labctl run matrix --results /some/folder")


def _writable(what: str, folder: Path, mend: str) -> Check:
    """Whether a folder, or the nearest one above it that exists, can be written and has space."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return Check(what, State.MISSING, f"{there} cannot be written", mend)
    space = os.statvfs(there)
    free = space.f_bavail * space.f_frsize
    found = f"{folder}, {free / (1 << 30):.1f} GiB free"
    return Check(what, State.OK, found) if free >= ENOUGH_DISK else Check(what, State.MISSING, f"{found}: too little", mend)


def _targets() -> Iterator[Check]:
    """Each target's memory against the host's: a cell that can never fit is better known before the run."""
    from labctl.config import Lab
    from labctl.size import format_size

    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    yield Check("host", State.OK, f"{os.cpu_count()} CPUs, {memory / (1 << 30):.1f} GiB of memory")
    try:
        lab = Lab.find()
    except ConfigError:
        return
    for name in lab.target_files:
        try:
            config = lab.target(name).config
        except ConfigError as error:
            yield Check(f"target {name}", State.MISSING, str(error.problems[0]), f"labctl targets check {name}")
            continue
        if config.memory > memory:
            yield Check(f"target {name}", State.NOTE, f"wants {format_size(config.memory)}, more than this host has", "exclude it here")
