"""Results of earlier runs that still stand: the cell passed there, and nothing that decides it has changed since."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path

from labctl.model import Cell, Outcome, Reused
from labctl.store import layout, records
from labctl.store.reader import end_of, run_folders

_TELLS_NOTHING = (Outcome.ERROR, Outcome.SKIP)
"""The lab failed, or nothing was done: an older result still stands."""


def proven(results: Path, keys: Mapping[str, str], most_runs: int = 50) -> dict[str, Reused]:
    """Cell id → where it passed, for the cells whose newest result under the same key is a pass.

    ``keys``: cell id → the digest over all that decides its result. The run in which the cell was really run must still be there. A cell
    that only passed when tried again, or failed under the same key after it had passed, is proven nothing.
    """
    found: dict[str, Reused] = {}
    open_ids = {cell_id for cell_id, key in keys.items() if key}
    for folder in islice(run_folders(results), most_runs):
        if not open_ids:
            break
        end = end_of(folder)
        if end is None:
            continue
        for told in records.items(end.get("cells")):
            try:
                cell: Cell = records.cell(told)
                if cell.id not in open_ids or told.get("key") != keys[cell.id]:
                    continue
                outcome = records.choice(Outcome, told.get("outcome"))
                if outcome in _TELLS_NOTHING:
                    continue
                open_ids.discard(cell.id)
                if outcome is Outcome.PASS and (result := _origin(results, folder.name, told)) is not None:
                    found[cell.id] = result
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
