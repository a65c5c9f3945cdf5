"""A settled request as a row of metrics and as a line of a result file."""

from batchline.analytics.request_metrics import RequestMetrics, decode_custom_id
from batchline.models.lines import encode_result_line
from batchline.upstream.call_results import CallResult


def build_metrics(result: CallResult) -> RequestMetrics:
    """Return the metrics of a settled request; `retries` joins its retry reasons with commas."""
    usage = result.usage
    return RequestMetrics(
        result.call.line,
        result.code is None,
        decode_custom_id(result.call.custom_id),
        result.call.model,
        result.status_code,
        result.code,
        result.attempts,
        ",".join(result.retries),
        usage.prompt_tokens if usage else None,
        usage.completion_tokens if usage else None,
        usage.reasoning_tokens if usage else None,
        usage.cached_tokens if usage else None,
        usage.cache_write_tokens if usage else None,
        usage.total_tokens if usage else None,
        result.wasted_tokens,
        result.started_at if result.attempts else None,
        result.queued_s * 1e3 if result.queued_s is not None else None,
        result.duration_s * 1e3 if result.duration_s is not None else None,
        result.ttfb_s * 1e3 if result.ttfb_s is not None else None,
        result.finish_reason,
        result.mark,
    )


def build_result_line(id_prefix: str, result: CallResult) -> bytes:
    """Return the line of the output or error file, newline included; the prefix makes the line's own id unique."""
    call = result.call
    return encode_result_line(
        request_id=f"{id_prefix}{call.line}",
        custom_id=call.custom_id,
        status_code=result.status_code,
        upstream_request_id=result.request_id,
        body=result.body,
        error_code=result.code,
        message=result.message if result.code else None,
    )
