"""Builder ``path``: a kernel that lies in a file already, for instance one just built."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

from pydantic import Field

from labctl.build import image
from labctl.build.cache import Made, digest_of, now
from labctl.build.protocols import Builder, Context, Options, Plan
from labctl.model import Provenance


class PathOptions(Options):
    kernel: Annotated[str, Field(min_length=1)]
    """The kernel's file, relative to the lab."""
    initrd: Annotated[str, Field(min_length=1)] | None = None
    """An initramfs for it, instead of the lab's own."""


class FromPath:
    options = PathOptions

    def plan(self, options: PathOptions, context: Context) -> Plan:
        # The digest is taken each time: size and time of a file do not tell a rebuild within the same tick.
        kernel = context.root / options.kernel
        identity = {"builder": "path", "kernel": str(kernel), "kernel_digest": _digest(kernel, "kernel", context)}
        try:
            found = image.read(kernel)
        except image.NotAKernel as error:
            raise context.mistake(
                "kernel", f"{options.kernel} is not a kernel: it {error}", "a bzImage, an arm64 or riscv Image, or an ELF kernel"
            ) from None
        if found.arch and found.arch != context.arch:
            raise context.mistake(
                "kernel", f"{options.kernel} is a kernel for {found.arch}", f"one for {context.arch}, or arch = {found.arch!r}"
            )
        if options.initrd:
            initrd = context.root / options.initrd
            identity |= {"initrd": str(initrd), "initrd_digest": _digest(initrd, "initrd", context)}
        return Plan(identity, found.release, str(kernel))

    def make(self, options: PathOptions, plan: Plan, folder: Path, context: Context) -> Made:
        files: dict[str, Path] = {}
        for part in ("kernel", "initrd"):
            if part in plan.identity:
                files[part] = folder / part
                shutil.copyfile(plan.identity[part], files[part])
                if digest_of(files[part]) != plan.identity[f"{part}_digest"]:
                    raise context.mistake(part, f"{plan.identity[part]} changed while it was copied", "a file that is written to its end")
        return Made(
            files,
            plan.version,
            Provenance(
                builder="path",
                source=plan.source,
                version=plan.version,
                built_at=now(),
                details={"banner": image.read(files["kernel"]).banner},
            ),
        )


def _digest(path: Path, key: str, context: Context) -> str:
    try:
        return digest_of(path)
    except OSError as error:
        raise context.mistake(key, f"{path} cannot be read: {error.strerror}", "a file that exists") from None


BUILDER: Builder[PathOptions] = FromPath()
