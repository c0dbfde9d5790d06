"""A model that several credentials reach: one is used until the API turns it away, then the next."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from host.agent.models import Delta, ModelError, ModelPort, Reply
from shared.clock import monotonic_ms

TURNED_AWAY: Final = frozenset({401, 429})
"""Statuses that are about the credential: another one may do better at once."""

REST_MS: Final = {401: 300_000.0, 429: 30_000.0}
"""How long a credential that was turned away is only tried after the others, unless the API says how long."""


@dataclass(slots=True)
class Credential:
    """A way to the API by one key, and until when (monotonic milliseconds) others go before it."""

    model: ModelPort
    rests_until: float = 0.0

    def rest(self, error: ModelError) -> None:
        """Let the others go first for a while."""
        said = error.retry_after_s
        pause = REST_MS[error.status or 429] if said is None else said * 1000
        self.rests_until = monotonic_ms() + pause


@dataclass(frozen=True, slots=True)
class Route:
    """The model's id at the API that this credential is for."""

    model: str
    credential: Credential


class KeyedModel:
    """A ModelPort over routes to the same model, in the order of preference."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self._routes = tuple(routes)

    @property
    def ids(self) -> tuple[str, ...]:
        """The model's ids at its APIs: what may have to be paid for."""
        return tuple(dict.fromkeys(route.model for route in self._routes))

    async def reply(self, request: Mapping[str, Any], on_delta: Callable[[Delta], Awaitable[None]]) -> Reply:
        """See ``ModelPort.reply``; the request's ``model`` is filled in.

        When every credential was turned away, the most hopeful of their errors is raised.
        """
        told = False

        async def tell(delta: Delta) -> None:
            nonlocal told
            told = True
            await on_delta(delta)

        failures: list[ModelError] = []
        for route in self._in_turn():
            try:
                reply = await route.credential.model.reply({**request, "model": route.model}, tell)
            except ModelError as error:
                if error.status not in TURNED_AWAY:
                    raise
                route.credential.rest(error)
                failures.append(error)
                if told:
                    # The reader has seen a part: only the loop can begin the step anew.
                    break
            else:
                return dataclasses.replace(reply, asked_model=route.model)
        raise min(failures, key=_hopelessness)

    async def aclose(self) -> None:
        """The credentials belong to whoever made them."""

    def _in_turn(self) -> list[Route]:
        now = monotonic_ms()
        return sorted(self._routes, key=lambda route: max(route.credential.rests_until - now, 0.0))


def _hopelessness(error: ModelError) -> tuple[bool, float]:
    return not error.retryable, error.retry_after_s or 0.0
