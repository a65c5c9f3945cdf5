"""Operations on batches: create, list, run, cancel, retry, read and delete."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, Literal

from batchline.client.access import Access
from batchline.client.arguments import ExpiresAfter, idempotency_of, parse_arguments, parse_lifetime_s
from batchline.client.batch_runs import POLL_INTERVAL_S, BatchRuns
from batchline.client.pagination import Page
from batchline.client.pauses import resume_where_it_ran
from batchline.client.progress import ProgressTracker
from batchline.client.raw_result import RawResult
from batchline.client.results import read_results
from batchline.client.runner import BatchRunner
from batchline.engine.deletion import delete_now
from batchline.engine.ingest import create_batch, new_batch
from batchline.engine.retry import resolve_request_ids, retry_batch
from batchline.engine.services import Services
from batchline.models.analytics import BatchAnalytics, BatchReport
from batchline.models.batches import (
    BatchDwExtResponse,
    BatchResponse,
    BatchResultItem,
    BatchResultsQuery,
    CreateBatchRequest,
    IncludeQuery,
    ListBatchesQuery,
    Origin,
    RetryRequest,
    RetryRequestsRequest,
)
from batchline.models.errors import Conflict, Interrupted, LeaseLost, NotFound
from batchline.models.ids import batch_id_of_request, request_id_prefix
from batchline.models.options import BatchOptions, OnLimit
from batchline.models.status import TERMINAL_STATUSES, BatchStatus
from batchline.report.report_data import published_uris, read_report, report_of
from batchline.report.samples import Sample, read_samples
from batchline.steps.validate_lines import detect_endpoint
from batchline.steps.write import read_manifest
from batchline.storage.objects import layout
from batchline.storage.records.lease_owners import new_lease_owner
from batchline.storage.records.store import BatchRecord, FileRecord, Idempotency

log = logging.getLogger(__name__)

Via = Literal["process", "deployment"]
DELETION_MARGIN_S: Final = 10.0  # covers a runner that uses all its grace and then writes files
"""Seconds beyond the grace period that a deletion waits for the batch's runner to stop."""


