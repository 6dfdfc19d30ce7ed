"""Builder ``make``: a Linux source tree, configured and compiled outside of it.

The config is a base, then the fragments in their order, then the recipe's own options; a later one wins. After ``olddefconfig`` every
asked option must still be what was asked: Kconfig drops silently what a dependency forbids, and a kernel without the option under
test would be judged in its place.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field

from labctl.build import image, kconfig
from labctl.build.cache import Made, digest_of, now
from labctl.build.protocols import Builder, Context, Options, Plan
from labctl.build.sourcetree import TreeState, state
from labctl.errors import BuildFailed
from labctl.model import Provenance
from labctl.process import Completed, find, run

_ARCHITECTURES = {"x86_64": "x86_64", "aarch64": "arm64", "riscv64": "riscv"}
# What the kernel's own build runs that Debian's compiler packages do not bring.
_TOOLS = ("make", "flex", "bison", "bc")
_TAIL_LINES = 30
_COMPLAINT = re.compile(r"error|fatal|undefined reference|\*\*\*|not found|No such file|No rule to make", re.IGNORECASE)


class MakeOptions(Options):
    source: Annotated[str, Field(min_length=1)]
    """Folder of the tree, relative to the lab. Nothing is written there; it must be clean (``make mrproper``)."""
    config: Annotated[str, Field(min_length=1)] = "defconfig"
    """A target of the tree (``defconfig``, ``tinyconfig``), or a config file relative to the lab."""
    fragments: tuple[str, ...] = ()
    """Files of options, relative to the lab; a later one wins."""
    options: Mapping[Annotated[str, Field(pattern=kconfig.SYMBOL)], str | int | bool] = {}
    """``CONFIG_X = "y"``; they win over the fragments."""
    jobs: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Compilers at a time; all CPUs if it is not given."""
    target: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.][A-Za-z0-9_.-]*$")] = "bzImage"
    cross_compile: Annotated[str, Field(pattern=r"^[A-Za-z0-9_./+-]*$")] = ""
    """Prefix of the compiler's name, with its last dash: ``aarch64-linux-gnu-``."""


class FromTree:
    options = MakeOptions

    def plan(self, options: MakeOptions, context: Context) -> Plan:
        source = _source(options, context)
        tree = state(source, context.deadline)
        base = _config_file(options, context)
        identity = {
            "builder": "make",
            "source": str(source),
            "commit": tree.commit,
            "changes": tree.changes,
            "arch": context.arch,
            "config": f"{options.config} {digest_of(base) if base else ''}",
            "asked": repr(sorted(_asked(options, context).items())),
            "target": options.target,
            "compiler": _compiler(options, context),
        }
        return Plan(identity, "", f"{source} {tree.label}")

    def make(self, options: MakeOptions, plan: Plan, folder: Path, context: Context) -> Made:
        for tool in _TOOLS:
            find(tool)
        source = _source(options, context)
        output = folder / "tree"
        output.mkdir()
        final = self.configure(options, output, context)
        jobs = options.jobs or os.cpu_count() or 1
        context.progress(f"compiling {source} ({options.target}, {jobs} at a time)")
        _make(options, output, context, f"-j{jobs}", options.target)
        release = _make(options, output, context, "-s", "kernelrelease").out.strip()
        candidates = [*sorted(output.glob(f"arch/*/boot/{options.target}")), output / options.target]
        kernel = next((path for path in candidates if path.is_file()), None)
        if kernel is None:
            raise BuildFailed(f"{source}: make {options.target} ended well but left no such file")
        # arch/x86_64/boot/bzImage is a link to the one in arch/x86.
        kernel = kernel.resolve()
        try:
            found = image.read(kernel)
        except image.NotAKernel as error:
            raise BuildFailed(f"{source}: what make {options.target} left is not a kernel: it {error}") from None
        tree = TreeState(plan.identity["commit"], plan.identity["changes"])
        listing = output / "modules.builtin"
        return Made(
            {"kernel": kernel, **({"modules.builtin": listing} if listing.is_file() else {})},
            found.release or release,
            Provenance(
                builder="make",
                source=str(source),
                version=release,
                commit=tree.commit,
                toolchain=final.get("CONFIG_CC_VERSION_TEXT", "").strip('"') or plan.identity["compiler"],
                built_at=now(),
                details={"tree": tree.label, "config": options.config, "banner": found.banner},
            ),
        )

    def configure(self, options: MakeOptions, output: Path, context: Context) -> dict[str, str]:
        """Write ``output/.config``; returns it as values. BuildFailed with every asked option that did not survive."""
        context.progress("configuring")
        config = output / ".config"
        base = _config_file(options, context)
        if base:
            config.write_bytes(base.read_bytes())
        else:
            _make(options, output, context, options.config)
        asked = _asked(options, context)
        config.write_text(kconfig.merged(config.read_text(errors="surrogateescape"), asked), errors="surrogateescape")
        _make(options, output, context, "olddefconfig")
        final = kconfig.parse(config.read_text(errors="replace"))
        if missing := kconfig.lost(asked, final):
            listed = "\n".join(f"  {option}" for option in missing)
            raise BuildFailed(
                f"the configure step did not keep {len(missing)} of {len(asked)} asked options:\n{listed}",
                remedy="ask for what they depend on too; in the tree, make menuconfig and / show it",
            )
        return final


