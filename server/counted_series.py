"""Counters and histograms that one thread counts in, as plain numbers.

Those of prometheus_client may be counted in from every thread, so each number has a lock, and a
call, which counts in ten of them, spends more on that than on its log entries' bytes. These are
counted in and collected on the event loop, and give the same lines.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class Count:
    """One series of a counter: add to `value`."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0


class Counter(Collector):
    """A counter with a series for each combination of labels that was asked for."""

    def __init__(self, name: str, text: str, labels: Sequence[str]) -> None:
        self._describe = name, text
        self._labels = labels
        self._series: dict[tuple[str, ...], Count] = {}

    def labels(self, *values: str) -> Count:
        """The series with these labels; it is on the page from now on."""
        series = self._series.get(values)
        if series is None:
            series = self._series[values] = Count()
        return series

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(*self._describe, labels=self._labels)
        for values, series in self._series.items():
            family.add_metric(values, series.value)
        yield family


class Distribution:
    """One series of a histogram."""

    __slots__ = ("_bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)  # each for itself, the last one beyond all bounds
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self._bounds, value)] += 1
        self.sum += value


class Histogram(Collector):
    """A histogram with a series for each combination of labels that was asked for."""

    def __init__(
        self, name: str, text: str, labels: Sequence[str], bounds: Sequence[float]
    ) -> None:
        self._describe = name, text
        self._labels = labels
        self._bounds = bounds
        names = [floatToGoString(bound) for bound in bounds]  # type: ignore[no-untyped-call]
        self._names = [*names, "+Inf"]
        self._series: dict[tuple[str, ...], Distribution] = {}

    def labels(self, *values: str) -> Distribution:
        """The series with these labels; it is on the page from now on."""
        series = self._series.get(values)
        if series is None:
            series = self._series[values] = Distribution(self._bounds)
        return series

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(*self._describe, labels=self._labels)
        for values, series in self._series.items():
            buckets = list(zip(self._names, accumulate(series.counts), strict=True))
            family.add_metric(values, buckets, series.sum)
        yield family
