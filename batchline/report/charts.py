"""Computes the page's charts: positions in per cent of the width, heights in pixels from the top."""

from collections.abc import Iterable, Sequence
from math import ceil, floor, isfinite, log10
from typing import Final, NamedTuple

from batchline.models.analytics import BatchReport, DurationBin, Percentiles, ThroughputPoint
from batchline.models.formatting import clock, compact, count, duration, rate_unit, span

MIN_BINS: Final = 16
"""Bins that the full width holds at least: a single wide bar would look like a large value."""

MAX_TICKS: Final = 6
TICK_STEPS_S: Final = (
    *(0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1_200, 1_800, 3_600, 7_200, 10_800, 21_600, 43_200),
    86_400,
)
MIN_DRAWN: Final = 1e-9
"""Smaller values are not drawn."""

MIN_HEIGHT_PX: Final = 2.0
"""Minimum height of failures, which would otherwise be invisible next to the completed requests."""

PATH_WIDTH: Final = 1_000
"""Width of a path's view box; it is scaled to the width available."""


class Tick(NamedTuple):
    """A label on an axis at a position along it."""

    at: float
    label: str

    @property
    def anchor(self) -> str:
        """The SVG text-anchor: labels near an edge extend inwards, so that none is cut off."""
        return "start" if self.at < 4 else "end" if self.at > 96 else "middle"


class ChartColumn(NamedTuple):
    """A bar of two parts, failed on top of completed, with its label."""

    left: float
    width: float
    completed: float
    failed: float
    label: str


class HistogramChart(NamedTuple):
    """A histogram of durations."""

    height: float
    columns: list[ChartColumn]
    levels: list[Tick]
    ticks: list[Tick]
    flags: list[Tick]
    rows: list[tuple[str, int, int]]


class Panel(NamedTuple):
    """One quantity over time."""

    height: float
    levels: list[Tick]
    paths: list[str]


class TimelineChart(NamedTuple):
    """Two quantities over the same time, with a label and a table row for each interval."""

    unit: str
    rates: Panel
    in_flight: Panel | None
    ticks: list[Tick]
    columns: list[ChartColumn]
    rows: list[tuple[str, int, int, int, float | None]]


def build_histogram(report: BatchReport, *, height: float = 150.0) -> HistogramChart | None:
    """Return the histogram of durations with bins of equal width, or None if no request was timed."""
    bins = report.durations
    if not bins:
        return None
    top, levels = _axis_levels([duration_bin.completed + duration_bin.failed for duration_bin in bins], height)
    bin_count = max(len(bins), MIN_BINS)
    width, bins_before = 100 / bin_count, (bin_count - len(bins)) / 2
    columns, rows = [], []
    for number, duration_bin in enumerate(bins):
        range_text = f"{duration(duration_bin.from_ms)} to {duration(duration_bin.to_ms)}"
        rows.append((range_text, duration_bin.completed, duration_bin.failed))
        columns.append(
            ChartColumn(
                left=round((bins_before + number) * width, 3),
                width=round(width, 3),
                completed=min(
                    # Leave the minimum height of failures free at the top.
                    _scale(duration_bin.completed, top, height),
                    height - (MIN_HEIGHT_PX if duration_bin.failed else 0),
                ),
                failed=max(_scale(duration_bin.failed, top, height), MIN_HEIGHT_PX if duration_bin.failed else 0),
                label=f"{range_text}: {_counts_text(duration_bin.completed, duration_bin.failed)}",
            )
        )
    axis = _Axis(bins, bins_before, width)
    return HistogramChart(height, columns, levels, axis.ticks(), axis.percentile_markers(report.duration_ms), rows)


class _Axis:
    """The horizontal axis of the histogram: bins of equal width that grow by a factor."""

    def __init__(self, bins: Sequence[DurationBin], bins_before: float, width: float) -> None:
        self._bins = bins
        self._bins_before = bins_before
        self._width = width

    def place_of(self, ms: float) -> float | None:
        """Return the position of a duration in per cent of the width, or None if it is in no bin."""
        for number, duration_bin in enumerate(self._bins):
            if duration_bin.from_ms <= ms <= duration_bin.to_ms and isfinite(
                duration_bin.to_ms - duration_bin.from_ms
            ):
                fraction = _fraction_within(duration_bin, ms)
                return round((self._bins_before + number + fraction) * self._width, 3)
        return None

    def ticks(self) -> list[Tick]:
        """Return ticks at round durations, thinned out to fit, or at both ends if fewer than two are in range."""
        ticks = self._ticks_at((ms, duration(ms)) for decade in range(-1, 10) for ms in _round_durations(decade))
        if len(ticks) < 2:
            ends = (self._bins[0].from_ms, self._bins[-1].to_ms)
            return self._ticks_at((ms, duration(ms)) for ms in ends)
        if len(ticks) > MAX_TICKS:
            return ticks[:: ceil(len(ticks) / MAX_TICKS)]
        return ticks

    def percentile_markers(self, points: Percentiles | None) -> list[Tick]:
        """Return markers of the percentiles, highest first."""
        if points is None:
            return []
        named = [(name, getattr(points, name)) for name in ("p99", "p95", "p50")]
        return self._ticks_at((ms, f"{name} {duration(ms)}") for name, ms in named)

    def _ticks_at(self, labels: Iterable[tuple[float, str]]) -> list[Tick]:
        """Return ticks for the labelled durations that are in a bin."""
        places = [(self.place_of(ms), label) for ms, label in labels]
        return [Tick(place, label) for place, label in places if place is not None]


def _round_durations(decade: int) -> list[float]:
    return [step * 10.0**decade for step in (1, 2, 5)]


