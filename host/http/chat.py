"""POST /chat, and going on where a run ended without a final answer."""

import dataclasses
from typing import Annotated, Any, Final, Literal, Self, TypeVar

import anyio.to_thread
from pydantic import ConfigDict, Field, model_validator
from starlette.requests import Request
from starlette.responses import Response

from host.http.approvals import MOST_TOOLS, ToolDefinition, checked_tools
from host.http.bodies import NO_NUL, WHOLE, Body, NotBlank, OutputSchema, Text, forget_body, idempotency
from host.http.callers import caller_of
from host.http.conversations import LONGEST_NAME, conversation_of
from host.http.file_requests import MOST_ATTACHMENTS, AttachmentRequest, Intake
from host.http.routing import KEY, Api, operation
from host.http.runs import EventStreamResponse, accepted
from host.http.webhooks import Hooks, RequestHook
from host.mcp_clients.server_config import MOST_SERVERS, parse_servers
from host.runs.permissions import Permissions
from host.runs.run import ActiveRun
from host.runs.service import RunService
from host.runs.spec import BegunShape, ChatShape, HookShape, RunSpec
from host.schemas import SchemaJudge
from shared import jsons
from shared.errors import Forbidden, InvalidInput, KeyTaken, NoConversation
from shared.ids import RUN, new_id
from shared.settings import Settings
from shared.settings.files import TWICE
from shared.settings.sections import Permission
from shared.settings.tools import HEADER_NAME, LONGEST_TIMEOUT_MS
from shared.store.store import Store
from shared.values import Conversation, KeyedAnswer

LONGEST_MS: Final = 2**53
MOST_RULES: Final = 100

SERVERS: Final[dict[str, Any]] = {
    "maxProperties": MOST_SERVERS,
    "propertyNames": {"pattern": "^[a-z0-9_-]{1,32}$", "not": {"const": "picoclaw"}},
    "additionalProperties": {
        "type": "object",
        "properties": {
            "type": {"enum": ["http", "sse", "streamable-http", None], "default": "http"},
            "url": {"type": "string", "format": "http-url"},
            "headers": {
                "type": "object",
                "propertyNames": {"pattern": f"^{HEADER_NAME.pattern}$"},
                "additionalProperties": {"type": "string", "format": "header"},
            },
            "allowed_tools": {"type": ["array", "null"], "items": {"type": "string", "pattern": NO_NUL}},
            "timeout_ms": {"type": "integer", "minimum": 1, "maximum": LONGEST_TIMEOUT_MS},
        },
        "required": ["url"],
        "additionalProperties": False,
    },
}
"""Those of type stdio (command, args, env) are taken where the operator allows them."""

Name = Annotated[Text, Field(min_length=1, max_length=LONGEST_NAME)]


class PermissionRule(Body):
    """What becomes of calls of a tool; ``match``: of those alone that do this."""

    tool: Annotated[NotBlank, Field(max_length=200, json_schema_extra={"format": "tool-glob"})]
    match: Annotated[Text | None, Field(max_length=1000)] = None
    do: Literal["allow", "ask", "deny"]


