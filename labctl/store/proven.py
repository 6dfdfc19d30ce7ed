"""Results of earlier runs that still stand: the cell passed there, and nothing that decides it has changed since."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from labctl.model import Outcome
from labctl.result import Reused
from labctl.store import layout, records
from labctl.store.reader import end_of, run_folders

_TELLS_NOTHING = (Outcome.ERROR, Outcome.SKIP)
"""The lab failed, or nothing was done: an older result still stands."""


@dataclass(frozen=True, slots=True)
class Past:
    """What earlier runs say of a cell as it is now."""

    reused: Reused | None = None
    """Where it passed, if that stands."""
    against: str = ""
    """What the newest result says that is against it: ``fail in RUN``."""
    otherwise: str = ""
    """The newest run in which it passed as it was then, if it was another than now."""


def proven(results: Path, keys: Mapping[str, str], most_runs: int = 50) -> dict[str, Reused]:
    """Cell id → where it passed, for the cells whose newest result under the same key is a pass. ``keys`` as of `past`."""
    return {cell_id: found.reused for cell_id, found in past(results, keys, most_runs).items() if found.reused is not None}


def past(results: Path, keys: Mapping[str, str], most_runs: int = 50) -> dict[str, Past]:
    """Of each cell that has a key what is known of it.

    ``keys``: cell id → the digest over all that decides its result. The run in which the cell was really run must still be there. A cell
    that only passed when tried again, or failed under the same key after it had passed, is proven nothing. A part of a cell's tests, or a
    repeat, speaks against it where it did not pass, and never for it.
    """
    found = {cell_id: Past() for cell_id, key in keys.items() if key}
    open_ids = set(found)
    for folder in islice(run_folders(results), most_runs):
        if not open_ids:
            break
        end = end_of(folder)
        if end is None:
            continue
        for told in records.items(end.get("cells")):
            try:
                cell_id = records.cell(told).key
                if cell_id not in open_ids:
                    continue
                outcome = records.choice(Outcome, told.get("outcome"))
                key, tried = told.get("key"), told.get("tried")
                if keys[cell_id] not in (key, tried):
                    if outcome is Outcome.PASS and key and not found[cell_id].otherwise:
                        origin = _origin(results, folder.name, told)
                        found[cell_id] = replace(found[cell_id], otherwise=origin.run if origin is not None else folder.name)
                    continue
                if outcome in _TELLS_NOTHING or (outcome is Outcome.PASS and key != keys[cell_id]):
                    continue
                open_ids.discard(cell_id)
                if outcome is not Outcome.PASS:
                    found[cell_id] = Past(against=f"{outcome} in {folder.name}")
                elif (result := _origin(results, folder.name, told)) is not None:
                    found[cell_id] = Past(reused=result)
            except records.Malformed:
                continue
    return found


def _origin(results: Path, run: str, told: Mapping[str, object]) -> Reused | None:
    """The run in which the cell was run: this one, or the one that this one had it from."""
    if "reused" not in told:
        return Reused(run, records.integer(told.get("tests"), 0), records.seconds(told.get("duration_s"), 0.0))
    earlier = records.reused(records.mapping(told["reused"]))
    plain = earlier.run not in ("", ".", "..", layout.LATEST) and "/" not in earlier.run
    return earlier if plain and (results / earlier.run / layout.END).is_file() else None
