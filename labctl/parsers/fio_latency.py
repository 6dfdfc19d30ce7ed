"""fio's latencies, as ``--output-format=json+`` has them: ``clat_ns`` and ``lat_ns`` (with ``lat_percentiles=1``) of a job's direction."""

from __future__ import annotations

import math
from collections.abc import Mapping

from labctl.histogram import Histogram

_MOST_BINS = 100_000
"""fio has 1,856."""


def histogram(latency: Mapping[str, object]) -> Histogram:
    """The whole distribution, in steps of a nanosecond, without loss. ValueError that says what is missing or wrong."""
    bins = latency.get("bins")
    if not isinstance(bins, dict) or not bins:
        raise ValueError("no bins in fio's latency: nothing was done, or its output format is not json+")
    if len(bins) > _MOST_BINS:
        raise ValueError(f"{len(bins)} bins in fio's latency")
    counts: dict[int, int] = {}
    for text, count in bins.items():
        if not (isinstance(text, str) and text.isascii() and text.isdigit() and len(text) < 20) or type(count) is not int:
            raise ValueError(f"no bin of fio's: {text!r:.40}: {count!r:.40}")
        counts[int(text)] = count
    observed = sum(counts.values())
    mean = _number(latency.get("mean"))
    return Histogram.counted(
        counts,
        minimum=_whole(_number(latency.get("min"))),
        maximum=_whole(_number(latency.get("max"))),
        total=None if mean is None else _whole(mean * observed),
    )


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e18 else None


def _whole(value: float | None) -> int | None:
    return None if value is None or not math.isfinite(value) else round(value)
