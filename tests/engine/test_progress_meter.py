"""Rates, what is left and the shape of the display, without a batch."""

import io
from typing import NamedTuple

import msgspec
import pytest
from rich.console import Console

from batchline.cli.progress import _bar
from batchline.engine.progress_meter import ProgressMeter, ProgressSnapshot, RecentRate, in_flight_text
from batchline.upstream.session_progress import SessionProgress


def rate_of(*points: tuple[float, int], window_s: float = 60.0) -> float | None:
    rate = RecentRate(window_s)
    for now, count in points:
        rate.add(now, count)
    return rate.per_s()


def test_rate_of_one_point_is_none():
    assert rate_of((0.0, 0)) is None


def test_rate_is_count_per_elapsed_second():
    assert rate_of((0.0, 0), (10.0, 50)) == 5.0


def test_rate_covers_the_last_minute_only():
    fast_then_slow = [(second, min(second, 600) * 100 + max(0, second - 600)) for second in range(0, 721, 5)]
    assert rate_of(*fast_then_slow) == pytest.approx(1.0)


def test_rate_of_resumed_run_ignores_earlier_results():
    assert rate_of((0.0, 9_000), (2.0, 9_010)) == 5.0


def test_rate_of_points_far_apart_is_measured():
    assert rate_of((0.0, 0), (100.0, 100), (200.0, 300)) == 2.0


def test_idle_time_is_measured_since_the_last_result():
    rate = RecentRate()
    for now, count in [(0.0, 0), (5.0, 3), (30.0, 3)]:
        rate.add(now, count)
    assert rate.idle_s() == 25.0


class Batch(NamedTuple):
    total: int


class Stopped(NamedTuple):
    stop_reason: str | None


class Hold(NamedTuple):
    """The part of a lease that is read: counts over all runs, and over this one."""

    batch: Batch
    session: Stopped
    settled: tuple[int, int]
    own: SessionProgress

    def counts(self) -> tuple[int, int]:
        return self.settled

    def progress(self) -> SessionProgress:
        return self.own


def progress_of(completed: int, in_flight: int = 10, limit: int = 64) -> SessionProgress:
    return SessionProgress(
        completed=completed,
        failed=0,
        in_flight=in_flight,
        attempts=0,
        retried=0,
        prompt_tokens=0,
        completion_tokens=0,
        total_tokens=7 * completed,
        limit=limit,
        ceiling=64,
        paused=None,
    )


def readings(
    *moments: tuple[float, int],
    before: int = 0,
    total: int = 1_000,
    stopped: str | None = None,
    paused: str | None = None,
    in_flight: int = 10,
) -> ProgressSnapshot:
    """The last of the readings of a run that had settled so many requests at those times."""
    clock = iter([now for now, _ in moments])
    meter = ProgressMeter(Hold(Batch(0), Stopped(None), (0, 0), progress_of(0)), clock=lambda: next(clock))
    reading = None
    for _, own in moments:
        own_progress = msgspec.structs.replace(progress_of(own, in_flight), paused=paused)
        meter._lease = Hold(Batch(total), Stopped(stopped), (before + own, 0), own_progress)
        reading = meter.read()
    assert reading is not None
    return reading


def test_snapshot_during_validation_is_none():
    assert ProgressMeter(Hold(Batch(0), Stopped(None), (0, 0), progress_of(0))).read() is None


def test_snapshot_shows_counts_rate_tokens_and_time_left():
    reading = readings((0.0, 0), (10.0, 200))
    assert reading[:5] == (200, 1_000, 0, "about 40 s left", "20/s · 1,400 tokens · 10 in flight")


def test_snapshot_counts_earlier_results_but_not_in_the_rate():
    reading = readings((0.0, 0), (10.0, 20), before=500)
    assert (reading.settled, reading.eta) == (520, "about 4 min 00 s left")
    assert reading.details.startswith("2/s")


def test_snapshot_before_first_result_has_no_estimate():
    reading = readings((0.0, 0), (5.0, 0))
    assert (reading.eta, reading.details) == ("", "0 tokens · 10 in flight")


def test_snapshot_after_long_silence_shows_idle_time():
    assert readings((0.0, 0), (5.0, 50), (50.0, 50)).details.endswith("10 in flight · no answer for 45 s")


def test_snapshot_has_no_estimate_while_all_upstreams_are_paused():
    assert readings((0.0, 0), (5.0, 50), (50.0, 50)).eta == ""
    assert readings((0.0, 0), (5.0, 50), paused="the upstream is down", in_flight=0).eta == ""
    assert readings((0.0, 0), (5.0, 50), paused="one of two is down").eta.startswith("about ")


def test_snapshot_after_last_result_says_writing_files():
    assert readings((0.0, 0), (10.0, 1_000)).eta == "writing the files"


def test_snapshot_of_stopping_run_says_stopping():
    assert readings((0.0, 0), (10.0, 10), stopped="by SIGINT").eta == "stopping"


READINGS = {
    "small": ProgressSnapshot(3, 240, 0, "about 58 s left", "3.3/s · 5,057 tokens · 10 in flight", None),
    "large": ProgressSnapshot(
        999_999,
        1_000_000,
        123_456,
        "about 12 h 03 min left",
        "12,345/s · 1,234,567,890 tokens · 10,000 in flight",
        None,
    ),
    "paused": ProgressSnapshot(
        0, 50, 0, "", "0 tokens · 0 in flight", "upstream gpu is down (refused); next try in 12 s"
    ),
}


@pytest.mark.parametrize("columns", [60, 80, 200])
@pytest.mark.parametrize("reading", READINGS.values(), ids=READINGS)
def test_progress_display_fits_the_terminal_width(reading, columns):
    console = Console(file=io.StringIO(), width=columns, force_terminal=True, color_system=None)
    console.print(_bar(reading))
    lines = console.file.getvalue().splitlines()

    assert max(map(len, lines)) <= columns
    assert len(lines) == (3 if reading.paused else 2)
    if columns >= 80:
        assert f"{reading.settled:,}/{reading.total:,} done · {reading.failed:,} failed" in lines[0]
        assert reading.eta in lines[0]


def test_in_flight_text_shows_reduced_limit():
    assert in_flight_text(progress_of(0, in_flight=40, limit=45)) == "40 in flight (at most 45 of 64 for now)"
    assert in_flight_text(progress_of(0, in_flight=40)) == "40 in flight"
