"""Modules of the kernel under test for its initramfs: from the package that the kernel came from, or built in.

They lie in the machine where the kernel's own tools look for them (``/lib/modules/RELEASE``, with the part of ``modules.dep`` that is
about them), so that one ``modprobe`` loads all in the order of their dependencies, and a test may call it too.
"""

from __future__ import annotations

import lzma
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from labctl.build import apt, cpio, packages
from labctl.build.cache import Artefact, Cache, Made, now
from labctl.config import nearest
from labctl.deadline import Deadline
from labctl.errors import ConfigError, Problem
from labctl.model import Build, Provenance

_SUFFIXES = (".ko", ".ko.xz")
_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")
_SOFTLY = re.compile(rb"\0softdep=pre: ([^\0:]*)\0")
_HOOK = "etc/labctl/rc.d/05-modules.sh"
LAYOUT = "2"
"""Changes with what is made of the same package and the same names."""


def archive(
    build: Build,
    wanted: Iterable[str],
    where: str,
    cache: Cache,
    deadline: Deadline,
    progress: Callable[[str], None] = lambda _: None,
    at_hand: Iterable[str] = (),
) -> bytes:
    """An archive that loads these modules before the machine is ready; empty if the kernel has all of them built in. Those ``at_hand``
    are in it too, and are not loaded.

    ConfigError about ``where`` (the file that asks) for one that the kernel has neither as a module nor built in, or of which that can't
    be known; BuildFailed, InfraError and StorageError for the package.
    """
    loaded = tuple(dict.fromkeys(_plain(name) for name in wanted))
    names = tuple(dict.fromkeys([*loaded, *(_plain(name) for name in at_hand)]))
    if not names:
        return b""
    made_from = build.provenance
    if package_of(build) is not None:
        return _of_package(build, names, loaded, where, cache, deadline, progress).files["archive"].read_bytes()
    listing = made_from.details.get("modules_builtin", "")
    builtin = builtin_names(Path(listing).read_text(errors="replace")) if listing and Path(listing).is_file() else None
    missing = [name for name in names if builtin is None or name not in builtin]
    if missing:
        problem = (
            f"{build.name} (builder {made_from.builder}) has no modules, and it cannot be known what it has built in"
            if builtin is None
            else f"{build.name} (builder {made_from.builder}) has no modules, and {', '.join(missing)} is not built in"
        )
        raise ConfigError([Problem(where, "modules", problem, "a kernel of the builder deb, or one that has it built in")])
    return b""


def package_of(build: Build) -> apt.Package | None:
    """The Debian package that the build's Linux kernel came from, if it came from one."""
    made_from, details = build.provenance, build.provenance.details
    if "dom0_sha256" in details:
        return apt.Package(details["dom0_package"], details["dom0_version"], details["dom0_sha256"], details.get("dom0_source", ""))
    if "deb_sha256" in details:
        return apt.Package(made_from.source, made_from.version, details["deb_sha256"], details.get("debian_source", ""))
    return None


@dataclass(frozen=True, slots=True)
class Module:
    """One that is to be loaded. ``needs`` are the files of all that it needs, what is loaded first last, as ``depmod`` does it."""

    data: bytes
    needs: tuple[str, ...]


def selected(home: Path, wanted: Iterable[str]) -> dict[str, Module]:
    """Of a folder ``lib/modules/RELEASE`` the modules wanted and those that they need, by their files, each after those.

    A Debian package carries no ``modules.dep``: that is made when it is installed, from what each module says of itself, as here. What a
    module would like loaded before (``softdep=pre``: ext4's ``crc32c``) is needed too: no udev is there to find it later.
    LookupError with the names of those that are there neither as a module nor in ``modules.builtin``.
    """
    files = {_plain(path.name.partition(".ko")[0]): path for path in sorted(home.glob("kernel/**/*.ko*")) if path.name.endswith(_SUFFIXES)}
    built_in = builtin_names((home / "modules.builtin").read_text(errors="replace"))
    chosen: dict[str, Module] = {}

    def add(name: str, asked_by: tuple[str, ...]) -> tuple[str, ...]:
        """Files to load for a module, it first and what is to be loaded before all last."""
        if name in asked_by or (name not in files and name in built_in):
            return ()
        if name not in files:
            raise LookupError(name)
        file = str(files[name].relative_to(home))
        if file not in chosen:
            data = _content(files[name])
            needed = in_order(_depends(data), (*asked_by, name))
            providers = (liked if liked in files else _by_alias(home, files, liked) for liked in _softly(data))
            liked = in_order([provider for provider in providers if provider is not None], (*asked_by, name))
            # What both need is loaded before the first that needs it.
            chosen[file] = Module(data, tuple(reversed(dict.fromkeys([*liked, *needed]))))
        return (file, *chosen[file].needs)

    def in_order(names: Iterable[str], asked_by: tuple[str, ...]) -> list[str]:
        """Files to load for several modules, what is to be loaded first first."""
        return [file for name in names for file in reversed(add(name, asked_by))]

    missing: dict[str, None] = {}
    for name in wanted:
        try:
            add(_plain(name), ())
        except LookupError as error:
            missing[error.args[0]] = None
    if missing:
        raise LookupError(*missing)
    return chosen


