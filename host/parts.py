"""The host's parts, opened in the order they depend on each other and closed in the reverse."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import anyio

from host.agent.agent import AgentConfig, HostAgent, OpenTools
from host.agent.archive import Archive
from host.agent.knowledge import Knowledge
from host.agent.model_access import ModelAccess
from host.agent.prompt import Prompt
from host.heartbeat import Heartbeat
from host.mcp_clients.external import Reach, open_external
from host.mcp_clients.server_config import configured_servers, managed_servers
from host.mcp_clients.tool_pins import ToolPins
from host.mcp_clients.tool_servers import ToolServers
from host.mcp_clients.zygote import by_path
from host.metrics import Metrics
from host.runs.prices import Prices
from host.runs.service import RunLimits, RunService
from host.runs.spec import RunSpec
from host.runs.task_runs import TaskParts, TaskRunner
from host.sandbox import Sandbox, running_program
from host.sandbox_settings import sandbox_policy
from host.scheduler import Scheduler
from host.skills.places import built_in_dir
from host.telemetry import OFF, Telemetry, open_telemetry
from host.tools.approvals import Approvals
from host.tools.base import Toolset
from host.tools.skills import SkillTools
from host.tools.web import WebToolset
from host.upkeep import keep_recovering, keep_tidy
from host.volumes import make_volumes
from shared.clock import now_ms
from shared.errors import Misconfigured
from shared.redact import Redactor
from shared.settings import Settings
from shared.store import open_host_store
from shared.store.contract import Store
from shared.store.retention import DAY_MS, Retention
from shared.tasks import LONGEST_PROMPT, TaskService

if TYPE_CHECKING:
    from host.channels.base import Channel, Door
    from host.channels.service import ChannelService

logger = logging.getLogger("picoclaw.host")


class Host:
    """Everything that lives as long as the host does. Made inside ``open_host``."""

    def __init__(self, settings: Settings, owner: str, stop: Callable[[str], None]) -> None:
        self.settings = settings
        self.owner = owner
        self.stop = stop
        self.metrics = Metrics()
        self.redactor = Redactor(settings.secret_values())
        self.store: Store
        self.sandbox: Sandbox
        self.knowledge: Knowledge
        self.tool_servers: ToolServers
        self.telemetry: Telemetry = OFF
        self.models: ModelAccess
        self.prices = Prices(settings.budgets.prices, free=settings.offline)
        self.runs: RunService
        self.tasks: TaskService
        self.task_runner: TaskRunner
        self.operator_servers = {
            **configured_servers(settings.tools.mcp.servers),
            **managed_servers(settings.org_dir),
        }
        self.reach = Reach(allowed_hosts=frozenset(settings.tools.mcp.allowed_hosts))
        self.channels: ChannelService | None = None
        self.ready = False

    def channel_states(self) -> dict[str, str]:
        """Return how each channel is; Telegram is always among them."""
        return {"telegram": "off", **(self.channels.states if self.channels else {})}

    def running_channel(self, name: str) -> tuple[Channel, Door] | None:
        """Return a channel that was loaded, and its door."""
        return None if self.channels is None else self.channels.running(name)

    @asynccontextmanager
    async def toolsets(self, spec: RunSpec, conversation_id: str, is_main: bool) -> AsyncIterator[OpenTools]:
        """Open the tools of a run: the sandbox's, the tool server's, those of other servers.

        The operator's servers keep their names: a request can't put its own in their place.
        """
        own: list[Toolset] = [
            self.sandbox.toolset(conversation_id),
            self.tool_servers.toolset(conversation_id, is_main=is_main),
            SkillTools(self.knowledge),
            *([] if self.settings.offline else [WebToolset(self.settings.tools.web)]),
        ]
        if conversation_id == self.settings.main_conversation_id and not spec.scheduled:
            own.append(Approvals(self.runs.approve))
        servers = {**spec.mcp_servers, **self.operator_servers}
        reach = replace(self.reach, spawn=partial(running_program, self.sandbox, conversation_id))
        async with open_external(servers, reach) as external:
            yield OpenTools([*own, *external.toolsets], external.problems)


@asynccontextmanager
async def open_host(settings: Settings, owner: str, stop: Callable[[str], None]) -> AsyncIterator[Host]:
    """Open the host's parts, and close them in the reverse order: the tree closing is the shutdown."""
    _check(settings)
    host = Host(settings, owner, stop)
    async with AsyncExitStack() as stack:
        host.telemetry = await stack.enter_async_context(open_telemetry(settings, host.redactor))
        host.models = ModelAccess(settings, host.telemetry.model)
        stack.push_async_callback(host.models.aclose)
        await _start_model_process(host)
        make_volumes(settings)
        host.store = await _open_store(settings, owner)
        stack.push_async_callback(host.store.close)
        host.reach = replace(host.reach, pins=ToolPins(host.store.tool_pins))
        host.tasks = TaskService(
            host.store, default_timezone=settings.timezone, quota=settings.max_tasks_per_conversation
        )
        await _recover(host)
        host.sandbox = await stack.enter_async_context(Sandbox(sandbox_policy(settings)))
        host.knowledge = _knowledge(host)
        host.tool_servers = await stack.enter_async_context(
            ToolServers(
                db_path=settings.local_db_path,
                store_dir=settings.store_dir,
                timezone=settings.timezone,
                task_quota=settings.max_tasks_per_conversation,
                access=host.store.tool_access if host.store.several_hosts else by_path,
            )
        )
        background = await stack.enter_async_context(anyio.create_task_group())
        host.runs = await stack.enter_async_context(_run_service(host))
        parts = TaskParts(host.store, await _heartbeat(host), host.metrics, host.redactor, settings.lease_ms)
        host.task_runner = await stack.enter_async_context(TaskRunner(parts, host.runs, owner=owner))
        if any(channel.enabled for channel in settings.channels.by_name().values()):
            host.channels = await stack.enter_async_context(_channels(host))
        if settings.scheduler == "internal":
            background.start_soon(_scheduler(host).run)
        background.start_soon(keep_tidy, host.store)
        background.start_soon(keep_recovering, host.store, settings.lease_ms)
        host.ready = True
        yield host
        host.ready = False
        background.cancel_scope.cancel()
        await host.runs.drain()


