"""The host's parts on its base, opened in the order they depend on each other and closed in the reverse."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import anyio

from host.base import Base
from host.mcp_clients.external import Reach, open_external
from host.mcp_clients.server_config import configured_servers, managed_servers
from host.mcp_clients.tool_pins import ToolPins
from host.mcp_clients.tool_servers import ToolServers
from host.mcp_clients.zygote import by_path
from host.ports import Toolset
from host.runs.archive import Archive
from host.runs.assembly import AgentConfig, HostAgent, OpenTools
from host.runs.cleanup import keep_planned, keep_recovering, keep_tidy
from host.runs.heartbeat import Heartbeat
from host.runs.meter import Prices
from host.runs.prompt import Prompt
from host.runs.scheduler import EXTERNAL, Scheduler
from host.runs.service import RunLimits, RunService
from host.runs.spec import RunSpec
from host.runs.task_runs import TaskParts, TaskRunner
from host.sandbox import Trust, running_program
from host.skills.catalogue import built_in_dir
from host.skills.knowledge import Knowledge
from host.tools.approve_budget import Approvals
from host.tools.skills import SkillTools
from host.tools.web import WebToolset
from shared.tasks import LONGEST_PROMPT, TaskService
from shared.values import Lease

if TYPE_CHECKING:
    from host.channels.base import Channel, Door
    from host.channels.service import ChannelService

logger = logging.getLogger("picoclaw.host")


class Host:
    """Everything that lives as long as the host does. Made inside ``open_host``."""

    def __init__(self, base: Base) -> None:
        self.settings = base.settings
        self.owner = base.owner
        self.stop = base.stop
        self.redactor = base.redactor
        self.telemetry = base.telemetry
        self.metrics = base.metrics
        self.models = base.models
        self.store = base.store
        self.sandbox = base.sandbox
        self.prices = Prices(base.settings.budgets, free=base.settings.offline)
        self.operator_servers = {
            **configured_servers(base.settings.tools.mcp.servers),
            **managed_servers(base.settings.managed_mcp),
        }
        self.reach = Reach(
            allowed_hosts=frozenset(base.settings.tools.mcp.allowed_hosts),
            pins=ToolPins(base.store.tool_pins),
            has_network=base.settings.tools.exec.allow_network,
        )
        self.knowledge: Knowledge
        self.tool_servers: ToolServers
        self.runs: RunService
        self.tasks: TaskService
        self.task_runner: TaskRunner
        self.channels: ChannelService | None = None
        self.ready = False

    def channel_states(self) -> dict[str, str]:
        """Return how each channel is that was loaded."""
        return dict(self.channels.states) if self.channels else {}

    def running_channel(self, name: str) -> tuple[Channel, Door] | None:
        """Return a channel that was loaded, and its door."""
        return None if self.channels is None else self.channels.running(name)

    @asynccontextmanager
    async def toolsets(self, spec: RunSpec, lease: Lease, is_main: bool) -> AsyncIterator[OpenTools]:
        """Open the tools of a run: the sandbox's, the tool server's, those of other servers.

        The operator's servers keep their names: a request can't put its own in their place.
        """
        conversation_id = lease.conversation_id
        trust = Trust.MAIN if is_main else Trust.TRUSTED if lease.trusted else Trust.UNTRUSTED
        own: list[Toolset] = [
            self.sandbox.toolset(conversation_id, trust=trust),
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
async def open_host(base: Base) -> AsyncIterator[Host]:
    """Open the host's parts, and close them in the reverse order: the tree closing is the shutdown."""
    host = Host(base)
    settings = base.settings
    async with AsyncExitStack() as stack:
        host.tasks = TaskService(
            host.store, default_timezone=settings.timezone, quota=settings.max_tasks_per_conversation
        )
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
        host.task_runner = await stack.enter_async_context(TaskRunner(parts, host.runs, owner=host.owner))
        if any(channel.enabled for channel in settings.channels.by_name().values()):
            host.channels = await stack.enter_async_context(_channels(host))
        if settings.scheduler == "internal":
            background.start_soon(_scheduler(host).run)
        elif (await host.store.counts()).tasks:
            logger.warning(EXTERNAL)
        background.start_soon(keep_tidy, host.store)
        background.start_soon(keep_planned, host.tasks)
        background.start_soon(keep_recovering, host.store, settings.lease_ms)
        host.ready = True
        yield host
        host.ready = False
        background.cancel_scope.cancel()
        await host.runs.drain()


def _run_service(host: Host) -> RunService:
    settings = host.settings
    config = AgentConfig(
        defaults=settings.agents.defaults,
        history=settings.history,
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
        agent,
        limits,
        owner=host.owner,
        redactor=host.redactor,
        metrics=host.metrics,
        prices=host.prices,
        timezone=settings.timezone,
        assistant_name=settings.assistant_name,
        on_delete=forget,
        release=host.sandbox.forget,
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
    from host.channels.rules import ChannelParts
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
