"""Builder ``rust``: a kernel in Rust without the standard library, compiled by one call of ``rustc`` and linked by LLD. No cargo: such a
kernel has no crates.

Where the compiler brings `core` for the target (``x86_64-unknown-linux-gnu``) that is all. For the bare-metal targets `core`,
`compiler_builtins` and `alloc` are compiled first from the source that belongs to the compiler (Debian: ``rust-web-src``, rustup: the
component ``rust-src``), once for each compiler and target; they are kept in the cache.

Same source, same compiler, same bytes, wherever the source lies: the compiler works inside of its folder and is given relative paths.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from labctl.build import image
from labctl.build.cache import Artefact, Made, now
from labctl.build.protocols import Builder, Context, Options, Plan
from labctl.deadline import Deadline
from labctl.errors import BuildFailed, HostToolMissing, ManagementError
from labctl.model import Provenance
from labctl.process import run

ANSWER_S = 30.0
"""Seconds that a compiler or linker is given to say what it is."""
_INSTALL = "apt-get install -y rustc-web rust-web-src lld"

_TARGETS = {"x86_64": "x86_64-unknown-linux-gnu", "aarch64": "aarch64-unknown-none", "riscv64": "riscv64gc-unknown-none-elf"}
# What every kernel wants of its compiler.
_KERNEL = ("-Cpanic=abort", "-Crelocation-model=static", "-Cforce-unwind-tables=no", "-Ccodegen-units=1", "-Clinker-flavor=ld.lld")
# x86: no 128 bytes below the stack pointer, since an interrupt would write over them.
_KERNEL_OF = {"x86_64": ("-Ccode-model=small", "-Cno-redzone=yes"), "aarch64": (), "riscv64": ("-Ccode-model=medium",)}
_LINKED = ("-nostdlib", "-static", "-no-pie", "--gc-sections", "--build-id=none", "-zmax-page-size=4096")

_UNREAD = ("build.toml", ".md")
"""Ends of the names of files that do not decide a kernel's bytes: the recipe's options are told apart by themselves."""
_MOST_SOURCE = 64 << 20
"""Bytes of source; a folder with more is not a kernel's."""
_MOST_ERRORS = 8
"""Errors of the compiler that are shown."""


class RustOptions(Options):
    source: Annotated[str, Field(min_length=1)]
    """The kernel's folder, relative to the lab."""
    main: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_./-]*\.rs$")] = "src/main.rs"
    """The crate's root, relative to that folder."""
    linker_script: Annotated[str, Field(pattern=r"^([A-Za-z0-9_][A-Za-z0-9_./-]*)?$")] = ""
    """Relative to that folder; empty: the linker's own layout."""
    target: Annotated[str, Field(pattern=r"^([a-z0-9_]+(-[a-z0-9_.]+)+)?$")] = ""
    """The compiler's name of the machine; by the recipe's ``arch`` if empty."""
    edition: Literal["2018", "2021", "2024"] = "2024"
    oldest: Annotated[str, Field(pattern=r"^1\.[0-9]{1,4}$")] = "1.88"
    """The oldest compiler that will do."""
    optimise: Literal["0", "1", "2", "3", "s", "z"] = "2"
    cfg: tuple[Annotated[str, Field(pattern=r'^[A-Za-z_][A-Za-z0-9_]*(="[^"]*")?$')], ...] = ()
    """``NAME`` or ``NAME="VALUE"``: for variants of one source."""
    flags: tuple[Annotated[str, Field(pattern=r"^-")], ...] = ()
    """More words for the compiler."""
    version: str = ""
    """What the kernel calls its version, for lists."""


@dataclass(frozen=True)
class _Compiler:
    """A ``rustc`` of the host that can compile for ``target``."""

    path: str
    version: str
    """All that ``rustc -vV`` says."""
    sysroot: Path
    target: str

    @property
    def title(self) -> str:
        """``rustc 1.96.0 (ac68faa20 2026-05-25)``."""
        return self.version.split("\n", 1)[0]

    @property
    def release(self) -> str:
        found = re.search(r"^release: (\S+)$", self.version, re.MULTILINE)
        return found[1] if found else ""

    @property
    def number(self) -> tuple[int, ...]:
        return tuple(int(part) for part in re.findall(r"[0-9]+", self.release)[:2])

    @cached_property
    def brings_core(self) -> bool:
        """It was installed with the libraries of the target."""
        return any((self.sysroot / "lib/rustlib" / self.target / "lib").glob("libcore-*.rlib"))

    @cached_property
    def core_source(self) -> Path | None:
        """The folder of the source of `core`, if that of this very version is there: another's does not compile."""
        own = (self.sysroot / "lib/rustlib/src/rust/library").resolve()
        for folder in (own, Path(f"/usr/src/rustc-{self.release}/library")):
            told = re.search(r"/rustc-([0-9][^/]*)/library$", str(folder))  # Debian's folder says its version
            if (folder / "core/src/lib.rs").is_file() and (told is None or told[1] == self.release):
                return folder
        return None


