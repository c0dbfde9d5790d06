"""The contract, made from the models that validate requests and the shapes of answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from host.http import shapes
from host.http.admin import MemoryRequest, NewTokenRequest, StopRequest
from host.http.bodies import LARGEST_LIMIT, LONGEST_KEY, NO_NUL
from host.http.chat import ChatRequest, ConversationChanges, ResumeRequest
from host.http.openai.shapes import (
    ChatCompletionRequest,
    CompletionShape,
    ModelShape,
    ModelsShape,
    OpenAiErrorShape,
)
from host.http.openai.threads import LONGEST_NAME
from host.http.tasks import CheckRequest, TaskChanges, TaskRequest, TriggerRequest
from shared.values import TaskStatus

PAGE: Final = ("limit", "cursor")
PRINTABLE: Final = (
    r"^[!-~\u00a1-\u00ac\u00ae-\u00ff]([ -~\u00a1-\u00ac\u00ae-\u00ff]*[!-~\u00a1-\u00ac\u00ae-\u00ff])?$"
)
"""What a header can carry and is printable, without white space around it."""

PARAMETERS: Final[Mapping[str, tuple[str, dict[str, Any]]]] = {
    "limit": (
        "Items on a page; 100 if not given",
        {"type": "integer", "minimum": 1, "maximum": LARGEST_LIMIT},
    ),
    "cursor": ("next_cursor of the page before; any other is 400", {"type": "string", "format": "cursor"}),
    "include_temporary": ("Also the conversations of isolated task runs", {"type": "boolean"}),
    "search": ("Only those that have this text in title or messages", {"type": "string", "pattern": NO_NUL}),
    "conversation_id": ("Only this conversation's", {"type": "string"}),
    "path": ("Within the workspace; a directory's is empty or ends in /", {"type": "string"}),
    "by": ("All conversations together, if not given", {"type": "string", "enum": ["day", "conversation"]}),
    "status": (
        "Only tasks in this status",
        {"type": "string", "enum": [status.value for status in TaskStatus]},
    ),
    "Idempotency-Key": (
        "Printable; the same key with the same body is the same request, for 24 h",
        {"type": "string", "minLength": 1, "maxLength": LONGEST_KEY, "pattern": PRINTABLE},
    ),
    "X-Conversation-ID": (
        "The conversation: its id, or a name that gets one of its own",
        {"type": "string", "maxLength": LONGEST_NAME},
    ),
    "Last-Event-ID": ("Events after this one", {"type": "string", "pattern": "^[0-9]{0,15}$"}),
    "Mcp-Session-Id": ("The session, as the answer to initialize named it", {"type": "string"}),
}
PRESENT: Final = frozenset({("DELETE", "/mcp", "Mcp-Session-Id")})
"""Parameters that must be there, beside those of paths."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One route of the contract."""

    method: str
    path: str
    summary: str
    answer: type[BaseModel] | str | None
    body: type[BaseModel] | None = None
    status: int = 200
    query: Sequence[str] = ()
    headers: Sequence[str] = ()
    errors: Sequence[int] = ()
    open: bool = False
    streams: bool = False
    also: Sequence[int] = ()
    """Answers without a body, beside ``status``."""
    error: type[BaseModel] = shapes.ErrorShape


KEY: Final = ("Idempotency-Key",)

