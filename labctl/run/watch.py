"""What a run is made from, watched: which files, and which of them are no longer what they were.

By looking at times and sizes again and again: it works on every file system, and needs nothing installed. Looking takes a tenth of one
CPU at most, however many files there are.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from labctl.config import Lab

PAUSE_S = 0.1
"""Shortest pause between two looks."""
_SHARE = 10
"""A pause is at least so many times as long as the look before it took."""
_FOLDERS = ("targets", "suites", "matrix", "kernel", "hypervisor")
_FILES = ("lab.toml", "conftest.py")
_NEVER = ("__pycache__", "results", "reports", "node_modules")

Snapshot = Mapping[str, tuple[int, int, int]]
"""File → time of change (ns), size, inode."""


def sources(lab: Lab, builds: Iterable[str]) -> tuple[Path, ...]:
    """Files and folders that a run in this lab is made from: the lab's own, and what the recipes of these builds name. ConfigError."""
    found = [lab.root / name for name in (*_FILES, *_FOLDERS)]
    for name in builds:
        if name not in lab.recipe_files:
            found.append(Path(name).absolute())  # a kernel's file
            continue
        values = [v for value in lab.recipe(name).options.values() for v in (value if isinstance(value, (list, tuple)) else (value,))]
        found += [(lab.root / text).resolve() for text in values if isinstance(text, str) and text and (lab.root / text).exists()]
    return tuple(path for path in dict.fromkeys(found) if not any(other in path.parents for other in found))


@dataclass
class Watcher:
    """Looks at files and folders. `taken` is what they were when `take` was called last."""

    paths: tuple[Path, ...]
    taken: Snapshot

    @classmethod
    def of(cls, paths: tuple[Path, ...]) -> Watcher:
        return cls(paths, _look(paths))

    def take(self, paths: tuple[Path, ...] | None = None) -> None:
        """From now on compare with what is there now."""
        self.paths = paths or self.paths
        self.taken = _look(self.paths)

    def wait(self, ended: Callable[[float], bool] | None = None) -> tuple[str, ...]:
        """Until files are other than when they were taken and stay as they are for a moment; their names, sorted.

        ``ended`` waits between two looks, for so many seconds at most, and says whether to stop looking: then there is no name.
        """
        before = self.taken
        while True:
            began = time.monotonic()
            now = _look(self.paths)
            changed = _changed(self.taken, now)
            if changed and now == before:
                return changed
            before = now
            pause = max(PAUSE_S, _SHARE * (time.monotonic() - began))
            if ended is None:
                time.sleep(pause)
            elif ended(pause):
                return ()


def _changed(before: Snapshot, after: Snapshot) -> tuple[str, ...]:
    return tuple(sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name)))


def _look(paths: tuple[Path, ...]) -> Snapshot:
    seen: dict[str, tuple[int, int, int]] = {}
    for path in paths:
        for name, status in _files(str(path)):
            seen[name] = status.st_mtime_ns, status.st_size, status.st_ino
    return seen


def _files(path: str) -> Iterator[tuple[str, os.stat_result]]:
    """A file, or those of a folder; what vanishes meanwhile is left out, and so is what editors and Python leave."""
    folders = [path]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith(".") or entry.name.endswith("~") or entry.name in _NEVER:
                        continue
                    try:
                        if entry.is_dir(follow_symlinks=False):
                            folders.append(entry.path)
                        else:
                            yield entry.path, entry.stat()
                    except OSError:
                        continue
        except NotADirectoryError:
            try:
                yield folder, os.stat(folder)  # noqa: PTH116  # one call of thousands
            except OSError:
                continue
        except OSError:
            continue
