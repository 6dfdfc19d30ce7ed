"""The lab's agent in the machine: built from `guest/agent` with the host's compiler, and put behind a build's initramfs with the kernel
modules that its channel needs. The build without it stays as it is."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from labctl.build import apt, cpio, initramfs, kernelmodules, modules, packages
from labctl.build.cache import Artefact, Cache, Made, now
from labctl.config import shipped
from labctl.deadline import Deadline
from labctl.errors import BuildFailed, HostToolMissing
from labctl.model import Build, Provenance
from labctl.process import find, run

_FLAGS = ("-std=gnu11", "-O2", "-static", "-s")
_COMPILE_S = 120.0
_PATH = "usr/lib/labctl/agent"
_MODULES = "usr/lib/labctl/agent-modules"
_NEEDED = {"virtio": ("virtio_pci", "virtio_console"), "tcp": ("virtio_pci", "virtio_net")}
"""Modules of the kernel's own package, by the kind of channel; those that it has built in are left out. The card of
a real machine is the build's own affair."""


def equip(
    build: Build,
    argument: str,
    progress: Callable[[str], None] = lambda _: None,
    deadline: Deadline | None = None,
    cache: Cache | None = None,
) -> Build:
    """The same build with the agent started in it as ``argument`` says (``virtio:NAME``, ``serial:DEVICE``, ``tcp:PORT``); its digest is
    that of what boots now. A build without an initramfs of the lab's stays as it is: nothing there would start it.

    HostToolMissing, BuildFailed, InfraError, StorageError.
    """
    if build.initrd is None:
        return build
    cache, deadline = cache or Cache(), deadline or Deadline.after(600)
    binary = _binary(build.arch, cache, deadline, progress)
    kind = argument.partition(":")[0]
    hook, files = f"/{_PATH} --modules /{_MODULES} {argument}\n".encode(), [cpio.file(_PATH, binary.files["agent"].read_bytes(), 0o755)]
    if kind == "tcp":
        hook += b"sh /usr/lib/labctl/network.sh\n"  # behind the agent, which loads the card's driver
        files += [cpio.file(path, (shipped("guest") / "installer" / name).read_bytes(), mode) for name, path, mode in modules.NETWORK]
    archive = cpio.archive([*files, cpio.file("etc/labctl/rc.d/10-agent.sh", hook)])
    wanted = _NEEDED.get(kind, ())
    package = kernelmodules.package_of(build)
    if wanted and package is not None:
        archive += _modules(build.name, package, wanted, cache, deadline, progress).files["modules"].read_bytes()
    return initramfs.followed_by(build, archive, "agent", cache, deadline)


def _binary(arch: str, cache: Cache, deadline: Deadline, progress: Callable[[str], None]) -> Artefact:
    source = shipped("guest") / "agent" / "agent.c"
    compiler = "gcc" if os.uname().machine == arch else f"{arch}-linux-gnu-gcc"
    version = run([compiler, "--version"], deadline).out.split("\n", 1)[0]
    identity = {
        "builder": "agent",
        "arch": arch,
        "source": hashlib.sha256(source.read_bytes()).hexdigest(),
        "compiler": f"{find(compiler)} {version}",
        "flags": " ".join(_FLAGS),
    }

    def make(folder: Path) -> Made:
        progress("building the agent")
        file = folder / "agent"
        made = run([compiler, *_FLAGS, "-o", str(file), str(source)], deadline.sooner(_COMPILE_S), owned=True)
        if made.status != 0:
            cache.require_room(made.err)
            raise HostToolMissing(f"the agent cannot be built: {made.words}", remedy="apt-get install -y gcc libc6-dev")
        return Made({"agent": file}, "", Provenance("agent", str(source), toolchain=version, built_at=now()))

    return cache.obtain(identity, make, deadline=deadline, progress=progress)


def _modules(
    build: str, package: apt.Package, wanted: tuple[str, ...], cache: Cache, deadline: Deadline, progress: Callable[[str], None]
) -> Artefact:
    """An archive of them, from the package that the kernel came from."""
    identity = {"builder": "agent-modules", "sha256": package.sha256, "modules": " ".join(wanted), "folder": _MODULES}

    def make(folder: Path) -> Made:
        unpacked = packages.unpacked(
            package, folder / "unpacked", cache, deadline, lambda line: progress(f"{build}: for the agent: {line}")
        )
        try:
            found = modules.ordered(unpacked, wanted)
        except LookupError as error:
            raise BuildFailed(f"{package.name} has no module {error.args[0]}, which the agent's channel needs") from None
        file = folder / "modules"
        file.write_bytes(cpio.archive(cpio.file(f"{_MODULES}/{name}", data) for name, data in found.items()))
        return Made({"modules": file}, package.version, Provenance("agent", package.name, package.version, built_at=now()))

    return cache.obtain(identity, make, deadline=deadline, progress=progress)
