"""A host: all of its parts, opened in the order they need each other, and the application around them."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup
from starlette.types import ASGIApp

from host.channels.webhook import ChannelsApi
from host.http.admin import AdminApi
from host.http.approvals import ApprovalsApi
from host.http.attachments import Intake
from host.http.audit import AuditApi
from host.http.auth import OPEN_PATHS, TokenBook
from host.http.chat import ChatApi
from host.http.console import ConsoleApi
from host.http.conversations import ConversationsApi
from host.http.enrolment import Enrolment
from host.http.files import FilesApi
from host.http.health import HealthApi
from host.http.mcp.asks import Asks
from host.http.mcp.routes import McpApi
from host.http.mcp.servers import McpServersApi
from host.http.metrics import MetricsApi
from host.http.middleware import METHODS, Bearer, BodyLimit, Exchange
from host.http.openai.responses import ResponsesApi
from host.http.openai.routes import OpenAiApi
from host.http.openapi import OpenApi
from host.http.principals import PrincipalsApi
from host.http.routing import Api, router
from host.http.runs import RunsApi
from host.http.tasks import TasksApi
from host.http.tokens import TokensApi, open_tokens
from host.http.usage import UsageApi
from host.http.webhooks import Hooks, WebhooksApi
from host.mcp_clients.tool_servers import ToolServers
from host.mcp_clients.zygote import by_path
from host.models.access import ModelAccess, open_models
from host.runs.archive import Archive
from host.runs.assembly import Assembly, RunTools
from host.runs.attachments import Attachments
from host.runs.cleanup import keep_planned, keep_recovering, keep_removed, keep_tidy, recover
from host.runs.heartbeat import arranged
from host.runs.meter import Ledger, Prices
from host.runs.principals import PrincipalCache
from host.runs.scheduler import EXTERNAL, Scheduler
from host.runs.service import RunService
from host.runs.spaces import Spaces, refuse_loosened
from host.runs.spec import RunLimits
from host.runs.task_runs import TaskRunner
from host.runs.webhook_events import SHAPES
from host.runs.webhooks import WebhookSender
from host.sandbox.client import Sandbox
from host.sandbox.policy import commands_own, sandbox_policy
from host.schemas.judge import SchemaJudge
from host.skills.catalogue import closed_to_agents
from host.telemetry import Telemetry, open_telemetry
from host.telemetry.counts import Metrics
from shared.errors import Misconfigured
from shared.ids import new_id
from shared.redact import Redactor
from shared.settings import Settings
from shared.settings.sensitive import secret_values
from shared.store import open_host_store
from shared.store.sql.retention import DAY_MS, Retention
from shared.store.store import Store
from shared.tasks import TaskService

if TYPE_CHECKING:
    from host.channels.service import ChannelService

logger = logging.getLogger("picoclaw.host")

NEW_STORE: Final = "A new store was made in %s; its STORE_ID is %s"
WAS_EMPTY: Final = (
    "STORE_DIR %s was empty: a new store was made there. If one should be there, stop this host and mount "
    "its volume. STORE_ID=%s makes every later start refuse any other store, or none"
)


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
async def open_host(settings: Settings, stop: Callable[[str], None]) -> AsyncIterator[Host]:
    """Open a host, and close it in the reverse order: the tree closing is the shutdown.

    Raises Misconfigured, StoreError, Unavailable.
    """
    made = make_volumes(settings)
    owner = new_id("host")
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        redactor = Redactor(secret_values(settings))
        telemetry = await enter(open_telemetry(settings, redactor))
        models = await enter(open_models(settings, telemetry, redactor))
        store = await enter(open_store(settings, owner, made=made))
        await refuse_loosened(settings, store)
        await recover(store, owner, settings.main_conversation_id)
        ledger = Ledger(store, redactor, Prices(settings.budgets, free=settings.offline), Metrics())
        sandbox = await enter(Sandbox(sandbox_policy(settings, closed_to_agents(settings))))
        tool_servers = await enter(_tool_servers(settings, store))
        spaces = Spaces(settings, sandbox, principals := PrincipalCache(store))
        judge = await enter(SchemaJudge())
        tools = RunTools(settings, store, sandbox, tool_servers, spaces, judge)
        archive = Archive(ledger, sandbox, spaces) if settings.history.archive else None
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
        asks = Asks(store, runs, ledger.counts)
        tool_servers.visited = asks.visit
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
        begin(Scheduler(store, host.task_runner.run_due, most=settings.max_concurrent_runs).run)
    elif (await store.counts()).tasks:
        logger.warning(EXTERNAL)
    begin(host.webhooks.run)
    begin(keep_tidy, store)
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
            settings.auth.jwt.issuer,
            host.tools.permissions,
        ),
        TokensApi(store, host.tokens),
        McpApi(host.tool_servers, host.asks, settings.gateway.allowed_hosts, host.tokens),
        McpServersApi(host.tools, host.background, settings.tools.mcp.allowed_hosts),
        MetricsApi(host.ledger.counts, store, runs),
        openai,
        ResponsesApi(store, runs, openai),
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


def make_volumes(settings: Settings) -> bool:
    """Make the directories that are missing; raises Misconfigured with what mends one that can't be used.

    Returns whether the home is new, or `init` or `dev` made it, so that no volume with a store can be missed.
    """
    made = _is_first_start(settings.home, settings.store_dir)
    volumes = {
        "STORE_DIR": settings.store_dir,
        "MEMORY_DIR": settings.memory_dir,
        "LOCAL_DB_PATH": settings.local_db_path.parent,
    }
    for name, path in volumes.items():
        try:
            path.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise Misconfigured(f"{name}: {path} is not a directory") from None
        except OSError as error:
            raise Misconfigured(f"{name}: {path} cannot be made ({error.strerror}). {_cure(path)}") from None
        usable = os.access(path, os.R_OK | os.W_OK | os.X_OK)
        if not usable and not (name == "MEMORY_DIR" and commands_own(path)):
            raise Misconfigured(f"{name}: {path} cannot be written. {_cure(path)}")
    org = settings.org_dir
    if org is not None and org.resolve().is_relative_to(settings.memory_dir.resolve()):
        raise Misconfigured("ORG_DIR: must not be inside the workspace, where agents could write it")
    return made


def _is_first_start(home: Path, store_dir: Path) -> bool:
    try:
        return (
            home in store_dir.parents
            and not store_dir.exists()
            and (not home.exists() or any(home.iterdir()))
        )
    except OSError:
        return False


def _cure(path: Path) -> str:
    """Return whose the nearest directory is that exists, and what gives it to the host's user."""
    place = path
    while not place.is_dir() and place != place.parent:
        place = place.parent
    uid, gid = os.geteuid(), os.getegid()
    owner = place.stat().st_uid
    if os.statvfs(place).f_flag & os.ST_RDONLY:
        return f"{place} is on a read-only file system: mount a writable volume there"
    return (
        f"{place} belongs to uid {owner} and the host runs as uid {uid}: "
        f"run `chown -R {uid}:{gid} {place}` once, or start the host as uid {owner} "
        f"(docker run --user {owner}; in Kubernetes fsGroup: {gid})"
    )


