"""A small program, compiled here once by gcc and kept in the cache, named by its sources: most are of ``guest/`` and run in a machine."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from labctl.config import cache_error, cache_folder, shipped
from labctl.deadline import Deadline
from labctl.errors import DeployError
from labctl.process import run


def compiled(name: str, sources: Sequence[str], flags: Sequence[str], also: Sequence[str] = (), folder: Path | None = None) -> Path:
    """The program of ``folder``, or else of ``guest/NAME``; ``also`` are files that gcc reads besides (``@`` in a flag is that folder).

    HostToolMissing, DeployError with gcc's words, StorageError.
    """
    folder = folder or shipped("guest") / name
    content = [(folder / file).read_bytes() for file in (*sources, *also)]
    made = cache_folder() / f"{name}-{hashlib.sha256(repr((tuple(flags), content)).encode()).hexdigest()[:16]}"
    if made.exists():
        return made
    try:
        made.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=made.parent, prefix=f"{name}-") as file:
            words = [*(flag.replace("@", str(folder)) for flag in flags), "-o", file.name, *(str(folder / source) for source in sources)]
            done = run(["gcc", *words], Deadline.after(60))
            if done.status != 0:
                raise DeployError(f"the program {name} cannot be made: {done.words}")
            os.link(file.name, made)
    except OSError as error:
        if isinstance(error, FileExistsError) and made.is_file():
            return made  # by another process meanwhile
        raise cache_error(made, error) from None
    return made
