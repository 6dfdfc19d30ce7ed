"""What a builder is: options → a plan that names the artefact before it is made → the artefact.

A builder is one file of this package with a ``BUILDER``; a recipe names it by the file's name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from pydantic import BaseModel, ConfigDict

from labctl.build.cache import Cache, Made
from labctl.deadline import Deadline
from labctl.errors import ConfigError, Problem


class Options(BaseModel):
    """Base of each builder's options: an unknown key is a mistake."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class Context:
    """What surrounds a builder while it works on one recipe."""

    root: Path
    """Folder that relative paths of the recipe start from."""
    where: str
    """The recipe's file as the user would type it, or ``command line``."""
    table: str
    """Table of the options in that file."""
    arch: str
    cache: Cache
    progress: Callable[[str], None]
    deadline: Deadline

    def mistake(self, key: str, found: str, allowed: str, remedy: str = "") -> ConfigError:
        """A ConfigError about one of the options."""
        return ConfigError([Problem(self.where, f"{self.table}.{key}" if self.table else "", found, allowed)], remedy=remedy)


@dataclass(frozen=True)
class Plan:
    """What would be built."""

    identity: Mapping[str, str]
    """Everything that decides the artefact; the cache is looked up by it."""
    version: str
    """What ``uname -r`` will say; empty where only the built artefact tells."""
    source: str
    """Package with version, file, or tree with commit: for lists and messages."""


O_contra = TypeVar("O_contra", bound=Options, contravariant=True)


class Builder(Protocol[O_contra]):
    @property
    def options(self) -> type[Options]:
        """Model of the recipe's table."""

    def plan(self, options: O_contra, context: Context) -> Plan:
        """Find out what would be built, without building it. ConfigError, BuildFailed, HostToolMissing."""

    def make(self, options: O_contra, plan: Plan, folder: Path, context: Context) -> Made:
        """Build it inside ``folder``, which is removed afterwards. BuildFailed, HostToolMissing, InfraError."""
