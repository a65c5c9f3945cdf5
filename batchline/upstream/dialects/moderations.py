"""`/v1/moderations`: a list of results."""

from typing import Any, Final

import msgspec

from batchline.models.error_codes import ErrorCode
from batchline.models.outcomes import Judgement
from batchline.models.usage import ReportedUsage, to_usage
from batchline.upstream.dialects.answers import Answer, ModelName, has_objects, missing_list


class _Result(msgspec.Struct, gc=False):
    pass


class _ModerationReply(msgspec.Struct, gc=False):
    results: list[_Result]
    usage: ReportedUsage | None = None
    model: ModelName | None = None


_decode: Final = msgspec.json.Decoder(_ModerationReply).decode


def read_quickly(body: bytes) -> Judgement | None:
    """Return the judgement of an ordinary answer; None if the body needs `read_answer`.

    Raises `msgspec.DecodeError` or `RecursionError` for some of those.
    """
    reply = _decode(body)
    if not reply.results:
        return None
    usage = reply.usage
    return Judgement(body=body, usage=None if usage is None else to_usage(usage), model=reply.model)


def read_answer(body: dict[str, Any]) -> Answer:
    """Return the outcome of a decoded body."""
    if (failure := missing_list(body, "results")) is not None:
        return failure
    return Answer() if has_objects(body["results"]) else Answer(ErrorCode.EMPTY_RESPONSE, "results has no result")
