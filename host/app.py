"""The application: middleware around ``/health`` and ``/ready``, which answer while all else is opened."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import anyio
from starlette.routing import Router
from starlette.types import ASGIApp, Receive, Scope, Send

from host.base import Base
from host.channels.webhook import webhook_paths
from host.http.auth import OPEN_PATHS, BearerMiddleware, Caller, TokenBook
from host.http.console import open_paths
from host.http.health import Build, HealthApi, Volumes
from host.http.middleware import (
    METHODS,
    AccessLogMiddleware,
    BodyLimitMiddleware,
    ErrorsMiddleware,
    RequestIdMiddleware,
)

if TYPE_CHECKING:
    from host.parts import Host

BODY_LIMIT: Final = 1024 * 1024
"""Bytes a request body may have (http-api: "Errors")."""
OPENAI_BODY_LIMIT: Final = 8 * 1024 * 1024
"""Bytes at /v1/chat/completions: chat programs send their whole history again."""
MCP_BODY_LIMIT: Final = 4 * 1024 * 1024
"""Bytes an MCP message may have, as on the tool server's own wire."""

BODY_LIMITS: Final = {"/mcp": MCP_BODY_LIMIT, "/v1/chat/completions": OPENAI_BODY_LIMIT}


class App:
    """The ASGI application of a host, from the moment its base is open.

    Requests are checked as ever; one that needs the whole host waits until there is one.
    """

    def __init__(self, base: Base) -> None:
        self._base = base
        self.tokens = TokenBook(base.store)
        self._host: Host | None = None
        self._opened = anyio.Event()
        self._rest: ASGIApp = self._later
        health = self._health()
        self.probe_when_asked = health.probe_when_asked
        self._app = self._checked(
            Router(routes=health.routes(), redirect_slashes=False, default=self._others)
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)

    def open(self, host: Host, routes: ASGIApp) -> None:
        """Answer what needs the host."""
        self._host, self._rest = host, routes
        self._opened.set()

    async def _others(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._rest(scope, receive, send)

    async def _later(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._opened.wait()
        await self._rest(scope, receive, send)

    def _checked(self, app: ASGIApp) -> ASGIApp:
        settings = self._base.settings
        rates = settings.rate_limits
        app = BearerMiddleware(
            _HttpOnly(app),
            tokens=[
                secret.get_secret_value()
                for secret in (settings.api_token, settings.api_token_previous)
                if secret is not None
            ],
            owner=Caller(settings.main_conversation_id, is_main=True),
            bearer=self.tokens.bearer,
            failures_per_minute=rates.failed_auth_per_minute,
            requests_per_minute=rates.requests_per_minute,
            open_paths=OPEN_PATHS
            | webhook_paths(settings.channels)
            | (open_paths() if settings.console else frozenset()),
        )
        app = BodyLimitMiddleware(app, limit=BODY_LIMIT, at=BODY_LIMITS)
        app = ErrorsMiddleware(app, self._base.redactor.text)
        app = AccessLogMiddleware(app, self._base.metrics)
        app = self._base.telemetry.app(app, probes=OPEN_PATHS | {"/metrics"}, methods=METHODS)
        return RequestIdMiddleware(app, version=settings.version, commit=settings.build_commit)

    def _health(self) -> HealthApi:
        settings = self._base.settings
        return HealthApi(
            Build(settings.version, settings.build_commit, settings.build_time, settings.max_execution_ms),
            Volumes(settings.memory_dir, settings.skills_dir),
            self._base.store,
            ready=lambda: self._host is not None and self._host.ready and not self._host.runs.draining,
            sandbox=lambda: self._base.sandbox.report,
            channels=self._channel_states,
            scheduler=settings.scheduler,
        )

    def _channel_states(self) -> Mapping[str, str]:
        """Return how each channel is; Telegram is always among them."""
        if self._host is not None:
            states = self._host.channel_states()
        else:
            channels = self._base.settings.channels.by_name()
            states = {name: "retrying" for name, each in channels.items() if each.enabled}
        return {"telegram": "off", **states}


class _HttpOnly:
    """Lets HTTP through and closes anything else: there are no WebSockets here."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            # With this key the router raises what is wrong instead of answering in plain text.
            scope["app"] = self
            await self._app(scope, receive, send)
