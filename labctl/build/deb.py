"""Builder ``deb``: a kernel package of Debian, by name pattern and position, as apt's lists name it now.

Old versions leave the archive, so a recipe says ``newest`` or ``newest-1`` and never a version that will be gone.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from labctl.build import apt, image, modules, packages
from labctl.build.cache import Made, now
from labctl.build.protocols import Builder, Context, Options, Plan
from labctl.errors import BuildFailed
from labctl.model import Provenance

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "riscv64": "riscv64"}


def package_pattern(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9*?][a-z0-9+.*?\[\]-]+", value):
        raise ValueError("the name of a package: a-z, 0-9, + . and -, with * ? and [ ] as wildcards")
    return value


def back_from_newest(value: str) -> str:
    if not re.fullmatch(r"newest(-[0-9]{1,3})?", value):
        raise ValueError("newest, or how many before it: newest-1, newest-2, …")
    return value


class DebOptions(Options):
    package: Annotated[str, AfterValidator(package_pattern)]
    """Name of the package, with ``*`` and ``?``: ``linux-image-6.1.*-cloud-amd64``."""
    position: Annotated[str, AfterValidator(back_from_newest)] = "newest"
    """``newest``, or how many before it: ``newest-1``."""
    modules: tuple[Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")], ...] = ()
    """Kernel modules that the initramfs loads at boot (with those that they need), so that it has a network and a disk."""


class Deb:
    options = DebOptions

    def plan(self, options: DebOptions, context: Context) -> Plan:
        position = int(options.position.partition("-")[2] or 0)
        try:
            resolved = apt.resolve(options.package, position, _ARCHITECTURES[context.arch], context.cache, context.deadline)
        except apt.NotThere as error:
            raise context.mistake(error.key, error.found, error.allowed, remedy=f"correct it; or, for what is new: {apt.UPDATE}") from None
        package = resolved.package
        if resolved.stale:
            context.progress(resolved.stale)
        return Plan(
            {
                "builder": "deb",
                "package": package.name,
                "version": package.version,
                "sha256": package.sha256,
                "source": package.source,
                "size": str(package.size),
                "arch": context.arch,
                **({"modules": modules.key(options.modules)} if options.modules else {}),
            },
            re.sub(r"^linux-image-|-(unsigned|dbg|dbgsym)$", "", package.name),
            f"{package.name} {package.version}",
        )

    def make(self, options: DebOptions, plan: Plan, folder: Path, context: Context) -> Made:
        identity = plan.identity
        package = apt.Package(identity["package"], identity["version"], identity["sha256"], identity["source"], int(identity["size"]))
        packages.fetched(package, context.cache, context.deadline, context.progress)
        context.progress(f"unpacking {plan.source}")
        unpacked = packages.unpacked(package, folder / "unpacked", context.cache, context.deadline)
        kernels = sorted(unpacked.glob("boot/vmlinu[xz]-*"))
        if len(kernels) != 1:
            raise BuildFailed(f"{plan.source} holds {len(kernels)} kernels in /boot instead of one")
        try:
            found = image.read(kernels[0])
        except image.NotAKernel as error:
            raise BuildFailed(f"{kernels[0].name} of {plan.source} is not a kernel: it {error}") from None
        configs = [path.read_text(errors="replace") for path in sorted(unpacked.glob("boot/config-*"))]
        files = {"kernel": kernels[0]}
        if options.modules:
            files["modules"] = folder / "modules"
            try:
                files["modules"].write_bytes(modules.archive(unpacked, options.modules))
            except LookupError as error:
                missing = f"{plan.source} has no module {', '.join(error.args)}"
                raise context.mistake("modules", missing, "modules of that package") from None
        return Made(
            files,
            found.release or kernels[0].name.split("-", 1)[1],
            Provenance(
                builder="deb",
                source=package.name,
                version=package.version,
                toolchain=next((toolchain(text) for text in configs), ""),
                built_at=now(),
                details={"deb_sha256": package.sha256, "debian_source": package.source, "banner": found.banner},
            ),
        )


def toolchain(config: str) -> str:
    """The compiler that a kernel's config names; empty if it names none."""
    found = re.search(r'^CONFIG_CC_VERSION_TEXT="(.*)"$', config, re.MULTILINE)
    return found[1] if found else ""


BUILDER: Builder[DebOptions] = Deb()
