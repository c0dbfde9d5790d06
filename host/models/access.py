"""The models of the settings, each by its credentials: where one is turned away, the next goes on."""

import ast
import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from host.models.mending import NAMES, Kind, suspects, unrepeated, without
from host.models.process import ModelConfig, ModelProcess
from host.ports import Ask, Delta, ModelError, OnDelta, Reply, Target
from shared.clock import monotonic_ms
from shared.settings import Settings
from shared.settings.models import ANTHROPIC
from shared.settings.tree import ModelChoice, configured, fallback_choice, model_choices

logger = logging.getLogger("picoclaw.agent")

TURNED_AWAY: Final = frozenset({401, 402, 403, 404})
"""Statuses that are about the credential or the address, and stay so for a while."""

TURNED_AWAY_MS: Final = 300_000.0
BUSY_MS: Final = 30_000.0
"""How long a way to the API that failed is only tried after the others, unless the API says how long."""

NAMES_KNOWN: Final = 256
"""Names of models that are kept resolved."""


@dataclass(slots=True)
class Credential:
    """A way to the API by one key, and until when (monotonic milliseconds) others go before it."""

    ask: Ask
    rests_until: float = 0.0

    def rest(self, error: ModelError) -> None:
        """Let the others go first for a while."""
        said = error.retry_after_s
        usual = TURNED_AWAY_MS if error.status in TURNED_AWAY else BUSY_MS
        self.rests_until = monotonic_ms() + (usual if said is None else said * 1000)


@dataclass(frozen=True, slots=True)
class Route:
    """The model at the API that this credential is for."""

    target: Target
    credential: Credential


@dataclass(slots=True)
class _Listener:
    """Passes pieces on, and remembers whether there were any."""

    on_delta: OnDelta
    told: bool = False

    def hear(self, delta: Delta) -> None:
        self.told = True
        self.on_delta(delta)