async def _open_store(settings: Settings, owner: str) -> Store:
    """Open the store of the settings: PostgreSQL for several hosts, else the volume and its database."""
    retention = Retention(
        outbound_ms=settings.outbound_ttl_days * DAY_MS, task_log=settings.task_log_retention
    )
    if settings.database_url is None:
        return open_host_store(
            store_dir=settings.store_dir,
            local_db=settings.local_db_path,
            owner=owner,
            retention=retention,
        )
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
    # The tool servers' door stands there, although no database does.
    settings.local_db_path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return await open_shared_store(
        place, retention, tools_url=None if tools is None else tools.get_secret_value()
    )


def _check(settings: Settings) -> None:
    org = settings.org_dir
    if org is not None and org.resolve().is_relative_to(settings.memory_dir.resolve()):
        raise Misconfigured("ORG_DIR: must not be inside the workspace, where agents could write it")


def _run_service(host: Host) -> RunService:
    settings = host.settings
    config = AgentConfig(
        defaults=settings.agents.defaults,
        history=settings.history,
        budgets=settings.budgets,
        prices=host.prices,
        main_conversation_id=settings.main_conversation_id,
    )
    web = settings.tools.web
    strangers = (web.search or web.fetch) and not settings.offline
    prompt = Prompt(settings.assistant_name, settings.system_prompt_override, web=strangers)
    archive = None
    if settings.history.archive:
        archive = Archive(host.store, host.redactor, host.sandbox.save_file, host.sandbox.remove_folder)
    agent = HostAgent(
        config,
        host.store,
        host.models,
        host.toolsets,
        prompt,
        host.knowledge,
        host.redactor,
        archive,
        host.telemetry,
    )
    limits = RunLimits(
        max_execution_ms=settings.max_execution_ms,
        max_concurrent_runs=settings.max_concurrent_runs,
        stop_grace_ms=settings.stop_grace_ms,
        end_marker=settings.session_end_marker,
        queue_ms=settings.queue_ms,
        messages_per_minute=settings.rate_limits.messages_per_minute,
        lease_ms=settings.lease_ms,
    )
    forget = (agent.forget, host.sandbox.forget, host.tool_servers.forget)
    return RunService(
        host.store,
        host.telemetry.agent(agent),
        limits,
        owner=host.owner,
        redactor=host.redactor,
        metrics=host.metrics,
        prices=host.prices,
        on_delete=forget,
    )


def _knowledge(host: Host) -> Knowledge:
    settings = host.settings
    return Knowledge(
        host.sandbox.survey,
        workspace_dir=settings.memory_dir,
        built_in_dir=built_in_dir(settings),
        org_dir=settings.org_dir,
        skills_dir=settings.skills_dir,
    )


async def _heartbeat(host: Host) -> Heartbeat:
    settings = host.settings

    async def read(path: str) -> str | None:
        return await host.sandbox.read_text(path, LONGEST_PROMPT)

    heartbeat = Heartbeat(
        host.store,
        host.tasks,
        read,
        conversation_id=settings.main_conversation_id,
        minutes=settings.heartbeat.interval,
    )
    await heartbeat.arrange(enabled=settings.heartbeat.enabled)
    await host.store.durable()
    return heartbeat


def _channels(host: Host) -> ChannelService:
    """Make the channels' service; what it needs is imported only where a channel is switched on."""
    from host.channels.loading import enabled_channels
    from host.channels.parts import ChannelParts
    from host.channels.service import ChannelService

    settings = host.settings
    parts = ChannelParts(
        store=host.store,
        runs=host.runs,
        tasks=host.tasks,
        save_file=host.sandbox.save_file,
        redactor=host.redactor,
        assistant_name=settings.assistant_name,
        main_conversation_id=settings.main_conversation_id,
        end_marker=settings.session_end_marker,
    )
    return ChannelService(parts, enabled_channels(settings))


def _scheduler(host: Host) -> Scheduler:
    async def run_due() -> int:
        return len(await host.task_runner.run_due(1))

    return Scheduler(host.store, run_due, most=host.settings.max_concurrent_runs)


async def _recover(host: Host) -> None:
    """End what an earlier host left running.

    Who holds the volume is alone, so nobody else can be at it. Where several hosts serve one store, only what
    outlived its lease is a dead host's.
    """
    now, alone = now_ms(), not host.store.several_hosts
    ended = await host.store.runs.recover(now, all_but=host.owner if alone else None)
    released = await host.store.tasks.recover(now, all_but=host.owner) if alone else 0
    if ended or released:
        logger.warning("Recovered after a crash", extra={"runs": len(ended), "task_claims": released})
    await host.store.conversations.ensure(host.settings.main_conversation_id, now)
    await host.store.durable()


async def _start_model_process(host: Host) -> None:
    """Have it load the SDK beside the start, so that the first turn doesn't wait for it."""
    try:
        await host.models.load()
    except Exception:
        logger.exception("The model's client could not be made; the first run will say so")
