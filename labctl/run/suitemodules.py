"""The Python files of suites, kept apart: each suite has a `test_speed.py` and a `settings.py` of its own, whatever others have.

pytest imports them by their bare names, so that the first of a name stood for all: a second test file was refused, and another suite's
settings were taken in silence. Here a suite's modules are in ``sys.modules``, and its folder first in ``sys.path``, only while it is read
or run.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

_kept: dict[Path, dict[str, ModuleType]] = {}
"""Folder of a suite → what was imported from suites while it was read or run, by name. One for the process, as ``sys.modules`` is."""


@contextmanager
def alone(suite: Path) -> Iterator[None]:
    """For a block, of all modules of suites only those that this one has imported. ``suite``: its folder, ``suites/NAME``."""
    others = _take(suite.parent)
    sys.modules.update(_kept.get(suite, {}))
    own = [path for path in sys.path if Path(path) == suite or suite in Path(path).parents]
    sys.path[:] = [*own, *(path for path in sys.path if path not in own)]
    try:
        yield
    finally:
        _kept[suite] = _take(suite.parent)
        sys.modules.update(others)


def set_aside(conftest: Path) -> None:
    """What a suite's conftest.py has just imported is its suite's alone; nothing happens for one of no suite."""
    for folder in conftest.parents:
        if folder.parent.name == "suites" and (folder.parent.parent / "lab.toml").is_file():
            _kept.setdefault(folder, {}).update(_take(folder.parent))
            return


def _take(suites: Path) -> dict[str, ModuleType]:
    """Remove from ``sys.modules`` what lies in a folder of ``suites``; what lies in ``suites`` itself is everybody's."""
    start = f"{suites}{os.sep}"
    found = {
        name: module
        for name, module in sys.modules.items()
        if isinstance(file := getattr(module, "__file__", None), str) and file.startswith(start) and os.sep in file[len(start) :]
    }
    for name in found:
        del sys.modules[name]
    return found
