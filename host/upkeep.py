"""What the host does on the side: removing what retention no longer keeps, a little at a time."""

from __future__ import annotations

import logging
from typing import Final

import anyio

from shared.clock import now_ms
from shared.store.contract import Store

logger = logging.getLogger("picoclaw.upkeep")

EVERY_S: Final = 60.0
PAUSE_S: Final = 0.05
"""Between two batches, so that requests go first."""

BATCH: Final = 200
"""Rows a batch removes at most: some milliseconds of work, on the worker thread."""


async def keep_tidy(store: Store) -> None:
    """Remove old rows for ever, in batches; a failure is logged and tried again at the next round."""
    while True:
        try:
            removed = await store.prune(now_ms(), limit=BATCH)
        except Exception:
            logger.exception("Old rows could not be removed; the next round tries again")
            removed = 0
        await anyio.sleep(PAUSE_S if removed >= BATCH else EVERY_S)


async def keep_recovering(store: Store, lease_ms: int) -> None:
    """End the runs that nobody serves, for ever: at the latest a sixth of a lease after theirs ran out.

    Their hosts died, or could not store how they ended.
    """
    while True:
        await anyio.sleep(lease_ms / 6000)
        try:
            ended = await store.runs.recover(now_ms())
        except Exception:
            logger.exception("Runs without a host could not be looked for; the next round tries again")
            continue
        if ended:
            logger.warning("Ended runs that nobody serves", extra={"runs": len(ended)})
