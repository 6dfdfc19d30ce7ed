"""Tool builder ``linux``: a Linux that is a guest of a hypervisor under test: the kernel of a Debian package, and the lab's own initramfs
with modules of that kernel, as two files of the machine.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

from pydantic import Field

from labctl.build import cpio, deb, initramfs, kernelmodules
from labctl.build.cache import Made, now
from labctl.build.protocols import Builder, Context, Options, Plan
from labctl.model import Build, Provenance

_PLACE = "usr/lib/labctl"


class LinuxOptions(Options):
    package: Annotated[str, Field(pattern=r"^[a-z0-9*?][a-z0-9+.*?\[\]-]+$")]
    """Name of the package, with wildcards, as of the builder ``deb`` of kernels."""
    modules: tuple[Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")], ...] = ()
    """Loaded before the guest is ready."""


class Linux:
    options = LinuxOptions

    def plan(self, options: LinuxOptions, context: Context) -> Plan:
        kernel = deb.BUILDER.plan(deb.DebOptions(package=options.package), context)
        base = initramfs.base(context.arch, context.cache, context.deadline)
        layout = {
            "builder": "tool-linux",
            "name": _name(context),
            "modules": " ".join(options.modules),
            "layout": kernelmodules.LAYOUT,
            "base": base.digests["initrd"],
        }
        return Plan({**kernel.identity, **layout}, kernel.version, kernel.source)

    def make(self, options: LinuxOptions, plan: Plan, folder: Path, context: Context) -> Made:
        kernel = deb.BUILDER.make(deb.DebOptions(package=options.package), plan, folder, context)
        base = initramfs.base(context.arch, context.cache, context.deadline).files["initrd"].read_bytes()
        build = Build(
            name=_name(context),
            digest="",
            arch=context.arch,
            kernel=kernel.files["kernel"],
            initrd=None,
            version=kernel.version,
            append="",
            milestones={},
            provenance=kernel.provenance,
        )
        more = kernelmodules.archive(build, options.modules, context.where, context.cache, context.deadline, context.progress)
        place = folder / "landed"
        place.mkdir()
        initrd = place / "initrd"
        initrd.write_bytes(base + b"\0" * (-len(base) % cpio.ALIGNMENT) + more)
        shutil.copyfile(kernel.files["kernel"], place / "kernel")
        origin = Provenance("tool-linux", kernel.provenance.source, kernel.provenance.version, built_at=now())
        here = f"{_PLACE}/{_name(context)}"
        return Made({f"{here}/kernel": place / "kernel", f"{here}/initrd": initrd}, plan.version, origin)


def _name(context: Context) -> str:
    return Path(context.where).stem


BUILDER: Builder[LinuxOptions] = Linux()
