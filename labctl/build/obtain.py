"""Recipe → artefact: the way into this wing."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from labctl.build import equipment, image, initramfs
from labctl.build.builders import builder, builders
from labctl.build.cache import Artefact, Cache, NotMade, Shelf
from labctl.build.protocols import Builder, Context, Options, Plan
from labctl.build.tools.obtain import tool
from labctl.config import Lab, read_toml, validate
from labctl.deadline import Deadline
from labctl.errors import ConfigError, LabctlError, Problem
from labctl.model import Build, Recipe, build_digest

LONGEST_S = 4 * 3600.0
"""How long a build may take if nobody says otherwise: a whole kernel on a small host."""


def obtain(lab: Lab, name: str, *, progress: Callable[[str], None] = lambda _: None, deadline: Deadline | None = None) -> Build:
    """The build of a recipe's name, or of a kernel's file (``./bzImage``), from the cache or made now.

    ``progress`` is given lines that begin with the build's name. ConfigError for a name or file that is not there, a mistake in the
    recipe, a file that is not a kernel; HostToolMissing, InfraError and StorageError for the host's faults; BuildFailed for the rest.
    """
    work = _work(lab, name, progress, deadline or Deadline.after(LONGEST_S))
    try:
        return work.build()
    except LabctlError as error:
        if not isinstance(error, ConfigError) and not error.message.startswith(f"{work.name}: "):
            error.message = f"{work.name}: {error.message}"
        raise


def held(lab: Lab, name: str) -> Build | None:
    """The build as `obtain` would give it, if the cache has all of it; nothing is built or downloaded. Raises as `obtain` does where it
    cannot be known what would be built."""
    work = _work(lab, name, lambda _: None, Deadline.after(60))
    artefact = work.context.cache.find(work.plan().identity)
    return work.assembled(artefact) if artefact is not None else None


def describe(lab: Lab, name: str) -> Mapping[str, str]:
    """What a list of builds says of one: builder, source, version, and digest, size in bytes and time if the cache holds it.

    Nothing is built or downloaded. Raises as `obtain` does where it cannot be known what would be built.
    """
    work = _work(lab, name, lambda _: None, Deadline.after(60))
    plan = work.plan()
    described = {"name": work.name, "builder": work.recipe.builder, "source": plan.source, "version": plan.version}
    artefact = work.context.cache.find(plan.identity)
    build = work.assembled(artefact) if artefact is not None else None
    if artefact is None or build is None:
        return {**described, "digest": "", "size": "", "cached": ""}
    size = sum(path.stat().st_size for path in (build.kernel, build.dom0, build.initrd) if path)
    return {**described, "version": build.version, "digest": build.digest, "size": str(size), "cached": artefact.made_at}


def recipes(lab: Lab) -> Mapping[str, Recipe]:
    """Every recipe of the lab by its name. ConfigError with the mistakes of all of their files."""
    found: dict[str, Recipe] = {}
    problems: list[Problem] = []
    for name in lab.recipe_files:
        try:
            found[name] = _recipe(lab, name)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return found


def check(lab: Lab, name: str) -> None:
    """What can be known of a recipe, or of a kernel's file, by reading it: no process runs. ConfigError with every mistake."""
    _work(lab, name, lambda _: None, Deadline.after(LONGEST_S))


def by_multiboot(recipe: Recipe) -> bool:
    """Whether what its builder makes is booted by the multiboot specification, with modules; no Linux kernel is."""
    return bool(getattr(builder(recipe.builder, ""), "multiboot", False))


