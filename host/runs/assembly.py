"""How an agent is put together for a run: its tools, prompt, history and budget; then the loop works."""

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from host.agent.asking import LEAST_THINKING, Options
from host.agent.compactor import Compactor
from host.agent.endings import Refused
from host.agent.history import Histories
from host.agent.loop import AgentLoop
from host.agent.media import Read, nothing_kept
from host.agent.own_tools import FIND, FinalAnswer, RationedTools, Schema
from host.agent.subagents import SPAWN, Parent, Subagents, Waited
from host.agent.toolbox import Toolbox
from host.agent.window import Windows
from host.mcp_clients.external import ExternalServers, Reach, open_external
from host.mcp_clients.listed_tools import ToolPins
from host.mcp_clients.server_config import alike
from host.mcp_clients.tool_servers import ToolServers, tool_specs
from host.mcp_clients.toolset import READ, Relay
from host.models.access import ModelAccess
from host.ports import SandboxFault, Toolset, ToolSpec
from host.runs.attachments import Attachments
from host.runs.conversation_files import SEND_FILE as SEND_FILE
from host.runs.conversation_files import Archive, SendFile
from host.runs.meter import Ledger
from host.runs.operators_servers import OperatorsServers
from host.runs.permissions import Gate, Permissions, compiled, rules_of
from host.runs.principals import Space, Spaces
from host.runs.prompt import Prompt
from host.runs.recorder import RunRecorder
from host.runs.spec import RunSpec
from host.sandbox.client import Sandbox
from host.schemas import SchemaJudge
from host.skills.knowledge import Knowledge, Known
from host.telemetry import OFF, Telemetry
from host.tools.arguments import EXEC_SPEC, FILE_SPECS
from host.tools.files_and_commands import SandboxToolset
from host.tools.without_sandbox import APPROVE_BUDGET as APPROVE_BUDGET
from host.tools.without_sandbox import (
    ASK_PERSON,
    PREFIX,
    Approvals,
    Approve,
    SkillTools,
    ask_person,
    client_tools,
    installed_tools,
    web_tools,
)
from host.tools.without_sandbox import LOAD_SKILL as LOAD_SKILL
from shared.approval_values import Approval
from shared.errors import Unavailable
from shared.principals import Principal
from shared.settings import Settings
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
    unkept: bool = False
    """Whether the conversation goes with its answer: it was begun for itself."""


logger = logging.getLogger("picoclaw.runs")

NAMES: Final = (APPROVE_BUDGET, ASK_PERSON, FIND, LOAD_SKILL, READ, SEND_FILE, SPAWN)
"""Tools that rules may name, beside those of the toolsets that every run has."""


