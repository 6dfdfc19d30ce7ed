"""Builder ``xen``: the Xen hypervisor and the Linux kernel of its first machine (dom0), each from a package of Debian.

What the machine boots is Xen, a 32-bit ELF by the multiboot specification, which is given dom0's kernel and initramfs as modules. The
toolstack is not part of this: a recipe names it among its ``tools``.
"""

from __future__ import annotations

import gzip
import re
import zlib
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from labctl.build import apt, deb, image, packages, vmlinux
from labctl.build.cache import Made, now
from labctl.build.protocols import Builder, Context, Options, Plan
from labctl.errors import BuildFailed, ConfigError, Problem
from labctl.model import Provenance, Words

_MOST_BYTES = 64 << 20
"""Of Xen, unpacked: 4.17 has 3 MB."""
_LAYOUT = "2"
"""Changes with what is made of the same packages."""
_DOM0 = ("CONFIG_XEN_DOM0=y", "CONFIG_XEN_PV_DOM0=y")
"""Either says that a kernel can be dom0."""


class XenOptions(Options):
    package: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9+.-]+$")]
    """Name of the hypervisor's package: ``xen-hypervisor-4.17-amd64``."""
    append: Words = ""
    """Xen's command line; the recipe's own ``append`` is dom0's."""
    dom0: Annotated[str, AfterValidator(deb.package_pattern)]
    """Name of the package of dom0's kernel, with ``*``, ``?`` and ``[ ]``: ``linux-image-6.1.*[0-9]-amd64``."""
    position: Annotated[str, AfterValidator(deb.back_from_newest)] = "newest"
    """Which of those: ``newest``, or how many before it: ``newest-1``."""


class Xen:
    options = XenOptions
    multiboot = True

    def plan(self, options: XenOptions, context: Context) -> Plan:
        if context.arch != "x86_64":
            raise ConfigError(
                [Problem(context.where, "arch", f"found {context.arch!r}", "x86_64: elsewhere Xen is not booted by multiboot")]
            )
        architecture = packages.ARCHITECTURES[context.arch]
        try:
            found = packages.closure([options.package], architecture, context.cache, context.deadline, progress=context.progress)
        except apt.NotThere as error:
            raise context.mistake("package", error.found, error.allowed, remedy=f"correct it; or, for what is new: {apt.UPDATE}") from None
        steps = int(options.position.partition("-")[2] or 0)
        try:
            dom0 = apt.resolve(options.dom0, steps, architecture, context.cache, context.deadline)
        except apt.NotThere as error:
            key = "dom0" if error.key == "package" else error.key
            raise context.mistake(key, error.found, error.allowed, remedy=f"correct it; or, for what is new: {apt.UPDATE}") from None
        if dom0.stale:
            context.progress(dom0.stale)
        xen, kernel = found[0], dom0.package
        return Plan(
            {
                "builder": "xen",
                "arch": context.arch,
                "append": options.append,
                "layout": _LAYOUT,
                **_written("xen", xen),
                **_written("dom0", kernel),
            },
            re.sub(r"^linux-image-|-unsigned$", "", kernel.name),
            f"{xen.name} {xen.version} with {kernel.name} {kernel.version}",
        )

    def make(self, options: XenOptions, plan: Plan, folder: Path, context: Context) -> Made:
        xen, dom0 = _read("xen", plan), _read("dom0", plan)
        with_xen = packages.unpacked(xen, folder / "xen", context.cache, context.deadline, context.progress)
        with_dom0 = packages.unpacked(dom0, folder / "dom0", context.cache, context.deadline, context.progress)
        hypervisor = _unpacked(_only(with_xen, "boot/xen-*.gz", xen), folder / "hypervisor", xen)
        kernel = _only(with_dom0, "boot/vmlinuz-*", dom0)
        config = _only(with_dom0, "boot/config-*", dom0).read_text(errors="replace")
        if not any(line in _DOM0 for line in config.splitlines()):
            raise context.mistake(
                "dom0",
                f"{dom0.name} {dom0.version} cannot be the first machine of Xen: its config has no CONFIG_XEN_DOM0",
                "a kernel with it, as linux-image-6.1.*[0-9]-amd64 (those for clouds have none)",
            )
        try:
            release = image.read(kernel).release
            kind = image.read(hypervisor).kind
        except image.NotAKernel as error:
            raise BuildFailed(f"{plan.source}: not a kernel: it {error}") from None
        if kind != "ELF":
            raise BuildFailed(f"{xen.name} {xen.version}: Xen is no ELF file but a {kind}")
        # Xen inflates it itself, byte by byte: 6 s under emulation.
        if (elf := vmlinux.inflated(kernel.read_bytes())) is not None:
            kernel = folder / "vmlinux"
            kernel.write_bytes(elf)
        return Made(
            {"kernel": hypervisor, "dom0": kernel},
            release or plan.version,
            Provenance(
                builder="xen",
                source=xen.name,
                version=xen.version,
                toolchain=deb.toolchain(config),
                built_at=now(),
                details={
                    "xen_append": options.append,
                    "xen_sha256": xen.sha256,
                    "dom0_package": dom0.name,
                    "dom0_version": dom0.version,
                    "dom0_sha256": dom0.sha256,
                    "dom0_source": dom0.source,
                },
            ),
        )


def _written(which: str, package: apt.Package) -> dict[str, str]:
    """A package as part of an identity."""
    return {
        f"{which}_package": package.name,
        f"{which}_version": package.version,
        f"{which}_sha256": package.sha256,
        f"{which}_source": package.source,
        f"{which}_size": str(package.size),
    }


def _read(which: str, plan: Plan) -> apt.Package:
    name, version, sha256, source, size = (plan.identity[f"{which}_{part}"] for part in ("package", "version", "sha256", "source", "size"))
    return apt.Package(name, version, sha256, source, int(size))


def _only(root: Path, pattern: str, package: apt.Package) -> Path:
    found = sorted(root.glob(pattern))
    if len(found) != 1:
        raise BuildFailed(f"{package.name} {package.version} holds {len(found)} files {pattern} instead of one")
    return found[0]


def _unpacked(packed: Path, to: Path, package: apt.Package) -> Path:
    """Boot loaders unpack Xen, and QEMU is none."""
    try:
        with gzip.open(packed) as file:
            content = file.read(_MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise BuildFailed(f"{packed.name} of {package.name} {package.version} cannot be unpacked: {error}") from None
    if len(content) > _MOST_BYTES:
        raise BuildFailed(f"{packed.name} of {package.name} {package.version} has over {_MOST_BYTES >> 20} MiB: it is no hypervisor")
    to.write_bytes(content)
    return to


BUILDER: Builder[XenOptions] = Xen()
