"""What lies in a suite's ``overlay/``, looked at before any machine has it: a program that cannot start there for want of a library is
told by the library's name, and not by a shell that says ``not found``."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path, PurePosixPath

from labctl.build import cpio, elf
from labctl.errors import Problem

_ALLOWED = "a static program; or the library, by that name, in the overlay too; or a recipe in guest/tools, which brings its libraries"


def lacks(folder: Path, where: str, beside: Collection[str], initrd: Path | None) -> list[Problem]:
    """A problem for each program or library whose loader or libraries are nowhere: not in the overlay, not at the paths ``beside``, and
    not in the initramfs. By their names alone: where the loader would look is the loader's to know. ConfigError."""
    entries = cpio.tree(folder)
    known = {PurePosixPath(path).name for path in (*(entry.path for entry in entries), *beside)}
    missing: list[tuple[str, str]] = []
    for entry in entries:
        if not elf.is_elf(entry.data):
            continue
        try:
            found = elf.parse(entry.data)
        except elf.NotElf:
            continue  # for whom it is meant is not known: it is carried as it is
        wanted = (*filter(None, [found.interpreter]), *found.needed)
        missing += [(entry.path, name) for name in wanted if PurePosixPath(name).name not in known]
    if not missing or initrd is None:
        return []
    there = cpio.paths(initrd.read_bytes())
    if there is None:
        return []  # a build's own, which only the kernel can read
    names = {PurePosixPath(path).name for path in there}
    return [
        Problem(f"{where}/{path}", "", f"it needs {name}, which the machine does not have", _ALLOWED)
        for path, name in missing
        if PurePosixPath(name).name not in names
    ]
