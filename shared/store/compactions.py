"""The part of the Store contract that is about compacted conversations."""

from __future__ import annotations

from typing import Protocol

from shared.compactions import Compaction
from shared.models import Lease, Spending


class Compactions(Protocol):
    """How the beginnings of long conversations are sent; they go with their conversation."""

    async def latest(self, conversation_id: str) -> Compaction | None:
        """Return the compaction in force, None if everything is sent as it is stored."""
        ...

    async def add(
        self, lease: Lease, compaction: Compaction, now: int, *, spent: Spending | None = None
    ) -> Compaction:
        """Put a compaction in force and count what it cost; raises LeaseLost.

        What was reserved for its model call is given back. Returns it with its number and ``created_at``.
        """
        ...

    async def unarchived(self, conversation_id: str) -> list[Compaction]:
        """Return those that replaced messages and are not in the archive yet, oldest first."""
        ...

    async def mark_archived(self, conversation_id: str, number: int) -> None:
        """Note that the messages which a compaction replaced are in the archive."""
        ...
