"""What a host that is open answers, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from host.channels.webhook import ChannelsApi
from host.http.admin import AdminApi, ControlApi, TokensApi
from host.http.auth import TokenBook
from host.http.chat import ChatApi
from host.http.console import ConsoleApi
from host.http.mcp.routes import McpApi, McpGate
from host.http.metrics import MetricsApi
from host.http.openai.routes import OpenAiApi
from host.http.openapi import OpenApi
from host.http.tasks import TasksApi
from host.http.usage import UsageApi
from host.parts import Host


def host_routes(host: Host, tokens: TokenBook) -> Router:
    """Return the routes around the opened host; those that don't need it are the application's own."""
    settings = host.settings
    routes = [
        *_chat(host).routes(),
        *TasksApi(host.store, host.tasks, host.task_runner).routes(),
        *ControlApi(host.stop).routes(),
        *UsageApi(host.store).routes(),
        *AdminApi(host.knowledge, host.sandbox).routes(),
        *TokensApi(host.store, tokens).routes(),
        *McpApi(host.tool_servers, McpGate(settings.gateway.allowed_hosts), tokens).routes(),
        *MetricsApi(
            host.metrics,
            host.store,
            active_runs=lambda: host.runs.active_count,
            waiting_runs=lambda: host.runs.waiting_count,
        ).routes(),
        *OpenAiApi(host.store, host.runs, settings).routes(),
        *ChannelsApi(
            settings.channels,
            host.running_channel,
            failures_per_minute=settings.rate_limits.failed_auth_per_minute,
        ).routes(),
        *OpenApi(settings.version).routes(),
        *(ConsoleApi().routes() if settings.console else ()),
    ]
    return Router(routes=_by_path(routes), redirect_slashes=False, default=_nothing_here)


def _by_path(routes: Sequence[Route]) -> list[Route]:
    """Return one route for each path: so a 405 names all methods that there are."""
    joined: dict[str, list[Route]] = {}
    for route in routes:
        joined.setdefault(route.path, []).append(route)
    return [some[0] if len(some) == 1 else _joined(path, some) for path, some in joined.items()]


def _joined(path: str, routes: Sequence[Route]) -> Route:
    endpoints = {method: route.endpoint for route in routes for method in route.methods or ()}

    async def by_method(request: Request) -> ASGIApp:
        answer: ASGIApp = await endpoints[request.method](request)
        return answer

    return Route(path, by_method, methods=list(endpoints))


def _chat(host: Host) -> ChatApi:
    settings = host.settings
    return ChatApi(
        host.store,
        host.runs,
        settings.main_conversation_id,
        host.models,
        stdio_mcp_allowed=settings.allow_request_stdio_mcp,
    )


async def _nothing_here(scope: Scope, receive: Receive, send: Send) -> None:
    raise HTTPException(404)
