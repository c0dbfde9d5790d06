"""The application: routes and middleware around an opened host, nothing else."""

from __future__ import annotations

from typing import Final

from starlette.exceptions import HTTPException
from starlette.routing import Router
from starlette.types import ASGIApp, Receive, Scope, Send

from host.api.admin import AdminApi
from host.api.channels import ChannelsApi, webhook_paths
from host.api.chat import ChatApi
from host.api.console import ConsoleApi, open_paths
from host.api.control import ControlApi
from host.api.health import Build, HealthApi, Volumes
from host.api.mcp import McpApi
from host.api.mcp_gate import McpGate
from host.api.metrics import MetricsApi
from host.api.openai import OpenAiApi
from host.api.openapi import OpenApi
from host.api.tasks import TasksApi
from host.api.tokens import TokensApi
from host.api.usage import UsageApi
from host.callers import Caller, TokenBook
from host.middleware.access_log import AccessLogMiddleware
from host.middleware.bearer import OPEN_PATHS, BearerMiddleware
from host.middleware.body_limit import BodyLimitMiddleware
from host.middleware.errors import ErrorsMiddleware
from host.middleware.request_id import RequestIdMiddleware
from host.parts import Host

BODY_LIMIT: Final = 1024 * 1024
"""Bytes a request body may have (http-api: "Errors")."""
MCP_BODY_LIMIT: Final = 4 * 1024 * 1024
"""Bytes an MCP message may have, as on the tool server's own wire."""


def build_app(host: Host) -> ASGIApp:
    """Return the ASGI application around the opened host."""
    settings = host.settings
    book = TokenBook(host.store)
    routes = [
        *_health(host).routes(),
        *_chat(host).routes(),
        *TasksApi(host.store, host.tasks, host.task_runner).routes(),
        *ControlApi(host.stop).routes(),
        *UsageApi(host.store).routes(),
        *AdminApi(host.knowledge).routes(),
        *TokensApi(host.store, book).routes(),
        *McpApi(host.tool_servers, McpGate(settings.gateway.allowed_hosts)).routes(),
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
    tokens = [
        secret.get_secret_value()
        for secret in (settings.api_token, settings.api_token_previous)
        if secret is not None
    ]
    app: ASGIApp = Router(routes=routes, redirect_slashes=False, default=_nothing_here)
    rates = settings.rate_limits
    app = BearerMiddleware(
        _HttpOnly(app),
        tokens=tokens,
        owner=Caller(settings.main_conversation_id, is_main=True),
        bearer=book.bearer,
        failures_per_minute=rates.failed_auth_per_minute,
        requests_per_minute=rates.requests_per_minute,
        open_paths=OPEN_PATHS
        | webhook_paths(settings.channels)
        | (open_paths() if settings.console else frozenset()),
    )
    app = BodyLimitMiddleware(app, limit=BODY_LIMIT, at={"/mcp": MCP_BODY_LIMIT})
    app = ErrorsMiddleware(app)
    app = host.telemetry.app(AccessLogMiddleware(app, host.metrics))
    return RequestIdMiddleware(app, version=settings.version, commit=settings.build_commit)


def _chat(host: Host) -> ChatApi:
    settings = host.settings
    return ChatApi(
        host.store,
        host.runs,
        settings.main_conversation_id,
        host.models,
        stdio_mcp_allowed=settings.allow_request_stdio_mcp,
    )


def _health(host: Host) -> HealthApi:
    settings = host.settings
    return HealthApi(
        Build(settings.version, settings.build_commit, settings.build_time, settings.max_execution_ms),
        Volumes(settings.memory_dir, settings.skills_dir, settings.store_dir),
        host.store,
        ready=lambda: host.ready and not host.runs.draining,
        sandbox=lambda: host.sandbox.report,
        channels=host.channel_states,
    )


class _HttpOnly:
    """Lets HTTP through and closes anything else: there are no WebSockets here."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            # With this key the router raises what is wrong instead of answering in plain text.
            scope["app"] = self
            await self._app(scope, receive, send)


async def _nothing_here(scope: Scope, receive: Receive, send: Send) -> None:
    raise HTTPException(404)
