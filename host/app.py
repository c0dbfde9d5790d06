"""A host: all of its parts, opened in the order they need each other, and the application around them."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup
from starlette.types import ASGIApp

from host.channels.webhook import ChannelsApi
from host.http.admin import AdminApi, AuditApi, McpServersApi
from host.http.approvals import ApprovalsApi
from host.http.auth import OPEN_PATHS, TokenBook
from host.http.callers import Enrolment
from host.http.chat import ChatApi
from host.http.console import ConsoleApi
from host.http.conversations import ConversationsApi
from host.http.file_requests import Intake
from host.http.files import FilesApi
from host.http.health import HealthApi
from host.http.mcp.asks import Asks
from host.http.mcp.routes import McpApi, Visitors
from host.http.metrics import MetricsApi, UsageApi
from host.http.middleware import METHODS, Bearer, BodyLimit, Exchange
from host.http.openai.responses import ResponsesApi
from host.http.openai.routes import OpenAiApi
from host.http.openapi import OpenApi
from host.http.principals import PrincipalsApi
from host.http.routing import Api, router
from host.http.runs import RunsApi
from host.http.tasks import TasksApi
from host.http.tokens import TokensApi, open_tokens
from host.http.webhooks import Hooks, WebhooksApi
from host.mcp_clients.tool_servers import ToolServers
from host.models.access import ModelAccess
from host.models.process import ModelProcess
from host.runs.assembly import Assembly, RunTools
from host.runs.attachments import Attachments
from host.runs.cleanup import keep_planned, keep_recovering, keep_removed, keep_tidy, recover
from host.runs.conversation_files import Archive
from host.runs.meter import Ledger, Prices
from host.runs.principals import PrincipalCache, Spaces, refuse_loosened
from host.runs.scheduler import EXTERNAL, TRY_EVERY_S, Scheduler, arranged
from host.runs.service import RunService
from host.runs.spec import RunLimits
from host.runs.task_runs import TaskRunner
from host.runs.webhook_events import SHAPES
from host.runs.webhooks import WebhookSender
from host.sandbox.client import Sandbox
from host.sandbox.policy import sandbox_policy
from host.schemas import SchemaJudge
from host.skills.catalogue import closed_to_agents
from host.telemetry import Metrics, Telemetry, open_telemetry
from host.volumes import make_volumes, open_store
from shared.ids import new_id
from shared.redact import Redactor
from shared.settings import Settings
from shared.settings.secret_values import secret_values
from shared.store.rows import CURSORS
from shared.store.store import Store
from shared.tasks import TaskService

if TYPE_CHECKING:
    from host.channels.service import ChannelService

logger = logging.getLogger("picoclaw.host")


@dataclass(frozen=True, slots=True)
class Host:
    """Everything that lives as long as the host does. ``stop`` begins its end and says why."""

    settings: Settings
    stop: Callable[[str], None]
    ledger: Ledger
    telemetry: Telemetry
    models: ModelAccess
    sandbox: Sandbox
    spaces: Spaces
    tool_servers: ToolServers
    tools: RunTools
    runs: RunService
    tasks: TaskService
    task_runner: TaskRunner
    channels: ChannelService | None
    principals: PrincipalCache
    enrolment: Enrolment
    tokens: TokenBook
    asks: Asks
    webhooks: WebhookSender
    background: TaskGroup


@asynccontextmanager
async def open_host(
    settings: Settings, stop: Callable[[str], None], process: ModelProcess
) -> AsyncIterator[Host]:
    """Open a host, and close it in the reverse order: the tree closing is the shutdown.

    Raises Misconfigured, StoreError, Unavailable.
    """
    made = make_volumes(settings)
    owner = new_id("host")
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        redactor = Redactor(secret_values(settings))
        telemetry = await enter(open_telemetry(settings, redactor))
        models = ModelAccess(settings, process, telemetry.ask, redactor.text)
        store = await enter(open_store(settings, owner, made=made))
        if settings.api_token is not None:
            CURSORS.share(settings.api_token.get_secret_value())
        policy = sandbox_policy(settings, closed_to_agents(settings))
        await refuse_loosened(policy, store)
        await recover(store, owner, settings.main_conversation_id)
        ledger = Ledger(store, redactor, Prices(settings.budgets, free=settings.offline), Metrics())
        sandbox = await enter(Sandbox(policy))
        tool_servers = await enter(_tool_servers(settings, store))
        spaces = Spaces(settings, sandbox, principals := PrincipalCache(store))
        judge = await enter(SchemaJudge())
        tools = RunTools(settings, ledger, sandbox, tool_servers, spaces, judge)
        archive = Archive(ledger, sandbox, spaces)
        assembly = Assembly(settings, ledger, models, tools, archive, telemetry)
        limits = RunLimits.of(settings, owner)
        runs = await enter(RunService(ledger, assembly, limits, principals))
        tasks = TaskService(
            store, default_timezone=settings.timezone, quota=settings.max_tasks_per_conversation
        )
        heartbeat = await arranged(store, tasks, sandbox, settings)
        task_runner = await enter(TaskRunner(ledger, runs, heartbeat))
        channels = await enter(_open_channels(settings, ledger, runs, tasks, tools.attachments))
        stack.push_async_callback(runs.drain)
        # Entered last, so that cancelling it cancels none of the runs, nor their drain.
        background = await enter(anyio.create_task_group())
        stack.callback(background.cancel_scope.cancel)
        enrolment = Enrolment(store, sandbox, settings.main_conversation_id)
        tokens = await open_tokens(settings, store, principals, enrolment, background)
        asks = Asks(store, runs, ledger.counts, approvals=settings.mcp.approvals)
        tool_servers.visited = Visitors(asks, principals).visit
        host = Host(
            settings, stop, ledger, telemetry, models, sandbox, spaces, tool_servers,
            tools, runs, tasks, task_runner, channels, principals, enrolment, tokens, asks,
            WebhookSender(ledger, settings, owner), background,
        )  # fmt: skip
        await _begin_background(host)
        yield host


async def _begin_background(host: Host) -> None:
    """Begin what goes on beside the answers for as long as the host is open."""
    settings, store, begin = host.settings, host.ledger.store, host.background.start_soon
    if settings.scheduler == "internal":
        most, again_s = settings.max_concurrent_runs, min(settings.lease_ms / 1000, TRY_EVERY_S)
        begin(Scheduler(store, host.task_runner.run_due, most=most, try_every_s=again_s).run)
    elif (await store.counts()).tasks:
        logger.warning(EXTERNAL)
    begin(host.webhooks.run)
    begin(keep_tidy, store, host.runs)
    begin(keep_removed, store, host.spaces, host.principals)
    begin(keep_planned, host.tasks)
    begin(keep_recovering, store, host.runs, host.task_runner, settings.lease_ms)


def app(host: Host) -> ASGIApp:
    """Return the application: the routes, and around them what every request passes."""
    settings, ledger = host.settings, host.ledger
    audit = AuditApi(ledger.store, host.principals)
    apis = [*_apis(host), audit]
    contract = OpenApi(settings.version, [each for api in apis for each in api.operations()], SHAPES)
    open_paths = frozenset[str]().union(*(api.open_paths() for api in apis))
    answering = BodyLimit(Bearer(router([*apis, contract], audit.reached), settings, host.tokens, open_paths))
    exchange = Exchange(
        answering,
        version=settings.version,
        commit=settings.build_commit,
        redact=ledger.redactor.text,
        counts=ledger.counts,
    )
    return host.telemetry.app(exchange, probes=OPEN_PATHS | {"/metrics"}, methods=METHODS)


def _apis(host: Host) -> list[Api]:
    settings, store, runs, channels = host.settings, host.ledger.store, host.runs, host.channels
    hooks = Hooks(settings, host.webhooks)
    intake = Intake(store, host.sandbox, host.spaces, host.tools.attachments)
    openai = OpenAiApi(store, runs, host.tools.judge, host.ledger.counts, intake, settings)
    return [
        _health(host),
        ChatApi(store, runs, host.tools.permissions, intake, host.tools.judge, settings, hooks),
        WebhooksApi(store, hooks),
        ApprovalsApi(store, runs, host.ledger.counts),
        ConversationsApi(store, runs, settings.main_conversation_id),
        RunsApi(store, runs),
        FilesApi(store, host.sandbox, host.spaces, host.tokens, settings, host.ledger.counts),
        TasksApi(store, host.tasks, host.task_runner, host.tools.judge),
        UsageApi(store),
        AdminApi(host.spaces.operators, host.sandbox, host.stop),
        PrincipalsApi(
            store,
            host.principals,
            host.enrolment,
            host.spaces,
            settings,
            host.tools.permissions,
            host.tools.servers.by_name,
        ),
        TokensApi(store, host.tokens),
        McpApi(host.tool_servers, host.asks, settings.gateway.allowed_hosts, host.tokens),
        McpServersApi(host.tools.servers, host.background, settings.tools.mcp.allowed_hosts),
        MetricsApi(host.ledger.counts, store, runs),
        openai,
        ResponsesApi(store, runs, openai, host.ledger.counts),
        ChannelsApi(settings, channels.running if channels else None),
        *([ConsoleApi()] if settings.console else []),
    ]


def _health(host: Host) -> HealthApi:
    channels = host.channels
    health = HealthApi(
        host.settings,
        host.ledger.store,
        host.sandbox,
        ready=lambda: not host.runs.draining,
        channels=lambda: {"telegram": "off", **(channels.states if channels else {})},
    )
    host.background.start_soon(health.probe_when_asked)
    return health


def _tool_servers(settings: Settings, store: Store) -> ToolServers:
    return ToolServers(
        db_path=settings.local_db_path,
        store_dir=settings.store_dir,
        timezone=settings.timezone,
        task_quota=settings.max_tasks_per_conversation,
        access=store.tool_access if store.several_hosts else None,
    )


@asynccontextmanager
async def _open_channels(
    settings: Settings,
    ledger: Ledger,
    runs: RunService,
    tasks: TaskService,
    attachments: Attachments,
) -> AsyncIterator[ChannelService | None]:
    """Run the channels; what they need is imported only where one is switched on."""
    if not any(channel.enabled for channel in settings.channels.by_name().values()):
        yield None
        return
    from host.channels.service import ChannelService, enabled_channels

    enabled = enabled_channels(settings)
    async with ChannelService(ledger, runs, tasks, attachments, enabled) as channels:
        yield channels
