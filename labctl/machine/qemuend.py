"""How a QEMU that is gone went. Pure: what QEMU reported and its exit status in, words and whose fault it is out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ending:
    told: str
    """In a few words."""
    bad: str = ""
    """The same, if the guest ended the machine by saying that it failed."""
    fault: str = ""
    """The same, if neither the guest nor the lab wanted it."""


def ending(status: int, reasons: Sequence[str], debug_exit_success: int | None, last_words: str) -> Ending:
    """``reasons`` of QEMU's SHUTDOWN events, oldest first; ``debug_exit_success``: what a guest that is well writes to its debug port, None
    without one; ``last_words`` of QEMU itself."""
    match reasons:
        case ["guest-shutdown", *_]:
            return Ending("the guest powered the machine off")
        case ["guest-reset", *_]:
            return Ending("the guest reset the machine", bad="the guest reset the machine")
        case ["guest-panic", *_]:
            return Ending("the guest panicked", bad="the guest panicked")
        case ["host-qmp-quit", *_]:
            return Ending("powered off by the lab")
    if debug_exit_success is not None and status > 1 and status & 1 and not reasons:
        told = f"the guest ended the machine by the debug port, with {status >> 1:#x}"
        # QEMU's exit status holds the low seven bits.
        well = status >> 1 == debug_exit_success & 0x7F
        return Ending(told, bad="" if well else f"{told} (status {status}): {debug_exit_success:#x} is success")
    if status == 0 and not reasons:
        return Ending("the guest ended the machine")  # RISC-V's test device exits QEMU on the spot, without an event
    how = f"signal {-status}" if status < 0 else f"status {status}"
    told = f"QEMU ended with {how}" + (f": {last_words}" if last_words else "")
    return Ending(told, fault=told)
