"""What a test requires of its cell, by ``@pytest.mark.requires(cpus=2, ...)``: checked where it is read, then held against the cell."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, get_args

from labctl.config import nearest
from labctl.errors import Problem
from labctl.hypervisor import registry
from labctl.model import Build, Channel, TargetConfig
from labctl.run.vms import why_not_able, wrong_abilities
from labctl.size import parse_size

MARKER = "requires"
_ARCHITECTURES: tuple[str, ...] = get_args(TargetConfig.model_fields["arch"].annotation)


def mistakes(arguments: Sequence[object], keywords: Mapping[str, object], where: str) -> list[Problem]:
    """All that is wrong with a marker that stands at this file or test."""
    found = [Problem(where, _named(""), f"found {value!r} without a name", f"such as cpus=2; known: {_KNOWN}") for value in arguments]
    for key, value in keywords.items():
        if key == "hypervisor":
            if wrong := wrong_abilities(value):
                found.append(Problem(where, _named(key), wrong.found, wrong.allowed))
        elif key not in _ALLOWED:
            found.append(Problem(where, _named(key), "unknown", f"known: {_KNOWN}"))
        elif allowed := _ALLOWED[key](value):
            found.append(Problem(where, _named(key), f"found {value!r}", allowed))
    return found


def _named(key: str) -> str:
    return f"@pytest.mark.{MARKER}({key}=…)" if key else f"@pytest.mark.{MARKER}"


def _count(value: object) -> str:
    good = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    return "" if good else "a whole number of CPUs, at least 1"


def _size(value: object) -> str:
    try:
        return "" if parse_size(value) >= 1 else "a size of at least 1 byte, such as 512M or 4G"
    except ValueError as error:
        return str(error)


def _tags(value: object) -> str:
    good = isinstance(value, list | tuple | set | frozenset) and all(isinstance(tag, str) and tag for tag in value)
    return "" if good else 'a list of tags, such as ["nvme"]'


def _glob(value: object) -> str:
    return "" if isinstance(value, str) and value else 'a build by name or glob, such as "debian-*"'


def _one_of(known: Callable[[], Sequence[str]]) -> Callable[[object], str]:
    def allowed(value: object) -> str:
        if isinstance(value, str):
            return "" if value in known() else nearest(value, known())
        return f"one of {', '.join(map(repr, known()))}"

    return allowed


_ALLOWED: Mapping[str, Callable[[object], str]] = {
    "cpus": _count,
    "memory": _size,
    "disk": _size,
    "arch": _one_of(lambda: _ARCHITECTURES),
    "tags": _tags,
    "build": _glob,
    "channel": _one_of(lambda: [channel.value for channel in Channel]),
    "driver": _one_of(registry.names),
}
"""By key what is allowed instead of a value; empty where the value is right."""
_KNOWN = ", ".join((*_ALLOWED, "hypervisor"))


def unmet(wanted: Mapping[str, Any], config: Any, build: Build) -> str:
    """Why a test's requirements, which hold no mistake, are not those of the cell; empty if they are."""
    for key, value in wanted.items():
        match key:
            case "cpus" if config.cpus < value:
                return f"needs {value} CPUs, the target has {config.cpus}"
            case "memory" if config.memory < parse_size(value):
                return f"needs {value} of memory"
            case "disk" if (config.disk or 0) < parse_size(value):
                return f"needs a disk of {value}"
            case "arch" if config.arch != value:
                return f"needs {value}, the target is {config.arch}"
            case "tags" if missing := sorted(set(value) - set(config.tags)):
                return f"needs a target with the tags {', '.join(missing)}"
            case "channel" if config.channel != value:
                return f"needs the channel {value}"
            case "build" if not fnmatchcase(build.name, value):
                return f"needs a build like {value!r}"
            case "hypervisor" if why := why_not_able(build, value):
                return why
            case "driver" if build.hypervisor != value:
                return f"needs a hypervisor of the driver {value!r}"
    return ""
