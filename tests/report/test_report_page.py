"""The report page: what it tells, that it tells nothing else, and that no batch fails for its sake."""

import json
import time
import tracemalloc

import hypothesis.strategies as st
import pytest
from helpers.batch_assertions import new_batch
from helpers.metrics_rows import CODES, make_tables
from helpers.metrics_rows import metrics_rows as any_figures
from helpers.page_parser import Page
from helpers.recording_upstream import recording_upstream
from hypothesis import given, settings

from batchline import Batchline
from batchline.analytics.totals import compute_analytics
from batchline.engine.pipeline import run_local
from batchline.engine.retry import retry_batch
from batchline.models.analytics import (
    BatchAnalytics,
    BatchReport,
    DurationBin,
    FailureMessage,
    ModelMetrics,
    Percentiles,
    ThroughputPoint,
)
from batchline.models.batches import BatchError
from batchline.models.errors import StorageFault
from batchline.models.lines import encode_result_line
from batchline.models.manifest import Failure
from batchline.models.status import TERMINAL_STATUSES, BatchStatus
from batchline.report.formatting import MULTIPLIER, bar_segments, outcome_sentence
from batchline.report.page import render_page
from batchline.report.samples import Sample, read_samples
from batchline.storage.objects import layout
from batchline.storage.records.store import BatchRecord

HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>&amp;\u202e{{ 7 * 7 }}"


def page_of(services, batch):
    page = Page(services.store.read(layout.report_page_key(batch.id)))
    page.assert_stands_alone()
    page.assert_drawn_with_numbers()
    return page


def report_of(services, batch):
    return BatchReport.model_validate_json(services.store.read(layout.report_data_key(batch.id)))


def orders(number):
    if number % 10 == 3:
        return "simulate:status=422" if number % 30 == 3 else "simulate:status=400"
    return "simulate:status=503" if number == 7 else f"Question {number}"


# What it tells


@pytest.fixture
def mixed(start_simulator, make_services, chat_file):
    """A batch of a hundred with eleven failures of two kinds: its services and record."""
    services = make_services(
        start_simulator(server_error=0.1).base_url, upstream={"max_attempts": 4}, chunk_requests=30
    )
    return services, run_local(services, new_batch(services, chat_file(100, prompt=orders)).id)


def test_page_starts_with_the_outcome(mixed):
    page = page_of(*mixed)
    assert "Completed 89 of 100 requests were answered, 11 failed." in page.words()
    assert mixed[1].input_filename in page.words()


def test_failures_are_listed_by_code_with_counts_and_statuses(mixed):
    page = page_of(*mixed)
    assert page.row("invalid_request")[1:] == [
        "10",
        "90.9 % of the failures",
        f"400{MULTIPLIER}6, 422{MULTIPLIER}4",
    ]
    assert page.row("server_error")[1:] == ["1", "9.1 % of the failures", f"503{MULTIPLIER}1"]


def test_first_three_failures_of_each_code_are_quoted(mixed):
    services, batch = mixed
    page = page_of(services, batch)
    lines = [json.loads(line) for line in services.store.read(layout.errors_key(batch.id)).splitlines()]
    for code in ("invalid_request", "server_error"):
        told = [line for line in lines if line["error"]["code"] == code]
        quoted = [
            f"line {line['id'].rpartition('-')[2]} · {line['custom_id']} · HTTP "
            f"{line['response']['status_code']} {line['error']['message']}"
            for line in told
        ]
        assert [text in page.words() for text in quoted] == [number < 3 for number in range(len(told))]


def test_page_shows_the_metrics_of_the_report(mixed):
    services, batch = mixed
    page, report = page_of(services, batch), report_of(services, batch)
    [model] = report.models
    assert page.row("gpt-4o-mini")[1:3] == [f"{model.requests}", f"{model.failed}"]
    assert f"Tokens {batch.analytics.total_tokens:,}: prompt {model.prompt_tokens:,}, " in page.words()
    assert f"Exact cost {batch.analytics.total_cost} USD" in page.words()
    [retries] = [table for table in page.tables if table[0][0] == "Repeated because of"]
    assert {row[0]: int(row[1]) for row in retries[1:]} == report.retries