OPERATIONS: Final = (
    Operation("GET", "/health", "How the host is", shapes.HealthShape, open=True),
    Operation("GET", "/ready", "Whether requests are welcome", shapes.ReadyShape, errors=(503,), open=True),
    Operation(
        "POST",
        "/chat",
        "Say something; the answer as JSON, or as server-sent events with stream",
        shapes.ChatShape,
        body=ChatRequest,
        headers=KEY,
        errors=(404, 409),
        streams=True,
    ),
    Operation(
        "GET",
        "/chat",
        "List conversations, newest activity first",
        shapes.ConversationsShape,
        query=(*PAGE, "include_temporary", "search"),
    ),
    Operation("GET", "/chat/{id}", "One conversation", shapes.OneConversationShape),
    Operation(
        "PATCH",
        "/chat/{id}",
        "Give a conversation a title, or take it away",
        shapes.OneConversationShape,
        body=ConversationChanges,
    ),
    Operation(
        "DELETE",
        "/chat/{id}",
        "Delete a conversation and all that is its own",
        None,
        status=204,
        errors=(409,),
    ),
    Operation(
        "GET",
        "/chat/{id}/messages",
        "A conversation's messages in the order they were stored",
        shapes.MessagesShape,
        query=PAGE,
    ),
    Operation(
        "POST",
        "/chat/{id}/cancel",
        "Stop the conversation's run",
        shapes.CancelShape,
        status=202,
        errors=(409,),
    ),
    Operation(
        "POST",
        "/chat/{id}/resume",
        "Go on where the conversation's last run paused",
        shapes.ChatShape,
        body=ResumeRequest,
        headers=KEY,
        errors=(409,),
    ),
    Operation(
        "GET",
        "/usage",
        "What model calls used, newest day first",
        shapes.UsagePageShape,
        query=(*PAGE, "by", "conversation_id"),
    ),
    Operation("GET", "/chat/{id}/runs", "A conversation's runs, newest first", shapes.RunsShape, query=PAGE),
    Operation("GET", "/chat/{id}/runs/{run_id}", "One run", shapes.RunShape),
    Operation(
        "GET",
        "/chat/{id}/runs/{run_id}/events",
        "A run's events, live or after its end",
        "text/event-stream",
        headers=("Last-Event-ID",),
    ),
    Operation(
        "POST",
        "/task",
        "Make a scheduled task",
        shapes.TaskShape,
        body=TaskRequest,
        status=201,
        headers=KEY,
        errors=(404, 409),
    ),
    Operation(
        "GET",
        "/tasks",
        "List tasks in the order they were made",
        shapes.TasksShape,
        query=(*PAGE, "conversation_id", "status"),
    ),
    Operation("GET", "/task/{id}", "One task", shapes.TaskShape),
    Operation("PUT", "/task/{id}", "Change what is given", shapes.TaskShape, body=TaskChanges, errors=(409,)),
    Operation("DELETE", "/task/{id}", "Delete a task and its run log", None, status=204),
    Operation("GET", "/task/{id}/runs", "A task's run log, newest first", shapes.TaskRunsShape, query=PAGE),
    Operation(
        "POST",
        "/task/trigger",
        "Run a task now, in a slot of its own",
        shapes.ExecutedShape,
        body=TriggerRequest,
        headers=KEY,
        errors=(404, 409),
    ),
    Operation(
        "POST", "/task/check", "Run one due task, or up to max of them", shapes.CheckShape, body=CheckRequest
    ),
    Operation(
        "POST",
        "/v1/chat/completions",
        "Say something, as OpenAI's clients do",
        CompletionShape,
        body=ChatCompletionRequest,
        headers=("Idempotency-Key", "X-Conversation-ID"),
        errors=(404, 409),
        streams=True,
        error=OpenAiErrorShape,
    ),
    Operation(
        "GET", "/v1/models", "The models, as OpenAI's clients list them", ModelsShape, error=OpenAiErrorShape
    ),
    Operation("GET", "/v1/models/{id}", "One model", ModelShape, error=OpenAiErrorShape),
    Operation(
        "POST",
        "/tokens",
        "Make a token that is bound to a conversation and counts at /mcp alone",
        shapes.NewTokenShape,
        body=NewTokenRequest,
        status=201,
    ),
    Operation("GET", "/tokens", "List tokens, without their texts", shapes.TokensShape, query=PAGE),
    Operation("DELETE", "/tokens/{id}", "End a token", None, status=204),
    Operation(
        "POST",
        "/mcp",
        "One message of the Model Context Protocol (Streamable HTTP)",
        shapes.JsonRpcShape,
        body=shapes.JsonRpcRequestShape,
        headers=("Mcp-Session-Id",),
        errors=(404,),
        error=shapes.McpErrorShape,
        also=(202,),
    ),
    Operation(
        "DELETE", "/mcp", "End an MCP session", None, status=204, headers=("Mcp-Session-Id",), errors=(404,)
    ),
    Operation(
        "POST",
        "/channels/{name}/webhook",
        "Where a messenger calls; the channel's own secret is checked instead of a token",
        shapes.TakenShape,
        errors=(413, 503),
        open=True,
    ),
    Operation("GET", "/admin/skills", "The skills as the next turn will see them", shapes.SkillsShape),
    Operation("POST", "/admin/reload-skills", "Read the skills again, changed or not", shapes.ReloadedShape),
    Operation("GET", "/admin/workspace", "Look at it", shapes.WorkspaceShape, query=("path",), errors=(404,)),
    Operation("PUT", "/admin/memory", "Rewrite it", shapes.WorkspaceShape, body=MemoryRequest, errors=(409,)),
    Operation("POST", "/control/stop", "Drain and exit", shapes.StopShape, body=StopRequest),
    Operation("GET", "/metrics", "The counters, for Prometheus", "text/plain"),
    Operation("GET", "/openapi.json", "This document", "application/json"),
)


