"""What a test records: the cell's axes, the test's parameters and the state of the host are attached by themselves."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from labctl.errors import MeasurementInvalid
from labctl.histogram import Histogram
from labctl.model import Cell, Channel, Metric
from labctl.result import Distribution, Sample
from labctl.run.attempt import CellAttempt
from labctl.store import host


@dataclass
class Recorder:
    """Of one test. Each observation has its number among those of the same metric and parameters."""

    attempt: CellAttempt
    cell: Cell
    test: str
    own: Mapping[str, str]
    """The test's parameters."""
    _counts: dict[tuple[str, str], int] = field(default_factory=dict, init=False)

    def sample(self, metric: Metric, value: float, **params: object) -> None:
        """One observation. MeasurementInvalid for a figure that this channel cannot take, or that is not finite."""
        if self._says_nothing(metric):
            return
        all_params, index = self._numbered(metric, params)
        taken = Sample(
            metric.name,
            float(value),
            metric.unit,
            metric.direction,
            self.cell.channel,
            self.test,
            all_params,
            index,
            time.time(),
            self._conditions(),
        )
        self.attempt.record.sample(taken)

    def histogram(self, metric: Metric, histogram: Histogram, **params: object) -> None:
        """Many observations, in the metric's unit. MeasurementInvalid as of `sample`."""
        if self._says_nothing(metric):
            return
        all_params, index = self._numbered(metric, params)
        found = Distribution(
            metric.name,
            histogram,
            metric.unit,
            metric.direction,
            self.cell.channel,
            self.test,
            all_params,
            index,
            time.time(),
            self._conditions(),
        )
        self.attempt.record.distribution(found)

    def _says_nothing(self, metric: Metric) -> bool:
        """Where instructions are counted real time says nothing; a suite need not know on which channel it runs."""
        if self.cell.channel is Channel.WALL and metric.channel is Channel.ICOUNT:
            raise MeasurementInvalid(f"{metric.name} counts instructions, and this cell runs in real time")
        timed = metric.unit == "s" or metric.unit.endswith("/s")
        return timed and self.cell.channel is Channel.ICOUNT and metric.channel is Channel.WALL

    def _numbered(self, metric: Metric, params: Mapping[str, object]) -> tuple[dict[str, str], int]:
        all_params = {**self.own, **{key: str(value) for key, value in params.items()}}
        key = (metric.name, repr(sorted(all_params.items())))
        self._counts[key] = index = self._counts.get(key, -1) + 1
        return all_params, index

    def _conditions(self) -> dict[str, float]:
        return host.conditions() | self.attempt.conditions()
