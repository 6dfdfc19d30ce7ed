"""Whether a machine that was up has begun anew without the lab's doing: its console tells of another boot."""

from __future__ import annotations

import re
from collections.abc import Mapping

from labctl.machine.boot import DEFAULT_MILESTONES
from labctl.machine.transcript import Transcript
from labctl.model import Milestone

_SEARCHED = 4 << 20
"""Bytes of the console that are looked at, the last ones."""


def restarted(transcript: Transcript, since: int, milestones: Mapping[str, str], *, commands_on_it: bool) -> bool:
    """``since``: offset at which the command began; ``milestones``: those of the build, where they are not the usual ones.

    A console that also carries commands and what they say (``commands_on_it``) shows old banners too, as of ``dmesg``: there another boot
    must have come as far as ``ready``.
    """
    patterns = {name: re.compile((milestones.get(name) or words).encode()) for name, words in DEFAULT_MILESTONES.items()}
    said = transcript.read(max(since, transcript.size - _SEARCHED))
    banners = [found.end() for name in (Milestone.FIRMWARE, Milestone.KERNEL_ENTRY) if (found := patterns[name].search(said))]
    if not banners:
        return False
    return not commands_on_it or patterns[Milestone.READY].search(said, min(banners)) is not None
