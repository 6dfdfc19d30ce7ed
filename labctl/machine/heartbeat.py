"""Watch a machine's heartbeat (``guest/tools/heartbeat.c``) on its console until it ends, or until the machine does."""

from __future__ import annotations

from collections.abc import Iterator

from labctl.machine.session import Session
from labctl.machine.telling import told
from labctl.parsers.heartbeat import Beat, beats


def watch(session: Session, since: int, patience: float) -> Iterator[Beat]:
    """Each beat that is said from offset ``since`` of the transcript on, as it comes; the last one tells of the whole (`Beat.beats`).

    Raises what ended it, as `labctl.machine.telling.told`, with the uptime reached.
    """
    return told(session, since, patience, beats, "heartbeat", lambda beat: f", after {beat.up if beat else 0:.1f} s of its heartbeat")