def _fraction_within(duration_bin: DurationBin, ms: float) -> float:
    """Return the logarithmic position within the bin, from 0 to 1."""
    first, last = duration_bin.from_ms, duration_bin.to_ms
    if first > 0:  # the first bin begins at 0, which has no logarithm
        first, last, ms = log10(first), log10(last), log10(ms)
    return (ms - first) / (last - first) if last > first else 0.5


def build_timeline(report: BatchReport, *, height: float = 130.0, lower: float = 70.0) -> TimelineChart | None:
    """Return ended requests and requests in flight over time, or None if no time is known."""
    points = report.throughput
    if not points:
        return None
    # A stored report may have any number here; the chart must not divide by 0 or overflow.
    interval_s = report.interval_s if 1e-3 <= report.interval_s <= 1e12 else 1.0
    highest = max(point.requests + point.failed for point in points)
    unit_s, unit = rate_unit(highest / interval_s)
    scale = unit_s / interval_s
    completed = [point.requests * scale for point in points]
    ended = [(point.requests + point.failed) * scale for point in points]
    top, levels = _axis_levels(ended, height)
    min_height = MIN_HEIGHT_PX * top / height
    for index, point in enumerate(points):
        if point.failed:
            # The completed give way, so that the sum does not exceed the top.
            completed[index] = min(completed[index], top - min_height)
            ended[index] = max(ended[index], completed[index] + min_height)
    rates = Panel(height, levels, [_area_path(completed, top, height)])
    if any(point.failed for point in points):
        rates.paths.append(_area_path(ended, top, height, completed))
    return TimelineChart(
        unit=unit,
        rates=rates,
        in_flight=_in_flight_panel(points, lower),
        ticks=_time_ticks(len(points), interval_s),
        columns=_time_columns(points, interval_s),
        rows=[
            (clock(time_point.at), time_point.requests, time_point.failed, time_point.tokens, time_point.in_flight)
            for time_point in points
        ],
    )


def _in_flight_panel(points: Sequence[ThroughputPoint], height: float) -> Panel | None:
    if all(point.in_flight is None for point in points):
        return None
    values = [point.in_flight or 0.0 for point in points]
    top, levels = _axis_levels(values, height)
    return Panel(height, levels, [_area_path(values, top, height)])


def _time_columns(points: Sequence[ThroughputPoint], interval_s: float) -> list[ChartColumn]:
    width = 100 / len(points)
    labels = []
    for point in points:
        text = f"{clock(point.at)} UTC, {_length_text(interval_s)}: {_counts_text(point.requests, point.failed)}"
        labels.append(f"{text}, {compact(point.tokens)} tokens, {_in_flight_text(point.in_flight)} in flight")
    return [
        ChartColumn(round(index * width, 3), round(width, 3), 0.0, 0.0, label)
        for index, label in enumerate(labels)
    ]


def _in_flight_text(in_flight: float | None) -> str:
    return "unknown" if in_flight is None else count(in_flight)


def _length_text(seconds: float) -> str:
    return f"{seconds:g} s" if seconds < 60 else span(seconds)


def _whole_unit_text(seconds: float) -> str:
    """Return the duration as a whole number of the largest unit possible."""
    for unit_s, name in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= unit_s and seconds % unit_s == 0:
            return f"{seconds / unit_s:,.0f} {name}"
    return _length_text(seconds)


def _time_ticks(slots: int, interval_s: float) -> list[Tick]:
    """Return ticks at times since the start."""
    whole_s = slots * interval_s
    step_s = next((step_s for step_s in TICK_STEPS_S if whole_s / step_s <= MAX_TICKS), whole_s / MAX_TICKS)
    return [
        Tick(round(100 * number * step_s / whole_s, 3), _whole_unit_text(number * step_s) if number else "start")
        for number in range(floor(whole_s / step_s) + 1)
    ]


def _area_path(values: Sequence[float], top: float, height: float, floors: Sequence[float] = ()) -> str:
    """Return the SVG path of a stepped area from the values down to the floors, by default to the bottom."""
    step = PATH_WIDTH / len(values)
    outline = [
        f"V{height - _scale(value, top, height):g}H{step * index:.5g}" for index, value in enumerate(values, 1)
    ]
    floor_values = list(enumerate(floors))
    return_path = [
        f"V{height - _scale(value, top, height):g}H{step * index:.5g}" for index, value in reversed(floor_values)
    ]
    return f"M0 {height:g}{''.join(outline)}{''.join(return_path) or f'V{height:g}'}Z"


def _axis_levels(values: Sequence[float], height: float) -> tuple[float, list[Tick]]:
    """Return the value at the top, and ticks at two or three round values."""
    highest = max((value for value in values if isfinite(value)), default=0.0)
    if highest < MIN_DRAWN:
        return 1.0, []
    power = 10.0 ** floor(log10(highest))
    # The smallest round step that gives at most three levels.
    step = next(step for step in (0.5, 1, 2, 5) if highest / (step * power) <= 3.5) * power
    # From 1 on, levels are whole numbers, as the values are counts.
    step = max(step, 1.0) if highest >= 1 else step
    levels = [step * number for number in range(1, floor(highest / step) + 1)]
    return highest, [
        Tick(round(height - _scale(level, highest, height), 2), _level_text(level)) for level in levels
    ]


def _level_text(value: float) -> str:
    return compact(round(value)) if value >= 10 else f"{value:.2g}"


def _scale(value: float, top: float, height: float) -> float:
    return round(min(max(value / top, 0.0), 1.0) * height, 2) if isfinite(value) else 0.0


def _counts_text(completed: int, failed: int) -> str:
    return f"{count(completed)} completed, {count(failed)} failed"
