"""Values of the model ↔ JSON, one record a line.

Reading trusts nothing: a record of the wrong shape raises `Malformed`, and the caller skips and counts it. Text that comes
out is valid Unicode and numbers are finite, so that whatever is built from them (Parquet, HTML, statistics) holds.
pydantic's parser reads: it takes a third of the time of Python's own and refuses half surrogates and deep nesting.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar, overload

from pydantic_core import from_json

from labctl.histogram import Histogram
from labctl.model import SCHEMA, STORY_PATTERN, Cell, Channel, Direction, Outcome
from labctl.result import Distribution, LeftOut, Reused, Sample, TestResult
from labctl.store.disk import MOST_LINE

E = TypeVar("E", bound=Enum)

MOST_TEXT = 256 << 10
"""Characters of the longest text in a record; a longer one loses its middle."""
_MOST_INTEGER = 1 << 53
_MOST_SECONDS = 1e10
_MOST_REPEAT = 1_000_000
_MOST_DIGITS = 40
_MOST_STORIES = 100
"""Of one test."""
_MOST_LINES = 20
"""Of its suite, in which it failed."""
_RESERVED = frozenset({"t", "schema", "kind"})


class Malformed(ValueError):
    """A record that is not one of ours."""


# --- writing ----------------------------------------------------------------------------------------------------------


def event_line(kind: str, fields: Mapping[str, Any], *, first: bool = False) -> bytes:
    """One event as a line without its end; the first of a file tells its schema. ValueError for NaN or what is too long."""
    if taken := _RESERVED & fields.keys():
        raise ValueError(f"an event sets {', '.join(sorted(taken))} itself")
    head = {"schema": SCHEMA} if first else {}
    clipped = {k: clip(v) if isinstance(v, str) else v for k, v in fields.items()}
    line = document({**head, "t": round(time.time(), 6), "kind": kind, **clipped})
    if len(line) >= MOST_LINE:
        raise ValueError(f"an event {kind!r} of {len(line)} bytes; at most {MOST_LINE}")
    return line


def document(value: object, *, indent: int | None = None) -> bytes:
    """JSON as bytes; paths and other plain values become text. ValueError for NaN and infinity, which JSON has not."""
    separators = (",", ":") if indent is None else None
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain, separators=separators, indent=indent)
    return text.encode("utf-8", "replace")


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, (set, frozenset)) else str(value)


def clip(text: str) -> str:
    """Text without its middle if it is longer than `MOST_TEXT`: how it began and how it ended matter the most."""
    if len(text) <= MOST_TEXT:
        return text
    head, tail = MOST_TEXT // 4, MOST_TEXT * 3 // 4
    return f"{text[:head]}\n… {len(text) - head - tail} characters left out …\n{text[-tail:]}"


def cell_record(cell: Cell) -> dict[str, Any]:
    return {
        "id": cell.id,
        "build": cell.build,
        "target": cell.target,
        "suite": cell.suite,
        "channel": cell.channel.value,
        "repeat": cell.repeat,
    }


def reused_record(reused: Reused) -> dict[str, Any]:
    return {"run": reused.run, "tests": reused.tests, "duration_s": round(reused.duration_s, 6)}


def sample_record(sample: Sample) -> dict[str, Any]:
    return {
        "metric": sample.metric,
        "value": sample.value,
        "unit": sample.unit,
        "direction": sample.direction.value,
        "channel": sample.channel.value,
        "test": sample.test,
        "params": dict(sample.params),
        "index": sample.index,
        "at": sample.at,
        "conditions": {name: value for name, value in sample.conditions.items() if math.isfinite(value)},
    }


def distribution_record(found: Distribution) -> dict[str, Any]:
    histogram = found.histogram
    return {
        "metric": found.metric,
        "unit": found.unit,
        "direction": found.direction.value,
        "channel": found.channel.value,
        "test": found.test,
        "params": dict(found.params),
        "index": found.index,
        "at": found.at,
        "conditions": {name: value for name, value in found.conditions.items() if math.isfinite(value)},
        "step": histogram.step,
        "min": histogram.minimum,
        "max": histogram.maximum,
        "sum": str(histogram.total),  # it may be larger than the whole numbers that every reader of JSON holds
        "bins": histogram.bins,
    }


def test_record(result: TestResult) -> dict[str, Any]:
    return {
        "name": result.name,
        "outcome": result.outcome.value,
        "duration_s": round(result.duration_s, 6),
        "reason": clip(result.reason),
        "details": clip(result.details),
        **({"stories": list(result.stories)} if result.stories else {}),
        **({"where": [clip(line) for line in result.where]} if result.where else {}),
    }


# --- reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Event:
    """One line of an events file."""

    t: float
    """Seconds since the Unix epoch."""
    kind: str
    fields: Mapping[str, Any]
    """The whole object, as JSON gave it."""


def events(lines: Iterable[bytes]) -> tuple[list[Event], int]:
    """The events in some lines, and how many lines are none (empty ones do not count)."""
    found: list[Event] = []
    skipped = 0
    for line in lines:
        if not line.strip():
            continue
        try:
            found.append(event(line))
        except Malformed:
            skipped += 1
    return found, skipped


def event(line: bytes) -> Event:
    """One line → event. Malformed."""
    value = parse(line)
    schema = value.get("schema", SCHEMA)
    if schema != SCHEMA:
        raise Malformed(f"schema {schema!r}")
    return Event(seconds(value.get("t")), text(value.get("kind")), value)


def parse(raw: bytes) -> dict[str, Any]:
    """A JSON object. Malformed for anything else, however hostile."""
    try:
        value = from_json(raw)
    except ValueError as error:
        raise Malformed(str(error)) from None
    if not isinstance(value, dict):
        raise Malformed("not an object")
    return value


def text(value: object, default: str | None = None) -> str:
    """Text, or ``default``, or Malformed."""
    if isinstance(value, str):
        return value
    if default is None:
        raise Malformed("not text")
    return default


def number(value: object, default: float | None = None) -> float:
    """A finite float, or ``default``, or Malformed."""
    if type(value) is float and math.isfinite(value):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            if math.isfinite(found := float(value)):
                return found
        except OverflowError:
            pass
    if default is None:
        raise Malformed("not a finite number")
    return default


def seconds(value: object, default: float | None = None) -> float:
    """A duration, or a time since the Unix epoch: 0 to 1e10 s (the year 2286), or ``default``, or Malformed."""
    found = number(value, default)
    if 0 <= found <= _MOST_SECONDS:
        return found
    if default is None:
        raise Malformed("no time")
    return default


def integer(value: object, default: int | None = None) -> int:
    """A whole number that a float holds exactly, or ``default``, or Malformed."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _MOST_INTEGER:
        return value
    if default is None:
        raise Malformed("not a whole number")
    return default


