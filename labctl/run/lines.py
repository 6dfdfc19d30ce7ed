"""Where in a suite's own files a test failed: its lines as they stand there, the outermost first."""

from __future__ import annotations

import linecache
from collections.abc import Iterator
from pathlib import Path
from traceback import walk_tb

from labctl.errors import LabctlError

MOST_LINES = 6
"""Of one failure: the first ones and the last."""
_WIDTH = 160


def failed_at(error: BaseException, suites: Path) -> tuple[str, ...]:
    """``test_it.py:27: shell("false")`` for each call on the way to the error that stands in a file of the suites; empty where none
    does, as of a machine that did not boot for a fixture of the lab's. Of a cause that took another's place the lines of that other."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        if lines := tuple(_lines(found, suites.resolve())):
            return lines if len(lines) <= MOST_LINES else (*lines[: MOST_LINES // 2], "...", *lines[-(MOST_LINES // 2) :])
        found = found.__cause__ or found.__context__
    return ()


def told_of(error: LabctlError, where: tuple[str, ...]) -> str:
    """The lines, and then what an error of the lab's says."""
    return "".join(f"{line}\n" for line in where) + f"{type(error).__name__}: {error}"


def _lines(error: BaseException, suites: Path) -> Iterator[str]:
    for frame, number in walk_tb(error.__traceback__):
        file = Path(frame.f_code.co_filename)
        if suites in file.parents or suites in file.resolve().parents:
            text = linecache.getline(str(file), number).strip()
            yield f"{file.name}:{number}: {text if len(text) <= _WIDTH else text[: _WIDTH - 1] + '…'}"
