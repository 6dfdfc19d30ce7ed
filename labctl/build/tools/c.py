"""Tool builder ``c``: sources that lie beside the recipe → one static program.

Same sources, same compiler, same bytes, wherever they lie: the compiler works inside of their folder and is given relative names.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Annotated

from pydantic import Field

from labctl.build.cache import Made, now
from labctl.build.protocols import Builder, Context, Options, Plan
from labctl.deadline import Deadline
from labctl.errors import BuildFailed, HostToolMissing
from labctl.model import Provenance
from labctl.process import find, run

FLAGS = ("-static", "-O2", "-Wall", "-Wextra", "-s", "-Wl,--build-id=none")
FREESTANDING = (
    *("-m32", "-march=i686", "-static", "-nostdlib", "-ffreestanding", "-O2", "-Wall", "-Wextra", "-s"),
    *("-no-pie", "-fno-pic", "-fno-stack-protector", "-fno-asynchronous-unwind-tables", "-fcf-protection=none", "-mgeneral-regs-only"),
    "-Wl,--build-id=none,-z,noexecstack,--no-warn-rwx-segments",
)
"""Of a program that nothing starts but a CPU: no libc, no registers beyond the general ones, each address where its script puts it."""
COMPILE_S = 300.0
_DEBIAN = {"x86_64": "x86-64", "aarch64": "aarch64", "riscv64": "riscv64"}
_LIBC = {"x86_64": "amd64", "aarch64": "arm64", "riscv64": "riscv64"}
_FIRST_ERROR = re.compile(r"^.*?(?:fatal error|error|undefined reference).*$", re.MULTILINE)


class COptions(Options):
    sources: Annotated[tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_./-]*\.(c|S)$")], ...], Field(max_length=100)] = ()
    """Relative to the recipe's folder; without it ``NAME.c``."""
    flags: tuple[Annotated[str, Field(pattern=r"^-")], ...] = ()
    """More words for the compiler: ``-pthread``."""
    libraries: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9_+.-]+$")], ...] = ()
    """``m`` for ``-lm``: static libraries of the host's compiler."""
    freestanding: Annotated[str, Field(pattern=r"^([A-Za-z0-9_][A-Za-z0-9_./-]*\.ld)?$")] = ""
    """A linker script, relative to the recipe's folder: the program is a 32-bit one without an operating system, such as a guest that a
    hypervisor starts. Only for x86_64."""


class FromC:
    options = COptions

    def plan(self, options: COptions, context: Context) -> Plan:
        sources = _sources(options, context)
        if options.freestanding and context.arch != "x86_64":
            raise context.mistake("freestanding", f"a machine of {context.arch}", "such a program is for x86_64")
        folders = {context.root, *((context.root / source).parent for source in sources)}
        headers = sorted(str(path.relative_to(context.root)) for folder in folders for path in folder.glob("*.h"))
        digest = hashlib.sha256()
        for name in (*sources, *headers, *filter(None, [options.freestanding])):
            try:
                content = (context.root / name).read_bytes()
            except OSError as error:
                key = "freestanding" if name == options.freestanding else "sources"
                raise context.mistake(key, f"{name} cannot be read: {error.strerror}", "files beside the recipe") from None
            digest.update(f"{name}\0{len(content)}\0".encode() + content)
        compiler, toolchain = compiler_of(context.arch, context.deadline)
        identity = {
            "builder": "tool-c",
            "arch": context.arch,
            "name": Path(context.where).stem,
            "sources": digest.hexdigest(),
            "toolchain": f"{compiler} {toolchain}",
            "words": " ".join((*_flags(options), *sources, *options.libraries)),
        }
        return Plan(identity, "", ", ".join(sources))

    def make(self, options: COptions, plan: Plan, folder: Path, context: Context) -> Made:
        compiler, toolchain = compiler_of(context.arch, context.deadline)
        name = plan.identity["name"]
        program = folder / name
        context.progress(f"compiling {plan.source}")
        done = run(
            [
                *(compiler, *_flags(options), f"-ffile-prefix-map={context.root}=.", "-o", str(program), *_sources(options, context)),
                *(f"-l{library}" for library in options.libraries),
            ],
            context.deadline.sooner(COMPILE_S),
            cwd=context.root,
            env={**os.environ, "LC_ALL": "C", "TMPDIR": str(folder)},
            owned=True,
        )
        if done.status != 0 or not program.is_file():
            context.cache.require_room(done.err)
            raise BuildFailed(f"{context.where} does not compile: {first_error(done.err) or done.words}", tail=done.err.strip()[-4000:])
        if warned := re.findall(r"^.*warning: .*$", done.err, re.MULTILINE):
            context.progress(f"{len(warned)} warnings, the first: {warned[0]}")
        origin = Provenance("tool-c", plan.source, toolchain=toolchain, built_at=now(), details={"sources": plan.identity["sources"]})
        return Made({f"usr/bin/{name}": program}, "", origin)


def compiler_of(arch: str, deadline: Deadline) -> tuple[str, str]:
    """The host's C compiler for an architecture, and what it is, with the libc that it links statically. HostToolMissing with the
    package to install."""
    native = os.uname().machine == arch
    compiler = "gcc" if native else f"{arch}-linux-gnu-gcc"
    remedy = (
        "apt-get install -y gcc libc6-dev" if native else f"apt-get install -y gcc-{_DEBIAN[arch]}-linux-gnu libc6-dev-{_LIBC[arch]}-cross"
    )
    try:
        find(compiler)
    except HostToolMissing:
        raise HostToolMissing(f"the host has no {compiler}, which compiles tools for {arch}", remedy=remedy) from None
    version = run([compiler, "--version"], deadline).out.split("\n", 1)[0]
    libc = Path(run([compiler, "-print-file-name=libc.a"], deadline).out.strip())
    if not libc.is_absolute():
        raise HostToolMissing(f"{compiler} has no static C library", remedy=remedy)
    status = libc.stat()
    return compiler, f"{version}, libc.a {status.st_size} {status.st_mtime_ns}"


def first_error(said: str) -> str:
    """Of what a compiler or a linker said the first line that tells an error; empty if none does."""
    found = _FIRST_ERROR.search(said)
    return found[0].strip()[:400] if found else ""


def _flags(options: COptions) -> tuple[str, ...]:
    return (*((*FREESTANDING, f"-Wl,-T,{options.freestanding}") if options.freestanding else FLAGS), *options.flags)


def _sources(options: COptions, context: Context) -> tuple[str, ...]:
    return options.sources or (f"{Path(context.where).stem}.c",)


BUILDER: Builder[COptions] = FromC()
