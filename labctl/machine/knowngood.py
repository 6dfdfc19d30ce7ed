"""The known-good boot: a build that boots everywhere is put on a target; if it does not come up, the machine is at fault."""

from __future__ import annotations

import tempfile
from pathlib import Path

from labctl.deadline import Deadline
from labctl.errors import ConfigError, LabctlError, TargetBusy
from labctl.machine import lease, standing
from labctl.machine.session import Session
from labctl.model import Build, Target

WAIT = 5.0
"""Seconds for a target that is being given back."""


def boot(target: Target, build: Build, lab_root: Path) -> LabctlError | None:
    """Boot it, note how the target stands after that, and return why it did not come up. One that somebody holds,
    or whose file has a mistake, is as it was before."""
    try:
        with (
            lease.hold(target, lab_root, why=f"known-good boot of {build.name}", deadline=Deadline.after(WAIT)),
            tempfile.TemporaryDirectory(prefix="labctl-boot-") as folder,
            Session(target, build, Path(folder)) as session,
        ):
            session.booted()
    except (TargetBusy, ConfigError) as error:
        return error  # a mistake in a file says nothing about the machine
    except LabctlError as error:
        error.target = error.target or target.name
        standing.set_unhealthy(lab_root, target.name, f"{build.name} does not come up: {error.title}")
        return error
    standing.set_healthy(lab_root, target.name)
    return None
