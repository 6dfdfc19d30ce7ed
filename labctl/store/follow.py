"""A run watched while it is written, by the process that shows its progress."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labctl.store import layout, records
from labctl.store.disk import open_regular

_MOST_AT_ONCE = 8 << 20
"""Bytes read of one file in one poll; what is left comes with the next."""


@dataclass(slots=True)
class _Tail:
    """A file that grows, read by whole lines."""

    path: Path
    offset: int = 0

    def new(self) -> list[records.Event]:
        try:
            if self.path.stat().st_size <= self.offset:
                return []
            with open_regular(self.path) as file:
                file.seek(self.offset)
                read = file.read(_MOST_AT_ONCE)
        except OSError:
            return []
        whole = read.rfind(b"\n") + 1
        if not whole and len(read) == _MOST_AT_ONCE:
            whole = len(read)  # one endless line: foreign, passed over piece by piece
        self.offset += whole
        return records.events(read[:whole].split(b"\n"))[0]


class Follower:
    """Tells the new events of a run's attempts at each poll.

    A poll costs by the attempts under way, not by the cells: the run's own events tell which attempts began, and one that
    has ended is never looked at again.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._run = _Tail(folder / layout.EVENTS)
        self._open: dict[tuple[str, int], _Tail] = {}

    def poll(self) -> list[tuple[str, int, dict[str, Any]]]:
        """(cell id, attempt, event as it stands in the file) of each event since the last poll, in order within an attempt."""
        for event in self._run.new():
            if event.kind == "attempt":
                self._begin(event)
        found: list[tuple[str, int, dict[str, Any]]] = []
        for (cell, attempt), tail in list(self._open.items()):
            events = tail.new()
            found += ((cell, attempt, dict(event.fields)) for event in events)
            newer = any(other == cell and number > attempt for other, number in self._open)
            if any(event.kind == "end" for event in events) or (newer and not events):
                del self._open[cell, attempt]
        return found

    def _begin(self, event: records.Event) -> None:
        try:
            cell = records.text(event.fields.get("cell"))
            name = records.text(event.fields.get("folder"))
            attempt = records.integer(event.fields.get("attempt"))
        except records.Malformed:
            return
        if os.sep in name or name in ("", ".", "..") or "\0" in name:
            return
        path = self._folder / layout.CELLS / name / layout.attempt_folder(attempt) / layout.EVENTS
        self._open[cell, attempt] = _Tail(path)
