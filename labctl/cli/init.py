"""labctl init: make a new lab."""

from __future__ import annotations

import errno
import shlex
import shutil
from pathlib import Path
from typing import Annotated

import typer

from labctl.cli.verb import Json, new_app, print_json
from labctl.config import shipped
from labctl.errors import ConfigError, Problem, StorageError

app = new_app()

FOLDERS = ("targets", "suites", "kernel", "hypervisor", "matrix")


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The new lab's folder.", file_okay=False)],
    force: Annotated[bool, typer.Option("--force", help="Also where files are; those of the same name are kept as they are.")] = False,
    as_json: Json = False,
) -> None:
    """Make a new lab: lab.toml, targets/, suites/, kernel/, hypervisor/ and matrix/, ready for labctl run matrix.

    \b
    $ labctl init new-lab
    $ cd new-lab && labctl run matrix
    """
    if folder.is_dir() and any(folder.iterdir()) and not force:
        raise ConfigError(
            [
                Problem(
                    "command line",
                    "DIR",
                    f"{folder} is not empty",
                    "an empty or a new folder, or --force, which overwrites nothing",
                )
            ]
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise StorageError(f"{folder}: {error.strerror}", remedy="free some space, or name another folder") from None
        raise ConfigError([Problem("command line", "DIR", f"{folder}: {error.strerror}", "a folder that can be made")]) from None
    written = []
    try:
        for name, text in _files(folder.resolve().name).items():
            written += _write(folder / name, text.encode())
        written += _write(folder / "conftest.py", shipped("conftest.py").read_bytes())
        for part in FOLDERS:
            (folder / part).mkdir(parents=True, exist_ok=True)
            source = shipped(part)
            for file in sorted(source.rglob("*")):
                if file.is_file() and "__pycache__" not in file.parts and file.name != ".gitkeep":
                    written += _write(folder / part / file.relative_to(source), file.read_bytes(), mode_of=file)
    except OSError as error:
        raise StorageError(f"{error.filename or folder}: {error.strerror}", remedy="name a folder that can be written") from None
    if as_json:
        print_json(lab=str(folder.resolve()), written=[str(path) for path in written])
        return
    print(f"made the lab {folder} ({len(written)} files)")
    print(f"next: cd {shlex.quote(str(folder))} && labctl doctor && labctl run matrix")


def _files(name: str) -> dict[str, str]:
    # TOML's basic strings are JSON's; a folder may have any name.
    import json

    return {
        "lab.toml": f"# This folder is a lab: labctl finds it upwards from the working directory.\nschema = 1\nname = {json.dumps(name)}\n",
        ".gitignore": "/.labctl/\n/results/\n/reports/\n__pycache__/\n.pytest_cache/\n",
    }


def _write(path: Path, content: bytes, mode_of: Path | None = None) -> list[Path]:
    """Write a new file; one that is there is kept."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("xb") as file:
            file.write(content)
    except FileExistsError:
        return []
    if mode_of is not None:
        shutil.copymode(mode_of, path)
    return [path]
