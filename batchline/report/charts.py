"""Computes the page's charts: positions in per cent of the width, heights in pixels from the top."""

from collections.abc import Iterable, Sequence
from math import ceil, floor, isfinite, log10
from typing import Final, NamedTuple

from batchline.models.analytics import BatchReport, DurationBin, ThroughputPoint
from batchline.models.formatting import (
    choose_rate_unit,
    format_clock,
    format_compact,
    format_count,
    format_duration,
    format_span,
)

MIN_BINS: Final = 16
"""Bins that the full width holds at least: a single wide bar would look like a large value."""

MAX_TICKS: Final = 6
TICK_STEPS_S: Final = (
    *(0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1_200, 1_800, 3_600, 7_200, 10_800, 21_600, 43_200),
    86_400,
)
UNITS: Final = ((86_400, "d"), (3_600, "h"), (60, "min"))
ROUND_DURATIONS_MS: Final = [step * 10.0**decade for decade in range(-1, 10) for step in (1, 2, 5)]
MIN_DRAWN: Final = 1e-9
"""Smaller values are not drawn."""

MIN_HEIGHT_PX: Final = 2.0
"""Minimum height of failures, which would otherwise be invisible next to the completed requests."""

HISTOGRAM_PX: Final = 150.0
RATES_PX: Final = 130.0
IN_FLIGHT_PX: Final = 70.0
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


def build_histogram(report: BatchReport) -> HistogramChart | None:
    """Return the histogram of durations with bins of equal width, or None if no request was timed."""
    bins = report.durations
    if not bins:
        return None
    top, levels = _axis_levels(
        [duration_bin.completed + duration_bin.failed for duration_bin in bins], HISTOGRAM_PX
    )
    bin_count = max(len(bins), MIN_BINS)
    width, bins_before = 100 / bin_count, (bin_count - len(bins)) / 2
    columns, rows = [], []
    for number, duration_bin in enumerate(bins):
        range_text = f"{format_duration(duration_bin.from_ms)} to {format_duration(duration_bin.to_ms)}"
        rows.append((range_text, duration_bin.completed, duration_bin.failed))
        min_failed = MIN_HEIGHT_PX if duration_bin.failed else 0
        columns.append(
            ChartColumn(
                left=round((bins_before + number) * width, 3),
                width=round(width, 3),
                # Leave the minimum height of failures free at the top.
                completed=min(_scale(duration_bin.completed, top, HISTOGRAM_PX), HISTOGRAM_PX - min_failed),
                failed=max(_scale(duration_bin.failed, top, HISTOGRAM_PX), min_failed),
                label=f"{range_text}: {_counts_text(duration_bin.completed, duration_bin.failed)}",
            )
        )

    def ticks_at(labels: Iterable[tuple[float, str]]) -> list[Tick]:
        places = [(_place_in_bins(bins, ms), label) for ms, label in labels]
        return [Tick(round((bins_before + at) * width, 3), label) for at, label in places if at is not None]

    ticks = ticks_at((ms, format_duration(ms)) for ms in ROUND_DURATIONS_MS)
    if len(ticks) < 2:
        ticks = ticks_at((ms, format_duration(ms)) for ms in (bins[0].from_ms, bins[-1].to_ms))
    points = report.duration_ms
    percentiles = [] if points is None else [("p99", points.p99), ("p95", points.p95), ("p50", points.p50)]
    flags = ticks_at((ms, f"{name} {format_duration(ms)}") for name, ms in percentiles)
    return HistogramChart(HISTOGRAM_PX, columns, levels, ticks[:: ceil(len(ticks) / MAX_TICKS) or 1], flags, rows)


def _place_in_bins(bins: Sequence[DurationBin], ms: float) -> float | None:
    """Return the position of a duration in bins, logarithmic within each, or None if it is in no bin."""
    for number, duration_bin in enumerate(bins):
        first, last = duration_bin.from_ms, duration_bin.to_ms
        if first <= ms <= last and isfinite(last - first):
            if first > 0:  # the first bin begins at 0, which has no logarithm
                first, last, ms = log10(first), log10(last), log10(ms)
            return number + ((ms - first) / (last - first) if last > first else 0.5)
    return None


