"""Which cells need not be run again: a digest over all that decides a cell's result, equal to that of a run in which it passed. Each input
has a digest of its own too, so that a run tells later what has changed since (`labctl.store.inputs`).

What decides it: the build's files and words, the target's config with the programs of the host and the drivers of other packages that it
names, the suite's files with the Python files of the lab that they import, what all suites share (``conftest.py``, pytest's settings), what
runs inside the machine (``guest/``), labctl itself, and the host's kernel, CPU, QEMU, Python and its packages. Of files the content counts,
never their time; of a link what it leads to. An environment variable counts for a suite whose files name it. Whether a cell measures is
known once it was run, and such a cell is never proven (`labctl.store.proven`).
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from labctl.config import shipped
from labctl.errors import HostToolMissing
from labctl.hypervisor import registry as hypervisors
from labctl.machine import registry
from labctl.model import Build, Cell, Target
from labctl.process import find
from labctl.store.inputs import ADDED, EVERY, FILES, Groups, groups_of, of_build, of_suite, of_target

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
    "result.py",
    "size.py",
)
_SETTINGS = ("pyproject.toml", "pytest.ini", ".pytest.ini", "pytest.toml", ".pytest.toml", "tox.ini", "setup.cfg")
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_OF_PYTEST = ("PYTEST_ADDOPTS", "PYTEST_PLUGINS")
"""By these anybody's command line is changed: what passed with ``-k`` is a part of a suite."""
_VARIABLE = re.compile(r"\b[A-Z][A-Z0-9_]+\b")
_HOST = ("cpu", "kernel", "python", "qemu")


@dataclass(frozen=True)
class Deciding:
    """What decides the results of cells."""

    keys: Mapping[str, str]
    """Cell id → ``sha256:HEX`` over all that decides its result; of a cell that is repeated each has the same."""
    inputs: Groups
    """Each of them by its name."""


def deciding(
    root: Path, cells: Sequence[Cell], builds: Mapping[str, Build], targets: Mapping[str, Target], host: Mapping[str, str]
) -> Deciding:
    """``builds`` are by their names, and by ``BUILD/SUITE`` where a suite boots more than the build."""
    groups: dict[str, Mapping[str, str]] = {EVERY: {**_labctl(root), **_host(host), **_shared(root)}}
    groups |= {of_build(name): _of_build(build, builds.get(name.partition("/")[0], build)) for name, build in builds.items()}
    for name, channel in {(cell.target, cell.channel) for cell in cells}:
        groups[of_target(name, channel)] = _of_target(registry.on_channel(targets[name], channel))
    groups |= {of_suite(suite): _of_suite(root, root / "suites" / suite) for suite in {cell.suite for cell in cells}}
    digests = {name: _digest(group) for name, group in groups.items()}
    return Deciding({cell.id: _digest([cell.key, *(digests[name] for name in groups_of(cell, groups))]) for cell in cells}, groups)


def _of_build(build: Build, plain: Build) -> dict[str, str]:
    """``plain``: without what a suite adds to it."""
    inputs: dict[str, object] = {
        FILES: plain.digest,
        **({ADDED: build.digest} if build.digest != plain.digest else {}),
        "the build's command line": [build.append, build.xen_append],
        "the build's milestones": dict(build.milestones),
        "the build's version": build.version,
    }
    if build.hypervisor:
        inputs["the build's hypervisor"] = build.hypervisor
        inputs[f"the driver {build.hypervisor}"] = hypervisors.source_digest(build.hypervisor)
    return {name: _digest(value) for name, value in inputs.items()}


def _of_target(target: Target) -> dict[str, str]:
    inputs: dict[str, object] = {"the target's file": target.config.model_dump(mode="json", by_alias=True)}
    inputs |= {f"the program {name}": _program(name) for name in sorted({*registry.host_programs(target)})}
    inputs |= {f"the driver {name}": digest for name, digest in _foreign_drivers(target).items()}
    return {name: _digest(value) for name, value in inputs.items()}


def _of_suite(root: Path, suite: Path) -> dict[str, str]:
    more = imported(root, suite)
    variables = {f"the variable {name}": _digest(value) for name, value in settings(os.environ, suite, *more).items()}
    return {**_by_file(root, suite, *(path for path in more if path not in _shared_python(root))), **variables}


def _host(host: Mapping[str, str]) -> dict[str, str]:
    found = {f"the host's {name}": _digest(host.get(name, "")) for name in _HOST}
    return {**found, "Python's packages": _digest(_packages())}


def _by_file(root: Path, *places: Path) -> dict[str, str]:
    """Digests of the files in these folders, or of these files, by their names below the lab's root."""
    return {_name(root, path): f"sha256:{_file(path).hex()}" for place in places for path in _files(place)}