def test_chart_tables_count_every_request(mixed):
    page = page_of(*mixed)
    durations = next(table for table in page.tables if table[0][0] == "Duration")
    over_time = next(table for table in page.tables if table[0][0] == "UTC")
    for rows in (durations[1:], over_time[1:]):
        assert [sum(int(row[column]) for row in rows) for column in (1, 2)] == [89, 11]


# Endings


OUTCOMES = [
    ((5, 5, {}), "All 5 requests were answered."),
    ((1, 0, {"timeout": 1}), "The one request failed."),
    ((5, 3, {"timeout": 2}), "3 of 5 requests were answered, 2 failed."),
    (
        (2_000, 187, {"batch_cancelled": 1_810, "timeout": 3}),
        "187 of 2,000 requests were answered, 3 failed, 1,810 were cancelled.",
    ),
    (
        (4, 1, {"batch_cancelled": 1, "batch_expired": 2}),
        "1 of 4 requests was answered, 1 was cancelled, 2 expired.",
    ),
    ((1, 0, {"batch_cancelled": 1}), "The one request was cancelled."),
    ((3, 0, {"batch_expired": 3}), "None of the 3 requests was answered: 3 expired."),
]


@pytest.mark.parametrize(("counts", "sentence"), OUTCOMES, ids=[sentence for _, sentence in OUTCOMES])
def test_outcome_sentence_separates_failed_from_unanswered_requests(counts, sentence):
    total, completed, failures = counts
    batch = ended(total=total, completed=completed, failed=total - completed)
    assert outcome_sentence(batch, BatchReport(failures=failures)) == sentence


@pytest.mark.parametrize(
    ("parts", "whole", "found"),
    [
        ([(999_000, "good"), (1_000, "bad")], 1_000_000, [("good", 0, 98), ("bad", 98, 2)]),
        ([(1_000, "good"), (1_000, "bad")], 1_000_000, [("good", 0, 2), ("bad", 2, 2)]),
        ([(1, "good"), (999_999, "bad")], 1_000_000, [("good", 0, 2), ("bad", 2, 98)]),
        ([(3, "good"), (0, "bad")], 6, [("good", 0, 50)]),
        ([(0, "good"), (0, "bad")], 0, []),
    ],
)
def test_bar_segments_have_a_minimum_width(parts, whole, found):
    assert bar_segments(parts, whole, 2) == found


def assert_told(services, batch, *words):
    page = page_of(services, batch)
    assert batch.status.capitalize() in page.words()
    for some in words:
        assert some in page.words()


def test_page_of_batch_with_only_failures_shows_the_reason(start_simulator, make_services, chat_file):
    services = make_services(start_simulator().base_url)
    batch = run_local(services, new_batch(services, chat_file(5, prompt=lambda _: "simulate:status=400")).id)
    assert batch.status is BatchStatus.FAILED
    assert_told(
        services, batch, "None of the 5 requests was answered.", "every request failed (invalid_request 5)"
    )


def test_page_of_batch_with_rejected_key_explains_without_the_key(start_simulator, make_services, chat_file):
    key = {"api_key": "sk-not-for-anyone", "max_in_flight": 2}
    services = make_services(start_simulator(api_key="another").base_url, upstream=key)
    batch = run_local(services, new_batch(services, chat_file(50), options={"on_limit": "stop"}).id)
    assert_told(services, batch, "check the upstream's api_key", "batch_cancelled")
    assert b"sk-not-for-anyone" not in services.store.read(layout.report_page_key(batch.id))


def test_page_of_single_request_uses_the_singular(start_simulator, make_services, chat_file):
    services = make_services(start_simulator().base_url)
    batch = run_local(services, new_batch(services, chat_file(1)).id)
    assert_told(services, batch, "The one request was answered.", "What failed Nothing.")


def test_page_counts_results_without_usage(make_services, chat_file):
    with recording_upstream() as server:
        services = make_services(server.base_url)
        batch = run_local(services, new_batch(services, chat_file(3)).id)
    assert_told(services, batch, "3 answers did not tell their tokens")


