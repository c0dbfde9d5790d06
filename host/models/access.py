"""The models of the settings, each ready to be asked; their process starts behind the host."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio

from host.models.keyed_model import Credential, KeyedModel, Route
from host.models.messages import ModelConfig
from host.models.process import ModelProcess, RemoteModel
from host.ports import Ask
from host.telemetry import Telemetry
from shared.redact import Redactor
from shared.settings import Settings
from shared.settings.choices import ModelChoice, fallback_choice, model_choices

logger = logging.getLogger("picoclaw.agent")


class ModelAccess:
    """Owns the way to every model: a client for each credential and address, made when it is used."""

    def __init__(
        self,
        settings: Settings,
        watched: Callable[[Ask], Ask],
        redact: Callable[[str], str] = str,
    ) -> None:
        self._settings = settings
        self._watched = watched
        self._redact = redact
        self._process = ModelProcess()
        self._clients: dict[ModelConfig, RemoteModel] = {}
        self._credentials: dict[ModelConfig, Credential] = {}

    def check(self, asked: str) -> None:
        """Raise InvalidInput, naming the known ones, for a model that requests may not ask for."""
        model_choices(self._settings, asked)

    def models(
        self, asked: str | None = None, warn: Callable[[str], None] = lambda text: None
    ) -> tuple[KeyedModel, ...]:
        """Return the model that answers, then the one to go on with when it is overloaded.

        ``warn`` hears what had to be left out of requests. Raises InvalidInput as ``check`` does.
        """
        fallback = fallback_choice(self._settings)
        choices = model_choices(self._settings, asked)
        named = [choice for choice in choices if choice != fallback] or choices
        routes = [[route for choice in named for route in self._routes(choice)]]
        if fallback is not None and fallback not in named:
            routes.append(self._routes(fallback))
        return tuple(KeyedModel(one, redact=self._redact, warn=warn) for one in routes)

    async def load(self) -> None:
        """Start the model process, so that the first run doesn't wait for it; raises Misconfigured."""
        choice = model_choices(self._settings)[0]
        await self._client(self._configs(choice)[0]).load()

    async def aclose(self) -> None:
        """Give back all connections."""
        await self._process.aclose()

    def _routes(self, choice: ModelChoice) -> list[Route]:
        address = choice.base_url or ""
        return [Route(choice.model, self._credential(config), address) for config in self._configs(choice)]

    def _configs(self, choice: ModelChoice) -> list[ModelConfig]:
        if self._settings.offline:
            return [ModelConfig(offline=True)]
        silence = float(self._settings.agents.defaults.stream_timeout_seconds)
        keys = [key.get_secret_value() for key in choice.api_keys]
        if keys:
            return [ModelConfig(api_key=key, base_url=choice.base_url, silence_s=silence) for key in keys]
        token = choice.auth_token.get_secret_value() if choice.auth_token else None
        return [ModelConfig(auth_token=token, base_url=choice.base_url, silence_s=silence)]

    def _credential(self, config: ModelConfig) -> Credential:
        if config not in self._credentials:
            self._credentials[config] = Credential(self._watched(self._client(config).reply))
        return self._credentials[config]

    def _client(self, config: ModelConfig) -> RemoteModel:
        if config not in self._clients:
            self._clients[config] = RemoteModel(self._process, config)
        return self._clients[config]


@asynccontextmanager
async def open_models(
    settings: Settings, telemetry: Telemetry, redactor: Redactor
) -> AsyncIterator[ModelAccess]:
    """Open the way to the models; their process loads the SDK beside the start, so that no turn waits."""
    models = ModelAccess(settings, telemetry.ask, redactor.text)
    try:
        try:
            await models.load()
        except Exception:
            logger.exception("The model's client could not be made; the first run will say so")
        yield models
    finally:
        with anyio.CancelScope(shield=True):
            await models.aclose()