def _name(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def imported(root: Path, suite: Path) -> list[Path]:
    """The lab's own Python files outside of the suite's folder that its files import, or all suites do, and what these import.

    They are sought where pytest would find them: the lab's root, ``suites/``, each suite's folder, ``PYTHONPATH``. A file that is no Python
    imports nothing."""
    suites = root / "suites"
    paths = [Path(each) for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each]
    places = [suite, root, suites, *sorted(path for path in suites.glob("*/") if path != suite), *paths]
    shared = _shared_python(root)
    found: dict[Path, None] = dict.fromkeys(shared)
    waiting = [path for path in (*_files(suite), *shared) if path.suffix == ".py"]
    while waiting:
        file = waiting.pop()
        for name in _imports(file):
            for place in (file.parent, *places):
                for path in _modules(place, name):
                    if path not in found and not path.is_relative_to(suite) and not path.is_relative_to(Path(__file__).parents[1]):
                        found[path] = None
                        waiting.append(path)
    return sorted(found)


def _imports(file: Path) -> set[str]:
    """Dotted names that a file imports, or gives to pytest as plugins."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return set()
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names.update({module, *(f"{module}.{alias.name}".lstrip(".") for alias in node.names)} - {""})
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _MODULE.fullmatch(node.value):
            names.add(node.value)  # pytest_plugins, importlib.import_module
    return names


def _modules(place: Path, name: str) -> list[Path]:
    """The files that are read for a module's name, below a folder of the search path; none if it is not there."""
    parts = name.split(".")
    files: list[Path] = []
    for length in range(1, len(parts) + 1):
        path = place.joinpath(*parts[:length])
        files += [each for each in (path / "__init__.py", path.with_name(f"{path.name}.py")) if each.is_file()]
    return files


def tree_digest(*places: Path) -> str:
    """``sha256:HEX`` over names and contents of the files in these folders, or of these files. What is not there is empty."""
    digest = hashlib.sha256()
    for place in places:
        for path in _files(place):
            digest.update(_file(path, path.relative_to(place).as_posix()))
        digest.update(b"\0\0")
    return f"sha256:{digest.hexdigest()}"


def _file(path: Path, name: str = "") -> bytes:
    """Digest of what a file is: its name, what a link leads to, whether it can be executed, its content."""
    link = path.readlink().as_posix() if path.is_symlink() else ""
    content = path.read_bytes() if path.is_file() else b""
    executable = path.lstat().st_mode & 0o111 != 0
    return hashlib.sha256(f"{name}\0{executable}\0{link}\0".encode(errors="surrogateescape") + content).digest()


def settings(environment: Mapping[str, str], *places: Path) -> dict[str, str]:
    """Those variables that the Python files of these folders, or these files, name in whatever way: by them a user says how much a suite
    does. A name is of two capital letters or more, so that no word of the language's is taken for one."""
    named: set[str] = {*_OF_PYTEST}
    for place in places:
        for path in _files(place):
            if path.suffix == ".py":
                named.update(_VARIABLE.findall(path.read_text(errors="replace")))
    empty = {name for name in _OF_PYTEST if not environment.get(name)}  # as pytest takes it: like one that is not set
    return {name: environment[name] for name in sorted(named.intersection(environment) - empty)}


def _files(place: Path) -> Iterable[Path]:
    """In their order; of a folder that a link leads to what is in it, once."""
    if place.is_file():
        return [place]
    found: list[Path] = []
    seen: set[Path] = set()
    waiting = [place]
    while waiting:
        folder = waiting.pop()
        if (real := folder.resolve()) in seen or not folder.is_dir():
            continue
        seen.add(real)
        for path in sorted(folder.iterdir()):
            if path.is_dir() and path.name not in _NOT_SOURCE:
                waiting.append(path)
            if path.is_symlink() or path.is_file():
                found.append(path)
    return sorted(found)


@cache
def _program(name: str) -> str:
    """A program of the host by what it is: another version of it may do another thing."""
    try:
        return f"{name} {tree_digest(Path(find(name)).resolve())}"
    except HostToolMissing:
        return name


def _foreign_drivers(target: Target) -> dict[str, str]:
    """Drivers that are in no file of labctl's, by their sources."""
    own = Path(__file__).parents[1]
    sources = {name: Path(inspect.getfile(registry.load(name))) for part in target.parts for name in part.config.drivers}
    return {name: tree_digest(path) for name, path in sources.items() if not path.is_relative_to(own)}


@cache
def _packages() -> list[str]:
    """Of Python, with their versions, as the names of what was installed say it."""
    folders = (Path(each) for each in sys.path if each and Path(each).is_dir())
    return sorted({path.name for folder in folders for path in folder.glob("*.dist-info")})


def _shared(root: Path) -> dict[str, str]:
    """What every suite of the lab is run with."""
    # pytest takes its settings from the folder nearest to the suites that has some.
    settings_of_pytest = (folder / name for folder in (root, root / "suites") for name in _SETTINGS)
    return _by_file(root, *_shared_python(root), *settings_of_pytest, root / "guest")


def _shared_python(root: Path) -> list[Path]:
    return [path for path in (*sorted((root / "suites").glob("*.py")), root / "conftest.py") if path.exists()]


@cache
def _labctl(root: Path) -> dict[str, str]:
    """labctl as it is, in so far as it decides how a cell ends and not only how it is told: a checkout's version stands for many states.
    What it brings for the machine is in the lab itself where that is labctl's own checkout."""
    package = Path(__file__).parent.parent
    guest = shipped("guest")
    brought = {} if (root / "guest").resolve() == guest.resolve() else {"labctl's guest/": tree_digest(guest)}
    return {"labctl": tree_digest(*(package / name for name in _DECIDING)), **brought}


def _digest(value: object) -> str:
    return f"sha256:{hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()}"
