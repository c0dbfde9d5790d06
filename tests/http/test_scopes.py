"""Which scope each route needs: the whole table, and no route without an entry."""

from __future__ import annotations

from typing import Final

import pytest

import host.app
from host.http.callers import Caller, operator
from host.http.routing import ANY, Api, Operation
from shared.errors import Forbidden
from shared.principals import SCOPES, Principal

OPERATOR: Final = None
OPEN: Final = "open"
ANN: Final = Principal("prin-1", "Ann", "d", 0)

TABLE: Final[dict[str | None, tuple[str, ...]]] = {
    "chat": (
        "POST /chat",
        "GET /chat",
        "GET /chat/{id}",
        "PATCH /chat/{id}",
        "DELETE /chat/{id}",
        "POST /chat/{id}/resume",
        "POST /chat/{id}/cancel",
        "GET /chat/{id}/messages",
        "GET /chat/{id}/remembered",
        "GET /chat/{id}/runs",
        "GET /chat/{id}/runs/{run_id}",
        "GET /chat/{id}/runs/{run_id}/events",
        "GET /runs",
        "GET /runs/{run_id}",
        "POST /runs/{run_id}/cancel",
        "POST /webhooks",
        "GET /webhooks",
        "GET /webhooks/{id}",
        "PATCH /webhooks/{id}",
        "DELETE /webhooks/{id}",
        "POST /webhooks/{id}/secret",
        "POST /webhooks/{id}/test",
        "GET /webhooks/{id}/deliveries",
        "POST /webhooks/{id}/deliveries/{delivery_id}/replay",
        "GET /v1/models",
        "GET /v1/models/{id:path}",
        "POST /v1/chat/completions",
        "POST /v1/responses",
        "GET /v1/responses/{id}",
        "GET /v1/responses/{id}/input_items",
        "DELETE /v1/responses/{id}",
        "POST /v1/responses/{id}/cancel",
    ),
    "tasks": (
        "POST /task",
        "GET /tasks",
        "GET /task/{id}",
        "PUT /task/{id}",
        "DELETE /task/{id}",
        "GET /task/{id}/runs",
        "POST /task/trigger",
        "POST /task/check",
    ),
    "files": (
        "GET /chat/{id}/files",
        "POST /chat/{id}/files",
        "GET /chat/{id}/files/{path:path}",
        "PUT /chat/{id}/files/{path:path}",
        "POST /chat/{id}/files/{path:path}",
        "DELETE /chat/{id}/files/{path:path}",
        "POST /files",
    ),
    "usage": ("GET /usage",),
    "approve": ("DELETE /chat/{id}/remembered",),
    "chat|approve": ("GET /approvals", "GET /approvals/{id}", "POST /approvals/{id}"),
    "mcp": ("POST /mcp", "DELETE /mcp"),
    ANY: (
        "GET /openapi.json",
        "GET /",
        "GET /console",
        "GET /console/",
        "GET /console/{name:path}",
        "GET /me",
        "POST /me/tokens",
        "GET /me/tokens",
        "DELETE /me/tokens/{token_id}",
    ),
    OPERATOR: (
        "GET /admin/skills",
        "POST /admin/reload-skills",
        "GET /admin/workspace",
        "PUT /admin/memory",
        "POST /control/stop",
        "POST /webhooks/release",
        "POST /tokens",
        "GET /tokens",
        "DELETE /tokens/{id}",
        "GET /metrics",
        "POST /principals",
        "GET /principals",
        "GET /principals/{id}",
        "GET /principals/{id}/remains",
        "PATCH /principals/{id}",
        "DELETE /principals/{id}",
        "POST /principals/{id}/tokens",
        "GET /principals/{id}/tokens",
        "DELETE /principals/{id}/tokens/{token_id}",
        "GET /mcp/servers",
        "GET /mcp/servers/{name}",
        "GET /audit",
        "POST /mcp/servers/{name}/sign-in",
        "POST /mcp/servers/{name}/sign-in/callback",
        "DELETE /mcp/servers/{name}/sign-in",
    ),
    OPEN: ("GET /health", "GET /ready", "POST /channels/{name}/webhook"),
}
"""Principals: "Scope of each route"."""


def operations() -> list[Operation]:
    assert host.app is not None
    apis = [api for api in Api.__subclasses__() if api.__module__.startswith("host.")]
    return [each for api in apis for each in api.operations()]


def test_every_route_has_its_entry_in_the_table_and_every_entry_its_route() -> None:
    found: dict[str | None, set[str]] = {}
    for each in operations():
        wanted = OPEN if each.open else each.scope
        found.setdefault(wanted, set()).add(f"{each.method} {each.path}")
    assert found == {scope: set(routes) for scope, routes in TABLE.items()}


def refusal(declared: Operation, *scopes: str, main: bool = True) -> str | None:
    try:
        Caller(ANN, "main", main, "token-1", frozenset(scopes)).require(declared)
    except Forbidden as error:
        return error.message
    return None


@pytest.mark.parametrize("declared", operations(), ids=lambda each: f"{each.method} {each.path}")
def test_a_route_takes_its_scope_and_no_other_and_the_operator_needs_none(declared: Operation) -> None:
    operator("main").require(declared)
    if declared.scope == ANY:
        assert refusal(declared) is None
    elif declared.scope is None:
        assert "is the operator's alone" in str(refusal(declared, *SCOPES))
    else:
        for scope in declared.scopes:
            assert refusal(declared, scope) is None
            assert f'"{scope}"' in str(refusal(declared, *set(SCOPES) - declared.scopes))


def test_a_token_of_another_than_the_main_conversation_counts_at_mcp_alone() -> None:
    for declared in operations():
        refused = refusal(declared, "chat", "tasks", "files", "approve", "usage", "mcp", main=False)
        assert (refused is None) == (declared.scope in ("mcp", ANY)), declared.path
