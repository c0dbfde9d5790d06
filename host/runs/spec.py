"""What is asked of a run, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from host.mcp_clients.server_config import ServerConfig
from host.runs.text import strip_internal
from shared.clock import iso
from shared.models import Enclosed, Idempotency, Outbound
from shared.redact import Redactor


@dataclass(frozen=True, slots=True)
class RunSpec:
    """One request for a run, validated. ``conversation_id`` None makes a new conversation.

    ``temporary`` and ``parent_id`` are for isolated task runs: a conversation of its own that belongs to
    ``parent_id``. ``live``: somebody follows the events, so the start is made durable before it is told.
    ``run_id`` and ``new_conversation_id`` are for a caller who has to write them down before the run begins.
    ``message`` None goes on where the conversation's last run paused; ``allow_tokens`` is then what it may
    use whatever the budgets say. ``thinking`` None leaves it to the settings. ``scheduled``: no person waits
    for it, so it neither queues nor counts against its sender. ``preface`` is what the model
    reads in front of the message and people don't see; the caller says whose words it is. ``notice`` are the
    host's own words behind the message. ``by_owner``: the channel knows the sender as one of its owners.
    ``enclosed``: what the message brought along beside its sender's words. ``answer``: what is answered
    without asking the model.
    """

    message: str | None
    conversation_id: str | None = None
    sender: str = "user"
    sender_name: str = "user"
    max_execution_ms: int | None = None
    thinking: bool | None = None
    max_thinking_tokens: int | None = None
    show_tool_use: bool = False
    model: str | None = None
    mcp_servers: Mapping[str, ServerConfig] = field(default_factory=dict)
    idempotency: Idempotency | None = None
    temporary: bool = False
    parent_id: str | None = None
    live: bool = False
    run_id: str | None = None
    new_conversation_id: str | None = None
    allow_tokens: int | None = None
    scheduled: bool = False
    preface: str = ""
    answer: str | None = None
    notice: str = ""
    by_owner: bool = False
    enclosed: tuple[Enclosed, ...] = ()


def outbound_view(message: Outbound, redactor: Redactor) -> dict[str, Any]:
    """Return an outbound message as it leaves the host."""
    return {
        "id": message.id,
        "conversation_id": message.conversation_id,
        "text": redactor.text(strip_internal(message.text)),
        "sender": message.sender,
        "created_at": iso(message.created_at),
    }
