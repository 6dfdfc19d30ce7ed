"""A console's record as an asciicast v2 file, which asciinema and its web player replay at the speed at which it was said."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import IO

from labctl.errors import StorageError
from labctl.machine.timeindex import read_index

_PART = 1 << 16


def export(folder: Path, out: IO[str], *, width: int = 80, height: int = 24) -> None:
    """Write the record in ``folder`` to ``out``; the lab's own marks become markers. Width and height of the terminal: characters.

    A record that a kill cut short is borne: what the log has beyond its index comes at the index' last moment. Bytes that are not
    UTF-8 become the replacement character. Memory is bounded. Raises StorageError if there is no record or it is not one.
    """
    try:
        anchor, records = read_index(folder / "console.idx")
        log_size = (folder / "console.log").stat().st_size
        first = next(records, (anchor.monotonic_ns, 0))
        head = {
            "version": 2,
            "width": width,
            "height": height,
            "timestamp": (anchor.epoch_ns + first[0] - anchor.monotonic_ns) // 1_000_000_000,
        }
        out.write(json.dumps(head) + "\n")
        latest = 0.0
        for t_ns, kind, text in _events(folder, chain([first], records), log_size):
            latest = max(latest, (t_ns - first[0]) / 1e9)  # a player wants time to go forward
            out.write(json.dumps([round(latest, 6), kind, text]) + "\n")
    except OSError as error:
        raise StorageError(f"no record of a console can be read in {folder}: {error.strerror}") from error


def _events(folder: Path, records: Iterator[tuple[int, int]], log_size: int) -> Iterator[tuple[int, str, str]]:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    marks = _marks(folder / "console.marks.jsonl")
    mark = next(marks, None)
    done = t_ns = 0
    with (folder / "console.log").open("rb") as log:
        for t_ns, stop in _until(records, log_size):
            while mark is not None and mark[1] <= done:
                yield mark[0], "m", mark[2]
                mark = next(marks, None)
            while done < stop and (data := log.read(min(_PART, stop - done))):
                done += len(data)
                if text := decoder.decode(data):
                    yield t_ns, "o", text
    if rest := decoder.decode(b"", final=True):
        yield t_ns, "o", rest
    for t_ns, _, text in chain([mark] if mark else [], marks):
        yield t_ns, "m", text


def _until(records: Iterator[tuple[int, int]], log_size: int) -> Iterator[tuple[int, int]]:
    """The records, and one more for what the log has beyond the last."""
    t_ns = stop = 0
    for t_ns, stop in records:
        yield t_ns, stop
    if stop < log_size:
        yield t_ns, log_size


def _marks(path: Path) -> Iterator[tuple[int, int, str]]:
    """(monotonic ns, offset, text) of each mark; a line torn by a kill is left out."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                mark = json.loads(line)
                yield int(mark["t_ns"]), int(mark["offset"]), str(mark["text"])
            except (ValueError, KeyError, TypeError):
                continue