class RunTools:
    """The tools of runs: the sandbox's, the tool server's, those of other servers."""

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        sandbox: Sandbox,
        tool_servers: ToolServers,
        spaces: Spaces,
        judge: SchemaJudge,
    ) -> None:
        self._main = settings.main_conversation_id
        self._store = store = ledger.store
        self.sandbox = sandbox
        self.judge = judge
        self._tool_servers = tool_servers
        self.spaces = spaces
        self.attachments = Attachments(sandbox, spaces, ledger.counts)
        self._more = installed_tools(settings.tools.plugins)
        if not settings.offline:
            self._more.append(web_tools(settings.tools.web))
        self._reach = Reach(
            allowed_hosts=frozenset(settings.tools.mcp.allowed_hosts),
            pins=ToolPins(store.tool_pins),
            has_network=settings.tools.exec.allow_network,
            judge=judge,
        )
        self.servers = OperatorsServers(settings, store, sandbox, self._reach)
        self.permissions = Permissions(settings.permissions, self._names, self.servers.by_name)

    async def _gate(self, spec: RunSpec, lease: Lease, space: Space) -> Gate:
        """Return what says which calls of a run wait for a person."""
        principals = space.principal.terms.permissions
        lists = (self.permissions.rules, compiled(rules_of(principals)), compiled(spec.permissions))
        known = await self._store.approvals.remembered(lease.conversation_id)
        return Gate(lists, space.workspace.root, {each.input_sha256 for each in known})

    def _names(self) -> set[str]:
        own: list[Sequence[ToolSpec]] = [FILE_SPECS, (EXEC_SPEC,), tool_specs(True, True)]
        own += [each.specs for each in self._more]
        return {*NAMES, *(spec.name for specs in own for spec in specs)}

    @asynccontextmanager
    async def open(
        self, spec: RunSpec, lease: Lease, principal: Principal, approve: Approve
    ) -> AsyncIterator[OpenTools]:
        """Open the tools of a run, which is the principal's.

        The operator's servers keep their names: a request can't put its own in their place.
        """
        conversation_id = lease.conversation_id
        space = self.spaces.of_run(lease, spec.parent_id, principal)
        files = SandboxToolset(self.sandbox, self.sandbox.policy, space.workspace, self.judge)
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
                self.sandbox,
                self.spaces,
                space.workspace,
                conversation_id,
                spec.parent_id or conversation_id,
            ),
            *self._more,
        ]
        if conversation_id == self._main and not spec.scheduled:
            own.append(Approvals(approve))
        gate = None
        if self.permissions.rules or principal.terms.permissions or spec.permissions:
            gate = await self._gate(spec, lease, space)
        kept = partial(self.attachments.read, lease.principal_id, conversation_id)
        unkept = lease.temporary and spec.begun_by == conversation_id
        if (spec.parent_id is None and not unkept) or (gate is not None and gate.names_questions()):
            own.append(ask_person())
        if spec.client_tools:
            own.append(client_tools(spec.client_tools))
        operators = self.servers.of(space.principal) if self.servers.by_name else {}
        servers = {**spec.mcp_servers, **operators}
        if not servers:
            yield OpenTools(own, space.knowledge, gate, None, kept, files, unkept)
            return
        reach = replace(
            self._reach,
            spawn=partial(self.sandbox.program, space.workspace),
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
            yield OpenTools(own, space.knowledge, gate, external, kept, files, unkept)

    async def forget(self, conversation_id: str, principal_id: str) -> None:
        """Close what a deleted conversation has open, and drop the files that are its own."""
        await self.sandbox.forget(conversation_id)
        await self._tool_servers.forget(conversation_id)
        await self.attachments.forget(principal_id, conversation_id)
        await self.spaces.forget_conversation(principal_id, conversation_id)


class Assembly:
    """Puts an agent together for each run: its models, tools, prompt, history and budget."""

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        models: ModelAccess,
        tools: RunTools,
        archive: Archive,
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
        """Raise InvalidInput for a run that the principal can't have."""
        self._models.check(spec.model, principal.terms.models)
        if spec.output_schema is not None:
            await self._tools.judge.require(spec.output_schema, "output_schema")

    async def forget(self, conversation_id: str, principal_id: str) -> None:
        """Drop what a deleted conversation had beside its rows.

        Raises SandboxFault, also where their file system hangs.
        """
        self._histories.forget(conversation_id)
        try:
            await self._tools.spaces.require(principal_id, conversation_id)
            # Also where none is written any more.
            await self._archive.remove(principal_id, conversation_id)
            await self._tools.forget(conversation_id, principal_id)
        except Unavailable as fault:
            raise SandboxFault(fault.message) from None

    async def release(self, conversation_id: str) -> None:
        """Drop what a conversation that is to be deleted holds of the local disk."""
        await self._tools.sandbox.forget(conversation_id)

    async def _converse(self, spec: RunSpec, lease: Lease, recorder: RunRecorder, approve: Approve) -> None:
        """Carry the conversation on until the model has finished. Raises Ending."""
        allowed = recorder.principal.terms.models
        models = self._models.models(spec.model, recorder.warnings.append, allowed)
        async with self._tools.open(spec, lease, recorder.principal, approve) as tools:
            options = await self._options(spec, await tools.knowledge.look(), tools.kept)
            redactor = self._ledger.redactor
            toolbox = Toolbox(tools.toolsets, redactor, self._call, tools.gate, unkept=tools.unkept)
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
                await _finish_step(step, stopped, toolbox, subagents, recorder)
            loaded = await self._histories.load(lease)
            written = self._settings.history.archive
            archive = partial(self._archive.catch_up, lease.principal_id) if written else None
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


async def _finish_step(
    step: Sequence[Approval],
    stopped: Mapping[str, Any],
    toolbox: Toolbox,
    subagents: Subagents,
    recorder: RunRecorder,
) -> None:
    """Run the stored inputs that people allowed, if they still may, and store a result for every request.

    ``stopped``: subagents that go on, by the call that began each. Raises Asked where one of them, the
    calling program or a server has to be waited for.
    """
    waited = Waited([each for each in step if not each.subagent], stopped, {each.id: each for each in step})
    if stopped or waited.acts(toolbox):
        await recorder.acting()
    results, asked = await waited.results(toolbox, subagents.resume)
    await recorder.finished_step(step, results)
    if asked is not None:
        raise asked