@overload
def choice(kind: type[E], value: object) -> E: ...
@overload
def choice(kind: type[E], value: object, default: E) -> E: ...
def choice(kind: type[E], value: object, default: E | None = None) -> E:
    """A member of an enum by its value, or ``default``, or Malformed."""
    try:
        return kind(value)
    except ValueError:
        if default is None:
            raise Malformed(f"not a {kind.__name__}") from None
        return default


def mapping(value: object) -> dict[str, Any]:
    """An object; empty for anything else."""
    return value if isinstance(value, dict) else {}


def tables(value: object) -> dict[str, dict[str, Any]]:
    """An object of objects; what is no object in it is left out."""
    return {name: mapping(table) for name, table in mapping(value).items() if isinstance(table, dict)}


def texts(value: object) -> dict[str, str]:
    """An object of texts; numbers become text, the rest is left out."""
    return {name: str(found) for name, found in mapping(value).items() if isinstance(found, (str, int, float))}


def numbers(value: object) -> dict[str, float]:
    """An object of finite numbers; what is none is left out."""
    return {name: found for name, one in mapping(value).items() if math.isfinite(found := number(one, math.nan))}


def items(value: object) -> Sequence[Any]:
    """A list; empty for anything else."""
    return value if isinstance(value, list) else ()