@cache
def document(version: str) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document."""
    models: set[type[BaseModel]] = {shapes.ErrorShape}
    for operation in OPERATIONS:
        models |= {
            model for model in (operation.body, operation.answer, operation.error) if isinstance(model, type)
        }
    ordered = sorted(models, key=lambda model: model.__name__)
    _, schemas = models_json_schema(
        [(model, "validation") for model in ordered], ref_template="#/components/schemas/{model}"
    )
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "PicoClaw", "version": version, "license": {"name": "MIT", "identifier": "MIT"}},
        "security": [{"bearer": []}],
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(operation: Operation) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": operation.summary}
    if isinstance(operation.answer, str):
        answer["content"] = {operation.answer: {}}
    elif operation.answer is not None:
        answer["content"] = _content(operation.answer)
        if operation.streams:
            answer["content"]["text/event-stream"] = {}
    responses = {str(operation.status): answer}
    responses |= {str(status): {"description": "Taken"} for status in operation.also}
    for status in _refusals(operation):
        responses[str(status)] = {"description": "An error", "content": _content(operation.error)}
    found: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": _operation_id(operation),
        "parameters": _parameters(operation),
        "responses": responses,
    }
    if operation.body is not None:
        # An empty body is an empty object.
        required = any(field.is_required() for field in operation.body.model_fields.values())
        found["requestBody"] = {"content": _content(operation.body), "required": required}
    if operation.open:
        found["security"] = []
    return found


def _refusals(operation: Operation) -> list[int]:
    """Return the statuses of errors: the operation's own, and what its path, its body and the door bring."""
    # 503: the host is stopping, or its store can't take anything.
    door = () if operation.open else (400, 401, 403, 408, 429, 500, 503)
    named = (404,) if "{" in operation.path else ()
    body = () if operation.body is None else (413, 415)
    return sorted({*operation.errors, *door, *named, *body})


def _operation_id(operation: Operation) -> str:
    words = operation.path.replace("{", "").replace("}", "").replace(".", "_").split("/")
    return "_".join([operation.method.lower(), *filter(None, words)])


def _content(model: type[BaseModel]) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}}


def _parameters(operation: Operation) -> list[dict[str, Any]]:
    in_path = [part[1:-1] for part in operation.path.split("/") if part.startswith("{")]
    placed = [
        *(("path", name) for name in in_path),
        *(("query", name) for name in operation.query),
        *(("header", name) for name in operation.headers),
    ]
    return [_parameter(operation, place, name) for place, name in placed]


def _parameter(operation: Operation, place: str, name: str) -> dict[str, Any]:
    said, schema = ("The id", {"type": "string"}) if place == "path" else PARAMETERS[name]
    required = place == "path" or (operation.method, operation.path, name) in PRESENT
    return {"name": name, "in": place, "required": required, "description": said, "schema": schema}
