"""What lies in a suite's ``overlay/``, looked at before any machine has it: a program that cannot start there for want of a library or an
interpreter, or a link that leads to none, is told by its name, and not by a shell that says ``not found``."""

from __future__ import annotations

import posixpath
import re
import stat
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath

from labctl.build import cpio, elf
from labctl.errors import Problem

_LIBRARY = "a static program; or the library, by that name, in the overlay too; or a recipe in guest/tools, which brings its libraries"
_INTERPRETER = "an interpreter that is there (#!/bin/sh); or it in the overlay too; or a recipe in guest/tools, which brings it"
_LINK = "a link to a file of the overlay, of a tool or of the machine's initramfs"
_OF_PROGRAMS = ("etc/labctl/rc.d", "bin", "sbin", "usr/bin", "usr/sbin", "usr/local/bin", "usr/local/sbin")
"""A link elsewhere may lead to what is made when the machine runs."""
_MADE_LATER = ("proc", "sys", "dev", "run", "tmp", "mnt", "var", "root")


def lacks(folder: Path, where: str, beside: Collection[str], initrd: Path | None) -> list[Problem]:
    """A problem for each program, script or library whose loader, interpreter or libraries are nowhere, and for each link among the
    programs that leads to none: not in the overlay, not at the paths ``beside``, and not in the initramfs. By their names alone: where
    the loader would look is the loader's to know. ConfigError."""
    entries = cpio.tree(folder)
    links = {entry.path: _target(entry) for entry in entries if stat.S_ISLNK(entry.mode)}
    loops = {path for path in links if _leads_back(path, links)}
    known = {PurePosixPath(path).name for path in (*(entry.path for entry in entries if entry.path not in loops), *beside)}
    missing = [(entry.path, *need) for entry in entries for need in _needs(entry) if PurePosixPath(need[0]).name not in known]
    if not missing or initrd is None:
        return []
    there = cpio.paths(initrd.read_bytes())
    if there is None:
        return []  # a build's own, which only the kernel can read
    names = {PurePosixPath(path).name for path in there}
    return [
        Problem(f"{where}/{path}", "", told.format(_visible(name)), allowed)
        for path, name, told, allowed in missing
        if PurePosixPath(name).name not in names
    ]


def _needs(entry: cpio.Entry) -> Iterator[tuple[str, str, str]]:
    """What must be there for an entry to be of use: its path or name, how its absence is told, and what is allowed."""
    if stat.S_ISLNK(entry.mode):
        yield from _leads_to(entry)
    elif elf.is_elf(entry.data):
        try:
            found = elf.parse(entry.data)
        except elf.NotElf:
            return  # for whom it is meant is not known: it is carried as it is
        for name in (*filter(None, [found.interpreter]), *found.needed):
            yield name, "it needs {}, which the machine does not have", _LIBRARY
    elif entry.data.startswith(b"#!") and entry.mode & 0o111:
        # As the kernel does: a carriage return is part of the name.
        words = [word for word in re.split(r"[ \t]+", entry.data[2:].split(b"\n", 1)[0].decode(errors="replace")) if word]
        by_env = bool(words) and PurePosixPath(words[0]).name == "env"
        # env looks for the program that it is to start; an option or a variable may stand before that.
        asked = [word for word in words[1:2] if by_env and not word.startswith("-") and "=" not in word]
        for name in (*words[:1], *asked):
            yield name, "it is to be run by {}, which the machine does not have", _INTERPRETER


def _leads_to(entry: cpio.Entry) -> Iterator[tuple[str, str, str]]:
    folder = posixpath.dirname(entry.path)
    if folder not in _OF_PROGRAMS:
        return
    to = f"/{_target(entry)}"
    if PurePosixPath(to).parts[1:2] and PurePosixPath(to).parts[1] not in _MADE_LATER:
        yield to, "it is a link to {}, which the machine does not have", _LINK


def _target(link: cpio.Entry) -> str:
    """Where it leads, relative to the root."""
    return posixpath.normpath(posixpath.join("/", posixpath.dirname(link.path), link.data.decode(errors="replace"))).lstrip("/")


def _leads_back(path: str, links: Mapping[str, str]) -> bool:
    seen: set[str] = set()
    while path in links and path not in seen:
        seen.add(path)
        path = links[path]
    return path in seen


def _visible(name: str) -> str:
    return name if name.isprintable() else repr(name)
