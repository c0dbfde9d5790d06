"""What webhooks are told: one shape for each event, made of what was stored when it happened."""

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, NotRequired, cast

from host.agent.text import strip_internal
from host.runs.spec import ChatShape
from shared import jsons
from shared.approval_values import Kind
from shared.clock import iso
from shared.redact import Redactor
from shared.shapes import Shape
from shared.webhook_values import DELETED, TEST, WebhookDelivery

LARGEST: Final = 256 * 1024
"""Bytes of a body; what doesn't fit is cut, and ``truncated`` says so."""


class Told(Shape):
    """What every event has. ``sequence`` rises within a conversation; not every number is used."""

    principal_id: str
    sequence: int
    truncated: NotRequired[bool]


class RunData(ChatShape):
    """The answer of ``POST /chat``."""

    principal_id: str
    sequence: int
    truncated: NotRequired[bool]


class RunEnded(Shape):
    """A run, and all that it continued, has ended."""

    type: Literal["run.ended"]
    timestamp: str
    data: RunData


class RunPaused(Shape):
    """A run can't go on without a person."""

    type: Literal["run.paused"]
    timestamp: str
    data: RunData


class AskedShape(Shape):
    """What a person is asked; ``GET /approvals/{id}`` has all of it."""

    id: str
    kind: Kind
    tool: str
    input: dict[str, Any]
    input_sha256: str
    reason: str
    expires_at: str | None


class RequestData(Told):
    """A request for a person's word; without content only where it stands."""

    conversation_id: str
    run_id: str
    root_run_id: str | None
    status: str
    request: NotRequired[AskedShape]


class ApprovalRequested(Shape):
    """A person is asked."""

    type: Literal["approval.requested"]
    timestamp: str
    data: RequestData


class ApprovalResolved(Shape):
    """A person has answered, or nobody can any more."""

    type: Literal["approval.resolved"]
    timestamp: str
    data: RequestData


class MessageData(Told):
    """What ``send_message`` or a task said; ``source_id`` is the conversation that spoke."""

    id: str
    conversation_id: str
    source_id: str
    text: NotRequired[str]
    sender: NotRequired[str]
    created_at: NotRequired[str]


class MessageCreated(Shape):
    """The agent said something to people besides its answers."""

    type: Literal["message.created"]
    timestamp: str
    data: MessageData


class TaskData(Told):
    """A run of a task; ``run_id`` null where none began."""

    task_id: str
    conversation_id: str
    run_id: str | None
    status: str
    result: NotRequired[str | None]
    output: NotRequired[Any]
    error: NotRequired[str | None]


class TaskEnded(Shape):
    """A run of a scheduled task has ended."""

    type: Literal["task.ended"]
    timestamp: str
    data: TaskData


class DeletedData(Told):
    """Ids of what is gone."""

    conversation_id: str
    run_id: str | None


class ConversationDeleted(Shape):
    """Comes in the place of an event whose conversation was deleted before it was told."""

    type: Literal["conversation.deleted"]
    timestamp: str
    data: DeletedData


class WebhookTest(Shape):
    """``POST /webhooks/{id}/test``."""

    type: Literal["webhook.test"]
    timestamp: str
    data: Told


SHAPES: Final[Mapping[str, Any]] = {
    "run.ended": RunEnded,
    "run.paused": RunPaused,
    "approval.requested": ApprovalRequested,
    "approval.resolved": ApprovalResolved,
    "message.created": MessageCreated,
    "task.ended": TaskEnded,
    DELETED: ConversationDeleted,
    TEST: WebhookTest,
}

IDS: Final = frozenset(
    (
        *("principal_id", "sequence", "conversation_id", "message_id", "run_id", "root_run_id"),
        *("previous_run_id", "next_run_id", "id", "source_id", "task_id", "status", "code"),
    )
)
"""What a webhook hears that asks for no content."""
CUT_FIRST: Final = (
    "request",
    "requests",
    "outbound_messages",
    "files_changed",
    "output",
    "error",
    "warnings",
)
"""What is left out when even an empty text is too long with it."""
TEXTS: Final = ("result", "text")


def _request(data: dict[str, Any]) -> dict[str, Any]:
    asked, expires_at = data["request"], data["request"]["expires_at"]
    shown = {"input": jsons.loads(asked["input"]), "expires_at": expires_at and iso(expires_at)}
    return {**data, "request": asked | shown}


def _message(data: dict[str, Any]) -> dict[str, Any]:
    return {**data, "text": strip_internal(data["text"]), "created_at": iso(data["created_at"])}


def _task(data: dict[str, Any]) -> dict[str, Any]:
    """Typed answers are stored as JSON."""
    return {**data, "output": None if data["output"] is None else jsons.loads(data["output"])}


VIEWS: Final[Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]]] = {
    "approval.requested": _request,
    "approval.resolved": _request,
    "message.created": _message,
    "task.ended": _task,
}


def body_of(delivery: WebhookDelivery, redactor: Redactor, *, content: bool) -> bytes:
    """Return what is sent, the same each time."""
    stored = jsons.loads(delivery.data or "{}")
    data = cast(dict[str, Any], redactor.value(VIEWS.get(delivery.type, dict)(stored)))
    data |= {"principal_id": delivery.principal_id, "sequence": delivery.number}
    if delivery.type == DELETED:
        data |= {"conversation_id": delivery.conversation_id, "run_id": delivery.run_id}
    if not content:
        data = {name: value for name, value in data.items() if name in IDS}
    event = {"type": delivery.type, "timestamp": iso(delivery.created_at), "data": data}
    body = jsons.dump_bytes(event)
    return body if len(body) <= LARGEST else _cut(event, data)


def _cut(event: dict[str, Any], data: dict[str, Any]) -> bytes:
    """Shorten its text, and leave the rest of its content out where that isn't enough."""
    data["truncated"] = True
    texts = {name: data.pop(name) for name in TEXTS if isinstance(data.get(name), str)}
    for name in CUT_FIRST:
        if len(jsons.dump_bytes(event)) > LARGEST // 2:
            data.pop(name, None)
    for name, text in texts.items():
        data[name] = text
        # In JSON a character takes up to six bytes.
        while (over := len(jsons.dump_bytes(event)) - LARGEST) > 0:
            data[name] = data[name][: -max(over // 6, 1)]
    return jsons.dump_bytes(event)
