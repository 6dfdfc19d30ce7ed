"""A tool for the machine: recipe → its programs and the libraries that they need, by their paths in the machine.

A tool's builder is one file of this package with a ``BUILDER``, as of `labctl.build.protocols`; the parts of what it makes are paths.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labctl.build import tools as package
from labctl.build.cache import Artefact, Cache
from labctl.build.protocols import Builder, Context, Options, Plan
from labctl.config import Lab, nearest, read_toml, validate
from labctl.deadline import Deadline
from labctl.errors import ConfigError, LabctlError, Problem
from labctl.model import ToolRecipe

LONGEST_S = 3600.0
"""Seconds that a tool may take to be built on a small host."""


@dataclass(frozen=True)
class Tool:
    """One tool's recipe, read and checked, for one architecture."""

    name: str
    recipe: ToolRecipe
    builder: Builder[Any]
    options: Options
    context: Context

    def plan(self) -> Plan:
        return self.builder.plan(self.options, self.context)

    def cached(self) -> Artefact | None:
        return self.context.cache.find(self.plan().identity)

    def obtain(self) -> Artefact:
        """From the cache or made now. ConfigError, HostToolMissing, InfraError, StorageError, BuildFailed; each names the tool."""
        try:
            plan = self.plan()
            return self.context.cache.obtain(
                plan.identity,
                lambda folder: self.builder.make(self.options, plan, folder, self.context),
                deadline=self.context.deadline,
                progress=self.context.progress,
            )
        except LabctlError as error:
            if not isinstance(error, ConfigError):
                error.message = f"tool {self.name}: {error.message}"
            raise


def tool(
    lab: Lab,
    name: str,
    arch: str = "x86_64",
    progress: Callable[[str], None] = lambda _: None,
    deadline: Deadline | None = None,
    cache: Cache | None = None,
) -> Tool:
    """Read a tool's recipe. ConfigError with every mistake in it; nothing is built."""
    path = lab.tool_files.get(name)
    if path is None:
        raise ConfigError(f"unknown tool {name!r}; {nearest(name, lab.tool_files)}")
    where = _shown(path)
    named = read_toml(path).get("builder")
    if isinstance(named, str):
        _builder(named, where)  # judged before its table, which would be an unknown key without the right name
    recipe = lab.tool(name)
    builder = _builder(recipe.builder, where)
    options = validate(builder.options, recipe.options, where, prefix=recipe.builder)
    limit = deadline or Deadline.after(LONGEST_S)
    context = Context(path.parent, where, recipe.builder, arch, cache or Cache(), lambda line: progress(f"{name}: {line}"), limit)
    return Tool(name, recipe, builder, options, context)


def _builder(name: str, where: str) -> Builder[Any]:
    if name.isidentifier() and importlib.util.find_spec(f"{package.__name__}.{name}"):
        found: Builder[Any] | None = getattr(importlib.import_module(f"{package.__name__}.{name}"), "BUILDER", None)
        if found is not None:
            return found
    modules = (module.name for module in pkgutil.iter_modules(package.__path__))
    known = [each for each in modules if hasattr(importlib.import_module(f"{package.__name__}.{each}"), "BUILDER")]
    raise ConfigError([Problem(where, "builder", f"unknown builder {name!r}", nearest(name, known))])


def _shown(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
