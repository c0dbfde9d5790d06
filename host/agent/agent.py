"""The agent of this host: puts a run's tools, prompt and history together and lets the loop work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Final

from host.agent.history import to_messages
from host.agent.loop import AgentLoop, Options
from host.agent.models import ModelPort
from host.agent.prompt import Persona, ReadText, system_blocks
from host.agent.toolbox import Toolbox
from host.runs.recorder import RunRecorder
from host.runs.spec import RunSpec
from host.tools.base import Toolset
from shared.models import Lease
from shared.redact import Redactor
from shared.store.contract import Store

LEAST_THINKING: Final = 1024
"""Fewest thinking tokens the Messages API takes."""

DEFAULT_THINKING: Final = 4096

OpenToolsets = Callable[[str, bool, Mapping[str, Any]], AbstractAsyncContextManager[list[Toolset]]]
"""Opens a run's toolsets: conversation id, whether it acts for the main one, the request's MCP servers."""


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """What the settings say about every run."""

    persona: Persona
    model: str
    max_tokens: int
    max_iterations: int
    main_conversation_id: str


class HostAgent:
    """Implements ``host.runs.run.Agent``."""

    def __init__(
        self,
        config: AgentConfig,
        store: Store,
        model: ModelPort,
        open_toolsets: OpenToolsets,
        read_text: ReadText,
        redactor: Redactor,
    ) -> None:
        self._config = config
        self._store = store
        self._model = model
        self._open_toolsets = open_toolsets
        self._read_text = read_text
        self._redactor = redactor

    async def converse(self, spec: RunSpec, lease: Lease, recorder: RunRecorder) -> None:
        """Carry the conversation on until the model has finished. Raises Ending."""
        owner = spec.parent_id or lease.conversation_id
        is_main = owner == self._config.main_conversation_id
        async with self._open_toolsets(lease.conversation_id, is_main, spec.mcp_servers) as toolsets:
            messages = to_messages(await self._store.conversations.history(lease.conversation_id))
            options = await self._options(spec)
            loop = AgentLoop(self._model, Toolbox(toolsets, self._redactor), recorder, options)
            await loop.run(messages)

    async def _options(self, spec: RunSpec) -> Options:
        config = self._config
        thinking = None
        max_tokens = config.max_tokens
        if spec.thinking:
            thinking = max(spec.max_thinking_tokens or DEFAULT_THINKING, LEAST_THINKING)
            # The budget counts towards max_tokens, so the answer keeps its own room.
            max_tokens += thinking
        return Options(
            model=spec.model or config.model,
            max_tokens=max_tokens,
            max_iterations=config.max_iterations,
            system=await system_blocks(config.persona, self._read_text),
            thinking_tokens=thinking,
        )
