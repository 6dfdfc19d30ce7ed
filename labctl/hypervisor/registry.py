"""Hypervisor by name → the driver for it, over a session with the machine that runs it.

A driver is one file: ``labctl/hypervisor/drivers/NAME.py``, or any module named by the entry-point group ``labctl.hypervisors``, that says
``DRIVER = TheClass``: a dataclass over a `Session` that has the verbs of the role `Hypervisor` and of what it declares besides.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, cast

from labctl.config import nearest
from labctl.errors import ConfigError, Problem
from labctl.hypervisor import drivers
from labctl.hypervisor.protocols import CAPABILITIES, Hypervisor
from labctl.machine.session import Session


def names() -> tuple[str, ...]:
    """Every hypervisor that can be named: ours and those of installed packages."""
    ours = {module.name for module in pkgutil.iter_modules(drivers.__path__) if not module.name.startswith("_")}
    return tuple(sorted(ours | {entry.name for entry in entry_points(group="labctl.hypervisors")}))


def load(name: str) -> type[Any]:
    """The class of a driver, imported now. ConfigError with the nearest name if there is none, or if it lacks a verb of the role."""
    if name.isidentifier() and importlib.util.find_spec(f"{drivers.__name__}.{name}"):
        found = importlib.import_module(f"{drivers.__name__}.{name}").DRIVER
    else:
        entry = next((entry for entry in entry_points(group="labctl.hypervisors") if entry.name == name), None)
        if entry is None:
            raise ConfigError([Problem("build", "hypervisor", f"unknown hypervisor {name!r}", nearest(name, names()))])
        loaded = entry.load()
        found = getattr(loaded, "DRIVER", None) or loaded
    if missing := sorted(verb for verb in _verbs(Hypervisor) if not callable(getattr(found, verb, None))):
        raise ConfigError([Problem(f"hypervisor {name}", "", f"its driver has no {', '.join(missing)}", "every verb of the role")])
    return cast(type[Any], found)


def require(name: str, recipe: str) -> None:
    """ConfigError, of that recipe's key ``hypervisor``, unless there is such a driver, whole, and it can be imported."""
    try:
        load(name)
    except ConfigError as error:
        raise ConfigError([replace(problem, where=recipe, key="hypervisor") for problem in error.problems]) from None
    except (ImportError, SyntaxError, AttributeError, NameError, TypeError, ValueError, OSError) as error:  # a module of somebody else's
        found = f"the driver {name} cannot be imported: {type(error).__name__}: {error}"
        raise ConfigError([Problem(recipe, "hypervisor", found, "one that can")]) from None


def source_digest(name: str) -> str:
    """``sha256:HEX`` over the file of a driver, which may be anybody's; empty where there is none to look at. ConfigError as `load`."""
    file = inspect.getsourcefile(load(name))
    return f"sha256:{hashlib.sha256(Path(file).read_bytes()).hexdigest()}" if file else ""


def driver(name: str, session: Session) -> Hypervisor:
    """The hypervisor of that name on the machine that a session holds. ConfigError."""
    return cast(Hypervisor, load(name)(session))


def declared(driver_class: type[Any]) -> tuple[str, ...]:
    """Names of what a driver can do beyond the role, as its methods tell."""
    return tuple(name for name, kind in CAPABILITIES.items() if all(callable(getattr(driver_class, verb, None)) for verb in _verbs(kind)))


def half_declared(driver_class: type[Any], name: str) -> str:
    """Of a capability of which a driver has some methods: which are missing, for a misspelt one is no declaration. Empty where it has
    none of them, or all."""
    verbs = _verbs(CAPABILITIES[name])
    missing = [verb for verb in verbs if not callable(getattr(driver_class, verb, None))]
    return f"{name} (its driver lacks {', '.join(missing)})" if 0 < len(missing) < len(verbs) else ""


def _verbs(kind: type) -> list[str]:
    return [name for name in vars(kind) if not name.startswith("_")]
