"""How an agent is put together for a run: its tools, prompt, history and budget; then the loop works."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Literal

import anyio

from host.agent.asking import LEAST_THINKING, Options
from host.agent.compactor import Compactor
from host.agent.endings import Refused
from host.agent.final_answer import FinalAnswer, Schema
from host.agent.find_tools import FIND, RationedTools
from host.agent.history import Histories
from host.agent.loop import AgentLoop
from host.agent.media import Read, nothing_kept
from host.agent.subagents import SPAWN, Parent, Subagents
from host.agent.toolbox import Toolbox, definition
from host.agent.window import Windows, estimated
from host.mcp_clients.external import ExternalServers, Outages, Reach, open_external
from host.mcp_clients.server_config import ServerConfig, alike, managed_servers, operators_servers
from host.mcp_clients.sign_ins import SignIn
from host.mcp_clients.tool_pins import ToolPins
from host.mcp_clients.tool_servers import ToolServers, tool_specs
from host.mcp_clients.toolset import Relay
from host.models.access import ModelAccess
from host.ports import SandboxFault, Toolset, ToolSpec, Trust, Workspace
from host.runs.archive import Archive
from host.runs.attachments import Attachments
from host.runs.meter import Ledger
from host.runs.permissions import Gate, Permissions, compiled, rules_of
from host.runs.prompt import Prompt
from host.runs.recorder import RunRecorder
from host.runs.sent_files import NAME as SEND_FILE
from host.runs.sent_files import SendFile
from host.runs.spaces import Space, Spaces
from host.runs.spec import RunSpec
from host.runs.step import finish_step
from host.sandbox.client import Sandbox
from host.schemas.judge import SchemaJudge
from host.skills.knowledge import Knowledge, Known
from host.telemetry import OFF, Telemetry
from host.tools.approve_budget import NAME as APPROVE_BUDGET
from host.tools.approve_budget import Approvals, Approve
from host.tools.ask_person import ASK_PERSON, ask_person
from host.tools.client_tools import PREFIX, ClientTools
from host.tools.files_and_commands import EXEC_SPEC, FILE_SPECS, SandboxToolset
from host.tools.plugins import installed_tools
from host.tools.skills import NAME as LOAD_SKILL
from host.tools.skills import SkillTools
from host.tools.web import WebToolset
from shared.errors import Conflict, NotFound
from shared.principals import Principal
from shared.settings import Settings
from shared.shapes import Shape
from shared.store.store import Store
from shared.values import Lease


@dataclass(frozen=True, slots=True)
class OpenTools:
    """A run's own toolsets, and those of other servers."""

    toolsets: Sequence[Toolset]
    knowledge: Knowledge
    gate: Gate | None = None
    external: ExternalServers | None = None
    kept: Read = nothing_kept
    files: SandboxToolset | None = None


logger = logging.getLogger("picoclaw.runs")

NAMES: Final = (APPROVE_BUDGET, ASK_PERSON, FIND, LOAD_SKILL, SEND_FILE, SPAWN)
"""Tools that rules may name, beside those of the toolsets that every run has."""
NO_SERVER: Final = "There is no MCP server {}; one that was just added needs a restart of the host"


class McpServerShape(Shape):
    """One server as it was when it was looked at: what keeps it from being ready, or what it offers.

    ``tokens``: about what the definitions of its tools take of a request. ``signed_in``: tokens are kept.
    """

    name: str
    address: str
    state: Literal["ready", "needs_sign_in", "failing"]
    problems: list[str]
    tools: list[str]
    tokens: int
    signed_in: bool


