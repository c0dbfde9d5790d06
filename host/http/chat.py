"""Conversations over HTTP: POST /chat, its events, reading, cancelling, deleting."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Final

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from host.http.bodies import (
    JSON,
    NO_NUL,
    WHOLE,
    Body,
    NotBlank,
    Text,
    flag,
    idempotency,
    page_of,
    parse_body,
    raw_body,
    read_body,
)
from host.http.sse import EventStreamResponse, last_event_id
from host.mcp_clients.server_config import HEADER_NAME, LONGEST_TIMEOUT_MS, MOST_SERVERS, parse_servers
from host.models.access import ModelAccess
from host.runs.service import RunService
from host.runs.spec import RunSpec
from shared.clock import iso, iso_or_none
from shared.errors import Conflict, InvalidInput, KeyTaken, NoConversation, NotFound
from shared.store.store import Store
from shared.values import Conversation, KeyedAnswer, Message, Run

LONGEST_NAME: Final = 200
LONGEST_MS: Final = 2**53

SERVERS: Final[dict[str, Any]] = {
    "maxProperties": MOST_SERVERS,
    "propertyNames": {"pattern": "^[a-z0-9_-]{1,32}$", "not": {"const": "picoclaw"}},
    "additionalProperties": {
        "type": "object",
        "properties": {
            "type": {"enum": ["http", "sse"], "default": "http"},
            "url": {"type": "string", "format": "http-url"},
            "headers": {
                "type": "object",
                "propertyNames": {"pattern": f"^{HEADER_NAME.pattern}$"},
                "additionalProperties": {"type": "string", "format": "header"},
            },
            "allowed_tools": {"type": "array", "items": {"type": "string", "pattern": NO_NUL}},
            "timeout_ms": {"type": "integer", "minimum": 1, "maximum": LONGEST_TIMEOUT_MS},
        },
        "required": ["url"],
        "additionalProperties": False,
    },
}
"""Those of type stdio (command, args, env) are taken where the operator allows them."""

Name = Annotated[Text, Field(min_length=1, max_length=LONGEST_NAME)]


class ChatRequest(Body):
    """POST /chat."""

    message: NotBlank
    conversation_id: Annotated[Text | None, Field(max_length=200)] = None
    sender: Name = "user"
    sender_name: Name | None = None
    stream: bool = False
    max_execution_ms: Annotated[int, Field(gt=0, le=LONGEST_MS), WHOLE] | None = None
    thinking: bool = False
    max_thinking_tokens: Annotated[int, Field(gt=0, le=128_000), WHOLE] | None = None
    show_tool_use: bool = False
    model: Name | None = None
    replaces: Name | None = None
    mcp_servers: Annotated[dict[str, dict[str, Any]], Field(default_factory=dict, json_schema_extra=SERVERS)]

    def spec(self, *, stdio_allowed: bool) -> RunSpec:
        """Return what is asked of the run; raises InvalidInput naming a wrong MCP server."""
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
            mcp_servers=parse_servers(self.mcp_servers, stdio_allowed=stdio_allowed),
            live=self.stream,
            replaces=self.replaces,
        )


class ConversationChanges(Body):
    """PATCH /chat/{id}."""

    title: Annotated[NotBlank, Field(max_length=LONGEST_NAME)] | None


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
        )


class ChatApi:
    """The routes below /chat."""

    def __init__(
        self,
        store: Store,
        runs: RunService,
        main_conversation_id: str,
        models: ModelAccess,
        *,
        stdio_mcp_allowed: bool,
    ) -> None:
        self._models = models
        self._stdio_mcp_allowed = stdio_mcp_allowed
        self._store = store
        self._runs = runs
        self._main = main_conversation_id

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("/chat", self.post, methods=["POST"]),
            Route("/chat", self.list, methods=["GET"]),
            Route("/chat/{id}", self.get, methods=["GET"]),
            Route("/chat/{id}", self.change, methods=["PATCH"]),
            Route("/chat/{id}", self.delete, methods=["DELETE"]),
            Route("/chat/{id}/messages", self.messages, methods=["GET"]),
            Route("/chat/{id}/cancel", self.cancel, methods=["POST"]),
            Route("/chat/{id}/resume", self.resume, methods=["POST"]),
            Route("/chat/{id}/runs", self.runs, methods=["GET"]),
            Route("/chat/{id}/runs/{run_id}", self.run, methods=["GET"]),
            Route("/chat/{id}/runs/{run_id}/events", self.events, methods=["GET"]),
        ]

    async def post(self, request: Request) -> ASGIApp:
        """Start a run and answer with its result, or with its events."""
        raw = await raw_body(request)
        body = parse_body(raw, ChatRequest)
        spec = body.spec(stdio_allowed=self._stdio_mcp_allowed)
        return await self._answer(dataclasses.replace(spec, idempotency=idempotency(request, raw)))

    async def resume(self, request: Request) -> ASGIApp:
        """Go on where the conversation's last run paused, on what people approve."""
        raw = await raw_body(request)
        body = parse_body(raw, ResumeRequest)
        spec = body.spec(await self._conversation(request))
        return await self._answer(dataclasses.replace(spec, idempotency=idempotency(request, raw)))

    async def list(self, request: Request) -> Response:
        """List conversations, newest activity first."""
        limit, cursor = page_of(request)
        search = request.query_params.get("search", "").strip()
        if "\x00" in search:
            raise InvalidInput("search: must not contain the character U+0000")
        page = await self._store.conversations.page(
            limit=limit,
            cursor=cursor,
            include_temporary=flag(request, "include_temporary"),
            search=search,
        )
        items = [conversation_view(item) for item in page.items]
        return JSON({"conversations": items, "next_cursor": page.next_cursor})

    async def change(self, request: Request) -> Response:
        """Give a conversation a title, or take it away."""
        changes = await read_body(request, ConversationChanges)
        await self._store.conversations.rename(request.path_params["id"], changes.title)
        return await self.get(request)

    async def get(self, request: Request) -> Response:
        """Return one conversation."""
        conversation = await self._conversation(request)
        latest = await self._store.compactions.latest(conversation.id)
        compacted = {
            "compactions": latest.number if latest else 0,
            "compacted_at": iso_or_none(latest.created_at if latest else None),
        }
        return JSON({**conversation_view(conversation), **compacted})

    async def messages(self, request: Request) -> Response:
        """List a conversation's messages in the order they were stored."""
        limit, cursor = page_of(request)
        conversation = await self._conversation(request)
        page = await self._store.conversations.messages(conversation.id, limit=limit, cursor=cursor)
        return JSON(
            {
                "conversation_id": conversation.id,
                "messages": [message_view(item) for item in page.items],
                "next_cursor": page.next_cursor,
            }
        )

    async def runs(self, request: Request) -> Response:
        """List a conversation's runs, newest first."""
        limit, cursor = page_of(request)
        conversation = await self._conversation(request)
        page = await self._store.runs.page(conversation.id, limit=limit, cursor=cursor)
        return JSON({"runs": [run_view(item) for item in page.items], "next_cursor": page.next_cursor})

    async def run(self, request: Request) -> Response:
        """Return one run."""
        run_id = request.path_params["run_id"]
        run = await self._store.runs.get(request.path_params["id"], run_id)
        if run is None:
            raise NotFound(f"run_id not found: {run_id}")
        return JSON(run_view(run))

    async def events(self, request: Request) -> ASGIApp:
        """Send a run's events after Last-Event-ID, live or after the end."""
        after = last_event_id(request)
        params = request.path_params
        return EventStreamResponse(
            await self._runs.event_batches(params["id"], params["run_id"], after=after)
        )

    async def cancel(self, request: Request) -> Response:
        """Stop the conversation's run."""
        conversation = await self._conversation(request)
        run_id = await self._runs.cancel(conversation.id)
        body = {"status": "cancelling", "conversation_id": conversation.id, "run_id": run_id}
        return JSON(body, status_code=202)

    async def delete(self, request: Request) -> Response:
        """Delete a conversation and all that is its own."""
        conversation_id = request.path_params["id"]
        if conversation_id == self._main:
            raise Conflict("The main conversation cannot be deleted.", code="main_conversation")
        await self._runs.delete_conversation(conversation_id)
        return Response(status_code=204)

    async def _answer(self, spec: RunSpec) -> ASGIApp:
        """Start a run and answer with its result, or with its events."""
        if spec.model is not None:
            self._models.check(spec.model)
        try:
            run = await self._runs.start(spec)
        except KeyTaken as taken:
            return await self._joined(taken.answer, stream=spec.live)
        if spec.live:
            lease = run.lease
            return EventStreamResponse(
                await self._runs.event_batches(lease.conversation_id, lease.run_id, after=0, run=run)
            )
        return JSON(await run.wait())

    async def _joined(self, answer: KeyedAnswer, *, stream: bool) -> ASGIApp:
        if stream:
            return EventStreamResponse(
                await self._runs.event_batches(answer.conversation_id or "", answer.subject, after=0)
            )
        return JSON(await self._runs.joined(answer))

    async def _conversation(self, request: Request) -> Conversation:
        conversation_id = request.path_params["id"]
        conversation = await self._store.conversations.get(conversation_id)
        if conversation is None:
            raise NoConversation(conversation_id)
        return conversation


