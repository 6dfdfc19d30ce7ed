"""What is asked of a build, as text → value: ``"network.rtt p99" = "<= 1 ms"``. Pure, and below the model, whose recipes hold it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, StrictBool, WithJsonSchema

_TIMES = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
_SIZES = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30, "TiB": 2.0**40}
UNITS: Mapping[str, tuple[str, float]] = {
    **{name: ("s", factor) for name, factor in _TIMES.items()},
    **{name: ("B", factor) for name, factor in _SIZES.items()},
    **{f"{name}/s": ("B/s", factor) for name, factor in _SIZES.items()},
    **dict.fromkeys(("1/s", "IOPS", "fps"), ("1/s", 1.0)),
    "%": ("1", 0.01),
    "1": ("1", 1.0),
    "": ("1", 1.0),
    "W": ("W", 1.0),
}
"""Unit of a limit → the unit in which the metric is recorded, and how much of it."""
AVAILABILITY = "uptime.availability"
"""The promise that no sample is held to, but what uptime and failures support."""

_METRIC = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)+")
_PERCENTILE = re.compile(r"p(\d{1,2}(?:\.\d{1,4})?)")
_PARAMETER = re.compile(r"([A-Za-z_][\w-]*)=(\S+)")
_LIMIT = re.compile(r"(<=|>=|<|>)\s*(-?\d+(?:\.\d+)?)\s*(\S*)")
_STATISTICS = ("median", "min", "max")
_NAMES = "median, min, max, p50 to p99.9999"


@dataclass(frozen=True, slots=True)
class Promise:
    """A limit that a build is held to, on each target by itself."""

    metric: str
    statistic: str
    """``median``, ``min``, ``max``, ``p99`` ...; empty: every single observation is held to it."""
    params: Mapping[str, str]
    """Only series with these parameters; others may have any value."""
    relation: str
    """``<=``, ``<``, ``>=`` or ``>``."""
    limit: float
    unit: str
    """In which the metric must be recorded."""
    asked: str
    """The limit in the words of the recipe."""
    tags: tuple[str, ...] = ()
    """Only targets that have all of these."""
    gate: bool = False
    """Broken, it fails the run."""
    name: str = field(default="", compare=False)
    """The key in the words of the recipe."""

    @property
    def upper(self) -> bool:
        """Whether less is better."""
        return self.relation[0] == "<"

    @property
    def part(self) -> float | None:
        """0.99 of ``p99``, 0.5 of ``median``; None where no quantile is meant."""
        if self.statistic == "median":
            return 0.5
        found = _PERCENTILE.fullmatch(self.statistic)
        return float(found[1]) / 100 if found else None

    def is_in(self, unit: str) -> bool:
        """Whether what is recorded in a unit can be held to the limit. A bare number is a count, or how many there are in a second."""
        return unit == self.unit or (unit == "1/s" and self.asked.rstrip()[-1:].isdigit())

    def holds(self, value: float) -> bool:
        """Whether a value is on the right side of the limit."""
        match self.relation:
            case "<=":
                return value <= self.limit
            case "<":
                return value < self.limit
            case ">=":
                return value >= self.limit
        return value > self.limit


def subject(text: str) -> tuple[str, str, dict[str, str]]:
    """``"storage.latency p99 qd=8"`` → metric, statistic, parameters. ValueError in the words of the file."""
    metric, *words = text.split() or [""]
    if not _METRIC.fullmatch(metric) or len(text) > 200:
        raise ValueError('a metric with its dots, then a statistic and parameters if they are meant: "network.rtt p99 path=guest-host"')
    statistic = words.pop(0) if words and "=" not in words[0] else ""
    percent = _PERCENTILE.fullmatch(statistic)
    if statistic and statistic not in _STATISTICS and not (percent and 0 < float(percent[1]) < 100):
        raise ValueError(f"the statistic {statistic!r} is not known; allowed: {_NAMES}, or none: then every observation is held to it")
    if metric == AVAILABILITY and statistic:
        raise ValueError(f"{AVAILABILITY} has no statistic: it is one figure, of all hours together")
    params: dict[str, str] = {}
    for word in words:
        if not (found := _PARAMETER.fullmatch(word)) or found[1] in params:
            raise ValueError(f"{word!r} is no parameter; allowed: name=value, each name once, behind the statistic")
        params[found[1]] = found[2]
    return metric, statistic, params


def limit(text: str) -> tuple[str, float, str]:
    """``"<= 1 ms"`` → ``<=``, 0.001, ``s``. ValueError in the words of the file."""
    found = _LIMIT.fullmatch(text.strip())
    if not found:
        raise ValueError('a relation, a number and a unit: "<= 1 ms", ">= 99.99 %", ">= 200"')
    relation, number, unit = found.groups()
    if unit not in UNITS:
        close = difflib.get_close_matches(unit, UNITS, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"the unit {unit!r} is not known; {hint}(known: {', '.join(filter(None, UNITS))})")
    base, factor = UNITS[unit]
    # 99.99 of a hundred is 0.9999 as a person writes it, which a product of two binary numbers is not.
    return relation, float(f"{float(number) * factor:.15g}"), base


def promise(name: str, asked: str, tags: tuple[str, ...] = (), gate: bool = False) -> Promise:
    """ValueError in the words of the file."""
    metric, statistic, params = subject(name)
    relation, value, unit = limit(asked)
    if metric == AVAILABILITY and (unit != "1" or relation[0] != ">" or not 0 < value < 1):
        raise ValueError('of an availability: ">= 99.99 %", above 0 and below 100 %')
    return Promise(metric, statistic, params, relation, value, unit, asked, tags, gate, name)


# --- in a recipe ------------------------------------------------------------------------------------------------------


def _promised(value: str) -> str:
    subject(value)
    return value


def _limited(value: str) -> str:
    limit(value)
    return value


_Subject = Annotated[str, AfterValidator(_promised)]
_Limit = Annotated[str, AfterValidator(_limited)]


class Asked(BaseModel):
    """A promise with more to say than its limit."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    limit: _Limit
    tags: tuple[str, ...] = ()
    """It is made for targets with all of these tags only."""
    gate: StrictBool = False
    """Broken, it fails the run."""


def _asked(value: object) -> object:
    if not isinstance(value, (str, Mapping, Asked)):
        raise ValueError('a limit such as "<= 3 s", or a table with limit, gate and tags')
    return {"limit": value} if isinstance(value, str) else value


_LIMIT_SCHEMA = {"type": "string", "pattern": r"^\s*[<>]=?\s*-?\d"}
_OR_TEXT = WithJsonSchema(
    {
        "anyOf": [
            _LIMIT_SCHEMA,
            {
                "type": "object",
                "properties": {"limit": _LIMIT_SCHEMA, "tags": {"type": "array", "items": {"type": "string"}}, "gate": {"type": "boolean"}},
                "required": ["limit"],
                "additionalProperties": False,
            },
        ]
    }
)


def _together(promises: Mapping[str, Asked]) -> Mapping[str, Asked]:
    for name, asked in promises.items():
        try:
            promise(name, asked.limit)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return promises


Promises = Annotated[Mapping[_Subject, Annotated[Asked, BeforeValidator(_asked), _OR_TEXT]], AfterValidator(_together)]
"""The table ``[promises]``."""