def _source(options: MakeOptions, context: Context) -> Path:
    source = context.root / options.source
    if not (source / "Makefile").is_file() or not (source / "Kconfig").is_file():
        raise context.mistake("source", f"{source} is not a Linux source tree", "a folder with a Makefile and a Kconfig")
    return source.resolve()


def _config_file(options: MakeOptions, context: Context) -> Path | None:
    """The base config as a file, or None for one of the tree's targets."""
    path = context.root / options.config
    if path.is_file():
        return path
    if "/" not in options.config and options.config.endswith("config"):
        return None
    raise context.mistake("config", f"{path} is not a file", "a config file, or a target such as defconfig or tinyconfig")


def _asked(options: MakeOptions, context: Context) -> dict[str, str]:
    """What the fragments and then the options ask for."""
    asked: dict[str, str] = {}
    for name in options.fragments:
        path = context.root / name
        try:
            asked |= kconfig.parse(path.read_text())
        except OSError as error:
            raise context.mistake("fragments", f"{path} cannot be read: {error.strerror}", "a file of options") from None
        except ValueError as error:
            raise context.mistake("fragments", f"{path}: {error}", "lines CONFIG_X=value or # CONFIG_X is not set") from None
    return asked | {symbol: kconfig.value(given) for symbol, given in options.options.items()}


def _compiler(options: MakeOptions, context: Context) -> str:
    return run([f"{options.cross_compile}gcc", "--version"], context.deadline).out.split("\n", 1)[0]


def _make(options: MakeOptions, output: Path, context: Context, *goals: str) -> Completed:
    """Run the tree's make for a folder of its own. BuildFailed with the compiler's own words."""
    source = _source(options, context)
    done = run(
        [
            "make",
            "-C",
            str(source),
            f"O={output}",
            f"ARCH={_ARCHITECTURES[context.arch]}",
            f"CROSS_COMPILE={options.cross_compile}",
            *goals,
        ],
        context.deadline,
        env={
            # Settings of a surrounding make or of the user's own kernel builds must not leak in.
            **{k: v for k, v in os.environ.items() if not k.startswith(("KBUILD_", "KCONFIG_", "MAKE", "MFLAGS", "KCFLAGS"))},
            "LC_ALL": "C",
            # The same tree and config give the same bytes.
            "KBUILD_BUILD_TIMESTAMP": "Thu Jan  1 00:00:00 UTC 1970",
            "KBUILD_BUILD_USER": "labctl",
            "KBUILD_BUILD_HOST": "labctl",
        },
        owned=True,
    )
    if done.status != 0:
        context.cache.require_room(done.err)
        # The compilers' words come on stderr; what each of them compiles, on stdout.
        lines = (done.err.strip() or done.out.strip()).replace(f"{output}/", "").splitlines()
        first = next((number for number, line in enumerate(lines) if _COMPLAINT.search(line)), max(0, len(lines) - _TAIL_LINES))
        words = lines[first : first + _TAIL_LINES]
        raise BuildFailed(f"{source}: make {goals[-1]} failed: {words[0] if words else done.status}", tail="\n".join(words))
    return done


BUILDER: Builder[MakeOptions] = FromTree()
