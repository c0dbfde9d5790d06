"""What is asked of a run, and what runs answer, as it leaves the host and as it is stored."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Literal, NotRequired

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from host.agent.own_tools import Schema
from host.agent.text import strip_internal
from host.mcp_clients.server_config import ServerConfig, parse_servers
from host.tools.files_and_commands import FileChangedShape
from host.tools.without_sandbox import ClientTool
from shared import jsons
from shared.approval_values import Kind, NewApproval
from shared.jsons import dumps, loads
from shared.principals import OPERATOR
from shared.redact import Redactor
from shared.secrets import Seal
from shared.settings import Settings
from shared.settings.sections import Permission
from shared.shapes import Shape, view
from shared.store.sql.conversation_rows import Outbound
from shared.store.sql.run_rows import ON_ITS_SLOT
from shared.task_values import TaskRun
from shared.values import After, Block, Enclosed, Idempotency, Lease
from shared.webhook_values import Webhook

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


MOST_TRIES: Final = 3
"""How often a run in the background is begun again that its host couldn't end."""


@dataclass(frozen=True, slots=True)
class Attached:
    """Files that come with a message of this id: ``lines`` of its text that say where each is, ``blocks`` for
    the model. ``place`` writes them once the message is stored, and raises a ``PicoError`` for what keeps it
    from that.
    """

    message_id: str
    lines: tuple[str, ...]
    blocks: tuple[Block, ...]
    place: Callable[[Lease], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class RunSpec:
    """One request for a run, validated. ``conversation_id`` None makes a new conversation.

    ``temporary`` and ``parent_id`` are for isolated task runs: a conversation of its own that belongs to
    ``parent_id``. ``live``: somebody follows the events, so the start is made durable before it is told.
    ``run_id`` and ``new_conversation_id`` are for a caller who has to write them down before the run begins.
    ``message`` None goes on where the last run ended without an answer; ``allow_tokens`` is then what it may
    use whatever the budgets say. ``thinking`` None leaves it to the settings. ``claim``: the slot of a task
    that it serves; no person waits for it, so it neither queues nor counts against its sender. ``preface`` is
    what the model
    reads in front of the message and people don't see; the caller says whose words it is. ``notice`` are the
    host's own words behind the message. ``by_owner``: the channel knows the sender as one of its owners.
    ``enclosed``: what the message brought along beside its sender's words. ``answer``: what is answered
    without asking the model. ``replaces``: the message in whose place this one is said. ``principal_id``:
    whose the conversation is. ``warnings``: what its answer is to say of the request. ``permissions`` make
    those of the operator stricter. ``client_tools`` are those of the calling program; the first reply calls
    one of ``must_call``, and with ``one_call`` each has one call at most. ``max_tokens`` (at most those of
    the settings) and the texts ``stop`` end a reply. ``deny_pending``: the message answers questions that
    wait for a person, and denies the rest. ``ready``: it goes on where people have answered. ``of_task``: it
    goes on after a task's run. ``background``: nobody waits for its end, so it is begun again where its host
    stops in the middle; ``begun_again`` is the run in whose place it is then. ``door``: where the message
    came in, if not at the request's own. ``output_schema``: what the answer has to be. ``depth``: how many
    agents have asked each other up to it; ``begun_by``: the conversation for which another agent begins this
    one. ``chat``: which chat hears the end of what goes on after it (channel, chat, message that is replied
    to). ``webhook`` hears of the run. ``after``: see ``NewRun``.
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
    claim: TaskRun | None = None
    preface: str = ""
    answer: str | None = None
    notice: str = ""
    by_owner: bool = False
    enclosed: tuple[Enclosed, ...] = ()
    replaces: str | None = None
    warnings: Sequence[str] = ()
    principal_id: str = OPERATOR
    permissions: tuple[Permission, ...] = ()
    client_tools: tuple[ClientTool, ...] = ()
    output_schema: Schema | None = None
    must_call: tuple[str, ...] = ()
    one_call: bool = False
    max_tokens: int | None = None
    stop: Sequence[str] = ()
    attached: Attached | None = None
    deny_pending: bool = False
    ready: bool = False
    of_task: bool = False
    background: bool = False
    begun_again: str | None = None
    door: str = ""
    depth: int = 0
    begun_by: str | None = None
    webhook: Webhook | None = None
    after: After | None = None
    chat: Sequence[str | None] = ()

    @property
    def waited_for(self) -> bool:
        """Whether somebody waits for its beginning: then it queues, and counts against its sender."""
        return not (self.scheduled or self.ready or self.begun_again)

    @property
    def again(self) -> int | None:
        """How often it may be begun again by itself, ON_ITS_SLOT with its task's slot; None: never.

        Credentials of a request's MCP servers are not stored, so a run that has them isn't.
        """
        if not self.background or not all(config.is_plain for config in self.mcp_servers.values()):
            return None
        if self.claim is not None:
            return ON_ITS_SLOT if self.claim.attempt <= MOST_TRIES else None
        return MOST_TRIES

    @property
    def scheduled(self) -> bool:
        """Whether no person waits for it."""
        return self.claim is not None or self.of_task

    @property
    def _secret(self) -> list[str]:
        return [name for name, config in self.mcp_servers.items() if not config.is_plain]

    def unkept(self, seal: Seal | None) -> list[str]:
        """Return the MCP servers that a run which goes on after this one won't have."""
        return [] if seal is not None and seal.usable else self._secret

    def asked(self, seal: Seal | None = None) -> str:
        """Return, as JSON, what a run that goes on after this one is asked with.

        Servers with credentials are kept only where there is a ``seal`` for them.
        """
        kept = {name: getattr(self, name) for name in KEPT}
        servers = {name: config.entry() for name, config in self.mcp_servers.items() if config.is_plain}
        permissions = [rule.model_dump() for rule in self.permissions]
        tools = [asdict(tool) for tool in self.client_tools]
        own: dict[str, Any] = {"mcp_servers": servers, "permissions": permissions, "client_tools": tools}
        if self._secret and not self.unkept(seal) and seal is not None:
            secret = {name: self.mcp_servers[name].entry() for name in self._secret}
            own["sealed_servers"] = b64encode(seal.close(dumps(secret).encode(), SERVERS)).decode()
        return dumps({**kept, **own, "depth": self.depth, "of_task": self.scheduled})

    def continuing(self, asked: str, seal: Seal | None = None) -> RunSpec:
        """Return what a run is asked that goes on after one that was asked this; its own words count."""
        known = loads(asked)
        said = {name: known.get(name) for name in (*KEPT, "of_task", "allow_tokens")}
        said["depth"] = known.get("depth", 0)
        own = {name: getattr(self, name) for name in said if getattr(self, name)}
        opened = seal.open(b64decode(known.get("sealed_servers", "")), SERVERS) if seal is not None else None
        entries = {**known.get("mcp_servers", {}), **loads(opened or "{}")}
        servers = self.mcp_servers or parse_servers(entries, stdio_allowed=True)
        rules = tuple(Permission.model_validate(rule) for rule in known.get("permissions", ()))
        tools = self.client_tools or tuple(ClientTool(**tool) for tool in known.get("client_tools", ()))
        more = {"mcp_servers": servers, "permissions": (*rules, *self.permissions), "client_tools": tools}
        return replace(self, **{**said, **own, **more})


SERVERS: Final = b"mcp_servers"
KEPT: Final = (
    *("model", "thinking", "max_thinking_tokens", "max_execution_ms", "show_tool_use", "by_owner"),
    *("output_schema", "one_call", "max_tokens", "stop", "chat", "begun_by"),
)


@dataclass(frozen=True, slots=True)
class RunLimits:
    """Bounds and names of this host's runs; times in milliseconds. A third of a lease's time renews it.

    ``seal``: for credentials that a run has to keep while it waits.
    """

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
    seal: Seal | None = None

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
            seal=Seal(settings.seal_key, b"picoclaw runs"),
        )