def build_timeline(report: BatchReport) -> TimelineChart | None:
    """Return ended requests and requests in flight over time, or None if no time is known."""
    points = report.throughput
    if not points:
        return None
    # A stored report may have any number here; the chart must not divide by 0 or overflow.
    interval_s = report.interval_s if 1e-3 <= report.interval_s <= 1e12 else 1.0
    highest = max(point.requests + point.failed for point in points)
    unit_s, unit = choose_rate_unit(highest / interval_s)
    scale = unit_s / interval_s
    completed = [point.requests * scale for point in points]
    ended = [(point.requests + point.failed) * scale for point in points]
    top, levels = _axis_levels(ended, RATES_PX)
    min_height = MIN_HEIGHT_PX * top / RATES_PX
    for index, point in enumerate(points):
        if point.failed:
            # The completed give way, so that the sum does not exceed the top.
            completed[index] = min(completed[index], top - min_height)
            ended[index] = max(ended[index], completed[index] + min_height)
    rates = Panel(RATES_PX, levels, [_area_path(completed, top, RATES_PX)])
    if any(point.failed for point in points):
        rates.paths.append(_area_path(ended, top, RATES_PX, completed))
    in_flight = None
    if any(point.in_flight is not None for point in points):
        values = [point.in_flight or 0.0 for point in points]
        top, levels = _axis_levels(values, IN_FLIGHT_PX)
        in_flight = Panel(IN_FLIGHT_PX, levels, [_area_path(values, top, IN_FLIGHT_PX)])
    return TimelineChart(
        unit=unit,
        rates=rates,
        in_flight=in_flight,
        ticks=_time_ticks(len(points), interval_s),
        columns=_time_columns(points, interval_s),
        rows=[
            (format_clock(point.at), point.requests, point.failed, point.tokens, point.in_flight)
            for point in points
        ],
    )


def _time_columns(points: Sequence[ThroughputPoint], interval_s: float) -> list[ChartColumn]:
    width, columns = 100 / len(points), []
    for index, point in enumerate(points):
        in_flight = "unknown" if point.in_flight is None else format_count(point.in_flight)
        label = (
            f"{format_clock(point.at)} UTC, {_length_text(interval_s)}: "
            f"{_counts_text(point.requests, point.failed)}, {format_compact(point.tokens)} tokens, "
            f"{in_flight} in flight"
        )
        columns.append(ChartColumn(round(index * width, 3), round(width, 3), 0.0, 0.0, label))
    return columns


def _length_text(seconds: float) -> str:
    return f"{seconds:g} s" if seconds < 60 else format_span(seconds)


def _time_ticks(slots: int, interval_s: float) -> list[Tick]:
    """Return ticks at times since the start, each a whole number of the largest unit possible."""
    whole_s = slots * interval_s
    step_s = next((step_s for step_s in TICK_STEPS_S if whole_s / step_s <= MAX_TICKS), whole_s / MAX_TICKS)
    ticks = [Tick(0.0, "start")]
    for number in range(1, floor(whole_s / step_s) + 1):
        at_s = number * step_s
        units = [(unit_s, name) for unit_s, name in UNITS if at_s >= unit_s and at_s % unit_s == 0]
        label = f"{at_s / units[0][0]:,.0f} {units[0][1]}" if units else _length_text(at_s)
        ticks.append(Tick(round(100 * at_s / whole_s, 3), label))
    return ticks


def _area_path(values: Sequence[float], top: float, height: float, floors: Sequence[float] = ()) -> str:
    """Return the SVG path of a stepped area from the values down to the floors, by default to the bottom."""
    step = PATH_WIDTH / len(values)

    def steps(levels: Iterable[tuple[int, float]]) -> str:
        return "".join(f"V{height - _scale(value, top, height):g}H{step * index:.5g}" for index, value in levels)

    back = steps(reversed(list(enumerate(floors)))) or f"V{height:g}"
    return f"M0 {height:g}{steps(enumerate(values, 1))}{back}Z"


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
        Tick(
            round(height - _scale(level, highest, height), 2),
            format_compact(round(level)) if level >= 10 else f"{level:.2g}",
        )
        for level in levels
    ]


def _scale(value: float, top: float, height: float) -> float:
    return round(min(max(value / top, 0.0), 1.0) * height, 2) if isfinite(value) else 0.0


def _counts_text(completed: int, failed: int) -> str:
    return f"{format_count(completed)} completed, {format_count(failed)} failed"