def test_page_of_model_without_price_shows_unknown_cost(start_simulator, make_services, tmp_path):
    services = make_services(start_simulator().base_url)
    batch = run_local(services, new_batch(services, file_of(tmp_path / "own.jsonl", "a", "our-own")).id)
    assert_told(services, batch, "Cost unknown no price for our-own")


def test_batch_that_failed_validation_has_no_page(start_simulator, make_services, tmp_path):
    services = make_services(start_simulator().base_url)
    (tmp_path / "bad.jsonl").write_text("not json\n")
    batch = run_local(services, new_batch(services, tmp_path / "bad.jsonl").id)
    assert not services.store.exists(layout.report_page_key(batch.id))


# What is foreign


def file_of(path, custom_id, model, prompt="Say something."):
    body = {"model": model, "messages": [{"role": "user", "content": prompt}]}
    line = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}
    path.write_text(json.dumps(line) + "\n")
    return path


def test_hostile_text_is_escaped(start_simulator, make_services, tmp_path):
    services = make_services(start_simulator(models=("served",)).base_url)
    path = file_of(tmp_path / f"{HOSTILE.replace('/', '')}.jsonl", HOSTILE, HOSTILE)
    batch = run_local(services, new_batch(services, path, metadata={HOSTILE[:64]: HOSTILE}).id)

    page = page_of(services, batch)
    shown = HOSTILE.replace("\u202e", " ")
    assert f"/chat/completions {shown} is not served" in page.words()
    assert page.words().count(shown) >= 3
    assert "\u202e" not in page.text
    assert " 49" not in page.words()


def test_huge_error_line_is_sampled_in_bounded_memory(make_services):
    store = make_services("http://localhost").store
    body = json.dumps({"message": "no", "echo": 'x",\\"error\\":{"code":"y"}' * 500_000}).encode()
    line = encode_result_line(
        request_id="req-1-1",
        custom_id=b'"a"',
        status_code=400,
        upstream_request_id=None,
        body=body,
        error_code="invalid_request",
        message='too "long"',
    )
    store.put("errors.jsonl", line)
    failure = failed(offset=0, length=len(line))

    tracemalloc.start()
    [sample] = read_samples(store, "errors.jsonl", [failure])["invalid_request"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert sample.message == 'too "long"'
    assert len(line) > 10_000_000
    assert peak < 500_000


def failed(**changes):
    values = {"line": 1, "custom_id": "a", "error_code": "invalid_request", "status_code": 400}
    return Failure(**{**values, "offset": 0, "length": 1, **changes})


def test_long_texts_are_truncated():
    failure = failed(custom_id="i" * 512)
    report = BatchReport(failures={"invalid_request": 1}, models=[ModelMetrics(model="m" * 10**6)])
    page = render_page(ended(), report, {"invalid_request": [Sample(failure, "e" * 10**6)]})
    assert len(page) < 30_000
    assert "e" * 299 + "…" in Page(page).text


def test_models_beyond_the_limit_are_summed_in_one_row():
    models = [
        ModelMetrics(model=f"model-{n}", requests=n + 1, total_tokens=5, prompt_tokens=5) for n in range(2_000)
    ]
    page = Page(render_page(ended(), BatchReport(models=models), {}))
    assert page.size < 60_000
    rest = page.row("1,975 more models")
    assert rest[1] == f"{sum(range(1, 1_976)):,}"


# Crashes, faults, retries, deletions


def breaking(monkeypatch, services, error, *, key):
    """Make writes of that object raise until the returned list is cleared."""
    put, broken = services.store.put, [key]

    def put_or_fail(name, data):
        if name.rpartition("/")[2] in broken:
            raise error
        put(name, data)

    monkeypatch.setattr(services.store, "put", put_or_fail)
    return broken


@pytest.mark.parametrize("error", [StorageFault("the disk is full"), ValueError("a bug")], ids=["fault", "bug"])
def test_batch_completes_if_its_page_cannot_be_written(
    error, start_simulator, make_services, chat_file, monkeypatch, caplog
):
    services = make_services(start_simulator().base_url)
    breaking(monkeypatch, services, error, key="report.html")
    batch = run_local(services, new_batch(services, chat_file(3)).id)
    assert (batch.status, batch.completed) == (BatchStatus.COMPLETED, 3)
    assert not services.store.exists(layout.report_page_key(batch.id))
    assert f"{batch.id} has no report page: {type(error).__name__}: {error}" in caplog.text


def test_resume_after_crash_before_final_status_rewrites_the_page(
    start_simulator, make_services, chat_file, monkeypatch
):
    services = make_services(start_simulator().base_url)
    batch = new_batch(services, chat_file(30, prompt=orders))
    move = services.records.change_status

    def crash(batch_id, target, **fields):
        if target in TERMINAL_STATUSES:
            raise StorageFault("the database is gone")
        return move(batch_id, target, **fields)

    with monkeypatch.context() as for_once:
        for_once.setattr(services.records, "change_status", crash)
        with pytest.raises(StorageFault):
            run_local(services, batch.id)
    assert services.store.exists(layout.report_page_key(batch.id))

    time.sleep(1.1)  # so that the page that is left tells of another moment
    ended = run_local(services, batch.id)
    page = page_of(services, ended)
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(ended.completed_at))
    assert ("datetime", moment) in page.attributes


