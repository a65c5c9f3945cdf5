"""Tells webhooks, chats and mailboxes when a batch ends, and when one will not be done in time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from prefect.blocks.fields import SecretDict
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient
from prefect.events.actions import CallWebhook, SendNotification
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound
from pydantic import SecretStr

from batchline.models.errors import InvalidInput
from batchline.orchestration.automations import on_batches

TOLD: Final = ("completed", "failed", "expired", "cancelled", "deadline_at_risk")

SUBJECT: Final = (
    "{{ event.resource.name }}: {{ event.event.removeprefix('batch.').replace('_', ' ') }}, "
    "{{ '{:,} ok, {:,} failed of {:,}'.format("
    "event.payload.completed, event.payload.failed, event.payload.total) }}"
    "{% if event.payload.late_by_s %}, {{ event.payload.late_by_s }} s late at this speed{% endif %}"
)
PAGE: Final = "{% set page = (flow_run | ui_url if flow_run else none) or event.payload.get('run_url') %}"
"""The run's page as the server knows it, else as the run did."""

BODY: Final = (
    PAGE + SUBJECT + "{% if event.payload.error %}\n{{ event.payload.error }}{% endif %}"
    "\n{{ event.payload.batch_id }}{% if page %}\n{{ page }}{% endif %}"
)
PAYLOAD: Final = (
    PAGE + "{% set text %}" + SUBJECT + "{% endset %}"
    '{"text": {{ text | string | tojson }}, "event": {{ event.event | tojson }}, '
    '"url": {{ page | tojson }}, "batch": {{ event.payload | tojson }}}'
)
"""What a webhook is sent: `text` is what chat services show, `batch` the event's figures."""


def notices(client: SyncPrefectClient, targets: Sequence[str]) -> AutomationCore:
    """The automation that tells each target: a URL, or type and name of a block, such as slack-webhook/ops.

    Raises `InvalidInput` for a block that is not there or cannot notify.
    """
    return AutomationCore(
        name="batchline: tell of batches",
        description="Ends of batches and deadlines in danger. Made by `batchline prefect setup`.",
        trigger=on_batches(*TOLD),
        actions=[_action(client, target, number) for number, target in enumerate(targets, start=1)],
    )


def _action(client: SyncPrefectClient, target: str, number: int) -> CallWebhook | SendNotification:
    if target.startswith(("http://", "https://")):
        hook = Webhook(url=SecretStr(target), headers=SecretDict({"Content-Type": "application/json"}))
        name = "batchline-notify" if number == 1 else f"batchline-notify-{number}"
        return CallWebhook(block_document_id=UUID(str(hook.save(name, overwrite=True))), payload=PAYLOAD)
    kind, _, name = target.partition("/")
    try:
        block = client.read_block_document_by_name(name, kind, include_secrets=False)
    except ObjectNotFound:
        raise InvalidInput(
            f"there is no block {target!r} to notify; write a URL, or the type and the name of a block that is on "
            "Prefect's page Blocks, such as slack-webhook/ops",
            param="notify",
        ) from None
    if kind == "webhook":
        return CallWebhook(block_document_id=block.id, payload=PAYLOAD)
    if block.block_schema is None or "notify" not in block.block_schema.capabilities:
        raise InvalidInput(
            f"block {target} cannot notify anybody; name a webhook or a notification", param="notify"
        )
    return SendNotification(block_document_id=block.id, subject=SUBJECT, body=BODY)