def conversation_view(conversation: Conversation) -> dict[str, Any]:
    """Return a conversation as it leaves the host."""
    return {
        "conversation_id": conversation.id,
        "title": conversation.title,
        "session_id": conversation.session_id,
        "created_at": iso(conversation.created_at),
        "last_activity": iso(conversation.last_activity),
        "message_count": conversation.message_count,
        "status": "running" if conversation.running else "idle",
    }


def message_view(message: Message) -> dict[str, Any]:
    """Return a message as it leaves the host."""
    return {
        "id": message.id,
        "conversation_id": message.conversation_id,
        "role": message.role,
        "sender": message.sender,
        "sender_name": message.sender_name,
        "content": message.text,
        "created_at": iso(message.created_at),
        **({"refused": True} if message.refused else {}),
    }


def run_view(run: Run) -> dict[str, Any]:
    """Return a run as it leaves the host."""
    ended = run.finished_at
    return {
        "run_id": run.id,
        "conversation_id": run.conversation_id,
        "message_id": run.message_id,
        "status": run.state.value,
        "created_at": iso(run.created_at),
        "finished_at": iso_or_none(ended),
        "duration_ms": None if ended is None else max(ended - run.created_at, 0),
        "model": run.model,
        "stop_reason": (run.answer or {}).get("stop_reason"),
        "usage": dataclasses.asdict(run.usage),
        "error": run.error,
        "code": run.code,
    }
