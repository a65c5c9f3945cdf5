"""Computes means, percentiles and a histogram of request durations, added in blocks of rows."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

from batchline.models.analytics import DurationBin, Percentiles

BINS_PER_DECADE = 20
DECADES = range(-1, 10)
"""Powers of ten of milliseconds covered by the histogram: 0.1 ms to 115 days."""

MAX_MODELS_WITH_PERCENTILES = 100


class Distribution:
    """Durations of one kind in milliseconds, stored in four bytes each."""

    def __init__(self) -> None:
        # One array that grows, as many small ones would fragment the heap.
        self._values = array("f")
        self._sum = 0.0

    def add(self, values: np.ndarray) -> None:
        """Add durations; NaN means none was measured."""
        known_values = values[~np.isnan(values)]
        self._sum += float(known_values.sum())
        self._values.frombytes(known_values.astype("float32").tobytes())

    def mean(self) -> float | None:
        """Return the mean, or None if there are no values."""
        return self._sum / len(self._values) if self._values else None

    def percentiles(self) -> Percentiles | None:
        """Return the percentiles, or None if there are no values."""
        return _compute_percentiles(_as_numpy(self._values))


class GroupedDistribution(Distribution):
    """Durations with group numbers, in four more bytes each."""

    def __init__(self) -> None:
        super().__init__()
        self._groups = array("i")

    def add_grouped(self, values: np.ndarray, groups: np.ndarray) -> None:
        """Add durations with the group number of each; NaN means none was measured."""
        self.add(values)
        self._groups.frombytes(groups[~np.isnan(values)].astype("int32").tobytes())

    def percentiles_by_group(self) -> Mapping[int, Percentiles]:
        """Return the percentiles of each of the 100 largest groups."""
        values, groups = _as_numpy(self._values), _as_numpy(self._groups)
        # Only the largest: each group scans all values, and a file may name a thousand models.
        sizes = np.bincount(groups)
        largest = np.argsort(-sizes, kind="stable")[:MAX_MODELS_WITH_PERCENTILES]
        return {
            number: points
            for number in largest.tolist()
            if (points := _compute_percentiles(values[groups == number])) is not None
        }


def _as_numpy(values: array[Any]) -> np.ndarray:
    """Return a view of the array, which cannot grow while the view exists."""
    return np.asarray(memoryview(values))


def _compute_percentiles(values: np.ndarray) -> Percentiles | None:
    if not len(values):
        return None
    p50, p90, p95, p99, maximum = (float(point) for point in np.percentile(values, [50, 90, 95, 99, 100]))
    return Percentiles(p50=p50, p90=p90, p95=p95, p99=p99, max=maximum)


class LatencyHistogram:
    """A histogram of durations with logarithmic bins, each 12 % wider than the one before."""

    def __init__(self) -> None:
        self._counts: dict[bool, Counter[int]] = {True: Counter(), False: Counter()}

    def add(self, values: np.ndarray, ok: np.ndarray) -> None:
        """Add durations in milliseconds, NaN if not measured, and whether each request succeeded."""
        # Durations beyond the range count in the first or last bin.
        bin_numbers = np.clip(np.searchsorted(_bin_edges(), values, side="right") - 1, 0, len(_bin_edges()) - 2)
        for is_ok, counts in self._counts.items():
            numbers, sizes = np.unique(bin_numbers[(ok == is_ok) & ~np.isnan(values)], return_counts=True)
            counts.update(dict(zip(numbers.tolist(), sizes.tolist(), strict=True)))

    def bins(self) -> list[DurationBin]:
        """Return the bins from the first with a request to the last, empty ones in between included."""
        completed, failed = self._counts[True], self._counts[False]
        if not completed and not failed:
            return []
        first, last = min([*completed, *failed]), max([*completed, *failed])
        edges = _bin_edges().tolist()
        return [
            DurationBin(
                from_ms=edges[number], to_ms=edges[number + 1], completed=completed[number], failed=failed[number]
            )
            for number in range(first, last + 1)
        ]


@cache
def _bin_edges() -> np.ndarray:
    """Return the edges of the bins in milliseconds: zero, then logarithmic steps."""
    exponents = range(DECADES.start * BINS_PER_DECADE, DECADES.stop * BINS_PER_DECADE + 1)
    # Rounded to four digits, since the edges are shown to people.
    return np.array([0.0, *(float(f"{10 ** (exponent / BINS_PER_DECADE):.4g}") for exponent in exponents)])
