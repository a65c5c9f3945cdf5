"""What the page's charts are made of: places in per cent of the width, heights in pixels from the top."""

from collections.abc import Iterable, Sequence
from math import ceil, floor, isfinite, log10
from typing import Final, NamedTuple

from batchline.models.analytics import BatchReport, DurationBin, Percentiles, ThroughputPoint
from batchline.models.formatting import clock, compact, count, duration, rate_unit, span

FEWEST_SLOTS: Final = 16
"""Fewer bins do not fill the width: one broad bar looks like a great deal."""

TICKS: Final = 6
STEPS_S: Final = (
    *(0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1_200, 1_800, 3_600, 7_200, 10_800, 21_600, 43_200),
    86_400,
)
LEAST: Final = 1e-9
"""What is below is drawn as nothing."""

LEAST_PX: Final = 2.0
"""Height of failures that would be too small to see beside what completed."""

WIDE: Final = 1_000
"""Units that the width of a path's picture has; it is stretched to what there is."""


class Tick(NamedTuple):
    """A label on an axis, at a place along it."""

    at: float
    label: str

    @property
    def anchor(self) -> str:
        """Which end of the label is at the place, so that none is cut off."""
        return "start" if self.at < 4 else "end" if self.at > 96 else "middle"


class Column(NamedTuple):
    """A bar of two parts, the failed on top of the completed, and what is told of it."""

    left: float
    width: float
    completed: float
    failed: float
    label: str


class Histogram(NamedTuple):
    """Durations by how many requests took so long."""

    height: float
    columns: list[Column]
    levels: list[Tick]
    ticks: list[Tick]
    flags: list[Tick]
    rows: list[tuple[str, int, int]]


class Panel(NamedTuple):
    """One quantity over time."""

    height: float
    levels: list[Tick]
    paths: list[str]


class Timeline(NamedTuple):
    """Two quantities over the same time, and what is told of each stretch of it."""

    unit: str
    rates: Panel
    in_flight: Panel | None
    ticks: list[Tick]
    columns: list[Column]
    rows: list[tuple[str, int, int, int, float | None]]


def histogram(report: BatchReport, *, height: float = 150.0) -> Histogram | None:
    """The distribution of durations, each bin as wide as another; none where nothing was timed."""
    bins = report.durations
    if not bins:
        return None
    top, levels = _levels([found.completed + found.failed for found in bins], height)
    slots = max(len(bins), FEWEST_SLOTS)
    width, before = 100 / slots, (slots - len(bins)) / 2
    columns, rows = [], []
    for number, found in enumerate(bins):
        range_ = f"{duration(found.from_ms)} to {duration(found.to_ms)}"
        rows.append((range_, found.completed, found.failed))
        columns.append(
            Column(
                left=round((before + number) * width, 3),
                width=round(width, 3),
                completed=min(_scaled(found.completed, top, height), height - (LEAST_PX if found.failed else 0)),
                failed=max(_scaled(found.failed, top, height), LEAST_PX if found.failed else 0),
                label=f"{range_}: {_counted(found.completed, found.failed)}",
            )
        )
    axis = _Axis(bins, before, width)
    return Histogram(height, columns, levels, axis.ticks(), axis.flags(report.duration_ms), rows)


class _Axis:
    """Where durations are along the bins, which are as wide as each other and grow by a factor."""

    def __init__(self, bins: Sequence[DurationBin], before: float, width: float) -> None:
        self._bins = bins
        self._before = before
        self._width = width

    def place(self, ms: float) -> float | None:
        """How far to the right that duration is; none where it is in no bin."""
        for number, found in enumerate(self._bins):
            if found.from_ms <= ms <= found.to_ms and isfinite(found.to_ms - found.from_ms):
                within = _within(found, ms)
                return round((self._before + number + within) * self._width, 3)
        return None

    def ticks(self) -> list[Tick]:
        """Round durations, as many as there is room for, or the ends where there are none between them."""
        found = self._marked((ms, duration(ms)) for decade in range(-1, 10) for ms in _round(decade))
        if len(found) < 2:
            ends = (self._bins[0].from_ms, self._bins[-1].to_ms)
            return self._marked((ms, duration(ms)) for ms in ends)
        if len(found) > TICKS:
            return found[:: ceil(len(found) / TICKS)]
        return found

    def flags(self, points: Percentiles | None) -> list[Tick]:
        """The percentiles, from the right."""
        if points is None:
            return []
        named = [(name, getattr(points, name)) for name in ("p99", "p95", "p50")]
        return self._marked((ms, f"{name} {duration(ms)}") for name, ms in named)

    def _marked(self, labels: Iterable[tuple[float, str]]) -> list[Tick]:
        """Those durations' labels at their places, as far as they are in a bin."""
        places = [(self.place(ms), label) for ms, label in labels]
        return [Tick(place, label) for place, label in places if place is not None]


def _round(decade: int) -> list[float]:
    return [step * 10.0**decade for step in (1, 2, 5)]


