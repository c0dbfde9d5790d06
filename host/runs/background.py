"""Runs in the background: nobody waits for them, so they begin again by themselves where a host stopped."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from host.runs.answers import BegunShape
from host.runs.run import ActiveRun
from host.runs.spec import RunSpec
from shared.errors import ConversationBusy, NotFound, PicoError, Unavailable
from shared.store.store import Store
from shared.values import KeyedAnswer

KEY_GONE: Final = "The run of this Idempotency-Key is gone."
MOST_AT_ONCE: Final = 1000
"""Cut-off runs that one round looks at, oldest first."""

logger = logging.getLogger("picoclaw.runs")


class Background:
    """What is told of a run's beginning, and how it begins again."""

    def __init__(self, store: Store, start: Callable[[RunSpec], Awaitable[ActiveRun]]) -> None:
        self._store = store
        self._start = start

    async def begun(self, run: ActiveRun) -> BegunShape:
        """Return that a run has begun, once that is durable; raises what kept it from that."""
        lease = run.lease
        try:
            await run.acknowledged()
        except PicoError:
            # Its caller is told that there is no such run.
            with suppress(PicoError):
                await self._store.runs.leave(lease.run_id)
            raise
        return _begun(lease.conversation_id, lease.message_id, lease.run_id)

    async def begun_before(self, answer: KeyedAnswer) -> BegunShape:
        """Return what was answered when the run of an idempotency key began; raises NotFound."""
        stored = await self._store.runs.get(answer.conversation_id or "", answer.subject)
        if stored is None:
            raise NotFound(KEY_GONE)
        await self._store.durable()
        return _begun(stored.conversation_id, stored.message_id, stored.id)

    async def begin_again(self) -> None:
        """Begin the runs again that were cut off: those that there is a place for."""
        for cut_off in await self._store.runs.to_begin_again(MOST_AT_ONCE):
            spec = RunSpec(
                None,
                cut_off.conversation_id,
                principal_id=cut_off.principal_id,
                background=True,
                begun_again=cut_off.id,
            )
            try:
                await self._start(spec)
            except (Unavailable, ConversationBusy):
                continue  # the next round tries again
            except PicoError as error:
                logger.warning("Not begun again: %s", error.message, extra={"run_id": cut_off.id})
                await self._store.runs.leave(cut_off.id)


def _begun(conversation_id: str, message_id: str, run_id: str) -> BegunShape:
    return {
        "conversation_id": conversation_id,
        "message_id": message_id,
        "run_id": run_id,
        "status": "running",
    }
