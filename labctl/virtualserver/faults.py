"""How a virtual server can misbehave. Each fault lasts until it is cleared, unless it says how often it strikes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from labctl.config import nearest
from labctl.errors import ConfigError, Problem


@dataclass(frozen=True)
class Fault:
    help: str
    argument: str = ""
    """What its number means; empty: it takes none."""
    default: float = 0.0
    minimum: float = 0.0


FAULTS: Mapping[str, Fault] = {
    "drop-sol": Fault("packets of the console (SOL, or SSH) are lost for so long; other BMC traffic passes", "seconds", 10, 0.1),
    "busy": Fault("somebody else's session holds the SOL, until it is deactivated"),
    "ignore-power": Fault("the BMC says yes to so many power commands and does nothing", "times", 1, 1),
    "refuse-power": Fault("the BMC refuses so many power commands with an error", "times", 1, 1),
    "late": Fault("every answer of the BMC comes so late", "seconds", 2, 0.001),
    "silent": Fault("the BMC answers nothing"),
    "garbage": Fault("the BMC answers bytes without a sense"),
    "flap": Fault("the BMC's network is away for so long, then back for so long, again and again", "seconds", 2, 0.1),
    "lose-network": Fault("the machine's network is lost once it has fetched so many bytes since power-on", "bytes", 0, 0),
    "corrupt": Fault("one byte of the next file that the machine fetches is changed: the one at this offset", "offset", 100_000, 0),
    "fill-sel": Fault("the BMC's event log is full; clearing the fault leaves it so"),
}
CLEAR = "clear"


def argument_of(name: str, given: float | None) -> float:
    """The number that a fault is given, or its usual one. ConfigError for a fault that there is not, or a number that makes no sense."""
    if name not in FAULTS:
        raise ConfigError([Problem("command line", "", f"unknown fault {name!r}", nearest(name, [*FAULTS, CLEAR]))])
    fault = FAULTS[name]
    if given is None:
        return fault.default
    if not fault.argument:
        raise ConfigError([Problem("command line", "--arg", f"found {given:g}", f"the fault {name} takes none")])
    if not fault.minimum <= given < 1e15:
        raise ConfigError([Problem("command line", "--arg", f"found {given:g}", f"{fault.argument}, at least {fault.minimum:g}")])
    return given


def describe(name: str, given: float | None) -> str:
    """What happens by a fault that was given this number, or its usual one."""
    fault = FAULTS[name]
    return f"{fault.help} ({fault.argument}: {argument_of(name, given):.15g})" if fault.argument else fault.help