class RunTools:
    """The tools of runs: the sandbox's, the tool server's, those of other servers."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        sandbox: Sandbox,
        tool_servers: ToolServers,
        spaces: Spaces,
        judge: SchemaJudge,
    ) -> None:
        self._main = settings.main_conversation_id
        self._store = store
        self._sandbox = sandbox
        self.judge = judge
        self._tool_servers = tool_servers
        self._spaces = spaces
        self.attachments = Attachments(sandbox, spaces)
        self._more = installed_tools(settings.tools.plugins)
        if not settings.offline:
            self._more.append(WebToolset(settings.tools.web))
        self._operators = with_sign_in(operators_servers(settings), store, settings)
        self._everybodys = managed_servers(settings.managed_mcp).keys()
        self.permissions = Permissions(settings.permissions, self._names, self._operators)
        self._reach = Reach(
            allowed_hosts=frozenset(settings.tools.mcp.allowed_hosts),
            pins=ToolPins(store.tool_pins),
            has_network=settings.tools.exec.allow_network,
            judge=judge,
        )

    async def _gate(self, spec: RunSpec, lease: Lease, space: Space) -> Gate | None:
        """Return what says which calls of a run wait for a person, None where nothing is said."""
        principals = space.principal.terms.permissions
        if not (self.permissions.rules or principals or spec.permissions):
            return None
        lists = (self.permissions.rules, compiled(rules_of(principals)), compiled(spec.permissions))
        known = await self._store.approvals.remembered(lease.conversation_id)
        return Gate(lists, space.workspace.root, {each.input_sha256 for each in known})

    def _names(self) -> set[str]:
        own: list[Sequence[ToolSpec]] = [FILE_SPECS, (EXEC_SPEC,), tool_specs(True, True)]
        own += [each.specs for each in self._more]
        return {*NAMES, *(spec.name for specs in own for spec in specs)}

    @asynccontextmanager
    async def open(self, spec: RunSpec, lease: Lease, approve: Approve) -> AsyncIterator[OpenTools]:
        """Open the tools of a run.

        The operator's servers keep their names: a request can't put its own in their place.
        """
        conversation_id = lease.conversation_id
        space = await self._spaces.of_run(lease, spec.parent_id)
        files = SandboxToolset(self._sandbox, self._sandbox.policy, space.workspace, self.judge)
        own: list[Toolset] = [
            files,
            self._tool_servers.toolset(
                conversation_id,
                is_main=space.is_main,
                principal_id=lease.principal_id,
                timezone=space.principal.terms.timezone,
            ),
            SkillTools(space.knowledge),
            SendFile(
                self._store,
                self._sandbox,
                self._spaces,
                space.workspace,
                conversation_id,
                spec.parent_id or conversation_id,
            ),
            *self._more,
        ]
        if conversation_id == self._main and not spec.scheduled:
            own.append(Approvals(approve))
        gate = await self._gate(spec, lease, space)
        kept = partial(self.attachments.read, lease.principal_id, conversation_id)
        asks = spec.parent_id is None and not spec.is_unkept(conversation_id)
        if asks or (gate is not None and gate.names_questions()):
            own.append(ask_person())
        if spec.client_tools:
            own.append(ClientTools(spec.client_tools))
        operators = {name: config for name, config in self._operators.items() if self._serves(name, space)}
        servers = {**spec.mcp_servers, **operators}
        if not servers:
            yield OpenTools(own, space.knowledge, gate, None, kept, files)
            return
        reach = replace(
            self._reach,
            spawn=partial(self._sandbox.program, space.workspace),
            relay=Relay(),
            has_network=files.has_network,
            depth=spec.depth,
        )
        async with open_external(servers, reach) as external:
            external.problems += [*spec.warnings, *alike(spec.mcp_servers, servers)]
            external.problems += [
                f"The request's MCP server {name} is not used: the operator has one of this name."
                for name in sorted(spec.mcp_servers.keys() & operators.keys())
            ]
            yield OpenTools(own, space.knowledge, gate, external, kept, files)

    def _serves(self, server: str, space: Space) -> bool:
        """Return whether one of the operator's servers is for a principal: its grants name it, or it is
        everybody's in the organisation.
        """
        granted = space.principal.terms.grants.get("mcp", ())
        return space.principal.is_operator or server in self._everybodys or server in granted

    def sign_in(self, name: str) -> SignIn:
        """Return the sign-in of one of the operator's servers; raises NotFound, Conflict."""
        if name not in self._operators:
            raise NotFound(NO_SERVER.format(name))
        sign_in = self._operators[name].sign_in
        if sign_in is None:
            raise Conflict(f"{name} takes no sign-in: it is a program, or has its own Authorization header")
        return sign_in

    async def look(self, name: str | None = None) -> list[McpServerShape]:
        """Connect to the operator's servers, or to one, and return how each is; raises NotFound."""
        if name is not None and name not in self._operators:
            raise NotFound(NO_SERVER.format(name))
        wanted = {key: config for key, config in self._operators.items() if name in (None, key)}
        workspace = Workspace(self._main, self._sandbox.root, Trust.MAIN)
        spawn = partial(self._sandbox.program, workspace)
        shapes: dict[str, McpServerShape] = {}

        async def look_at(key: str, config: ServerConfig) -> None:
            # Neither a rest nor the first sight of its tools is for runs: this is only a look.
            reach = replace(self._reach, spawn=spawn, outages=Outages(), pins=ToolPins())
            async with open_external({key: config}, reach) as found:
                specs = [spec for toolset in found.toolsets for spec in toolset.specs]
                sign_in = config.sign_in
                refused = sign_in is not None and sign_in.problem
                shapes[key] = {
                    "name": key,
                    "address": config.place,
                    "state": "ready" if found.toolsets else "needs_sign_in" if refused else "failing",
                    "problems": found.problems,
                    "tools": [spec.name for spec in specs],
                    "tokens": estimated([definition(spec) for spec in specs]) if specs else 0,
                    "signed_in": sign_in is not None and bool(await sign_in.load()),
                }

        async with anyio.create_task_group() as group:
            for key, config in wanted.items():
                group.start_soon(look_at, key, config)
        return [shapes[key] for key in wanted]

    async def forget(self, conversation_id: str, principal_id: str) -> None:
        """Close what a deleted conversation has open, and drop the files that are its own."""
        await self.release(conversation_id)
        await self._tool_servers.forget(conversation_id)
        try:
            await self.attachments.forget(principal_id, conversation_id)
            await self._spaces.forget_conversation(principal_id, conversation_id)
        except SandboxFault as fault:
            logger.warning("The directory of a deleted conversation could not be removed: %s", fault)

    async def release(self, conversation_id: str) -> None:
        """See ``Agent.release``."""
        await self._sandbox.forget(conversation_id)


