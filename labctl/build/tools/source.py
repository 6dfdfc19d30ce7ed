"""Tool builder ``source``: a Debian source package, configured and compiled by the recipe's commands into static programs.

The headers and static libraries that it needs come from named packages, unpacked beside the source: nothing has to be installed, and what
the host has installed is not what decides the bytes. Of the host come the compiler and the programs that the recipe names.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
from pathlib import Path
from typing import Annotated

from pydantic import Field

from labctl.build import apt, aptsource, elf, packages
from labctl.build.cache import Made, now
from labctl.build.protocols import Builder, Context, Options, Plan
from labctl.build.tools.c import compiler_of, first_error
from labctl.errors import BuildFailed, HostToolMissing
from labctl.model import Provenance
from labctl.process import find, run

_PATH = r"^[A-Za-z0-9_.][A-Za-z0-9_.+/-]*$"


class SourceOptions(Options):
    package: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9+.-]+$")]
    """A source package of Debian; apt's newest version is taken. With ``archive`` a package that is installed, which holds a source."""
    archive: Annotated[str, Field(pattern=r"^(/?[A-Za-z0-9_.][A-Za-z0-9_.+/-]*)?$")] = ""
    """A tar archive in that package: ``/usr/src/linux-source-6.1.tar.xz``. Its one folder is the source."""
    parts: tuple[Annotated[str, Field(pattern=_PATH)], ...] = ()
    """Folders of the archive that are unpacked, relative to the source; without it all."""
    libraries: tuple[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9+.-]+$")], ...] = ()
    """Packages with the headers and static libraries that it is compiled with: ``libaio-dev``."""
    needs: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$")], ...] = ("make",)
    """Programs of the host that the commands call, beside the compiler."""
    commands: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]
    """One after another in the source's folder, without a shell; ``{jobs}`` is the number of CPUs, ``{gcc}`` the compiler."""
    files: Annotated[tuple[Annotated[str, Field(pattern=_PATH)], ...], Field(min_length=1)]
    """What is then there, relative to the source; lands in ``/usr/bin``."""


class FromSource:
    options = SourceOptions

    def plan(self, options: SourceOptions, context: Context) -> Plan:
        source, libraries = self._parts(options, context)
        compiler, toolchain = compiler_of(context.arch, context.deadline)
        recipe = repr((options.commands, options.files, *((options.archive, options.parts) if options.archive else ())))
        identity = {
            "builder": "tool-source",
            "arch": context.arch,
            "source": f"{source.name} {source.version}",
            "dsc": source.sha256 if isinstance(source, apt.Package) else source.files[source.dsc],
            "libraries": " ".join(f"{p.name}={p.version}:{p.sha256}" for p in libraries),
            "recipe": hashlib.sha256(recipe.encode()).hexdigest(),
            "toolchain": f"{compiler} {toolchain}",
        }
        return Plan(identity, source.version, f"source of {source.name} {source.version}")

    def make(self, options: SourceOptions, plan: Plan, folder: Path, context: Context) -> Made:
        source, libraries = self._parts(options, context)
        _require((*options.needs, *(("tar", "xz") if options.archive else ("dpkg-source", "patch")), "strip"))
        compiler, toolchain = compiler_of(context.arch, context.deadline)
        if isinstance(source, apt.Package):
            tree = _of_archive(source, options, folder, context)
        else:
            tree = aptsource.unpacked(source, folder, context.cache, context.deadline, context.progress)
        beside = folder / "libraries"
        for package in libraries:
            packages.unpacked(package, beside, context.cache, context.deadline, context.progress)
        environment = _environment(folder, beside, context.arch)
        for number, command in enumerate(options.commands, start=1):
            words = [word.replace("{jobs}", str(os.cpu_count() or 1)).replace("{gcc}", compiler) for word in shlex.split(command)]
            context.progress(f"{plan.source}: {number} of {len(options.commands)}: {command}")
            try:
                if words[0].startswith("./"):
                    words[0] = str(tree / words[0])
                done = run(words, context.deadline, cwd=tree, env=environment, owned=True)
            except (OSError, HostToolMissing) as error:
                raise BuildFailed(f"{context.where}: {command!r} cannot be run: {error}") from None
            if done.status != 0:
                context.cache.require_room(done.err)
                said = done.err.strip() or done.out.strip()
                why = first_error(done.err) or first_error(done.out) or done.words or f"status {done.status}"
                raise BuildFailed(f"{context.where}: {command!r} failed: {why}", tail=said[-4000:])
        files: dict[str, Path] = {}
        for name in options.files:
            program = folder / "landed" / Path(name).name
            program.parent.mkdir(exist_ok=True)
            if not (tree / name).is_file():
                raise context.mistake("files", f"the commands left no file {name}", "files that the commands make")
            shutil.copyfile(tree / name, program)
            _check(program, name, context)
            if elf.is_elf(program.read_bytes()):
                run(["strip", str(program)], context.deadline)
            files[f"usr/bin/{program.name}"] = program
        made_of = {"deb_sha256": source.sha256} if isinstance(source, apt.Package) else {"dsc_sha256": source.files[source.dsc]}
        details = {**made_of, **{p.name: p.version for p in libraries}}
        origin = Provenance("tool-source", source.name, source.version, toolchain=toolchain, built_at=now(), details=details)
        return Made(files, source.version, origin)

    def _parts(self, options: SourceOptions, context: Context) -> tuple[aptsource.Source | apt.Package, tuple[apt.Package, ...]]:
        architecture = packages.ARCHITECTURES[context.arch]
        source: aptsource.Source | apt.Package
        try:
            if options.archive:
                source = packages.closure([options.package], architecture, context.cache, context.deadline)[0]
            else:
                source = aptsource.newest(options.package, context.cache, context.deadline, context.progress)
        except apt.NotThere as error:
            raise context.mistake("package", error.found, error.allowed) from None
        try:
            found = packages.closure(options.libraries, architecture, context.cache, context.deadline) if options.libraries else ()
        except apt.NotThere as error:
            raise context.mistake(
                "libraries", error.found, error.allowed, remedy=f"correct it; or, for what is new: {apt.UPDATE}"
            ) from None
        return source, tuple(package for package in found if package.name in options.libraries)