class FromRust:
    options = RustOptions

    def plan(self, options: RustOptions, context: Context) -> Plan:
        source = _source(options, context)
        compiler = _compiler(_target(options, context), options.oldest, context.deadline)
        identity = {
            "builder": "rust",
            "source": _digest(source, context),
            "compiler": compiler.version,
            "linker": _linker(compiler, context)[1],
            "arguments": json.dumps(_arguments(options, context)),
        }
        return Plan(identity, options.version, options.source)

    def make(self, options: RustOptions, plan: Plan, folder: Path, context: Context) -> Made:
        compiler = _compiler(_target(options, context), options.oldest, context.deadline)
        kernel = folder / "kernel"
        arguments = [*_arguments(options, context), f"-Clinker={_linker(compiler, context)[0]}", "-o", str(kernel)]
        if not compiler.brings_core:
            made = _sysroot(compiler, context)
            arguments += ["--sysroot", str(_laid_out(made, folder / "sysroot", compiler.target))]
        context.progress(f"compiling {options.source} for {compiler.target}")
        _compile(compiler, arguments, folder, options, context)
        try:
            found = image.read(kernel)
        except OSError as error:
            raise BuildFailed(f"{options.source}: rustc ended well but left no kernel: {error.strerror}") from None
        except image.NotAKernel as error:
            raise BuildFailed(f"{options.source}: what rustc left is not a kernel: it {error}") from None
        if found.arch != context.arch:
            raise context.mistake("target", f"{compiler.target} gives a kernel for {found.arch or 'another'}", f"one for {context.arch}")
        if _digest(_source(options, context), context) != plan.identity["source"]:
            raise BuildFailed(f"{options.source}: the source changed while it was compiled", remedy="run it again")
        details = {"target": compiler.target, "linker": plan.identity["linker"], "source": plan.identity["source"]}
        origin = Provenance("rust", options.source, options.version, toolchain=compiler.title, built_at=now(), details=details)
        return Made({"kernel": kernel}, options.version, origin)


def _source(options: RustOptions, context: Context) -> Path:
    source = context.root / options.source
    for key, file in (("source", options.main), ("linker_script", options.linker_script)):
        if file and not (source / file).is_file():
            if key == "source" and source.is_dir():
                key = "main"
            raise context.mistake(key, f"{source / file} is not a file", "a kernel's folder, and names of files in it")
    return source


def _target(options: RustOptions, context: Context) -> str:
    return options.target or _TARGETS[context.arch]


def _digest(source: Path, context: Context) -> str:
    """Over names and content of all files of the kernel's folder: what the compiler may read there."""
    digest = hashlib.sha256()
    total = 0
    for path in _files(source):
        name = str(path.relative_to(source))
        try:
            content = path.read_bytes()
        except OSError as error:
            raise context.mistake("source", f"{path} cannot be read: {error.strerror}", "a folder of readable files") from None
        total += len(content)
        if total > _MOST_SOURCE:
            raise context.mistake("source", f"{source} holds more than {_MOST_SOURCE >> 20} MiB", "a folder with a kernel's source only")
        digest.update(f"{name}\0{len(content)}\0".encode(errors="surrogateescape") + content)
    return f"sha256:{digest.hexdigest()}"


def _files(source: Path) -> Iterator[Path]:
    """In an order that is the same everywhere; nothing hidden, and nothing that can't be a part of a kernel."""
    for folder, folders, names in os.walk(source):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith(".") and not name.endswith(_UNREAD))