class Batches(BatchRuns):
    """The batches in the database of these services, created by `Batchline.batches`."""

    def __init__(
        self, services: Services, runner: BatchRunner, tracker: ProgressTracker, origin: Origin, access: Access
    ) -> None:
        super().__init__(services, runner, tracker, access)
        self._origin = origin

    def create(
        self,
        *,
        input_file_id: str,
        endpoint: str | None = "/v1/chat/completions",
        completion_window: str = "24h",
        metadata: Mapping[str, str] | None = None,
        options: BatchOptions | Mapping[str, object] | None = None,
        output_expires_after: ExpiresAfter | None = None,
        idempotency_key: str | Idempotency | None = None,
        flow_run_id: str | None = None,
        via: Via | None = "process",
        default_on_limit: OnLimit | None = None,
    ) -> BatchResponse:
        """Create a batch from an uploaded file, start it, and return it with status `validating`.

        An `endpoint` of None is that of the file's first request. `via` is where the batch runs: in the background
        of this process, as a run of the configured deployment, or not yet if None. An `idempotency_key` or
        `flow_run_id` used before returns the batch created with it, as it is now. `default_on_limit` replaces the
        default of the option `on_limit`. Raises `InvalidInput` for an invalid endpoint, window, metadata, option
        or key, `NotFound` for an unknown file, and `Interrupted` if Prefect does not accept the run; the batch can
        then be resumed.
        """
        expires_after_s, access = parse_lifetime_s(output_expires_after), self._access
        request = parse_arguments(
            CreateBatchRequest,
            input_file_id=input_file_id,
            endpoint=endpoint or self._detect_endpoint(input_file_id),
            completion_window=completion_window,
            metadata=None if metadata is None else dict(metadata),
            options=options,
        )
        idempotency = idempotency_of(idempotency_key, request, expires_after_s, access.member_id)
        if idempotency and (existing := self._services.records.find_batch_by_key(idempotency)) is not None:
            return existing.to_response()
        # After the key: a repeated request succeeds even if the input file was deleted meanwhile.
        self._get_file(input_file_id)
        batch = create_batch(
            self._services,
            request,
            origin=BatchDwExtResponse(source="deployment" if via == "deployment" else self._origin),
            flow_run_id=flow_run_id,
            output_expires_after=expires_after_s,
            default_on_limit=default_on_limit,
            member_id=access.member_id,
            open_batch_limit=access.open_batch_limit(access.member_id),
            idempotency=idempotency,
        )
        return self._start_run(batch, via)

    def new_record(self, request: CreateBatchRequest, file: FileRecord, origin: BatchDwExtResponse) -> BatchRecord:
        """Build the record of a batch for a caller that stores it in a transaction of its own."""
        return new_batch(self._services.settings, request, file, origin=origin, member_id=self._access.member_id)

    def _get_file(self, file_id: str) -> FileRecord:
        return self._services.records.get_file(file_id, member_id=self._access.member_filter)

    def _detect_endpoint(self, file_id: str) -> str:
        content = self._services.store.stream(self._get_file(file_id).key)
        return detect_endpoint(content, settings=self._services.settings)

    def retrieve(self, batch_id: str, *, include: Sequence[str] = ("analytics",)) -> BatchResponse:
        """Return the batch; raises `NotFound`, and `InvalidInput` for an unknown field to include."""
        query = parse_arguments(IncludeQuery, include=include if isinstance(include, str) else ",".join(include))
        return self.record(batch_id).to_response(include_analytics=query.includes_analytics)

    def analytics(self, batch_id: str) -> BatchAnalytics:
        """Return the batch's metrics; while it runs, of the requests settled so far. Raises `NotFound`."""
        batch = self.record(batch_id)
        if batch.analytics is None and batch.in_progress_at is not None and batch.status not in TERMINAL_STATUSES:
            try:
                return self._services.partial_analytics.read(batch)
            except NotFound:  # it ended meanwhile, which deletes the partial analytics
                batch = self.record(batch_id)
        return batch.analytics or BatchAnalytics()

    def report(self, batch_id: str) -> BatchReport:
        """Return the detailed report; raises `NotFound` until the batch has ended."""
        self.record(batch_id)
        return read_report(self._services.store, batch_id)

    def find_report(self, batch_id: str) -> BatchReport | None:
        """Return the detailed report, or None if there is none or it cannot be read now."""
        return report_of(self._services.store, batch_id)

    def file_uris(self, batch: BatchRecord) -> dict[str, str]:
        """Return the addresses of an ended batch's files by what they are: output, errors, figures, report."""
        return published_uris(self._services.store, batch)

    def failures(self, batch_id: str) -> dict[str, list[Sample]]:
        """Return sample failed requests by error code; raises `NotFound` until the batch has ended."""
        batch, store = self.record(batch_id), self._services.store
        if batch.final_prefix is None or batch.status not in TERMINAL_STATUSES:
            raise NotFound(f"batch {batch_id} is {batch.status}; it has no samples of failures until it has ended")
        if batch.error_file_id is None:
            return {}
        manifest = read_manifest(store, batch.final_prefix)
        return read_samples(store, layout.final_keys(manifest.prefix).errors, manifest.first_failures)

    def files(self, batch_id: str) -> dict[str, Iterator[bytes]]:
        """Return the content of the batch's existing files by name; empty until the batch has ended."""
        batch, store = self.record(batch_id), self._services.store
        if batch.final_prefix is None or batch.status not in TERMINAL_STATUSES:
            return {}
        final_keys = layout.final_keys(batch.final_prefix)
        keys = {
            "output.jsonl": final_keys.output if batch.output_file_id else None,
            "errors.jsonl": final_keys.errors if batch.error_file_id else None,
            "requests.parquet": final_keys.requests,
            "report.json": layout.report_data_key(batch_id),
            "report.html": layout.report_page_key(batch_id),
        }
        return {name: store.stream(key) for name, key in keys.items() if key is not None and store.exists(key)}

    def list(self, /, **query: Any) -> Page[BatchResponse]:
        """Return a page of batches selected by `ListBatchesQuery`, newest first; iterating reads all pages.

        Raises `InvalidInput` for an invalid query, `NotFound` for an unknown cursor.
        """
        return self._fetch_page(
            parse_arguments(ListBatchesQuery, **query),
            lambda record, page_query: record.to_response(include_analytics=page_query.includes_analytics),
        )

    def records(self, **query: Any) -> Page[BatchRecord]:
        """Return a page like `list`, of database records."""
        return self._fetch_page(parse_arguments(ListBatchesQuery, **query), lambda record, _: record)

    def _fetch_page(
        self, query: ListBatchesQuery, convert: Callable[[BatchRecord, ListBatchesQuery], Any]
    ) -> Page[Any]:
        if query.after is not None and self._access.is_restricted:
            self.record(query.after)
        restricted_query = query.model_copy(update={"member_id": self._access.visible_member(query.member_id)})
        records, has_more = self._services.records.list_records(restricted_query, now=int(time.time()))

        def fetch_after(cursor: str | None) -> Page[Any]:
            return self._fetch_page(query.model_copy(update={"after": cursor}), convert)

        return Page([convert(record, query) for record in records], has_more, fetch_after)

    def resume(
        self, batch_id: str, *, via: Via | None = "process", deployment: str | None = None
    ) -> BatchResponse:
        """Start a batch that has not ended and is not running, and end its pause; raises `Conflict` otherwise.

        A paused batch continues in its flow run if it has one, or in the process that still finishes its requests;
        else it is started as `via` says. `deployment` is the one to start a run of, by default that of the
        settings.
        """
        batch = self.record(batch_id)
        if batch.pause is not None:
            if resume_where_it_ran(self._services, batch) in {"same process", "flow run"}:
                return self.retrieve(batch_id)
            batch = self.record(batch_id)
            if batch.pause is not None:
                batch = self._services.records.resume(batch_id)
        if batch.status in TERMINAL_STATUSES:
            raise Conflict(f"batch {batch_id} is {batch.status}; there is nothing to resume; retry it?")
        if batch.is_leased(now=self._services.records.now(), lease_s=self._services.settings.lease_s):
            raise Conflict(f"batch {batch_id} is being run by another process ({batch.lease_owner})")
        return self._start_run(batch, via, deployment)

    def cancel(self, batch_id: str) -> BatchResponse:
        """Cancel the batch and return it: `cancelling`, or `cancelled` if nothing had been sent.

        Answers received so far are kept. Does nothing if it is already cancelling or cancelled. Raises `Conflict`
        if it has ended or is writing its files.
        """
        records, batch = self._services.records, self.record(batch_id)
        if batch.status in {BatchStatus.CANCELLING, BatchStatus.CANCELLED}:
            return batch.to_response()
        was_paused = batch.pause is not None
        try:
            batch = records.change_status(batch_id, BatchStatus.CANCELLING, now=int(time.time()))
        except Conflict:
            # The status has changed since it was read; if by another cancel, this one succeeds too.
            batch = records.get_batch(batch_id)
            if batch.status not in {BatchStatus.CANCELLING, BatchStatus.CANCELLED}:
                raise Conflict(f"batch {batch_id} is {batch.status} and cannot be cancelled") from None
        if batch.in_progress_at is None:
            batch = self._cancel_unstarted(batch)
        elif was_paused and batch.status is BatchStatus.CANCELLING:
            self._write_cancelled(batch)
        return batch.to_response()

    def _write_cancelled(self, batch: BatchRecord) -> None:
        """Have the files of a batch written that was cancelled while it was paused, when no process has it."""
        if batch.last_flow_run_id is not None:
            from batchline.orchestration import pause_in_prefect, run_needed  # noqa: PLC0415 - loads Prefect

            if run_needed.has_prefect_server():
                try:
                    pause_in_prefect.cancel_suspended_run(batch.last_flow_run_id, f"{batch.id} was cancelled")
                except Interrupted as error:
                    log.warning("the flow run of %s stays suspended: %s", batch.id, error)
        if not batch.is_leased(now=self._services.records.now(), lease_s=self._services.settings.lease_s):
            self._runner.start(batch.id)

    def _cancel_unstarted(self, batch: BatchRecord) -> BatchRecord:
        """End a cancelled batch that has sent nothing, unless a runner holds it and will end it."""
        records, settings = self._services.records, self._services.settings
        try:
            lease = records.claim(batch.id, owner=new_lease_owner(), lease_s=settings.lease_s)
        except Conflict:
            return batch
        try:
            return records.change_status(batch.id, BatchStatus.CANCELLED, now=int(time.time()), lease=lease)
        except Conflict:
            return records.get_batch(batch.id)
        finally:
            records.release(lease)

    def retry(self, batch_id: str, *, mark: str | None = None, via: Via | None = "process") -> BatchResponse:
        """Send all failed, expired and cancelled requests of an ended batch again; it is `in_progress` then.

        With a `mark`, send instead the completed requests that have it: `truncated` or `invalid_output`. Their new
        answers replace the old ones; a request that fails then is failed, and one that stays unanswered keeps its
        answer. Raises `Conflict` if the batch has not ended or has no such request, and `LimitReached` if the
        member has too many open batches.
        """
        request = parse_arguments(RetryRequest, mark=mark)
        batch = self.record(batch_id)
        limit = self._access.open_batch_limit(batch.member_id)
        retried = retry_batch(self._services, batch.id, mark=request.mark, open_batch_limit=limit)
        return self._start_run(retried, via)

    def retry_requests(
        self, batch_id: str, request_ids: Sequence[str], *, via: Via | None = "process"
    ) -> BatchResponse:
        """Retry the failed requests with these ids or custom_ids; raises as `retry`.

        Raises `InvalidInput` that names the ids that are unknown or have not failed.
        """
        request = parse_arguments(RetryRequestsRequest, request_ids=list(request_ids))
        batch = self.record(batch_id)
        ids = resolve_request_ids(self._services, batch, request.request_ids)
        if self._access.is_restricted:
            self._require_visible_requests(batch.id, ids)
        limit = self._access.open_batch_limit(batch.member_id)
        return self._start_run(retry_batch(self._services, batch.id, ids, open_batch_limit=limit), via)

    def _require_visible_requests(self, batch_id: str, request_ids: Sequence[str]) -> None:
        """Raise `NotFound` for the first request of a batch that the caller may not see."""
        prefix = request_id_prefix(batch_id)
        foreign_id = next((request_id for request_id in request_ids if not request_id.startswith(prefix)), None)
        if foreign_id is not None:
            try:
                self.record(batch_id_of_request(foreign_id))
            except NotFound:
                raise NotFound(f"there is no request {foreign_id[:80]}") from None

    def results(
        self,
        batch_id: str,
        *,
        skip: int = 0,
        limit: int | None = None,
        search: str | None = None,
        status: str | None = None,
    ) -> Iterator[BatchResultItem]:
        """Yield the result of each request in input order, also while the batch runs; raises `NotFound`."""
        raw_results = self.raw_results(batch_id, skip=skip, limit=limit, search=search, status=status)
        return (result.to_item() for result in raw_results)

    def raw_results(self, batch_id: str, **query: Any) -> Iterator[RawResult]:
        """Yield results like `results`, with bodies of any size as unparsed JSON text."""
        results_query = parse_arguments(BatchResultsQuery, **query)
        return read_results(self._services, self.record(batch_id), results_query)

    def wait(
        self, batch_id: str, *, timeout_s: float | None = None, poll_interval_s: float = POLL_INTERVAL_S
    ) -> BatchResponse:
        """Wait until the batch has ended and return it with its analytics.

        Raises `TimeoutError` after `timeout_s`, and the error that stopped the batch if it ran in this process.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while (batch := self.batch_if_ended(batch_id)) is None:
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"batch {batch_id} has not ended after {timeout_s:g} s")
            time.sleep(poll_interval_s)
        return batch

    def batch_if_ended(self, batch_id: str) -> BatchResponse | None:
        """Return the batch with its analytics, or None if it has not ended; raises the error that stopped it."""
        is_running = self._runner.is_running(batch_id)  # check first: a run stores the batch's end before it exits
        batch = self.record(batch_id)
        if batch.status in TERMINAL_STATUSES:
            return batch.to_response(include_analytics=True)
        error = None if is_running else self._runner.find_error(batch_id)
        if error is not None:
            raise error
        return None

    def delete(self, batch_id: str) -> None:
        """Delete the batch with its output and error files; its input file, which may be shared, stays.

        A running batch is cancelled first. Raises `Conflict` if its runner does not stop in time.
        """
        deadline = time.monotonic() + self.deletion_timeout_s
        while (reason := self.delete_if_idle(batch_id)) is not None:
            if time.monotonic() >= deadline:
                raise reason
            time.sleep(POLL_INTERVAL_S)

    @property
    def deletion_timeout_s(self) -> float:
        """Seconds that a deletion waits for the batch's runner to stop."""
        return self._services.settings.grace_s + DELETION_MARGIN_S

    def delete_if_idle(self, batch_id: str) -> Conflict | None:
        """Delete the batch, or cancel it and return why it cannot be deleted yet.

        In that case, try again after `POLL_INTERVAL_S`.
        """
        settings, records = self._services.settings, self._services.records
        self.record(batch_id)
        try:
            # Row first: objects left by a crash in between are found by their pending deletion.
            deleted = records.delete_batch(batch_id, lease_s=settings.lease_s)
        except Conflict as reason:
            with suppress(Conflict, NotFound, LeaseLost):
                self.cancel(batch_id)
            return reason
        delete_now(self._services, layout.batch_prefix(deleted.id))
        return None

    def _start_run(self, batch: BatchRecord, via: Via | None, deployment: str | None = None) -> BatchResponse:
        if via == "process":
            self._runner.start(batch.id)
        elif via == "deployment":
            from batchline.orchestration.deployments import start_deployment_run  # noqa: PLC0415 - loads Prefect

            start_deployment_run(self._services, batch.id, deployment=deployment)
        return batch.to_response()
