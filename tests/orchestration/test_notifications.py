"""Notices as Prefect's server renders them."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from prefect.server.utilities.user_templates import render_user_template_sync

from batchline.orchestration.notifications import BATCH_TEMPLATES

COUNTS = {"batch_id": "batch-1", "completed": 0, "failed": 0, "total": 0, "run_url": "http://pages/run"}
FAILED = COUNTS | {"message": 'failed: line 3: "method" is missing (and 4 more); nothing was sent'}
LATE = COUNTS | {"completed": 1_200, "total": 3_000, "late_by_s": 90}


def rendered(template: str, event: str, payload: dict[str, Any]) -> str:
    told = SimpleNamespace(event=event, payload=payload, resource=SimpleNamespace(name="p.jsonl"))
    return str(render_user_template_sync(template, {"event": told, "flow_run": None}))


@pytest.mark.parametrize(
    ("event", "payload", "words"),
    [
        ("batch.failed", FAILED, 'p.jsonl failed: line 3: "method" is missing (and 4 more); nothing was sent'),
        (
            "batch.deadline_at_risk",
            LATE,
            "p.jsonl: deadline at risk, 1,200 ok, 0 failed of 3,000, 90 s late at this speed",
        ),
    ],
    ids=["the end", "a late one"],
)
def test_notification_text_states_outcome_and_reason(event, payload, words):
    hook = json.loads(rendered(BATCH_TEMPLATES.payload, event, payload))

    assert (hook["text"], hook["event"], hook["batch"], hook["url"]) == (words, event, payload, "http://pages/run")
    assert rendered(BATCH_TEMPLATES.subject, event, payload) == words
    assert rendered(BATCH_TEMPLATES.body, event, payload) == f"{words}\nbatch-1\nhttp://pages/run"
