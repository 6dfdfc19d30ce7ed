"""Where things lie in a results folder, and nothing else.

::

    results/
      latest -> 20261121-061530-x7k2
      20261121-061530-x7k2/
        run.json                  what was asked for; written first
        events.jsonl              of the run as a whole
        cells/BUILD~TARGET~SUITE/attempt-1/
          events.jsonl            all that became known, one JSON object a line
          kept/                   files that tests have kept: pictures of a screen
          ...                     whatever else the attempt leaves (its transcript)
        samples.parquet           all samples; written at the end, if there are any
        histograms.parquet        all histograms, likewise
        end.json                  how it ended, a summary; written last
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from pathlib import Path

from labctl.model import NAME_PATTERN, Cell, Channel

RUN = "run.json"
END = "end.json"
EVENTS = "events.jsonl"
CELLS = "cells"
SAMPLES = "samples.parquet"
HISTOGRAMS = "histograms.parquet"
LATEST = "latest"
KEPT = "kept"

_NAME = re.compile(NAME_PATTERN)
_KEPT = re.compile(r"[a-z0-9][a-z0-9_-]{0,59}\.(png|txt|json|csv)")
_ATTEMPT = re.compile(r"^attempt-([1-9]\d{0,5})$")
_LETTERS = "abcdefghijkmnpqrstuvwxyz23456789"


def new_run_id() -> str:
    """UTC to the second, so that names sort by age, and four characters by chance."""
    chance = "".join(_LETTERS[byte % len(_LETTERS)] for byte in os.urandom(4))
    return time.strftime("%Y%m%d-%H%M%S-", time.gmtime()) + chance


def cell_folder(cell: Cell) -> str:
    """A file name for a cell: readable, needs no quoting in a shell, a URL or a QEMU option, and differs for each cell."""
    names = (cell.build, cell.target, cell.suite)
    parts = [*names]
    if cell.channel is not Channel.WALL:
        parts.append(cell.channel.value)
    if cell.repeat != 1:
        parts.append(str(cell.repeat))
    if all(_NAME.fullmatch(name) for name in names):
        return "~".join(parts)
    digest = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
    # No good name is empty: the two tildes keep these folders apart from all others.
    return f"{digest}~~" + "~".join(re.sub(r"[^a-z0-9.+-]+", "_", part.lower())[:40] for part in parts)


def attempt_folder(number: int) -> str:
    return f"attempt-{number}"


def kept_name(name: str, number: int) -> str:
    """A file name for what a test keeps under ``name``, the ``number``th of that name. ValueError for a name that is none."""
    if not _KEPT.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a file to keep: small letters, digits, '-' and '_', then '.' and an ending")
    stem, _, ending = name.rpartition(".")
    return name if number == 1 else f"{stem}-{number}.{ending}"


def attempt_numbers(folder: Path) -> list[int]:
    """Numbers of the attempts in a cell's folder, in their order; none if there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries]
    except OSError:
        return []
    return sorted(int(found[1]) for name in names if (found := _ATTEMPT.fullmatch(name)))