def _of_archive(package: apt.Package, options: SourceOptions, folder: Path, context: Context) -> Path:
    """The source that a package holds as an archive, inside ``folder``. ConfigError, BuildFailed, InfraError, StorageError."""
    root, tree = folder / "package", folder / "tree"
    packages.unpacked(package, root, context.cache, context.deadline, context.progress)
    file = packages.resolved(root, options.archive)
    if file is None:
        raise context.mistake("archive", f"{package.name} {package.version} has no file {options.archive}", "a path in the package")
    tree.mkdir()
    context.progress(f"unpacking {Path(options.archive).name}")
    words = ["tar", "-x", "-f", str(file), "-C", str(tree), "--strip-components=1", "--no-same-owner"]
    done = run(
        [*words, *(("--wildcards", *(f"*/{part}" for part in options.parts)) if options.parts else ())], context.deadline, owned=True
    )
    if done.status != 0:
        context.cache.require_room(done.err)
        raise BuildFailed(f"{options.archive} of {package.name} cannot be unpacked: {done.words}", tail=done.err.strip()[-4000:])
    return tree


def _require(programs: tuple[str, ...]) -> None:
    """HostToolMissing with all that are missing and the one line that installs them."""
    missing: list[HostToolMissing] = []
    for program in programs:
        try:
            find(program)
        except HostToolMissing as error:
            missing.append(error)
    if missing:
        names = " ".join(error.remedy.removeprefix("apt-get install -y ") for error in missing)
        raise HostToolMissing("; ".join(error.message for error in missing), remedy=f"apt-get install -y {names}")


def _environment(folder: Path, beside: Path, arch: str) -> dict[str, str]:
    """Nothing of the user's own settings for compilers; the unpacked libraries in front of the host's."""
    triplet = f"{arch}-linux-gnu"
    kept = {key: os.environ[key] for key in ("PATH", "HOME", "USER") if key in os.environ}
    includes = [beside / "usr/include", beside / "usr/include" / triplet]
    return {
        **kept,
        "LC_ALL": "C",
        "TMPDIR": str(folder),
        "CPATH": ":".join(map(str, includes)),
        "LIBRARY_PATH": str(beside / "usr/lib" / triplet),
        "PKG_CONFIG_PATH": str(beside / "usr/lib" / triplet / "pkgconfig"),
        "CFLAGS": f"-O2 -ffile-prefix-map={folder}=.",
        "SOURCE_DATE_EPOCH": "0",
    }


def _check(program: Path, name: str, context: Context) -> None:
    """BuildFailed for a program that needs libraries, or is for another machine; a script is fine."""
    data = program.read_bytes()
    if not elf.is_elf(data):
        return
    try:
        found = elf.parse(data)
    except elf.NotElf as error:
        raise BuildFailed(f"{context.where}: {name} {error}") from None
    if found.needed or found.interpreter:
        needs = ", ".join(found.needed) or found.interpreter
        raise BuildFailed(f"{context.where}: {name} is not static: it needs {needs}", remedy="link it with -static in the commands")
    if found.machine != elf.MACHINES[context.arch]:
        raise BuildFailed(f"{context.where}: {name} is not for {context.arch}")


BUILDER: Builder[SourceOptions] = FromSource()