@asynccontextmanager
async def open_store(settings: Settings, owner: str, *, made: bool) -> AsyncIterator[Store]:
    """Open the store of the settings: PostgreSQL for several hosts, else the volume and its database.

    ``made``: what ``make_volumes`` returned.
    """
    store = await _opened(settings, owner, made=made)
    try:
        yield store
    finally:
        with anyio.CancelScope(shield=True):
            await store.close()


async def _opened(settings: Settings, owner: str, *, made: bool) -> Store:
    retention = Retention(
        outbound_ms=settings.outbound_ttl_days * DAY_MS,
        task_log=settings.task_log_retention,
        approvals_ms=settings.approvals_ttl_days * DAY_MS,
        audit_ms=settings.audit_ttl_days * DAY_MS,
        dead_ms=settings.deliveries_ttl_days * DAY_MS,
        responses_ms=settings.responses_ttl_days * DAY_MS,
    )
    if settings.database_url is None:
        opened = partial(
            open_host_store,
            store_dir=settings.store_dir,
            local_db=settings.local_db_path,
            owner=owner,
            retention=retention,
            store_id=settings.store_id,
        )
        # A volume that doesn't answer keeps nobody from stopping the host.
        store = await anyio.to_thread.run_sync(opened, abandon_on_cancel=True)
        if store.origin is not None and store.origin.new:
            say, sentence = (logger.info, NEW_STORE) if made else (logger.warning, WAS_EMPTY)
            say(sentence, settings.store_dir, store.origin.id)
        return store
    from shared.store.postgres.database import Place
    from shared.store.postgres.opening import open_shared_store

    place = Place(
        settings.database_url.get_secret_value(),
        owner=owner,
        connections=settings.database_connections,
        pooled=settings.database_pooler,
    )
    tools = settings.database_tools_url
    if settings.channels.telegram.enabled:
        logger.warning("Several hosts may share this store: switch channels on at one of them only")
    return await open_shared_store(
        place, retention, tools_url=None if tools is None else tools.get_secret_value()
    )


def _tool_servers(settings: Settings, store: Store) -> ToolServers:
    return ToolServers(
        db_path=settings.local_db_path,
        store_dir=settings.store_dir,
        timezone=settings.timezone,
        task_quota=settings.max_tasks_per_conversation,
        access=store.tool_access if store.several_hosts else by_path,
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
    from host.channels.loading import enabled_channels
    from host.channels.service import ChannelService

    enabled = enabled_channels(settings)
    async with ChannelService(ledger, runs, tasks, attachments, enabled) as channels:
        yield channels