class ChatRequest(Body):
    """POST /chat."""

    model_config = ConfigDict(
        json_schema_extra={
            "not": {
                "required": ["stream"],
                "properties": {"stream": {"const": True}},
                "anyOf": [
                    {"properties": {"background": {"const": True}}, "required": ["background"]},
                    {
                        "properties": {
                            "webhook": {"type": "object", "properties": {"secret": {"type": "null"}}}
                        },
                        "required": ["webhook"],
                    },
                ],
            }
        }
    )

    message: NotBlank
    conversation_id: Annotated[Text | None, Field(max_length=200)] = None
    sender: Name = "user"
    sender_name: Name | None = None
    stream: bool = False
    background: bool = False
    max_execution_ms: Annotated[int, Field(gt=0, le=LONGEST_MS), WHOLE] | None = None
    thinking: bool = False
    max_thinking_tokens: Annotated[int, Field(gt=0, le=128_000), WHOLE] | None = None
    show_tool_use: bool = False
    model: Name | None = None
    replaces: Name | None = None
    deny_pending: bool = False
    webhook: RequestHook | None = None
    attachments: Annotated[list[AttachmentRequest], Field(default_factory=list, max_length=MOST_ATTACHMENTS)]
    permissions: Annotated[list[PermissionRule], Field(default_factory=list, max_length=MOST_RULES)]
    tools: Annotated[list[ToolDefinition], Field(default_factory=list, max_length=MOST_TOOLS)]
    output_schema: OutputSchema = None
    mcp_servers: Annotated[dict[str, dict[str, Any]], Field(default_factory=dict, json_schema_extra=SERVERS)]

    @model_validator(mode="after")
    def _stream_is_followed(self) -> Self:
        if self.background and self.stream:
            raise InvalidInput("stream: can't be true together with background; follow the run by its events")
        return self

    def spec(self, principal_id: str, *, stdio_allowed: bool) -> RunSpec:
        """Return what is asked of the run; raises InvalidInput naming a wrong MCP server."""
        servers = {}
        if self.mcp_servers:
            servers = parse_servers(self.mcp_servers, stdio_allowed=stdio_allowed)
        return RunSpec(
            message=self.message,
            conversation_id=self.conversation_id or None,
            sender=self.sender,
            sender_name=self.sender_name or self.sender,
            max_execution_ms=self.max_execution_ms,
            thinking=self.thinking if "thinking" in self.model_fields_set else None,
            max_thinking_tokens=self.max_thinking_tokens,
            show_tool_use=self.show_tool_use,
            model=self.model,
            mcp_servers=servers,
            live=self.stream or self.background,
            background=self.background,
            replaces=self.replaces,
            principal_id=principal_id,
            deny_pending=self.deny_pending,
            permissions=tuple(Permission(**rule.model_dump()) for rule in self.permissions),
            client_tools=tuple(tool.tool() for tool in self.tools),
            output_schema=self.output_schema,
        )


class ResumeRequest(Body):
    """POST /chat/{id}/resume."""

    allow_tokens: Annotated[int, Field(gt=0, le=2**53), WHOLE] | None = None
    stream: bool = False
    show_tool_use: bool = False
    max_execution_ms: Annotated[int, Field(gt=0, le=LONGEST_MS), WHOLE] | None = None
    model: Name | None = None

    def spec(self, conversation: Conversation) -> RunSpec:
        """Return a run that goes on with the conversation's history."""
        return RunSpec(
            message=None,
            conversation_id=conversation.id,
            parent_id=conversation.parent_id,
            allow_tokens=self.allow_tokens,
            live=self.stream,
            show_tool_use=self.show_tool_use,
            max_execution_ms=self.max_execution_ms,
            model=self.model,
            principal_id=conversation.principal_id,
        )


