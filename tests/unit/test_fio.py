"""What a real fio reported, and what a machine may make of it."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labctl.errors import MeasurementInvalid
from labctl.parsers import fio

RECORDED = Path(__file__).parents[1] / "data/fio"


def recorded(name: str) -> bytes:
    return gzip.decompress((RECORDED / f"{name}.gz").read_bytes())


WHOLE = recorded("randrw-qd8.json")
SMALL = recorded("disk-full.json")


def test_random_reads() -> None:
    (job,) = fio.parse(recorded("randread-qd32.json")).jobs
    assert (job.name, job.error, job.seconds, job.options["iodepth"]) == ("cell", 0, 1.0, "32")
    assert set(job.requests) == {"read"}
    read = job.requests["read"]
    told = json.loads(recorded("randread-qd32.json"))["jobs"][0]["read"]
    assert (read.count, read.size, read.bandwidth) == (told["total_ios"], told["io_bytes"], told["bw_bytes"])
    assert read.iops == pytest.approx(told["iops"])
    assert read.size == read.count * 4096
    assert read.latency.percentiles[99.0] == told["lat_ns"]["percentile"]["99.000000"] / 1e9
    assert sum(read.latency.bins.values()) == read.latency.count


def test_bins_tell_the_percentiles() -> None:
    """fio computes both from one histogram, so one can be had from the other."""
    latency = fio.parse(recorded("randread-qd32.json")).jobs[0].requests["read"].latency
    for percent in (50.0, 90.0, 99.0, 99.9):
        upto = dict(zip(latency.bins, accumulate(latency.bins.values()), strict=True))
        nanoseconds = next(middle for middle, seen in upto.items() if seen >= percent / 100 * latency.count)
        assert nanoseconds / 1e9 == pytest.approx(latency.percentiles[percent], rel=1 / 64)


def test_the_histogram_is_of_every_request() -> None:
    latency = fio.parse(recorded("randread-qd32.json")).jobs[0].requests["read"].latency
    assert latency.histogram.count == latency.count
    assert latency.histogram.high == pytest.approx(latency.most)
    assert latency.histogram.quantile(0.99) == pytest.approx(latency.percentiles[99.0], rel=1 / 64)


def test_mixed_has_both() -> None:
    requests = fio.parse(WHOLE).jobs[0].requests
    assert set(requests) == {"read", "write"}
    assert all(each.iops > 0 and each.latency.bins for each in requests.values())


def test_without_bins() -> None:
    latency = fio.parse(recorded("without-bins.json")).jobs[0].requests["read"].latency
    assert not latency.bins
    assert latency.percentiles[50.0] > 0
    with pytest.raises(MeasurementInvalid, match="no histogram"):
        _ = latency.histogram


def test_terminated_is_told() -> None:
    report = fio.parse(recorded("terminated.json"))
    assert report.signal == 15
    assert report.jobs[0].requests["read"].count > 0
    assert report.notes == ("fio: terminating on signal 15",)


def test_a_full_disk_is_an_error_of_the_job() -> None:
    report = fio.parse(SMALL)
    assert report.jobs[0].error == 28
    assert "No space left on device" in report.notes[0]


def changed(change: Callable[[Any], object]) -> str:
    found = json.loads(WHOLE)
    change(found)
    return json.dumps(found)


def read_of(found: Any) -> Any:
    return found["jobs"][0]["read"]


BAD: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "is empty"),
    "blank": (" \n\n", "is empty"),
    "as text": (recorded("text.txt"), "holds no JSON"),
    "cut off": (WHOLE[:-400], "is cut off"),
    "cut off in a string": (WHOLE[: WHOLE.index(b'"jobname"') + 5], "is cut off"),
    "cut off in a number": (WHOLE[: WHOLE.index(b'"iops"') + 10], "is cut off"),
    "two of them": (WHOLE + WHOLE, "goes on behind its end"),
    "words behind it": (WHOLE + b"\x1b[2Jls: not found\n", "goes on behind its end: '␛[2Jls"),
    "no object": ('{"jobs": 3}', "jobs is a number, and should be a list"),
    "no jobs": ('{"jobs": []}', "tells of no job"),
    "a list": ("[1]", "holds no JSON"),
    "deep": ('{"a":' * 100_000, "no JSON"),
    "a huge number": ('{"jobs": ' + "9" * 5000 + "}", "no JSON"),
    "not a number": (changed(lambda f: read_of(f).update(iops=float("nan"))), "NaN is no number"),
    "infinite": (WHOLE.replace(b'"iops" : 1', b'"iops" : 1e999, "x" : 1', 1), "no number that can be measured"),
    "negative": (changed(lambda f: read_of(f).update(iops=-1)), "no number that can be measured"),
    "true for a number": (changed(lambda f: read_of(f).update(iops=True)), "is true or false"),
    "iops absent": (changed(lambda f: read_of(f).pop("iops")), "jobs[0].read.iops is absent"),
    "half a request": (changed(lambda f: read_of(f).update(total_ios=1.5)), "whole number"),
    "iops of another run": (changed(lambda f: read_of(f).update(iops=1)), "does not fit together"),
    "latency absent": (changed(lambda f: read_of(f).pop("lat_ns")), "lat_ns is absent"),
    "a percent over 100": (changed(lambda f: read_of(f)["lat_ns"]["percentile"].update({"101.000000": 1})), "tells of 101.000000 %"),
    "no percent": (changed(lambda f: read_of(f)["lat_ns"]["percentile"].update({"\x1b[m": 1})), "percent '␛[m'"),
    "percentiles that fall": (changed(lambda f: read_of(f)["lat_ns"]["percentile"].update({"99.900000": 1})), "goes down"),
    "a bucket that is none": (changed(lambda f: read_of(f)["lat_ns"]["bins"].update({"x": 1})), "has a bucket 'x'"),
    "a bucket of years": (changed(lambda f: read_of(f)["lat_ns"]["bins"].update({"9" * 16: 1})), "has a bucket"),
    "a request too many": (changed(lambda f: read_of(f)["lat_ns"]["bins"].update({"5": 1})), "bins holds"),
    "too many buckets": (changed(lambda f: read_of(f)["lat_ns"]["bins"].update({str(n): 0 for n in range(9000)})), "buckets"),
    "min over max": (changed(lambda f: read_of(f)["lat_ns"].update(min=10**12)), "does not fit together"),
    "too long": ("x" * (fio.MOST_BYTES + 1), "at most"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_report(name: str) -> None:
    said, why = BAD[name]
    with pytest.raises(MeasurementInvalid) as raised:
        fio.parse(said)
    assert why in raised.value.message
    assert len(raised.value.message) < 1000
    assert raised.value.message.isprintable()


@given(st.integers(0, len(SMALL.rstrip()) - 1))
def test_cut_off_anywhere_is_never_believed(length: int) -> None:
    with pytest.raises(MeasurementInvalid):
        fio.parse(SMALL[:length])


@given(st.integers(0, len(SMALL) - 1), st.binary(max_size=40))
def test_spoiled_anywhere_is_a_report_or_refused(at: int, spoiled: bytes) -> None:
    try:
        report = fio.parse(SMALL[:at] + spoiled + SMALL[at + len(spoiled) :])
    except MeasurementInvalid:
        return
    assert all(requests.iops >= 0 for job in report.jobs for requests in job.requests.values())


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["jobs", "read", "lat_ns", "bins", "error"]), inner),
    max_leaves=20,
)


@given(_JSON, st.sampled_from(["", "jobs", "read", "lat_ns", "percentile", "bins", "job options"]))
def test_any_json_in_any_place_is_a_report_or_refused(value: Any, place: str) -> None:
    found = json.loads(SMALL[SMALL.index(b"{") :])
    where = {"jobs": found, "read": found["jobs"][0], "job options": found["jobs"][0]}
    where |= {"lat_ns": found["jobs"][0]["write"], "percentile": found["jobs"][0]["write"]["lat_ns"]}
    where["bins"] = where["percentile"]
    if place:
        where[place][place] = value
    try:
        fio.parse(json.dumps(found if place else value))
    except MeasurementInvalid:
        return