@pytest.fixture
def failed_once(start_simulator, make_services, chat_file):
    """A batch with failures that a retry may mend: its services and record."""
    services = make_services(
        start_simulator(server_error=0.4).base_url, upstream={"max_attempts": 1}, chunk_requests=20
    )
    return services, run_local(services, new_batch(services, chat_file(60)).id)


def test_retry_rewrites_the_page(failed_once):
    services, before = failed_once
    retry_batch(services, before.id)
    after = run_local(services, before.id)
    assert after.completed > before.completed
    page = page_of(services, after)
    assert f"{after.completed} of 60 requests were answered, {after.failed} failed." in page.words()
    assert "Retried once;" in page.words()
    first = json.loads(services.store.read(layout.errors_key(after.id)).splitlines()[0])
    assert f"line {first['id'].rpartition('-')[2]} · {first['custom_id']} · HTTP 500" in page.words()


def test_retry_that_cannot_write_its_page_deletes_the_old_page(failed_once, monkeypatch):
    services, batch = failed_once
    breaking(monkeypatch, services, StorageFault("the disk is full"), key="report.html")
    retry_batch(services, batch.id)
    assert run_local(services, batch.id).status is BatchStatus.COMPLETED
    assert not services.store.exists(layout.report_page_key(batch.id))


@pytest.mark.parametrize("deleted", ["the batch", "its error file"])
def test_page_is_deleted_with_the_batch_or_its_error_file(deleted, mixed):
    services, batch = mixed
    client = Batchline(services=services)
    if deleted == "the batch":
        client.batches.delete(batch.id)
    else:
        client.files.delete(batch.error_file_id)
    assert not services.store.exists(layout.report_page_key(batch.id))


def test_page_is_listed_among_the_files_of_the_batch(mixed):
    services, batch = mixed
    content = b"".join(Batchline(services=services).batches.files(batch.id)["report.html"])
    assert content == services.store.read(layout.report_page_key(batch.id))


# Any report


def ended(status=BatchStatus.COMPLETED, **changes):
    values = {
        "id": "batch-1",
        "status": status,
        "endpoint": "/v1/chat/completions",
        "input_file_id": "file-1",
        "input_filename": "requests.jsonl",
        "completion_window": "24h",
        "created_at": 1_790_000_000,
        "expires_at": 1_790_086_400,
        "in_progress_at": 1_790_000_001,
        f"{status}_at": 1_790_000_060,
        "analytics": BatchAnalytics(),
    }
    return BatchRecord(**{**values, **changes})


