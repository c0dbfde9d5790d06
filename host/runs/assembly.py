"""The agent of this host: puts a run's tools, prompt and history together and lets the loop work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from host.agent.compactor import Compactor
from host.agent.endings import Refused
from host.agent.histories import Histories
from host.agent.loop import AgentLoop, Options
from host.agent.subagents import Parent, Subagents
from host.agent.toolbox import Toolbox
from host.agent.window import LEAST_THINKING, Windows
from host.models.access import ModelAccess
from host.ports import Toolset
from host.runs.archive import Archive
from host.runs.prompt import Prompt
from host.runs.recorder import RunRecorder
from host.runs.spec import RunSpec
from host.skills.knowledge import Knowledge
from host.telemetry import OFF, Telemetry
from shared.redact import Redactor
from shared.settings.sections import AgentDefaults, History
from shared.store.store import Store
from shared.values import Lease


@dataclass(frozen=True, slots=True)
class OpenTools:
    """A run's toolsets, and a sentence for each server whose tools it has to do without."""

    toolsets: Sequence[Toolset]
    problems: Sequence[str] = ()


OpenToolsets = Callable[[RunSpec, Lease, bool], AbstractAsyncContextManager[OpenTools]]
"""Opens a run's tools: what was asked, the conversation's id, whether it acts for the main one."""


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """What the settings say about every run."""

    defaults: AgentDefaults
    history: History
    main_conversation_id: str


class HostAgent:
    """Implements ``host.runs.run.Agent``."""

    def __init__(
        self,
        config: AgentConfig,
        store: Store,
        models: ModelAccess,
        open_toolsets: OpenToolsets,
        prompt: Prompt,
        knowledge: Knowledge,
        redactor: Redactor,
        archive: Archive | None = None,
        telemetry: Telemetry = OFF,
    ) -> None:
        self._config = config
        self._store = store
        self._models = models
        self._open_toolsets = open_toolsets
        self._prompt = prompt
        self._knowledge = knowledge
        self._redactor = redactor
        self._histories = Histories(store)
        self._archive = archive
        self._telemetry = telemetry
        self._windows = Windows(config.history)

    async def forget(self, conversation_id: str) -> None:
        """Drop what is kept of a conversation that was deleted, and its archive."""
        self._histories.forget(conversation_id)
        if self._archive is not None:
            await self._archive.remove(conversation_id)

    async def converse(self, spec: RunSpec, lease: Lease, recorder: RunRecorder) -> None:
        """Carry the conversation on until the model has finished. Raises Ending."""
        with self._telemetry.run(lease, scheduled=spec.scheduled) as tell:
            try:
                await self._converse(spec, lease, recorder)
            finally:
                tell(recorder.model, recorder.meter.usage)

    async def _converse(self, spec: RunSpec, lease: Lease, recorder: RunRecorder) -> None:
        owner = spec.parent_id or lease.conversation_id
        is_main = owner == self._config.main_conversation_id
        models = self._models.models(spec.model, recorder.warnings.append)
        async with self._open_toolsets(spec, lease, is_main) as tools:
            recorder.warnings.extend(tools.problems)
            loaded = await self._histories.load(lease)
            options = await self._options(spec)
            toolbox = Toolbox(tools.toolsets, self._redactor, self._telemetry.call)
            toolbox = Subagents(Parent(models, toolbox, options, recorder, self._windows)).toolbox()
            archive = None if self._archive is None else self._archive.catch_up
            window = Compactor(self._store, self._windows, archive, lease, loaded, recorder)
            if loaded.fresh and loaded.compaction is not None:
                # A host that was killed may have left the archive behind.
                await window.archive()
            loop = AgentLoop(models, toolbox, recorder, options, window)
            try:
                await loop.run(loaded.messages)
            except Refused:
                # The turn is marked when the run is stored; from then on a line stands for it.
                await window.take_back()
                self._histories.forget(lease.conversation_id)
                raise

    async def _options(self, spec: RunSpec) -> Options:
        defaults = self._config.defaults
        thinking = None
        max_tokens = defaults.max_tokens
        if defaults.thinking if spec.thinking is None else spec.thinking:
            thinking = max(spec.max_thinking_tokens or defaults.max_thinking_tokens, LEAST_THINKING)
            # The budget counts towards max_tokens, so the answer keeps its own room.
            max_tokens += thinking
        return Options(
            max_tokens=max_tokens,
            max_iterations=defaults.max_tool_iterations,
            system=self._prompt.blocks(await self._knowledge.look()),
            thinking_tokens=thinking,
            thinking_type=defaults.thinking_type,
        )
