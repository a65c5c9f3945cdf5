"""Creates automations that notify webhooks, chats and mailboxes of batches and quarantined files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple
from uuid import UUID

from prefect.blocks.fields import SecretDict
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient
from prefect.events.actions import CallWebhook, SendNotification
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound
from pydantic import SecretStr

from batchline.models.errors import InvalidInput
from batchline.orchestration.automations import batch_event_trigger, event_trigger
from batchline.orchestration.sync_reports import FILE_RESOURCE, QUARANTINED_EVENT

NOTIFIED_EVENTS: Final = ("completed", "failed", "expired", "cancelled", "deadline_at_risk")


class Templates(NamedTuple):
    """Templates of a notification: subject and body for a block, payload for a webhook."""

    subject: str
    body: str
    payload: str


def _build_templates(subject: str, detail: str, payload_name: str) -> Templates:
    """Return the templates with this subject, an event's field as detail, and the event's data in the payload.

    The URL of the run's page is from the server if it knows its address, else from the run's event. Chat services
    show the payload's `text`.
    """
    page = "{% set page = (flow_run | ui_url if flow_run else none) or event.payload.get('run_url') %}"
    body = page + subject + "\n{{ event.payload." + detail + " }}{% if page %}\n{{ page }}{% endif %}"
    payload = (
        page + "{% set text %}" + subject + "{% endset %}"
        '{"text": {{ text | string | tojson }}, "event": {{ event.event | tojson }}, '
        '"url": {{ page | tojson }}, "' + payload_name + '": {{ event.payload | tojson }}}'
    )
    return Templates(subject, body, payload)


BATCH_TEMPLATES: Final = _build_templates(
    "{{ event.resource.name }}"
    "{% if event.payload.message %} {{ event.payload.message }}"
    "{% else %}: {{ event.event.removeprefix('batch.').replace('_', ' ') }}, "
    "{{ '{:,} ok, {:,} failed of {:,}'.format("
    "event.payload.completed, event.payload.failed, event.payload.total) }}"
    "{% if event.payload.late_by_s %}, {{ event.payload.late_by_s }} s late at this speed{% endif %}"
    "{% endif %}",
    "batch_id",
    "batch",
)
"""The file and its batch's outcome with the reason, as in the flow run's state."""

FILE_TEMPLATES: Final = _build_templates(
    "{{ event.payload.file }}: quarantined, {{ event.payload.reason }}", "place", "file"
)


def notifications(client: SyncPrefectClient, targets: Sequence[str]) -> Iterator[AutomationCore]:
    """Yield the automations that notify each target: a URL, or a block such as slack-webhook/ops.

    Raises `InvalidInput` for a block that does not exist or cannot notify.
    """
    batches = batch_event_trigger(*NOTIFIED_EVENTS)
    files = event_trigger({QUARANTINED_EVENT}, {"prefect.resource.id": f"{FILE_RESOURCE}.*"})
    for name, description, trigger, templates in (
        ("batches", "Ends of batches and deadlines in danger", batches, BATCH_TEMPLATES),
        ("files in quarantine", "Files in watched folders that do not validate", files, FILE_TEMPLATES),
    ):
        yield AutomationCore(
            name=f"batchline: tell of {name}",
            description=f"{description}. Made by `batchline prefect setup`.",
            trigger=trigger,
            actions=[
                _notify_action(client, target, number, templates) for number, target in enumerate(targets, 1)
            ],
        )


def _notify_action(
    client: SyncPrefectClient, target: str, number: int, templates: Templates
) -> CallWebhook | SendNotification:
    if target.startswith(("http://", "https://")):
        # Automations refer to blocks only, so a URL gets a block of its own.
        webhook = Webhook(url=SecretStr(target), headers=SecretDict({"Content-Type": "application/json"}))
        name = "batchline-notify" if number == 1 else f"batchline-notify-{number}"
        return CallWebhook(
            block_document_id=UUID(str(webhook.save(name, overwrite=True))), payload=templates.payload
        )
    block_type, _, name = target.partition("/")
    try:
        block = client.read_block_document_by_name(name, block_type, include_secrets=False)
    except ObjectNotFound:
        raise InvalidInput(
            f"there is no block {target!r}; write a URL, or type and name of a block that Prefect's page Blocks "
            "lists, such as slack-webhook/ops",
            param="notify",
        ) from None
    if block_type == "webhook":
        return CallWebhook(block_document_id=block.id, payload=templates.payload)
    if block.block_schema is None or "notify" not in block.block_schema.capabilities:
        raise InvalidInput(f"block {target} cannot notify; name a webhook or a notification block", param="notify")
    return SendNotification(block_document_id=block.id, subject=templates.subject, body=templates.body)