def cell(value: object) -> Cell:
    """Malformed if it is none."""
    found = mapping(value)
    repeat = integer(found.get("repeat", 1))
    if not 1 <= repeat <= _MOST_REPEAT:
        raise Malformed(f"repeat {repeat}")
    return Cell(
        build=text(found.get("build")),
        target=text(found.get("target")),
        suite=text(found.get("suite")),
        channel=choice(Channel, found.get("channel", Channel.WALL)),
        repeat=repeat,
    )


def left_out(value: object) -> LeftOut:
    """Malformed if it is none."""
    return LeftOut(cell(value), text(mapping(value).get("reason"), ""))


def sample(found: Mapping[str, Any]) -> Sample:
    """Malformed without a name, a finite value, a unit, a direction or a channel: half a figure is none."""
    return Sample(
        metric=text(found.get("metric")),
        value=number(found.get("value")),
        unit=text(found.get("unit")),
        direction=choice(Direction, found.get("direction")),
        channel=choice(Channel, found.get("channel")),
        test=text(found.get("test"), ""),
        params=texts(found.get("params")),
        index=integer(found.get("index"), 0),
        at=seconds(found.get("at"), 0.0),
        conditions=numbers(found.get("conditions")),
    )


def distribution(found: Mapping[str, Any]) -> Distribution:
    """Malformed for half a figure, and for a histogram whose parts contradict each other."""
    bins: list[tuple[int, int]] = []
    for pair in items(found.get("bins")):
        if len(items(pair)) != 2:
            raise Malformed("a bin is a pair")
        bins.append((integer(pair[0]), integer(pair[1])))
    summed = text(found.get("sum"))
    if not (summed.isascii() and summed.isdigit() and len(summed) < _MOST_DIGITS):
        raise Malformed("no sum of a histogram")
    try:
        histogram = Histogram(tuple(bins), integer(found.get("min")), integer(found.get("max")), int(summed), number(found.get("step")))
    except ValueError as error:
        raise Malformed(str(error)) from None
    return Distribution(
        metric=text(found.get("metric")),
        histogram=histogram,
        unit=text(found.get("unit")),
        direction=choice(Direction, found.get("direction")),
        channel=choice(Channel, found.get("channel")),
        test=text(found.get("test"), ""),
        params=texts(found.get("params")),
        index=integer(found.get("index"), 0),
        at=seconds(found.get("at"), 0.0),
        conditions=numbers(found.get("conditions")),
    )


def reused(found: Mapping[str, Any]) -> Reused:
    """Malformed without the run's id."""
    return Reused(text(found.get("run")), integer(found.get("tests"), 0), seconds(found.get("duration_s"), 0.0))


def test(found: Mapping[str, Any]) -> TestResult:
    """Malformed without a name or an outcome."""
    return TestResult(
        name=text(found.get("name")),
        outcome=choice(Outcome, found.get("outcome")),
        duration_s=seconds(found.get("duration_s"), 0.0),
        reason=text(found.get("reason"), ""),
        details=text(found.get("details"), ""),
        stories=tuple(dict.fromkeys(one for one in items(found.get("stories")) if is_story(one)))[:_MOST_STORIES],
        where=tuple(line for line in items(found.get("where")) if isinstance(line, str))[:_MOST_LINES],
    )


def is_story(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(STORY_PATTERN, value) is not None


def titles(value: object) -> dict[str, str]:
    """Story → title; what is none is left out."""
    return {story: title for story, title in mapping(value).items() if is_story(story) and isinstance(title, str)}


def story_tests(value: object) -> dict[str, tuple[str, ...]]:
    """Story → names of tests; what is none is left out."""
    return {
        story: tuple(test for test in items(tests) if isinstance(test, str)) for story, tests in mapping(value).items() if is_story(story)
    }


def stamps(value: object) -> tuple[tuple[float, str], ...]:
    """The kernel's phases; pairs that are none are left out."""
    found: list[tuple[float, str]] = []
    for pair in items(value):
        try:
            at, message = pair
            found.append((number(at), text(message)))
        except (TypeError, ValueError):
            continue
    return tuple(found)