def _arguments(options: RustOptions, context: Context) -> list[str]:
    """Everything that decides the bytes, beside the source and the tools."""
    name = re.sub(r"\W", "_", Path(options.source).name)
    script = [f"-Clink-arg=-T{options.linker_script}"] if options.linker_script else []
    return [
        *("--crate-name", name if name[:1].isalpha() else f"kernel{name}", "--crate-type", "bin", "--edition", options.edition),
        *("--target", _target(options, context), f"-Copt-level={options.optimise}", *_KERNEL, *_KERNEL_OF[context.arch]),
        *(f"-Clink-arg={word}" for word in _LINKED),
        *script,
        *(word for each in options.cfg for word in ("--cfg", each)),
        *options.flags,
        options.main,
    ]


def usable_compiler(deadline: Deadline) -> str:
    """What the host's compiler is, and where, if it does for kernels of every architecture; HostToolMissing with what it lacks."""
    oldest = RustOptions.model_fields["oldest"].default
    (found, *_) = [_compiler(target, oldest, deadline) for target in _TARGETS.values()]
    return f"{found.title} at {found.path}"


def _compiler(target: str, oldest: str, deadline: Deadline) -> _Compiler:
    """The first ``rustc`` in PATH that is new enough and can compile for the target. HostToolMissing with what the best of them lacks."""
    lacks = HostToolMissing("the host has no rustc", remedy=_INSTALL)
    wanted = tuple(int(part) for part in oldest.split("."))
    for path in _in_path("rustc"):
        try:
            version, sysroot = (run([path, *words], deadline.sooner(ANSWER_S)) for words in (["-vV"], ["--print", "sysroot"]))
        except ManagementError as error:
            lacks = HostToolMissing(f"{path} does not work: {error.message}", remedy=_INSTALL)
            continue
        if version.status or sysroot.status:
            lacks = HostToolMissing(f"{path} does not work: {version.words if version.status else sysroot.words}", remedy=_INSTALL)
            continue
        found = _Compiler(path, version.out.strip(), Path(sysroot.out.strip()), target)
        if found.number < wanted:
            lacks = HostToolMissing(f"{found.title} at {path} is too old: {oldest} or newer is needed", remedy=_INSTALL)
        elif not found.brings_core and found.core_source is None:
            lacks = HostToolMissing(f"{found.title} at {path} has neither core for {target} nor its source", remedy=_INSTALL)
        else:
            return found
    raise lacks


def _in_path(program: str) -> Iterator[str]:
    """Every such program, in PATH's order, each once."""
    seen: set[str] = set()
    for folder in os.get_exec_path():
        path = os.path.join(folder, program)  # noqa: PTH118  # not resolved: rustup's programs are told apart by the name they are called by
        if os.access(path, os.X_OK) and (real := os.path.realpath(path)) not in seen:
            seen.add(real)
            yield path


def _linker(compiler: _Compiler, context: Context) -> tuple[str, str]:
    """LLD, the compiler's own or the host's: its path, and what it calls itself."""
    own = next(iter(sorted(compiler.sysroot.glob("lib/rustlib/*/bin/rust-lld"))), None)
    path = str(own) if own is not None else next(_in_path("ld.lld"), None)
    if path is None:
        raise HostToolMissing("the host has no ld.lld, which links kernels in Rust", remedy=_INSTALL)
    return path, run([path, *(["-flavor", "gnu"] if own is not None else []), "--version"], context.deadline.sooner(ANSWER_S)).out.strip()


# --- core, compiler_builtins and alloc for a machine without an operating system

_CRATES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("core", "core/src/lib.rs", ()),
    (
        "compiler_builtins",
        "compiler-builtins/compiler-builtins/src/lib.rs",
        # As its build script has it for such targets: memcpy and its like are its own, and nothing is there to be called for them.
        ('feature="compiler-builtins"', 'feature="mem"', 'feature="unstable-intrinsics"', "intrinsics_enabled", "arch_enabled"),
    ),
    ("alloc", "alloc/src/lib.rs", ()),
)