counts = st.integers(0, 10**12)
numbers = st.floats(0, 1e15) | st.floats()
names = st.text(max_size=30) | st.sampled_from([HOSTILE, "x" * 3_000, "\ud800", "\0"])
costs = st.none() | st.decimals(0, 10**9, places=9).map(str)
by_name = st.dictionaries(names, counts, max_size=12)
points = st.none() | st.builds(Percentiles, p50=numbers, p90=numbers, p95=numbers, p99=numbers, max=numbers)
any_reports = st.builds(
    BatchReport,
    duration_ms=points,
    ttfb_ms=points,
    queue_ms=points,
    durations=st.lists(
        st.builds(DurationBin, from_ms=numbers, to_ms=numbers, completed=counts, failed=counts), max_size=240
    ),
    attempts=counts,
    retries=by_name,
    requests_by_attempts=st.dictionaries(st.integers(0, 9), counts),
    failures=by_name,
    failure_messages=st.dictionaries(
        st.sampled_from(CODES), st.builds(FailureMessage, message=names, count=counts)
    ),
    finish_reasons=by_name,
    marks=by_name,
    failure_statuses=st.dictionaries(st.sampled_from(CODES), st.dictionaries(st.integers(0, 599), counts)),
    models=st.lists(
        st.builds(
            ModelMetrics,
            model=names,
            **dict.fromkeys(["requests", "failed", "prompt_tokens", "completion_tokens", "total_tokens"], counts),
            duration_ms=points,
            cost=costs,
        ),
        max_size=40,
    ),
    interval_s=numbers,
    throughput=st.lists(
        st.builds(
            ThroughputPoint,
            at=numbers,
            requests=counts,
            tokens=counts,
            failed=counts,
            in_flight=st.none() | numbers,
        ),
        max_size=250,
    ),
    **dict.fromkeys(["requests_per_s", "tokens_per_s", "completion_tokens_per_s"], numbers),
    **dict.fromkeys(["first_started_at", "last_ended_at"], st.none() | numbers),
    **dict.fromkeys(["without_usage", "wasted_tokens"], counts),
    **dict.fromkeys(["wasted_cost_at_most", "known_cost"], costs),
    unpriced_models=st.lists(names, max_size=40),
    currency=st.sampled_from([None, "USD"]),
)
samples = st.dictionaries(
    st.sampled_from(CODES),
    st.lists(
        st.builds(
            Sample,
            st.builds(failed, custom_id=names, status_code=st.none() | st.integers(100, 599)),
            message=names,
        ),
        max_size=3,
    ),
)
batches = st.builds(
    ended,
    st.sampled_from(sorted(TERMINAL_STATUSES)),
    input_filename=names,
    total=counts,
    completed=counts,
    failed=counts,
    metadata=st.none() | st.dictionaries(names, names, max_size=16),
    errors=st.none() | st.tuples(st.builds(BatchError, message=names, line=st.none() | st.integers(1, 9))),
    analytics=st.builds(BatchAnalytics, total_tokens=counts, total_cost=costs),
)


@settings(deadline=None, max_examples=60)
@given(batches, any_reports, samples)
def test_page_of_any_report_is_well_formed_and_small(batch, report, quoted):
    page = Page(render_page(batch, report, quoted))
    page.assert_stands_alone()
    page.assert_drawn_with_numbers()
    assert page.size < 250_000


@settings(deadline=None, max_examples=60)
@given(st.lists(any_figures(), max_size=30))
def test_page_of_any_analytics_is_well_formed(rows):
    analytics, report = compute_analytics(make_tables(rows, 7), prices={})
    ok = sum(row.ok for row in rows)
    batch = ended(total=len(rows), completed=ok, failed=len(rows) - ok, analytics=analytics)
    Page(render_page(batch, report, {})).assert_drawn_with_numbers()


@pytest.mark.parametrize("in_flight", [5e-324, 1e-300, 0.0])
def test_tiny_in_flight_values_are_drawn_as_zero(in_flight):
    _, report = compute_analytics(make_tables([], 7), prices={})
    point = ThroughputPoint(at=0.0, requests=1, tokens=1, failed=0, in_flight=in_flight)
    report = report.model_copy(update={"throughput": [point, point], "interval_s": 1.0})

    Page(render_page(ended(), report, {})).assert_drawn_with_numbers()