class ChatApi(Api):
    """What starts runs."""

    def __init__(
        self,
        store: Store,
        runs: RunService,
        permissions: Permissions,
        intake: Intake,
        judge: SchemaJudge,
        settings: Settings,
        hooks: Hooks,
    ) -> None:
        self._judge = judge
        self._hooks = hooks
        self._permissions = permissions
        self._intake = intake
        self._store = store
        self._runs = runs
        self._stdio_mcp_allowed = settings.allow_request_stdio_mcp

    @operation(
        "POST", "/chat", scope="chat", parameters=[KEY], also={202: BegunShape}, errors=(404, 409, 507)
    )
    async def post(self, request: Request, body: ChatRequest) -> ChatShape | EventStreamResponse | Response:
        """Say something; the answer as JSON, as server-sent events with stream, later with background."""
        caller = caller_of(request)
        spec = body.spec(caller.principal.id, stdio_allowed=self._stdio_mcp_allowed)
        if spec.conversation_id is not None and caller.within is not None:
            found = await self._store.conversations.reach(caller.within, spec.conversation_id)
            conversation = NoConversation.unless(found, spec.conversation_id)
            spec = dataclasses.replace(spec, conversation_id=conversation.id)
        if body.mcp_servers:
            raw = await request.body()
            twice = await anyio.to_thread.run_sync(jsons.repeated, raw)
            names = [".".join(map(str, keys)) for keys in twice if keys[0] == "mcp_servers"]
            spec = dataclasses.replace(spec, warnings=[f"{name}{TWICE}." for name in names])
        spec = dataclasses.replace(spec, idempotency=await idempotency(request))
        if body.attachments:
            spec = await self._intake.with_files(spec, caller, body.attachments)
            body.attachments.clear()
            forget_body(request)
        try:
            return await self._answer(request, spec, body.webhook)
        except NoConversation:
            # The operator reaches anybody's; whose it is, is asked only when it isn't its own.
            said = spec.conversation_id if caller.within is None else None
            other = await self._store.conversations.get(said) if said else None
            if other is None:
                raise
        spec = dataclasses.replace(spec, principal_id=other.principal_id)
        return await self._answer(request, spec, body.webhook)

    @operation("POST", "/chat/{id}/resume", scope="chat", parameters=[KEY], errors=(409,))
    async def resume(
        self, request: Request, body: ResumeRequest
    ) -> ChatShape | EventStreamResponse | Response:
        """Go on where the conversation's last run ended without a final answer."""
        if body.allow_tokens is not None and caller_of(request).within is not None:
            raise Forbidden("allow_tokens: lifts what the operator has set, so it takes API_TOKEN.")
        spec = body.spec(await conversation_of(request, self._store))
        return await self._answer(request, dataclasses.replace(spec, idempotency=await idempotency(request)))

    async def _answer(
        self, request: Request, spec: RunSpec, hook: RequestHook | None = None
    ) -> ChatShape | EventStreamResponse | Response:
        if spec.client_tools:
            spec = dataclasses.replace(spec, client_tools=await checked_tools(spec.client_tools, self._judge))
        if spec.permissions:
            self._permissions.check(spec.permissions, "permissions", spec.mcp_servers)
        told: HookShape | None = None
        if hook is not None:
            run_id, stream = new_id(RUN), spec.live and not spec.background
            made, told = await self._hooks.of_run(hook, spec.principal_id, run_id, stream=stream)
            spec = dataclasses.replace(spec, run_id=run_id, webhook=made)
        try:
            run = await self._runs.start(spec)
        except KeyTaken as taken:
            if spec.background:
                return accepted(await self._runs.background.begun_before(taken.answer))
            return await self._joined(taken.answer, stream=spec.live)
        if told is not None:
            self._hooks.added()
        if spec.background:
            begun = await self._runs.background.begun(run)
            return accepted(begun if told is None else _with_hook(begun, run, told))
        if spec.live:
            lease = run.lease
            return EventStreamResponse(
                await self._runs.event_batches(lease.conversation_id, lease.run_id, after=0, run=run)
            )
        answer = await run.wait()
        return answer if told is None else _with_hook(answer, run, told)

    async def _joined(self, answer: KeyedAnswer, *, stream: bool) -> ChatShape | EventStreamResponse:
        if stream:
            return EventStreamResponse(
                await self._runs.event_batches(
                    answer.conversation_id or "", answer.subject, after=0, keyed=True
                )
            )
        return await self._runs.joined(answer)


A = TypeVar("A", ChatShape, BegunShape)


def _with_hook(answer: A, run: ActiveRun, told: HookShape) -> A:
    """Return an answer that tells of the webhook made with the run; what continues a run has that one's."""
    return answer if run.lease.chain.previous_run_id is not None else {**answer, "webhook": told}