def _sysroot(compiler: _Compiler, context: Context) -> Artefact:
    """The libraries of a target, from the cache or compiled now: some 20 s of one CPU."""
    source = compiler.core_source
    if source is None:
        raise HostToolMissing(f"the source of core of {compiler.title} is gone", remedy=_INSTALL)
    changed = (source / "core/src/lib.rs").stat()
    identity = {
        "builder": "rust-sysroot",
        "compiler": compiler.version,
        "target": compiler.target,
        "library": f"{source} {changed.st_size} {changed.st_mtime_ns}",
        "crates": repr(_CRATES),
    }

    def make(folder: Path) -> Made:
        context.progress(f"compiling core and alloc for {compiler.target}, once for {compiler.title}")
        home = _library_folder(folder, compiler.target)
        home.mkdir(parents=True)
        for name, path, cfgs in _CRATES:
            done = run(
                [
                    *(compiler.path, "--crate-name", name, "--crate-type", "rlib", "--edition", "2024", "--target", compiler.target),
                    *("--sysroot", str(folder), "--cap-lints", "allow", "-Copt-level=2", "-Cpanic=abort", "-Cembed-bitcode=no"),
                    *("-Ccodegen-units=1", "-Zforce-unstable-if-unmarked", f"--remap-path-prefix={source}=library"),
                    *(word for cfg in cfgs for word in ("--cfg", cfg)),
                    *("-o", str(home / f"lib{name}.rlib"), str(source / path)),
                ],
                context.deadline,
                cwd=folder,
                env={**_environment(), "RUSTC_BOOTSTRAP": "1"},
                owned=True,
            )
            if done.status != 0:
                context.cache.require_room(done.err)
                raise BuildFailed(f"{source / path} does not compile for {compiler.target}: {done.err.strip()[-2000:]}")
        files = {name: home / f"lib{name}.rlib" for name, _, _ in _CRATES}
        return Made(files, compiler.release, Provenance("rust-sysroot", str(source), toolchain=compiler.title, built_at=now()))

    return context.cache.obtain(identity, make, deadline=context.deadline, progress=context.progress)


def _laid_out(made: Artefact, sysroot: Path, target: str) -> Path:
    """The libraries under the names by which the compiler looks for them."""
    home = _library_folder(sysroot, target)
    home.mkdir(parents=True)
    for name, path in made.files.items():
        (home / f"lib{name}.rlib").symlink_to(path)
    return sysroot


def _library_folder(sysroot: Path, target: str) -> Path:
    return sysroot / "lib/rustlib" / target / "lib"


# --- the compiler's words


def _environment() -> dict[str, str]:
    """The user's own settings for the compiler must not leak in."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("RUSTC", "RUSTFLAGS", "CARGO"))} | {"LC_ALL": "C"}


def _compile(compiler: _Compiler, arguments: list[str], folder: Path, options: RustOptions, context: Context) -> None:
    """BuildFailed with the compiler's own words, each error once."""
    source = context.root / options.source
    done = run(
        [compiler.path, "--error-format=json", f"--remap-path-prefix={source}=.", *arguments],
        context.deadline,
        cwd=source,
        env=_environment(),
        owned=True,
    )
    said = list(_diagnostics(done.err))
    if done.status == 0:
        warnings = [words for level, words in said if level == "warning"]
        if warnings:
            context.progress(f"{len(warnings)} warnings, the first: {warnings[0].splitlines()[0]}")
        return
    context.cache.require_room(done.err)
    errors = [words for level, words in said if level.startswith("error") and not words.startswith("error: aborting due to")]
    shown = [_linkers(words) for words in errors] or [done.err.strip()[-2000:] or f"rustc ended with {done.status}"]
    # The compiler names files as it sees them from inside the source.
    shown = [words.replace(f"{folder}/", "") for words in shown]
    text = [re.sub(r"(--> |::: )(?=\w[\w./-]*:[0-9])", rf"\1{options.source}/", words.rstrip()) for words in shown]
    more = f"\n\n... and {len(text) - _MOST_ERRORS} errors more" if len(text) > _MOST_ERRORS else ""
    first = text[0].splitlines()
    place = next((line.split("--> ", 1)[1] for line in first if "--> " in line), options.source)
    raise BuildFailed(
        f"{options.source} does not compile:\n" + "\n\n".join(text[:_MOST_ERRORS]) + more, title=f"{place}: {first[0] if first else ''}"
    )


def _linkers(words: str) -> str:
    """Of an error of the linker's its own words: the compiler puts them behind a screen of arguments."""
    if not words.startswith("error: linking with"):
        return words
    notes = [note.strip() for note in words.split("  = note: ")[1:]]
    return "\n".join(note for note in notes if not note.startswith(('"', "some arguments are omitted"))) or words


def _diagnostics(said: str) -> Iterator[tuple[str, str]]:
    """Of each diagnostic its level and its rendered text; lines that are none are passed over."""
    for line in said.splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict) and isinstance(found.get("rendered"), str):
            yield str(found.get("level", "")), found["rendered"]


BUILDER: Builder[RustOptions] = FromRust()
