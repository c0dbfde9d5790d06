"""What the host does beside the requests: old rows removed, tasks planned anew, dead hosts' runs ended."""

import logging
import math
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import anyio

from host.runs.principals import PrincipalCache, Spaces
from host.runs.service import RunService
from host.runs.task_runs import TaskRunner
from shared.approval_values import UNKEPT_MS
from shared.clock import monotonic_ms, now_ms
from shared.errors import ConversationBusy, NotFound
from shared.logging import Rounds
from shared.principals import PrincipalStatus
from shared.store.store import Store
from shared.tasks import TaskService

logger = logging.getLogger("picoclaw.upkeep")

EVERY_S: Final = 60.0
PAUSE_S: Final = 0.05
"""Between two batches, so that requests go first."""

CLOCK_EVERY_S: Final = 10.0
STEP_MS: Final = 1000
"""How far the wall clock goes back against the steady one before it counts as set back."""

GONE_EVERY_S: Final = 10.0
MOST_GONE: Final = 1000
ENDING_S: Final = 0.5
"""Until it is looked again whether the runs of a principal that is being deleted have ended."""

BATCH: Final = 200
"""Rows a batch removes at most: some milliseconds of work, on the worker thread."""


async def recover(store: Store, owner: str, main_conversation_id: str) -> None:
    """End what an earlier host left running, before this one begins anything.

    Who holds the volume is alone, so nobody else can be at it. Where several hosts serve one store, only what
    outlived its lease is a dead host's.
    """
    now, alone = now_ms(), not store.several_hosts
    ended = await store.runs.recover(now, all_but=owner if alone else None)
    released = await store.tasks.recover(now, all_but=owner) if alone else 0
    if ended or released:
        logger.warning("Recovered after a crash", extra={"runs": len(ended), "task_claims": released})
    await store.conversations.ensure(main_conversation_id, now)
    await store.durable()


async def keep_tidy(store: Store, runs: RunService) -> None:
    """Remove old rows for ever, in batches, and files of deleted conversations that were left."""
    rounds = Rounds(logger, "Old rows could not be removed")
    of_files = Rounds(logger, "The files of deleted conversations could not be removed")
    while True:
        removed = 0
        with rounds:
            removed = await store.prune(now_ms(), limit=BATCH)
            # Their answers' ends remove them, unless calls wait for results or the host was stopped.
            for conversation_id in await store.conversations.unkept(now_ms() - UNKEPT_MS, BATCH):
                with suppress(NotFound, ConversationBusy):
                    await runs.delete_conversation(conversation_id)
        with of_files:
            await runs.forget_deleted()
        await anyio.sleep(PAUSE_S if removed >= BATCH else EVERY_S)


async def keep_removed(store: Store, spaces: Spaces, principals: PrincipalCache) -> None:
    """Remove what deleted principals have, in the store and on this host, for ever; any host may be asked."""
    rounds = Rounds(logger, "What a deleted principal has could not be removed")
    while True:
        pause = GONE_EVERY_S
        with rounds:
            if await store.principals.delete_some(BATCH):
                pause = PAUSE_S
            elif await spaces.are_there():
                for principal in await store.principals.departing(MOST_GONE):
                    await spaces.forget(principal)
                    if principal.status is PrincipalStatus.DELETING:
                        pause = ENDING_S
        await principals.changed(pause)


async def keep_planned(
    tasks: TaskService, *, wall: Callable[[], int] = now_ms, every_s: float = CLOCK_EVERY_S
) -> None:
    """Plan tasks anew that were planned while the clock was ahead: at the start, and when it goes back."""
    rounds = Rounds(logger, "Tasks could not be planned anew")
    before = math.inf
    while True:
        ahead = wall() - monotonic_ms()
        with rounds:
            if ahead < before - STEP_MS and (planned := await tasks.plan_anew(wall())):
                logger.warning(
                    "The clock was ahead and was set back: %d tasks are planned anew", len(planned),
                    extra={"tasks": planned[:20]}
                )  # fmt: skip
            before = ahead
        await anyio.sleep(every_s)


async def keep_recovering(store: Store, runs: RunService, tasks: TaskRunner, lease_ms: int) -> None:
    """End the runs that nobody serves, for ever: at the latest a sixth of a lease after theirs ran out.

    Their hosts died, or could not store how they ended. Those in the background are begun again.
    """
    rounds = Rounds(logger, "Runs without a host could not be looked for")
    while True:
        await anyio.sleep(lease_ms / 6000)
        with rounds:
            if ended := await store.runs.recover(now_ms()):
                logger.warning("Ended runs that nobody serves", extra={"runs": len(ended)})
            await runs.background.begin_again()
            await tasks.begin_again()
