"""Run a density runner in the machine and record what it says, as it says it: what was measured before a machine dies is kept."""

from labctl.errors import CommandFailed, KernelCrash, LabctlError, TargetHung
from labctl.machine.density import watch
from labctl.model import Direction, Metric
from labctl.parsers.density import Account, Begin, Check, End, Lost, Started

START = Metric("density.start", "s", Direction.LOWER, "from a VM's start to its word that it is ready")
GAP = Metric("density.gap", "s", Direction.LOWER, "99th percentile over the VMs of the longest time between two heartbeats")
PSS = Metric("density.pss", "B", Direction.LOWER, "proportional set size of a VM's process")
AVAILABLE = Metric("density.available", "B", Direction.NONE, "memory that the machine has left")
CPU = Metric("density.cpu", "1", Direction.NONE, "share of the machine's CPUs that was not idle")
HEALTHY = Metric("density.healthy", "1", Direction.HIGHER, "VMs that beat in time while all ran")

PATIENCE = 60.0
"""Seconds without a word of the runner: it waits for a VM, or holds them all, for less."""


def carry(target, shell, record, runner, **options):
    """Run ``density-RUNNER`` with these options; returns its last line. Raises what ended the machine, or the runner, instead."""
    account = Account()
    words = " ".join(f"--{name} {value}" for name, value in options.items())
    began = target.transcript.size
    shell(f"density-{runner} /usr/bin/tinyguest {words} >/tmp/density 2>/tmp/density.errors </dev/null &")
    try:
        for line in watch(target, began, PATIENCE, account):
            match line:
                case Begin():
                    record(AVAILABLE, line.available, runner=runner, vms=0)
                case Started():
                    record(START, line.seconds, runner=runner, vms=line.number)
                case Check():
                    record(GAP, line.gap, runner=runner, vms=line.vms)
                    if line.pss:
                        record(PSS, line.pss, runner=runner, vms=line.vms)
                    record(AVAILABLE, line.available, runner=runner, vms=line.vms)
                    record(CPU, line.cpu, runner=runner, vms=line.vms)
                case End():
                    record(HEALTHY, line.healthy, runner=runner, limit=line.limit.replace("-", " "))
                    return line
                case Lost():
                    raise CommandFailed(f"{line.why}, with {account.started} VMs", target=target.name)
    except LabctlError as error:
        # How many are healthy now nobody knows: those that were when they were last looked at.
        ends = ((KernelCrash, "machine crashed"), (TargetHung, "runner silent"), (CommandFailed, "runner or machine lost"))
        limit = next((words for kind, words in ends if isinstance(error, kind)), "not measured")
        record(HEALTHY, account.checked, runner=runner, limit=limit)
        raise