class KeyedModel:
    """Implements ``Model`` over routes to the same model, in the order of preference, for one run.

    A request that is refused is made again without the kinds of blocks that may be the cause
    (``host.models.mending``). If that helps, ``warn`` says so, and the reply's ``left_out`` tells whoever
    keeps the history; what is refused a second time is left out to the end of the run. ``redact`` takes
    secrets out of the API's own words.
    """

    def __init__(
        self,
        routes: Sequence[Route],
        *,
        redact: Callable[[str], str] = str,
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.routes = tuple(routes)
        self.ids = tuple(dict.fromkeys(route.target.model for route in self.routes))
        """The model's ids at its APIs: what may have to be paid for."""
        self.targets = tuple(dict.fromkeys(route.target for route in self.routes))
        """The model at its addresses."""
        self._redact = redact
        self._warn = warn
        self._left_out: frozenset[Kind] = frozenset()
        self._told: frozenset[Kind] = frozenset()
        self._suspected: tuple[frozenset[Kind], ModelError | None] | None = None

    async def reply(self, request: Mapping[str, Any], on_delta: OnDelta) -> Reply:
        """See ``Model.reply``.

        When every credential was turned away, the most hopeful of their errors is raised; when nothing that
        was left out helped, the first.
        """
        listener = _Listener(on_delta)
        (kinds, first), self._suspected = self._suspected or (self._left_out, None), None
        while True:
            sent = without(request, kinds) if kinds else request
            try:
                reply = await self._by_turns(sent, listener)
            except ModelError as error:
                first = first or error
                more = suspects(error, request, kinds)
                if not more:
                    raise (error if error.retryable else first) from None
                kinds |= more
                if listener.told:
                    # The reader has seen a part: only the loop can begin the step anew.
                    self._suspected = kinds, first
                    error.retryable, error.retry_after_s = True, 0.0
                    raise
            else:
                reply = reply if first is None else self._keep(reply, kinds, first)
                return unrepeated(reply, request["messages"]) if reply.tool_uses else reply

    def _keep(self, reply: Reply, kinds: frozenset[Kind], refusal: ModelError) -> Reply:
        """Tell what had to be left out."""
        new = kinds - self._left_out
        if untold := " and ".join(sorted(NAMES[kind] for kind in new - self._told)):
            self._warn(f"The model's API refused {untold}: left out. {refusal.sentence}")
        self._left_out |= new & (self._told | {"thinking_mode"})
        self._told |= new
        return dataclasses.replace(reply, left_out=tuple(sorted(new)))

    async def _by_turns(self, request: Mapping[str, Any], listener: _Listener) -> Reply:
        failures: list[ModelError] = []
        for route in self.routes if len(self.routes) == 1 else self._in_turn():
            try:
                reply = await route.credential.ask({**request, "model": route.target.model}, listener.hear)
            except ModelError as error:
                self._explain(error, route)
                if not _is_the_way_s(error):
                    raise
                route.credential.rest(error)
                failures.append(error)
                if listener.told:
                    # The reader has seen a part: only the loop can begin the step anew.
                    break
            else:
                model = reply.model or route.target.model
                return dataclasses.replace(reply, model=model, asked=route.target)
        raise min(failures, key=lambda error: (not error.retryable, error.retry_after_s or 0.0))

    def _explain(self, error: ModelError, route: Route) -> None:
        error.said = self._redact(error.said)
        error.asked = route.target
        extra = {"model": route.target.model, "status": error.status}
        logger.warning("A model request failed: %s", error.sentence, extra=extra)

    def _in_turn(self) -> list[Route]:
        now = monotonic_ms()
        return sorted(self.routes, key=lambda route: max(route.credential.rests_until - now, 0.0))


def _is_the_way_s(error: ModelError) -> bool:
    """Return whether the same request may fare better by another key or address."""
    if error.reason:
        return False
    return error.status is None or error.status in TURNED_AWAY | {408, 429} or error.status >= 500


class ModelAccess:
    """The way to every model, by the one process for all of them."""

    def __init__(
        self,
        settings: Settings,
        process: ModelProcess,
        watched: Callable[[Ask], Ask],
        redact: Callable[[str], str],
    ) -> None:
        self._settings = settings
        self._process = process
        self._watched = watched
        self._redact = redact
        self._credentials: dict[ModelConfig, Credential] = {}
        self._resolved = lru_cache(NAMES_KNOWN)(self._resolve)

    def check(self, asked: str | None, allowed: tuple[str, ...] | None = None) -> None:
        """Raise InvalidInput, naming the known ones, for a model that requests may not ask for.

        ``allowed``: the names of those that the principal may use, None: all.
        """
        model_choices(self._settings, asked, allowed)

    def models(
        self,
        asked: str | None = None,
        warn: Callable[[str], None] = lambda text: None,
        allowed: tuple[str, ...] | None = None,
    ) -> tuple[KeyedModel, ...]:
        """Return the model that answers, then the one to go on with when it is overloaded.

        Each call begins with the next key or entry of that name. ``warn`` hears what had to be left out of
        requests. Raises InvalidInput as ``check`` does.
        """
        groups = self._resolved(asked, allowed)
        models = tuple(KeyedModel(routes, redact=self._redact, warn=warn) for routes in groups)
        for routes in groups:
            routes.append(routes.pop(0))
        return models

    def _resolve(self, asked: str | None, allowed: tuple[str, ...] | None) -> list[list[Route]]:
        """Return the routes to the model and to the one after it, each list in the order of the next run."""
        fallback = fallback_choice(self._settings)
        choices = model_choices(self._settings, asked, allowed)
        named = [choice for choice in choices if choice != fallback] or choices
        routes = [[route for choice in named for route in self._routes(choice)]]
        if fallback in choices and fallback not in named:
            routes.append(self._routes(fallback))
        return routes

    def _routes(self, choice: ModelChoice) -> list[Route]:
        target = Target(choice.model, choice.base_url or "")
        return [Route(target, self._credential(config)) for config in self._configs(choice)]

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
            ask = self._watched(partial(self._process.ask, config))
            self._credentials[config] = Credential(ask)
        return self._credentials[config]


DEPRECATED: Final = "_data/deprecated_models.py"


def deprecated(settings: Settings) -> Iterator[str]:
    """Yield a sentence for each configured model of Anthropic's that the SDK lists as deprecated."""
    ids = [choice.model for choice in configured(settings) if (choice.base_url or ANTHROPIC) == ANTHROPIC]
    last_days = {} if settings.offline else _last_days()
    for model in dict.fromkeys(ids):
        if model in last_days:
            yield f"model {model} is deprecated and its last day is {last_days[model]}: choose another"


def _last_days() -> dict[str, str]:
    """Read the table, {} when it is elsewhere. To import the SDK takes 0.3 s that the start doesn't have."""
    spec = find_spec("anthropic")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    try:
        tree = ast.parse(Path(*folders[:1], DEPRECATED).read_text())
    except (OSError, ValueError):
        return {}
    tables = [node.value for node in tree.body if isinstance(node, ast.AnnAssign) and node.value]
    return dict(ast.literal_eval(tables[0])) if tables else {}
