"""Tool builder ``deb``: named files of a Debian package, with the shared libraries that they need. Nothing is taken of the host's own
files: libraries come from the packages that the package depends on, and land where the loader of those packages looks for them.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from labctl.build import apt, elf, packages
from labctl.build.cache import Made, now
from labctl.build.protocols import Builder, Context, Options, Plan
from labctl.errors import BuildFailed
from labctl.model import Provenance

_TRIPLETS = {"x86_64": "x86_64-linux-gnu", "aarch64": "aarch64-linux-gnu", "riscv64": "riscv64-linux-gnu"}


class DebOptions(Options):
    package: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9+.-]+$")]
    files: tuple[Annotated[str, Field(pattern=r"^/?[A-Za-z0-9_.][A-Za-z0-9_.+/-]*$")], ...] = ()
    """Paths in the package: ``/sbin/mke2fs`` lands as ``/usr/bin/mke2fs``."""
    data: tuple[Annotated[str, Field(pattern=r"^/?[A-Za-z0-9_.][A-Za-z0-9_.+/-]*$")], ...] = ()
    """More files of the package, which land at their own paths: ``/etc/mke2fs.conf``."""

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.files and not self.data:
            raise ValueError("at least one entry in files or in data")
        return self


class FromDeb:
    options = DebOptions

    def plan(self, options: DebOptions, context: Context) -> Plan:
        known = self._packages(options, context)
        package = known[0]
        identity = {
            "builder": "tool-deb",
            "arch": context.arch,
            "files": " ".join((*options.files, "+", *options.data)),
            **{f"package {p.name}": f"{p.version} {p.sha256}" for p in known},
        }
        return Plan(identity, package.version, f"{package.name} {package.version}")

    def make(self, options: DebOptions, plan: Plan, folder: Path, context: Context) -> Made:
        known = self._packages(options, context)
        root, landed = folder / "unpacked", folder / "landed"
        libraries = _Libraries(known, root, context)
        libraries.unpack(known[0])
        files: dict[str, Path] = {}

        def land(path: str, content: Path) -> None:
            files[path] = landed / path
            files[path].parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(content, files[path])

        wanted: list[tuple[str, Path]] = []
        for key, paths in (("files", options.files), ("data", options.data)):
            for path in paths:
                found = packages.resolved(root, path)
                if found is None:
                    raise context.mistake(key, f"{plan.source} has no file {path}", _alike(root, path))
                wanted.append((f"usr/bin/{Path(path).name}" if key == "files" else path.lstrip("/"), found))
        for path, content in wanted:
            land(path, content)
        # Each library brings its own needs: the list grows while it is walked.
        queue = list(wanted)
        for path, content in queue:
            for name in _needs(content, path, context):
                home = libraries.home(name, path)
                if home not in files:
                    found = packages.resolved(root, home)
                    if found is None:  # the link's end lies in a package that was not unpacked
                        raise libraries.missing(name, path)
                    land(home, found)
                    queue.append((home, found))
        details = {p.name: p.version for p in libraries.used.values()}
        return Made(files, plan.version, Provenance("tool-deb", known[0].name, known[0].version, built_at=now(), details=details))

    def _packages(self, options: DebOptions, context: Context) -> tuple[apt.Package, ...]:
        architecture = packages.ARCHITECTURES[context.arch]
        try:
            return packages.closure([options.package], architecture, context.cache, context.deadline, progress=context.progress)
        except apt.NotThere as error:
            remedy = f"correct it; or, for what is new: {apt.UPDATE}"
            if architecture != packages.ARCHITECTURES["x86_64"]:
                remedy += f"; for the packages of another architecture first: dpkg --add-architecture {architecture}"
            raise context.mistake("package", error.found, error.allowed, remedy=remedy) from None


class _Libraries:
    """Where a library lies: in the packages unpacked so far, else in the next one that may have it."""

    def __init__(self, known: tuple[apt.Package, ...], root: Path, context: Context) -> None:
        self.known = known
        self.root = root
        self.context = context
        self.used: dict[str, apt.Package] = {}

    def unpack(self, package: apt.Package) -> None:
        packages.unpacked(package, self.root, self.context.cache, self.context.deadline, self.context.progress)
        self.used[package.name] = package

    def home(self, name: str, needed_by: str) -> str:
        """The path at which a library, or a loader by its whole path, is found in the machine. BuildFailed if no package has it."""
        if (found := self._look(name)) is not None:
            return found
        for package in sorted(self.known, key=lambda p: _unlikely(p.name, name)):
            if package.name not in self.used:
                self.unpack(package)
                if (found := self._look(name)) is not None:
                    return found
        raise self.missing(name, needed_by)

    def missing(self, name: str, needed_by: str) -> BuildFailed:
        package = self.known[0]
        return BuildFailed(
            f"{self.context.where}: {needed_by} of {package.name} {package.version} needs {name}, and none of the "
            f"{len(self.known)} packages that it depends on has that",
            remedy="another package or file in the recipe",
        )

    def _look(self, name: str) -> str | None:
        if "/" in name:
            return name.lstrip("/") if packages.resolved(self.root, name) else None
        triplet = _TRIPLETS[self.context.arch]
        usual = [f"{folder}/{name}" for folder in (f"lib/{triplet}", f"usr/lib/{triplet}", "lib", "usr/lib", "lib64", "usr/lib64")]
        # Elsewhere it is found by a path that the program itself carries.
        others = sorted(str(path.relative_to(self.root)) for path in self.root.glob(f"usr/lib/{triplet}/*/{name}"))
        return next((path for path in (*usual, *others) if packages.resolved(self.root, path)), None)


def _needs(content: Path, path: str, context: Context) -> Iterable[str]:
    """The loader, by its path, and the libraries that a program needs; nothing for what is no program."""
    data = content.read_bytes()
    if not elf.is_elf(data):
        return ()
    try:
        found = elf.parse(data)
    except elf.NotElf as error:
        raise BuildFailed(f"{context.where}: {path} {error}") from None
    if found.machine != elf.MACHINES[context.arch]:
        raise BuildFailed(f"{context.where}: {path} is not for {context.arch}")
    return ((found.interpreter,) if found.interpreter else ()) + found.needed


def _unlikely(package: str, library: str) -> tuple[int, str]:
    """How unlikely it is that a package has a library; Debian names most after it: ``libblkid.so.1`` is in ``libblkid1``."""
    letters = re.sub(r"[^a-z0-9]", "", package.lower())
    plain = re.sub(r"[^a-z0-9]", "", re.sub(r"\.so\b", "", library.lower()))
    if letters == plain:
        return 0, package
    if package == "libc6":  # libm, libpthread, the loader ...
        return 1, package
    stem = re.sub(r"[^a-z]", "", library.split(".so")[0].lower())
    return (2 if letters.startswith(stem) else 3), package


def _alike(root: Path, path: str) -> str:
    """What the package has of the same kind, for the message."""
    there = list(_programs(root))
    name = Path(path).name
    close = [each for each in there if Path(each).name == name] or there
    return f"it has {', '.join(close[:8])}" + (f", … {len(close) - 8} more" if len(close) > 8 else "") if close else "a file of the package"


def _programs(root: Path) -> Iterator[str]:
    for folder in ("bin", "sbin", "usr/bin", "usr/sbin"):
        yield from (f"/{path.relative_to(root)}" for path in sorted((root / folder).glob("*")))


BUILDER: Builder[DebOptions] = FromDeb()