def _of_package(
    build: Build,
    names: tuple[str, ...],
    loaded: tuple[str, ...],
    where: str,
    cache: Cache,
    deadline: Deadline,
    progress: Callable[[str], None],
) -> Artefact:
    package = package_of(build)
    assert package is not None  # noqa: S101  # for the type checker: `archive` has asked
    identity = {"builder": "kernel-modules", "sha256": package.sha256, "modules": " ".join(names), "layout": LAYOUT}
    if loaded != names:
        identity["loaded"] = " ".join(loaded)

    def make(folder: Path) -> Made:
        root = packages.unpacked(package, folder / "unpacked", cache, deadline, lambda line: progress(f"{build.name}: {line}"))
        homes = sorted(root.glob("lib/modules/*/modules.builtin"))
        if len(homes) != 1:
            raise ConfigError([Problem(where, "modules", f"{package.name} has no modules", "a kernel with modules")])
        home = homes[0].parent
        try:
            files = selected(home, names)
        except LookupError as error:
            whose = f"{package.name} {package.version} (build {build.name})"
            known = {_plain(path.name.partition(".ko")[0]) for path in home.glob("kernel/**/*.ko*")}
            problems = [
                Problem(
                    where,
                    "more_modules" if name in names and name not in loaded else "modules",
                    f"{whose} has no module {name}, and has not built it in",
                    nearest(name, known),
                )
                for name in error.args
            ]
            raise ConfigError(problems) from None
        file = folder / "archive"
        file.write_bytes(cpio.archive(_entries(home, files, loaded)) if files else b"")
        return Made({"archive": file}, package.version, Provenance("kernel-modules", package.name, package.version, built_at=now()))

    return cache.obtain(identity, make, deadline=deadline, progress=progress)


def _entries(home: Path, files: Mapping[str, Module], loaded: tuple[str, ...]) -> Iterable[cpio.Entry]:
    base = f"lib/modules/{home.name}"
    lines: list[str] = []
    for file, module in files.items():
        yield cpio.file(f"{base}/{_uncompressed(file)}", module.data)
        lines.append(f"{_uncompressed(file)}:{''.join(f' {_uncompressed(each)}' for each in module.needs)}\n")
    yield cpio.file(f"{base}/modules.dep", "".join(lines).encode())
    loadable = {_plain(Path(file).name.partition(".ko")[0]) for file in files}
    if to_load := [name for name in loaded if name in loadable]:
        yield cpio.file(_HOOK, f"modprobe -a {' '.join(to_load)}\n".encode())


def builtin_names(listing: str) -> set[str]:
    """Names of ``modules.builtin``, with ``_`` for ``-``."""
    return {_plain(Path(line).stem) for line in listing.split()}


def _depends(data: bytes) -> list[str]:
    found = _DEPENDS.search(data)
    return [_plain(name) for name in found[1].decode(errors="replace").split(",") if name] if found else []


def _softly(data: bytes) -> list[str]:
    found = _SOFTLY.search(data)
    return [_plain(name) for name in found[1].decode(errors="replace").split()] if found else []


def _by_alias(home: Path, files: Mapping[str, Path], alias: str) -> str | None:
    """The module that calls itself so too: of several the portable one, which no CPU lacks."""
    wanted = b"\0alias=" + alias.encode() + b"\0"
    for name, path in files.items():
        if path.is_relative_to(home / "kernel/crypto") and wanted in _content(path):
            return name
    return None


def _content(file: Path) -> bytes:
    data = file.read_bytes()
    return lzma.decompress(data) if file.suffix == ".xz" else data


def _uncompressed(file: str) -> str:
    return file.removesuffix(".xz")


def _plain(name: str) -> str:
    return name.replace("-", "_")
