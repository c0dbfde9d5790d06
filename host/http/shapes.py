"""The shapes of answers, for the OpenAPI document; tests hold every answer against them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, RootModel


class Shape(BaseModel):
    """An answer's body: exactly these fields."""

    model_config = ConfigDict(extra="forbid", defer_build=True)


class PageShape(Shape):
    """A page of a list; the next one begins at ``next_cursor``."""

    next_cursor: str | None


class ErrorShape(Shape):
    """Every error; ``conversation_id`` when a conversation is busy."""

    error: str
    code: str
    request_id: str
    conversation_id: str | None = None


class JsonRpcShape(BaseModel):
    """One message of JSON-RPC 2.0, as the Model Context Protocol has them."""

    model_config = ConfigDict(extra="allow", defer_build=True)

    jsonrpc: Literal["2.0"]
    id: int | str | None = None


class JsonRpcRequestShape(BaseModel):
    """A request, or without ``id`` a notification; ``initialize`` comes first, or the stateless headers."""

    model_config = ConfigDict(defer_build=True)

    jsonrpc: Literal["2.0"]
    id: int | str = 0
    method: str
    params: dict[str, Any] = {}


class JsonRpcErrorShape(JsonRpcShape):
    """A refusal in the protocol's own words."""

    error: dict[str, Any]


class McpErrorShape(RootModel[ErrorShape | JsonRpcErrorShape]):
    """A refusal at /mcp: of the host, or of the protocol."""


class UsageShape(Shape):
    """Tokens as the model's API counts them."""

    input_tokens: int
    output_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int


class DayUsageShape(UsageShape):
    """What model calls used on one UTC day: in one conversation with its tasks, or (null) in all."""

    day: str
    conversation_id: str | None
    runs: int
    unsettled_tokens: int
    tokens: int
    dollars: float


class UsagePageShape(PageShape):
    """A page of usage."""

    usage: list[DayUsageShape]


class OutboundShape(Shape):
    """What the agent said with send_message."""

    id: str
    conversation_id: str
    text: str
    sender: str
    created_at: str


class ChatShape(BaseModel):
    """The answer of a run; only the first fields when the run was cut off by a crash."""

    status: Literal["success", "timeout", "error", "paused"]
    conversation_id: str
    message_id: str
    run_id: str
    result: str | None = None
    model: str | None = None
    stop_reason: str | None = None
    session_id: str | None = None
    duration_ms: int | None = None
    usage: UsageShape | None = None
    error: str | None = None
    code: str | None = None
    outbound_messages: list[OutboundShape] | None = None
    warnings: list[str] | None = None
    session_end_marker: str | None = None
    session_end_marker_detected: bool | None = None


class ConversationShape(Shape):
    """A conversation."""

    conversation_id: str
    title: str | None
    session_id: str
    created_at: str
    last_activity: str
    message_count: int
    status: Literal["idle", "running"]


class OneConversationShape(ConversationShape):
    """A conversation, and how often its beginning was shortened for the model, the last time when."""

    compactions: int
    compacted_at: str | None


class ConversationsShape(PageShape):
    """A page of conversations."""

    conversations: list[ConversationShape]


class MessageShape(Shape):
    """A message as people see it."""

    id: str
    conversation_id: str
    role: Literal["user", "assistant"]
    sender: str
    sender_name: str
    content: str
    created_at: str
    refused: bool | None = None


class MessagesShape(PageShape):
    """A page of messages."""

    conversation_id: str
    messages: list[MessageShape]


class RunShape(Shape):
    """A run; ``message_id`` is the message that it answers."""

    run_id: str
    conversation_id: str
    message_id: str
    status: Literal["running", "success", "timeout", "error", "cancelled", "paused"]
    created_at: str
    finished_at: str | None
    duration_ms: int | None
    model: str
    stop_reason: str | None
    usage: UsageShape
    error: str | None
    code: str | None


class RunsShape(PageShape):
    """A page of runs."""

    runs: list[RunShape]


class CancelShape(Shape):
    """A run that is being cancelled."""

    status: Literal["cancelling"]
    conversation_id: str
    run_id: str


