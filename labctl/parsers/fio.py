"""What fio measured: its JSON (``--output-format=json`` or ``json+``) → requests a second, bandwidth, latency.

Pure. The bytes come out of a machine under test: they may be cut off, be no JSON, or say what cannot be; then MeasurementInvalid tells
what is wrong with them, and no figure is taken. Lines that fio writes before its report (``fio: terminating on signal 15``) are kept.

The layout is that of fio 3 (https://fio.readthedocs.io/en/latest/fio_doc.html#json-output, and ``stat.c``): times in nanoseconds, a
bucket of ``json+`` is named by the middle of the times that it holds, of which there are 64 to an octave.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from labctl.errors import MeasurementInvalid
from labctl.histogram import Histogram
from labctl.parsers.text import visible

MOST_BYTES = 8 << 20
"""More is no report: one job with every bucket of three latencies has 0.3 MB."""
MOST_JOBS = 256
MOST_BUCKETS = 29 * 64
"""fio's own number of them."""
MOST_NOTES = 20
NOTE_WIDTH = 240
LONGEST_NS = 10**15
"""Eleven days: no request takes longer."""
VERBS = ("read", "write", "trim")

_SIGNAL = re.compile(r"^fio: terminating on signal ([0-9]{1,3})\b")
_BRACE = re.compile(r"^[ \t]*\{", re.MULTILINE)


@dataclass(frozen=True)
class Latency:
    """From the submission of a request to its completion (fio's ``lat``), in seconds."""

    count: int
    mean: float
    least: float
    most: float
    percentiles: Mapping[float, float] = field(default_factory=dict)
    """Percent → seconds, as fio names them: 50.0, 99.0, 99.9 ... Empty where fio was not told ``--lat_percentiles=1``."""
    bins: Mapping[int, int] = field(default_factory=dict)
    """Nanoseconds in the middle of a bucket → requests in it; buckets of one fio are those of another, so they add up. ``json+`` only."""

    @property
    def histogram(self) -> Histogram:
        """All requests, without loss. MeasurementInvalid where fio was not told ``--output-format=json+``."""
        try:
            least, most, total = (round(seconds * 1e9) for seconds in (self.least, self.most, self.mean * self.count))
            return Histogram.counted(self.bins, minimum=least, maximum=most, total=total)
        except ValueError as error:
            raise MeasurementInvalid(f"fio's report has no histogram of latencies: {error}") from None


@dataclass(frozen=True)
class Requests:
    """What one job read, wrote or trimmed."""

    verb: str
    count: int
    size: int
    """Bytes."""
    iops: float
    bandwidth: float
    """Bytes a second."""
    seconds: float
    latency: Latency


@dataclass(frozen=True)
class Job:
    name: str
    error: int
    """``errno`` of what ended it; 0 if nothing did."""
    seconds: float
    """That it ran."""
    requests: Mapping[str, Requests]
    """By verb; only those of which there was one."""
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    version: str
    jobs: tuple[Job, ...]
    signal: int = 0
    """What it was told to end by before its time: the figures are those until then."""
    notes: tuple[str, ...] = ()
    """What fio said before its report, safe to print: errors of a job, warnings."""


def parse(text: str | bytes) -> Report:
    """A whole report. MeasurementInvalid if it is not one, and says what it is instead."""
    said = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    if len(said) > MOST_BYTES:
        _refuse(f"is of {len(said)} bytes, and at most {MOST_BYTES} are read")
    if not said.strip():
        _refuse("is empty: it was killed, or could not write")
    begin = _BRACE.search(said)
    if begin is None:
        _refuse(f"holds no JSON: {visible(said.strip())[:NOTE_WIDTH]!r}")
    head, body = said[: begin.start()], said[begin.start() :]
    try:
        found, end = json.JSONDecoder(parse_constant=_no_number).raw_decode(body.lstrip())
    except (ValueError, RecursionError) as error:
        # A string without an end is told by where it begins.
        if isinstance(error, json.JSONDecodeError) and (error.pos >= len(body.rstrip()) - 1 or error.msg.startswith("Unterminated")):
            _refuse(f"is cut off after {len(said)} characters")
        _refuse(f"is no JSON: {visible(str(error))[:NOTE_WIDTH]}")
    if rest := body.lstrip()[end:].strip():
        _refuse(f"goes on behind its end: {visible(rest)[:NOTE_WIDTH]!r}")
    lines = [visible(line)[:NOTE_WIDTH] for line in head.splitlines() if line.strip()]
    signals = [match for line in lines if (match := _SIGNAL.match(line))]
    jobs = _list(found, "jobs")
    if not jobs:
        _refuse("tells of no job")
    version = found.get("fio version", "")
    return Report(
        visible(version)[:80] if isinstance(version, str) else "",
        tuple(_job(job, f"jobs[{number}]") for number, job in enumerate(jobs)),
        int(signals[0][1]) if signals else 0,
        tuple(lines[:MOST_NOTES]),
    )