def _within(found: DurationBin, ms: float) -> float:
    """How far into the bin, by logarithm, as the bins are."""
    first, last = found.from_ms, found.to_ms
    if first > 0:
        first, last, ms = log10(first), log10(last), log10(ms)
    return (ms - first) / (last - first) if last > first else 0.5


def timeline(report: BatchReport, *, height: float = 130.0, lower: float = 70.0) -> Timeline | None:
    """Requests that ended, and those in flight, over time; none where no time is known."""
    points = report.throughput
    if not points:
        return None
    interval_s = report.interval_s if 1e-3 <= report.interval_s <= 1e12 else 1.0
    most = max(point.requests + point.failed for point in points)
    unit_s, unit = rate_unit(most / interval_s)
    by = unit_s / interval_s
    completed = [point.requests * by for point in points]
    ended = [(point.requests + point.failed) * by for point in points]
    top, levels = _levels(ended, height)
    least = LEAST_PX * top / height
    for n, point in enumerate(points):
        if point.failed:
            completed[n] = min(completed[n], top - least)
            ended[n] = max(ended[n], completed[n] + least)
    rates = Panel(height, levels, [_area(completed, top, height)])
    if any(point.failed for point in points):
        rates.paths.append(_area(ended, top, height, completed))
    return Timeline(
        unit=unit,
        rates=rates,
        in_flight=_in_flight(points, lower),
        ticks=_time_ticks(len(points), interval_s),
        columns=_stretches(points, interval_s),
        rows=[(clock(each.at), each.requests, each.failed, each.tokens, each.in_flight) for each in points],
    )


def _in_flight(points: Sequence[ThroughputPoint], height: float) -> Panel | None:
    if all(point.in_flight is None for point in points):
        return None
    values = [point.in_flight or 0.0 for point in points]
    top, levels = _levels(values, height)
    return Panel(height, levels, [_area(values, top, height)])


def _stretches(points: Sequence[ThroughputPoint], interval_s: float) -> list[Column]:
    width = 100 / len(points)
    labels = []
    for point in points:
        told = f"{clock(point.at)} UTC, {_length(interval_s)}: {_counted(point.requests, point.failed)}"
        labels.append(f"{told}, {compact(point.tokens)} tokens, {_in_words(point.in_flight)} in flight")
    return [Column(round(n * width, 3), round(width, 3), 0.0, 0.0, label) for n, label in enumerate(labels)]


def _in_words(in_flight: float | None) -> str:
    return "unknown" if in_flight is None else count(in_flight)


def _length(seconds: float) -> str:
    return f"{seconds:g} s" if seconds < 60 else span(seconds)


def _short(seconds: float) -> str:
    """A whole number of the largest unit that allows it."""
    for unit_s, name in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= unit_s and seconds % unit_s == 0:
            return f"{seconds / unit_s:,.0f} {name}"
    return _length(seconds)


def _time_ticks(slots: int, interval_s: float) -> list[Tick]:
    """Times since the start."""
    whole_s = slots * interval_s
    step_s = next((step_s for step_s in STEPS_S if whole_s / step_s <= TICKS), whole_s / TICKS)
    return [
        Tick(round(100 * number * step_s / whole_s, 3), _short(number * step_s) if number else "start")
        for number in range(floor(whole_s / step_s) + 1)
    ]


def _area(values: Sequence[float], top: float, height: float, floors: Sequence[float] = ()) -> str:
    """The path of a stepped area between the values and the floors, or the bottom, `WIDE` units wide."""
    step = WIDE / len(values)
    there = [f"V{height - _scaled(value, top, height):g}H{step * n:.5g}" for n, value in enumerate(values, 1)]
    below = list(enumerate(floors))
    back = [f"V{height - _scaled(value, top, height):g}H{step * n:.5g}" for n, value in reversed(below)]
    return f"M0 {height:g}{''.join(there)}{''.join(back) or f'V{height:g}'}Z"


def _levels(values: Sequence[float], height: float) -> tuple[float, list[Tick]]:
    """The value at the top, and two or three round ones at their distances from it."""
    most = max((value for value in values if isfinite(value)), default=0.0)
    if most < LEAST:
        return 1.0, []
    power = 10.0 ** floor(log10(most))
    step = next(step for step in (0.5, 1, 2, 5) if most / (step * power) <= 3.5) * power
    step = max(step, 1.0) if most >= 1 else step
    levels = [step * number for number in range(1, floor(most / step) + 1)]
    return most, [Tick(round(height - _scaled(at, most, height), 2), _level(at)) for at in levels]


def _level(value: float) -> str:
    return compact(round(value)) if value >= 10 else f"{value:.2g}"


def _scaled(value: float, top: float, height: float) -> float:
    return round(min(max(value / top, 0.0), 1.0) * height, 2) if isfinite(value) else 0.0


def _counted(completed: int, failed: int) -> str:
    return f"{count(completed)} completed, {count(failed)} failed"
