"""Watch a density runner (``guest/tools/density``) on a machine's console until it ends, or until the machine does."""

from __future__ import annotations

from collections.abc import Iterator

from labctl.errors import MeasurementInvalid
from labctl.machine.session import Session
from labctl.machine.telling import told
from labctl.parsers.density import Account, Contradiction, Line, lines


def watch(session: Session, since: int, patience: float, account: Account) -> Iterator[Line]:
    """Each line that is said from offset ``since`` of the transcript on, as it comes, taken into ``account`` before; the last one is
    `labctl.parsers.density.End` or `Lost`.

    Raises what ended it, as `labctl.machine.telling.told`, with the number of VMs; MeasurementInvalid for a runner that contradicts itself.
    """
    for line in told(session, since, patience, lines, "line of the density runner", lambda _: f", with {account.started} VMs"):
        try:
            account.take(line)
        except Contradiction as wrong:
            raise MeasurementInvalid(str(wrong), target=session.name) from None
        yield line