def _job(job: Any, where: str) -> Job:
    if not isinstance(job, dict):
        _refuse(f"{where} is {_kind(job)}, and should be an object")
    options = job.get("job options", {})
    if not isinstance(options, dict):
        _refuse(f"{where}.job options is {_kind(options)}, and should be an object")
    requests = {}
    for verb in VERBS:
        if verb in job and (done := _requests(job[verb], verb, f"{where}.{verb}")):
            requests[verb] = done
    return Job(
        visible(str(job.get("jobname", "")))[:NOTE_WIDTH],
        int(_number(job, "error", where, whole=True)),
        _number(job, "job_runtime", where) / 1000,
        requests,
        {visible(str(key))[:80]: visible(str(value))[:NOTE_WIDTH] for key, value in options.items()},
    )


def _requests(done: Any, verb: str, where: str) -> Requests | None:
    if not isinstance(done, dict):
        _refuse(f"{where} is {_kind(done)}, and should be an object")
    count = int(_number(done, "total_ios", where, whole=True))
    if count == 0:
        return None
    size, iops = int(_number(done, "io_bytes", where, whole=True)), _number(done, "iops", where)
    seconds = _number(done, "runtime", where) / 1000
    bandwidth = _number(done, "bw_bytes", where)
    # What it counts and what it says a second must be of the same run. fio rounds its time to milliseconds.
    if seconds > 0 and not math.isclose(iops * seconds, count, rel_tol=0.01, abs_tol=2):
        _refuse(f"{where} does not fit together: {count} requests in {seconds:g} s, and {iops:g} a second")
    return Requests(verb, count, size, iops, bandwidth, seconds, _latency(done.get("lat_ns"), f"{where}.lat_ns"))


def _latency(told: Any, where: str) -> Latency:
    if not isinstance(told, dict):
        _refuse(f"{where} is {_kind(told)}, and should be an object")
    percentiles = {}
    for key, value in _table(told, "percentile", where).items():
        percent = _decimal(key, f"{where}.percentile")
        if percent > 100:
            _refuse(f"{where}.percentile tells of {key[:20]} %")
        percentiles[percent] = _time(value, f"{where}.percentile.{key}")
    ascending = [percentiles[percent] for percent in sorted(percentiles)]
    if ascending != sorted(ascending):
        _refuse(f"{where}.percentile goes down where the percents go up")
    bins = {}
    for key, value in _table(told, "bins", where).items():
        if not re.fullmatch(r"[0-9]{1,16}", key) or int(key) > LONGEST_NS:
            _refuse(f"{where}.bins has a bucket {visible(key)[:40]!r}")
        bins[int(key)] = int(_counted(value, f"{where}.bins.{key}"))
    if len(bins) > MOST_BUCKETS:
        _refuse(f"{where}.bins has {len(bins)} buckets, and fio has {MOST_BUCKETS}")
    count = int(_number(told, "N", where, whole=True))
    if bins and sum(bins.values()) != count:
        _refuse(f"{where}.bins holds {sum(bins.values())} requests, and {where} counts {count}")
    least, mean, most = (_time(_number(told, name, where), f"{where}.{name}") for name in ("min", "mean", "max"))
    if not least <= mean <= most and not math.isclose(least, most, rel_tol=1e-6):
        _refuse(f"{where} does not fit together: min {least:g} s, mean {mean:g} s, max {most:g} s")
    return Latency(count, mean, least, most, dict(sorted(percentiles.items())), dict(sorted(bins.items())))


# --- values that are what they should be --------------------------------------------------------------------------------


def _refuse(why: str) -> NoReturn:
    raise MeasurementInvalid(f"fio's report {why}")


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _kind(value: Any) -> str:
    names = {
        dict: "an object",
        list: "a list",
        str: "text",
        bool: "true or false",
        type(None): "absent",
        int: "a number",
        float: "a number",
    }
    return names[type(value)]


def _list(found: dict[str, Any], key: str) -> list[Any]:
    value = found.get(key)
    if not isinstance(value, list):
        _refuse(f"{key} is {_kind(value)}, and should be a list")
    if len(value) > MOST_JOBS:
        _refuse(f"tells of {len(value)} jobs, and at most {MOST_JOBS} are read")
    return value


def _table(found: dict[str, Any], key: str, where: str) -> dict[str, Any]:
    value = found.get(key, {})
    if not isinstance(value, dict):
        _refuse(f"{where}.{key} is {_kind(value)}, and should be an object")
    return value


def _number(found: dict[str, Any], key: str, where: str, *, whole: bool = False) -> float:
    value = found.get(key)
    return _counted(value, f"{where}.{key}") if whole else _measured(value, f"{where}.{key}")


def _measured(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        _refuse(f"{where} is {_kind(value)}, and should be a number")
    if not 0 <= value < 1e24:  # an int too large for a float, infinity
        _refuse(f"{where} is no number that can be measured")
    return float(value)


def _counted(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int):
        _refuse(f"{where} is {_kind(value)}, and should be a whole number")
    return _measured(value, where)


def _time(nanoseconds: Any, where: str) -> float:
    found = _measured(nanoseconds, where)
    if found > LONGEST_NS:
        _refuse(f"{where} is {found:g} ns")
    return found / 1e9


def _decimal(text: str, where: str) -> float:
    if not re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,9})?", text):
        _refuse(f"{where} has a percent {visible(text)[:40]!r}")
    return float(text)
