"""How long requests took: means, percentiles and a histogram, from stretches of rows."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import TYPE_CHECKING

from batchline.models.analytics import DurationBin, Percentiles

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

BINS_A_DECADE = 20
DECADES = range(-1, 10)
"""Of milliseconds: from 0.1 ms to 115 days."""

MODELS_WITH_PERCENTILES = 100


class Distribution:
    """One kind of duration in milliseconds: four bytes for each, and four for the group that it belongs to."""

    def __init__(self) -> None:
        self._values: list[np.ndarray] = []
        self._groups: list[np.ndarray] = []
        self._sum = 0.0
        self._count = 0

    def add(self, values: np.ndarray, groups: np.ndarray) -> None:
        """Take in durations, each with the number of its group; NaN stands for none."""
        import numpy as np  # noqa: PLC0415 - half a second that must not delay the first request

        known = ~np.isnan(values)
        self._sum += float(values[known].sum())
        self._count += int(known.sum())
        self._values.append(values[known].astype("float32"))
        self._groups.append(groups[known].astype("int32"))

    def mean(self) -> float | None:
        """Their mean; none of none."""
        return self._sum / self._count if self._count else None

    def percentiles(self) -> Percentiles | None:
        """Points of all of them; none of none."""
        return _percentiles(_joined(self._values))

    def percentiles_by_group(self) -> Mapping[int, Percentiles]:
        """The same for each group, for the largest 100."""
        import numpy as np  # noqa: PLC0415 - as above

        values, groups = _joined(self._values), _joined(self._groups)
        if not len(values):
            return {}
        order = np.argsort(groups, kind="stable")
        numbers, starts, sizes = np.unique(groups[order], return_index=True, return_counts=True)
        found = {}
        for place in np.argsort(-sizes, kind="stable")[:MODELS_WITH_PERCENTILES].tolist():
            start = starts[place]
            points = _percentiles(values[order[start : start + sizes[place]]])
            if points is not None:
                found[int(numbers[place])] = points
        return found


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    """The arrays as one, which also takes their place so that both are not held."""
    import numpy as np  # noqa: PLC0415 - as above

    if len(arrays) != 1:
        arrays[:] = [np.concatenate(arrays) if arrays else np.empty(0, "float32")]
    return arrays[0]


def _percentiles(values: np.ndarray) -> Percentiles | None:
    import numpy as np  # noqa: PLC0415 - as above

    if not len(values):
        return None
    p50, p90, p95, p99, most = (float(point) for point in np.percentile(values, [50, 90, 95, 99, 100]))
    return Percentiles(p50=p50, p90=p90, p95=p95, p99=p99, max=most)


class Histogram:
    """Durations counted in bins that grow with them, each a ninth longer than the one before."""

    def __init__(self) -> None:
        self._counts: dict[bool, Counter[int]] = {True: Counter(), False: Counter()}

    def add(self, values: np.ndarray, ok: np.ndarray) -> None:
        """Take in durations in milliseconds, NaN for none, and whether each ended well."""
        import numpy as np  # noqa: PLC0415 - as above

        places = np.clip(np.searchsorted(_edges(), values, side="right") - 1, 0, len(_edges()) - 2)
        for kind, counts in self._counts.items():
            numbers, sizes = np.unique(places[(ok == kind) & ~np.isnan(values)], return_counts=True)
            counts.update(dict(zip(numbers.tolist(), sizes.tolist(), strict=True)))

    def bins(self) -> list[DurationBin]:
        """From the first bin with a request to the last, without gaps."""
        good, bad = self._counts[True], self._counts[False]
        if not good and not bad:
            return []
        first, last = min([*good, *bad]), max([*good, *bad])
        edges = _edges().tolist()
        return [
            DurationBin(from_ms=edges[at], to_ms=edges[at + 1], completed=good[at], failed=bad[at])
            for at in range(first, last + 1)
        ]


@cache
def _edges() -> np.ndarray:
    """Where the bins begin, in milliseconds: at nothing, then evenly by logarithm, as people can read them."""
    import numpy as np  # noqa: PLC0415 - as above

    steps = range(DECADES.start * BINS_A_DECADE, DECADES.stop * BINS_A_DECADE + 1)
    return np.array([0.0, *(float(f"{10 ** (step / BINS_A_DECADE):.4g}") for step in steps)])