class TaskShape(Shape):
    """A scheduled task."""

    id: str
    conversation_id: str
    prompt: str
    schedule_type: Literal["cron", "interval", "once"]
    schedule_value: str
    timezone: str
    context_mode: Literal["group", "isolated"]
    catch_up: Literal["skip", "once", "all"]
    deliver: Literal["answer", "none"]
    ends_at: str | None
    max_runs: int | None
    runs_begun: int
    status: Literal["active", "paused", "completed", "failed"]
    next_run: str | None
    next_run_local: str | None
    overdue: bool
    created_at: str
    updated_at: str
    last_run: str | None
    last_status: str | None
    attempts: int


class TasksShape(PageShape):
    """A page of tasks."""

    tasks: list[TaskShape]


class TokenShape(Shape):
    """A token of an outside agent, without its text; ``expires_at`` null: it lasts until it is revoked."""

    id: str
    conversation_id: str
    main: bool
    created_at: str
    expires_at: str | None


class NewTokenShape(TokenShape):
    """A new token, with the only sight of its text."""

    token: str


class TokensShape(PageShape):
    """A page of tokens."""

    tokens: list[TokenShape]


class TaskRunShape(Shape):
    """A row of a task's run log."""

    id: str
    task_id: str
    trigger: Literal["schedule", "manual"]
    due_at: str | None
    status: str
    attempt: int
    run_id: str | None
    conversation_id: str | None
    started_at: str
    finished_at: str | None
    duration_ms: int | None
    result: str | None
    error: str | None


class TaskRunsShape(PageShape):
    """A page of a task's run log."""

    runs: list[TaskRunShape]


class ExecutedShape(Shape):
    """A task that ran."""

    status: Literal["success", "timeout", "error", "paused"]
    task_id: str
    run_id: str
    conversation_id: str
    result: str
    duration_ms: int
    next_run: str | None
    outbound_messages: list[OutboundShape]
    error: str | None = None


class CheckShape(Shape):
    """What a check ran; ``results`` when ``max`` was given."""

    checked: int
    message: str | None = None
    executed: ExecutedShape | None = None
    remaining: int | None = None
    results: list[ExecutedShape] | None = None


class DatabaseShape(Shape):
    """The database, as /health sees it."""

    ok: bool
    conversations: int | None
    tasks: int | None


class VolumesShape(Shape):
    """Whether each volume can be used."""

    memory: bool
    skills: bool
    sessions: bool
    store: bool


class StoreShape(Shape):
    """Which store is on the volume, and whether this start made it."""

    id: str
    new: bool


class SandboxShape(Shape):
    """What the sandbox enforces."""

    level: int
    landlock_abi: int


class SchedulerShape(Shape):
    """What runs due tasks, how many are overdue by more than two minutes, what to know of it if anything."""

    mode: Literal["internal", "external"]
    overdue: int | None
    note: str | None


class HealthShape(Shape):
    """How the host is."""

    status: Literal["ok", "degraded"]
    version: str
    commit: str
    build_time: str
    max_execution_ms: int
    database: DatabaseShape
    store: StoreShape | None
    volumes: VolumesShape
    sandbox: SandboxShape
    channels: dict[str, Literal["ok", "retrying", "off"]]
    scheduler: SchedulerShape


class ReadyShape(Shape):
    """Requests are welcome."""

    status: Literal["ready"]


class TakenShape(Shape):
    """What a webhook brought is stored."""


class SkillTiersShape(Shape):
    """Names of skills: of each tier in the order of their folders, and those in force."""

    builtIn: list[str]  # noqa: N815 - the name on the wire
    org: list[str]
    user: list[str]
    effective: list[str]


class SkillShape(Shape):
    """A skill in force."""

    name: str
    description: str
    tier: Literal["builtIn", "org", "user"]
    path: str


class SkillProblemShape(Shape):
    """Why a folder is not used as it was meant."""

    tier: Literal["builtIn", "org", "user"]
    path: str
    problem: str


class SkillsShape(Shape):
    """What the agent can load."""

    skills: SkillTiersShape
    details: list[SkillShape]
    problems: list[SkillProblemShape]


class WorkspaceShape(Shape):
    """A directory's listing or a file's text, and the version that a change of it has to name."""

    path: str
    text: str
    version: str


class ReloadedShape(SkillsShape):
    """What the agent can load, all read again."""

    status: Literal["reloaded"]


class StopShape(Shape):
    """The host is stopping."""

    status: Literal["stopping"]
    reason: str
    message: str
