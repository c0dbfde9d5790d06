"""What runs answer, as it leaves the host and as it is stored."""

from __future__ import annotations

from typing import Any, Literal, NotRequired

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from host.agent.text import strip_internal
from host.tools.files_and_commands import FileChangedShape
from shared import jsons
from shared.approval_values import Kind, NewApproval
from shared.redact import Redactor
from shared.shapes import Shape, view
from shared.values import Outbound

Ended = Literal["success", "timeout", "error", "paused"]


class UsageShape(Shape):
    """Tokens as the model's API counts them: the fields of ``shared.usage_values.Usage``."""

    input_tokens: int
    output_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int


class SentFileShape(Shape):
    """A file of the workspace as it was when it was sent."""

    path: str
    size: int
    sha256: str


class OutboundShape(Shape):
    """What the agent said with send_message."""

    id: str
    conversation_id: str
    text: str
    sender: str
    created_at: str
    file: NotRequired[SentFileShape]


def outbound_view(message: Outbound, redactor: Redactor) -> OutboundShape:
    """Return an outbound message as it leaves the host."""
    shown = view(OutboundShape, message, text=redactor.text(strip_internal(message.text)))
    if message.file is not None:
        file = redactor.value(jsons.loads(message.file))
        shown["file"] = {"path": file["path"], "size": file["size"], "sha256": file["sha256"]}
    return shown


class RequestShape(Shape):
    """What a person is asked before a run goes on."""

    id: str
    kind: Kind
    tool: str
    input: dict[str, Any]
    input_sha256: str
    base_sha256: str | None
    reason: str
    expires_at: str | None
    subagent: str | None


def request_view(request: NewApproval, now: int) -> RequestShape:
    """Return a request as it leaves the host with the run that asks."""
    expires_at = None if request.life_ms is None else now + request.life_ms
    return view(RequestShape, request, expires_at=expires_at, subagent=request.subagent or None)


class HookShape(Shape):
    """The webhook of a request; its secret where the host made it, shown once."""

    id: str
    secret: NotRequired[str]


@with_config(ConfigDict(extra="ignore"))
class ChatShape(TypedDict):
    """The answer of a run; only the first fields when the run was cut off by a crash."""

    status: Ended
    conversation_id: str
    message_id: str
    run_id: str
    root_run_id: NotRequired[str]
    previous_run_id: NotRequired[str]
    next_run_id: NotRequired[str]
    result: NotRequired[str]
    output: NotRequired[Any]
    model: NotRequired[str]
    stop_reason: NotRequired[str | None]
    session_id: NotRequired[str]
    duration_ms: NotRequired[int]
    usage: NotRequired[UsageShape]
    error: NotRequired[str]
    code: NotRequired[str]
    requests: NotRequired[list[RequestShape]]
    outbound_messages: NotRequired[list[OutboundShape]]
    files_changed: NotRequired[list[FileChangedShape]]
    files_changed_more: NotRequired[bool]
    warnings: NotRequired[list[str]]
    session_end_marker: NotRequired[str]
    session_end_marker_detected: NotRequired[bool]
    webhook: NotRequired[HookShape]


class BegunShape(Shape):
    """A run in the background that has begun."""

    conversation_id: str
    message_id: str
    run_id: str
    status: Literal["running"]
    webhook: NotRequired[HookShape]


class ExecutedShape(Shape):
    """A task that ran."""

    status: Ended
    task_id: str
    run_id: str
    conversation_id: str
    result: str
    output: NotRequired[Any]
    duration_ms: int
    next_run: str | None
    outbound_messages: list[OutboundShape]
    error: NotRequired[str]
