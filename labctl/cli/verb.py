"""What the verbs share: how a verb is made, how it prints, what the shell completes."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TextIO, cast

import typer

from labctl.errors import LabctlError, StorageError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

    from labctl.config import Lab

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

_JSON = "Print one JSON object on stdout; all else goes to stderr. On an error stdout may be empty: the exit status tells."
Json = Annotated[bool, typer.Option("--json", help=_JSON)]


def new_app(help: str | None = None) -> typer.Typer:
    """A verb. Give ``help`` only where it has verbs of its own."""
    app = typer.Typer(
        help=help,
        rich_markup_mode=None,
        add_completion=False,
        no_args_is_help=help is not None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    if help is not None:
        app.callback()(lambda: None)
    return app


def print_json(**content: Any) -> None:
    """One JSON object on stdout, with its schema's version."""
    print(json.dumps({"schema": 1, **content}, indent=2, ensure_ascii=False, default=str))


def print_table(heads: Sequence[str], rows: Iterable[Sequence[object]], empty: str = "there is none yet") -> None:
    """Columns as wide as their widest cell, control characters made visible; ``empty`` goes to stderr if there is no row."""
    cells = [[printable(str(cell)) for cell in row] for row in rows]
    if not cells:
        print(empty, file=sys.stderr)
        return
    widths = [max(len(row[i]) for row in (list(heads), *cells)) for i in range(len(heads))]
    for row in (list(heads), *cells):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def printable(text: str) -> str:
    """Control characters as ``\\x1b``: text of a guest or a file never steers the terminal."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


# --- standard output and error as they may be: closed, a pipe whose reader went away, a full disk, unable to hold a letter


class _Output(io.FileIO):
    """A reader that went away (`labctl … | head`) is no error: the verb goes on to its own end. Any other cause is a StorageError."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            # What is still buffered must not fail again when Python exits.
            os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), self.fileno())
            if not isinstance(error, BrokenPipeError) and self.fileno() == 1:
                raise StorageError(f"cannot write to standard output: {error.strerror}", remedy="see where it is redirected to") from None
            return memoryview(data).nbytes  # nothing can be said about standard error


def guard() -> None:
    """Let ``sys.stdout`` and ``sys.stderr`` bear what may become of them. One that a test has put there is left alone."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            # Closed by who started us: the next file that is opened would take its place, and what is printed with it.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if sys.stdout is None or sys.stdout is sys.__stdout__:
        sys.stdout = _stream(1, sys.stdout)
    if sys.stderr is None or sys.stderr is sys.__stderr__:
        sys.stderr = _stream(2, sys.stderr)


def _stream(fd: int, old: TextIO | None) -> TextIO:
    if old is not None:
        old.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Output(fd, "wb", closefd=False)),
        encoding=old.encoding if old is not None else "utf-8",
        errors="backslashreplace",
        line_buffering=fd == 2 or os.isatty(fd),
    )


# --- shell completion: names of the lab that the working directory lies in; silent where there is none


def _names(attribute: str, incomplete: str) -> list[str]:
    from labctl.config import Lab

    try:
        return [name for name in cast(Iterable[str], getattr(Lab.find(), attribute)) if name.startswith(incomplete)]
    except LabctlError:
        return []


def complete_target(incomplete: str) -> list[str]:
    return _names("target_files", incomplete)


def complete_build(incomplete: str) -> list[str]:
    return _names("recipe_files", incomplete)


def complete_suite(incomplete: str) -> list[str]:
    return _names("suites", incomplete)


def complete_matrix(incomplete: str) -> list[str]:
    return _names("matrix_files", incomplete)


def complete_tool(incomplete: str) -> list[str]:
    return _names("tool_files", incomplete)


def complete_run(incomplete: str) -> list[str]:
    from labctl.config import Lab
    from labctl.store.reader import list_runs

    try:
        return [run.id for run in list_runs(Lab.find().results) if run.id.startswith(incomplete)]
    except LabctlError:
        return []


def this_lab() -> Lab:
    """The lab that the working directory lies in. ConfigError if there is none."""
    from labctl.config import Lab

    return Lab.find()
