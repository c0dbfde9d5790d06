"""What is asked of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from host.mcp_clients.server_config import ServerConfig
from host.runs.prompt import enclosed_text, person_message
from shared import untrusted
from shared.clock import now_ms
from shared.ids import CONVERSATION, MESSAGE, RUN, new_id
from shared.redact import Redactor
from shared.schedules import local
from shared.settings import Settings
from shared.values import Enclosed, Idempotency, NewMessage, NewRun


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
    without asking the model. ``replaces``: the message in whose place this one is said.
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
    replaces: str | None = None


@dataclass(frozen=True, slots=True)
class RunLimits:
    """Bounds and names of this host's runs; times in milliseconds. A third of a lease's time renews it."""

    max_execution_ms: int
    max_concurrent_runs: int
    stop_grace_ms: int
    end_marker: str
    owner: str
    queue_ms: int = 0
    messages_per_minute: int = 0
    lease_ms: int = 30_000
    timezone: str = "UTC"
    assistant_name: str = ""

    @classmethod
    def of(cls, settings: Settings, owner: str) -> RunLimits:
        """Return what the settings say; ``owner`` is the host."""
        return cls(
            max_execution_ms=settings.max_execution_ms,
            max_concurrent_runs=settings.max_concurrent_runs,
            stop_grace_ms=settings.stop_grace_ms,
            end_marker=settings.session_end_marker,
            owner=owner,
            queue_ms=settings.queue_ms,
            messages_per_minute=settings.rate_limits.messages_per_minute,
            lease_ms=settings.lease_ms,
            timezone=settings.timezone,
            assistant_name=settings.assistant_name,
        )


def new_run(spec: RunSpec, limits: RunLimits, redactor: Redactor) -> NewRun:
    """Return the run with its ids; its message is stored without the secrets that the host knows.

    The time stands with the message, so that what comes before it is the same from turn to turn.
    """
    now = now_ms()
    return NewRun(
        run_id=spec.run_id or new_id(RUN),
        conversation_id=spec.conversation_id or spec.new_conversation_id or new_id(CONVERSATION),
        message=_message(spec, local(now, limits.timezone), redactor, limits.assistant_name),
        owner=limits.owner,
        now=now,
        lease_ms=limits.lease_ms,
        create=spec.conversation_id is None,
        parent_id=spec.parent_id,
        temporary=spec.temporary,
        model=spec.model or "",
        idempotency=spec.idempotency,
        replaces=spec.replaces,
    )


def _message(spec: RunSpec, time: str, redactor: Redactor, assistant: str) -> NewMessage | None:
    if spec.message is None:
        return None
    text = redactor.text(spec.message)
    identity, name = spec.sender, spec.sender_name
    if not spec.scheduled:
        identity, name = untrusted.sender(identity, assistant), untrusted.sender(name, assistant)
    enclosed = [
        replace(each, text=redactor.text(each.text), who=each.who and untrusted.sender(each.who, assistant))
        for each in spec.enclosed
    ]
    blocks = person_message(
        text,
        sender=name,
        time=time,
        identity=identity,
        by_owner=spec.by_owner,
        enclosed=enclosed,
    )
    if spec.preface:
        blocks.insert(0, {"type": "text", "text": redactor.text(spec.preface)})
    if spec.notice:
        blocks.append({"type": "text", "text": f"<notice>{spec.notice}</notice>"})
    shown = "\n\n".join(filter(None, (*map(enclosed_text, enclosed), text)))
    return NewMessage(new_id(MESSAGE), "user", blocks, shown, identity, name)