@dataclass(frozen=True)
class _Work:
    """One recipe with everything that is needed to build it."""

    lab: Lab
    name: str
    recipe: Recipe
    builder: Builder[Any]
    options: Options
    context: Context

    def plan(self) -> Plan:
        return self.builder.plan(self.options, self.context)

    def build(self) -> Build:
        plan = self.plan()
        made = self.context.cache.obtain(
            plan.identity,
            lambda folder: self.builder.make(self.options, plan, folder, self.context),
            deadline=self.context.deadline,
            progress=self.context.progress,
        )
        return self.assemble(made, self.context.cache)

    def assembled(self, made: Artefact) -> Build | None:
        """As `assemble`, where all of it is in the cache; else None."""
        if any(tool(self.lab, name, self.recipe.arch).cached() is None for name in self.recipe.tools):
            return None
        try:
            return self.assemble(made, Shelf(self.context.cache.root))
        except NotMade:
            return None

    def assemble(self, made: Artefact, cache: Cache) -> Build:
        """Kernel plus initramfs, the one that came with it, else the lab's own; and behind that what the recipe names."""
        initrd, initrd_digest = made.files.get("initrd"), made.digests.get("initrd", "")
        details = {**made.provenance.details, "kernel_digest": made.digests["kernel"]}
        if initrd is None and self.recipe.initramfs:
            own = initramfs.base(self.recipe.arch, self.context.cache, self.context.deadline, self.context.progress)
            initrd, initrd_digest = own.files["initrd"], own.digests["initrd"]
            details["busybox"] = own.version
        if (listing := made.files.get("modules.builtin")) is not None:
            details["modules_builtin"] = str(listing)
        if initrd_digest:
            details["initrd_digest"] = initrd_digest
        if (dom0_digest := made.digests.get("dom0", "")) != "":
            details["dom0_digest"] = dom0_digest
        build = Build(
            name=self.name,
            digest=build_digest(made.digests["kernel"], initrd_digest, dom0_digest),
            arch=self.recipe.arch,
            kernel=made.files["kernel"],
            initrd=initrd,
            version=made.version,
            append=self.recipe.append,
            milestones={str(milestone): pattern for milestone, pattern in self.recipe.milestones.items()},
            provenance=replace(made.provenance, details=details),
            dom0=made.files.get("dom0"),
            xen_append=made.provenance.details.get("xen_append", ""),
            hypervisor=self.recipe.hypervisor,
            tools=self.recipe.tools,
            modules=self.recipe.modules,
            more_modules=self.recipe.more_modules,
        )
        deadline, where = self.context.deadline, self.context.where
        if (modules := made.files.get("modules")) is not None:
            build = initramfs.followed_by(build, modules.read_bytes(), made.provenance.source, cache, deadline)
        overlay = self.lab.recipe_overlay(self.name)
        return equipment.with_own(self.lab, build, where, overlay, cache, deadline, self.context.progress)


def _work(lab: Lab, name: str, progress: Callable[[str], None], deadline: Deadline) -> _Work:
    cache = Cache()
    if name not in lab.recipe_files and ("/" in name or Path(name).is_file()):
        recipe = _recipe_of_file(Path(name))
        called, where, table, root = _name_of_file(name, lab), "command line", "", Path.cwd()
    else:
        recipe = _recipe(lab, name)
        called, where, table, root = name, _shown(lab.recipe_files[name]), recipe.builder, lab.root
    found = builder(recipe.builder, where)
    options = validate(found.options, recipe.options, where, prefix=table)
    context = Context(root, where, table, recipe.arch, cache, lambda line: progress(f"{called}: {line}"), deadline)
    for each in recipe.tools:
        tool(lab, each, recipe.arch)  # its mistakes are told before anything is built
    return _Work(lab, called, recipe, found, options, context)


def _recipe(lab: Lab, name: str) -> Recipe:
    """A recipe by name. The builder's name is judged before its table, which would be an unknown key without the right one."""
    try:
        return lab.recipe(name)
    except ConfigError as error:
        path = lab.recipe_files.get(name)
        named = read_toml(path).get("builder") if path else None
        if path is None or not isinstance(named, str):
            raise
        try:
            builder(named, _shown(path))
        except ConfigError as unknown:
            others = [p for p in error.problems if p.key not in ("builder", *builders())]
            raise ConfigError([*unknown.problems, *others]) from None
        raise


def _recipe_of_file(path: Path) -> Recipe:
    """A recipe for a file named on the command line; the file says for which architecture it is."""
    try:
        found = image.read(path)
    except OSError as error:
        raise ConfigError(
            [Problem("command line", str(path), f"cannot be read: {error.strerror}", "a recipe's name or a kernel's file")]
        ) from None
    except image.NotAKernel as error:
        raise ConfigError(
            [Problem("command line", str(path), f"is not a kernel: it {error}", "a bzImage, an arm64 or riscv Image, or an ELF kernel")]
        ) from None
    return Recipe.model_validate({"builder": "path", "arch": found.arch or "x86_64", "options": {"kernel": str(path)}})


def _name_of_file(name: str, lab: Lab) -> str:
    """A build's name from a file's: ``arch/x86/boot/bzImage`` → ``bzimage``. A recipe's name is never taken."""
    called = re.sub(r"[^a-z0-9._+-]+", "-", Path(name).name.lower()).lstrip("._+-")[:56] or "kernel"
    return f"{called}-file" if called in lab.recipe_files else called


def _shown(path: Path) -> str:
    """A path as the user would type it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
