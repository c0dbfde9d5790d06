"""The model port, loaded behind the start: the SDK takes half a second to import."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import anyio
import anyio.to_thread

from host.agent.models import Delta, ModelConfig, ModelPort, Reply


class LazyModel:
    """A ModelPort that imports the SDK on a worker thread: early by ``load``, else at the first reply."""

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self._model: ModelPort | None = None
        self._loading = anyio.Lock()

    async def load(self) -> ModelPort:
        """Return the loaded model; raises Misconfigured without a credential."""
        if self._model is None:
            async with self._loading:
                if self._model is None:
                    await anyio.to_thread.run_sync(_import_sdk)
                    self._model = _make(self._config)
        return self._model

    async def reply(self, request: Mapping[str, Any], on_delta: Callable[[Delta], Awaitable[None]]) -> Reply:
        """See ``ModelPort.reply``."""
        model = self._model or await self.load()
        return await model.reply(request, on_delta)

    async def aclose(self) -> None:
        """Give back the connections, if there ever were any."""
        if self._model is not None:
            await self._model.aclose()


def _import_sdk() -> None:
    import host.agent.anthropic_model  # noqa: F401 - for its effect: the import is what costs


def _make(config: ModelConfig) -> ModelPort:
    from host.agent.anthropic_model import AnthropicModel, make_client

    return AnthropicModel(make_client(config))
