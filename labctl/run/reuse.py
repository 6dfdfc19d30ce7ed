"""Which cells need not be run again: a digest over all that decides a cell's result, equal to that of a run in which it passed.

What decides it: the build's files and words, the target's config, the suite's files and what all suites share (``conftest.py``), what
runs inside the machine (``guest/``), labctl itself, and the host's kernel, CPU, Python and QEMU. Of files the content counts, never
their time. An environment variable counts for a suite
whose files name it. Whether a cell measures is known once it was run, and such a cell is never proven (`labctl.store.proven`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

from labctl.config import shipped
from labctl.hypervisor import registry as hypervisors
from labctl.machine import registry
from labctl.model import Build, Cell, Target
from labctl.run.work import suited_key

_NOT_SOURCE = frozenset({"__pycache__"})
_DECIDING = (
    "build",
    "display",
    "hypervisor",
    "machine",
    "parsers",
    "run",
    "config.py",
    "deadline.py",
    "errors.py",
    "histogram.py",
    "model.py",
    "process.py",
)
_VARIABLE = re.compile(r"\b[A-Z][A-Z0-9_]+\b")
_HOST = ("cpu", "kernel", "python", "qemu")


def keys(
    root: Path, cells: Sequence[Cell], builds: Mapping[str, Build], targets: Mapping[str, Target], host: Mapping[str, str]
) -> dict[str, str]:
    """Cell id → ``sha256:HEX`` over all that decides its result; of a cell that is repeated each has the same.

    ``builds`` are by their names, and by ``BUILD/SUITE`` where a suite boots more than the build."""
    common = _digest({"lab": _shared(root), "labctl": _labctl(), "host": {name: host.get(name, "") for name in _HOST}})
    by_suite = {
        suite: _digest([tree_digest(place := root / "suites" / suite), settings(os.environ, place, *_shared_python(root))])
        for suite in {cell.suite for cell in cells}
    }
    by_build = {
        name: _digest(
            {
                "digest": build.digest,
                "append": build.append,
                "milestones": dict(build.milestones),
                "version": build.version,
                **({"xen_append": build.xen_append} if build.xen_append else {}),
                **({"hypervisor": build.hypervisor, "driver": hypervisors.source_digest(build.hypervisor)} if build.hypervisor else {}),
            }
        )
        for name, build in builds.items()
    }
    by_target = {
        (name, channel): _digest({"config": registry.on_channel(targets[name], channel).config.model_dump(mode="json", by_alias=True)})
        for name, channel in {(cell.target, cell.channel) for cell in cells}
    }
    return {
        cell.id: _digest(
            {
                "common": common,
                "suite": by_suite[cell.suite],
                "build": by_build.get(suited_key(cell)) or by_build[cell.build],
                "target": by_target[cell.target, cell.channel],
                "cell": cell.key,
            }
        )
        for cell in cells
    }


def tree_digest(*places: Path) -> str:
    """``sha256:HEX`` over names and contents of the files in these folders, or of these files. What is not there is empty."""
    digest = hashlib.sha256()
    for place in places:
        for path in _files(place):
            name = path.relative_to(place).as_posix()
            content = path.readlink().as_posix().encode() if path.is_symlink() else path.read_bytes()
            executable = path.lstat().st_mode & 0o111 != 0
            digest.update(f"{name}\0{executable}\0{len(content)}\0".encode(errors="surrogateescape"))
            digest.update(content)
        digest.update(b"\0\0")
    return f"sha256:{digest.hexdigest()}"


def settings(environment: Mapping[str, str], *places: Path) -> dict[str, str]:
    """Those variables that the Python files of these folders, or these files, name in whatever way: by them a user says how much a suite
    does. A name is of two capital letters or more, so that no word of the language's is taken for one."""
    named: set[str] = set()
    for place in places:
        for path in _files(place):
            if path.suffix == ".py":
                named.update(_VARIABLE.findall(path.read_text(errors="replace")))
    return {name: environment[name] for name in sorted(named.intersection(environment))}


def _files(place: Path) -> Iterable[Path]:
    if place.is_file():
        return [place]
    return sorted(p for p in place.rglob("*") if (p.is_symlink() or p.is_file()) and not _NOT_SOURCE.intersection(p.parts))


def _shared(root: Path) -> str:
    """What every suite of the lab is run with."""
    return tree_digest(*_shared_python(root), *(root / name for name in ("pyproject.toml", "pytest.ini", "guest")))


def _shared_python(root: Path) -> list[Path]:
    return [path for path in (*sorted((root / "suites").glob("*.py")), root / "conftest.py") if path.exists()]


@cache
def _labctl() -> str:
    """labctl as it is, in so far as it decides how a cell ends and not only how it is told: a checkout's version stands for many states."""
    package = Path(__file__).parent.parent
    return tree_digest(*(package / name for name in _DECIDING), shipped("guest"))


def _digest(value: object) -> str:
    return f"sha256:{hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()}"