def with_sign_in(
    servers: Mapping[str, ServerConfig], store: Store, settings: Settings
) -> dict[str, ServerConfig]:
    """Return the operator's servers, those over HTTP that have no credentials of their own with a sign-in."""
    return {
        name: config
        if config.type == "stdio" or "authorization" in map(str.lower, config.headers)
        else replace(config, sign_in=SignIn(name, config.url, store, settings))
        for name, config in servers.items()
    }


class Assembly:
    """Puts an agent together for each run: its models, tools, prompt, history and budget."""

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        models: ModelAccess,
        tools: RunTools,
        archive: Archive | None,
        telemetry: Telemetry = OFF,
    ) -> None:
        web = settings.tools.web
        strangers = (web.search or web.fetch) and not settings.offline
        self._settings = settings
        self._ledger = ledger
        self._models = models
        self._tools = tools
        self._archive = archive
        self._call = telemetry.call
        self.converse = telemetry.run(self._converse)
        self._prompt = Prompt(settings.assistant_name, settings.system_prompt_override, web=strangers)
        self._histories = Histories(ledger.store)
        self._windows = Windows(settings.history)

    async def check(self, spec: RunSpec, principal: Principal) -> None:
        """See ``Agent.check``."""
        self._models.check(spec.model, principal.terms.models)
        if spec.output_schema is not None:
            await self._tools.judge.require(spec.output_schema, "output_schema")

    async def forget(self, conversation_id: str, principal_id: str) -> None:
        """See ``Agent.forget``."""
        self._histories.forget(conversation_id)
        if self._archive is not None:
            await self._archive.remove(principal_id, conversation_id)
        await self._tools.forget(conversation_id, principal_id)

    async def release(self, conversation_id: str) -> None:
        """See ``Agent.release``."""
        await self._tools.release(conversation_id)

    async def _converse(self, spec: RunSpec, lease: Lease, recorder: RunRecorder, approve: Approve) -> None:
        """See ``Agent.converse``."""
        allowed = recorder.principal.terms.models
        models = self._models.models(spec.model, recorder.warnings.append, allowed)
        async with self._tools.open(spec, lease, approve) as tools:
            options = await self._options(spec, await tools.knowledge.look(), tools.kept)
            unkept = spec.is_unkept(lease.conversation_id)
            toolbox = Toolbox(tools.toolsets, self._ledger.redactor, self._call, tools.gate, unkept=unkept)
            if spec.output_schema is not None:
                toolbox.add(self._final_answer(spec.output_schema, recorder))
            toolbox.open_requests = partial(self._ledger.store.approvals.open_of, lease.principal_id)
            recorder.title_of = toolbox.title
            recorder.files = tools.files
            if (external := tools.external) is not None:
                recorder.warnings.extend(external.problems)
                external.relay.warn, external.relay.progressed = recorder.warn, recorder.progressed
                external.relay.asks = bool(toolbox.of([ASK_PERSON]))
                external.relay.answers = toolbox.answers
                size = self._windows.of(models[0].targets).window
                rationed = RationedTools(toolbox, size, external.renewed)
                rationed.offer([*external.toolsets, external.resources])
                toolbox.renew = rationed.renew
            subagents = Subagents(Parent(models, toolbox, options, recorder, self._windows))
            toolbox.add(subagents)
            if lease.step:
                approvals, conversation_id = self._ledger.store.approvals, lease.conversation_id
                step = await approvals.open_step(conversation_id)
                stopped = await approvals.stopped(conversation_id)
                await finish_step(step, stopped, toolbox, subagents, recorder)
            loaded = await self._histories.load(lease)
            archive = None if self._archive is None else partial(self._archive.catch_up, lease.principal_id)
            window = Compactor(self._ledger.store, self._windows, archive, lease, loaded, recorder)
            if loaded.fresh and loaded.compaction is not None:
                # A host that was killed may have left the archive behind.
                await window.archive()
            loop = AgentLoop(models, toolbox, recorder, options, window, recorder.typed)
            try:
                await loop.run(loaded.messages)
            except Refused:
                # The turn is marked when the run is stored; from then on a line stands for it.
                await window.take_back()
                self._histories.forget(lease.conversation_id)
                raise

    def _final_answer(self, schema: Schema, recorder: RunRecorder) -> FinalAnswer:
        """Return the tool that gives a run's answer of a promised shape."""
        judged = partial(self._tools.judge.fault, schema)
        marker, redact = self._settings.session_end_marker, self._ledger.redactor.value
        recorder.typed = FinalAnswer(schema, judged, redact, marker)
        return recorder.typed

    async def _options(self, spec: RunSpec, known: Known, kept: Read) -> Options:
        defaults = self._settings.agents.defaults
        thinking = None
        max_tokens = min(defaults.max_tokens, spec.max_tokens or defaults.max_tokens)
        if defaults.thinking if spec.thinking is None else spec.thinking:
            thinking = max(spec.max_thinking_tokens or defaults.max_thinking_tokens, LEAST_THINKING)
            # The budget counts towards max_tokens, so the answer keeps its own room.
            max_tokens += thinking
        return Options(
            max_tokens=max_tokens,
            max_iterations=defaults.max_tool_iterations,
            system=self._prompt.blocks(known),
            thinking_tokens=thinking,
            thinking_type=defaults.thinking_type,
            must_call=frozenset(PREFIX + name for name in spec.must_call),
            one_call=spec.one_call,
            stop=spec.stop,
            kept=kept,
        )
