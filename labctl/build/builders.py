"""Builder by name: the files of this package that have a ``BUILDER``."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from typing import Any

from labctl import build as package
from labctl.build.protocols import Builder
from labctl.config import nearest
from labctl.errors import ConfigError, Problem


def builder(name: str, where: str) -> Builder[Any]:
    """The builder that a recipe names. ConfigError with the nearest name if there is none."""
    if name.isidentifier() and importlib.util.find_spec(f"{package.__name__}.{name}"):
        found = _load(name)
        if found is not None:
            return found
    raise ConfigError([Problem(where, "builder", f"unknown builder {name!r}", nearest(name, builders()))])


def builders() -> dict[str, Builder[Any]]:
    """All builders by name."""
    loaded = {module.name: _load(module.name) for module in pkgutil.iter_modules(package.__path__)}
    return {name: found for name, found in loaded.items() if found is not None}


def _load(name: str) -> Builder[Any] | None:
    return getattr(importlib.import_module(f"{package.__name__}.{name}"), "BUILDER", None)
