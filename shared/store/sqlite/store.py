"""The store on the embedded engine."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from shared.store.sql.retention import Retention
from shared.store.sqlite.engine import Database, Shipper
from shared.store.sqlite.migrations import Keep, fill, migrate
from shared.store.store import Store


class SqliteStore(Store):
    """A local file; ``shipper`` carries its commits to the volume.

    ``keep``: for a host, which migrates an older database after a copy of it was made. Raises StoreVersion.
    """

    def __init__(
        self,
        path: Path,
        shipper: Shipper | None = None,
        retention: Retention | None = None,
        token_id: str | None = None,
        keep: Keep | None = None,
    ) -> None:
        self.origin = None if shipper is None else shipper.origin
        self._db = Database(path, shipper, token_id)
        try:
            self._db.upgrade(fill if keep is None else partial(migrate, keep=keep))
        except BaseException:
            self._db.give_up()
            raise
        super().__init__(self._db, retention)

    def tool_access(self, conversation_id: str, *, is_main: bool, principal_id: str) -> str | None:
        """Return None: tool servers open the same file."""
        return None

    def give_up(self) -> None:
        """Close after an opening that failed."""
        self._db.give_up()

    async def probe(self) -> None:
        """Try the local disk, and look how the volume is, which is tried all the time."""
        await self._db.probe()

    def make_room(self) -> None:
        """Give back the space that is kept for when the local disk is full."""
        self._db.reserve.release()

    async def prune(self, now: int, *, limit: int) -> int:
        """Remove at most ``limit`` rows that retention no longer keeps; returns how many went."""
        self._db.reserve.keep()
        return await super().prune(now, limit=limit)

    async def close(self) -> None:
        """Make everything durable and give all connections back."""
        await self._db.close()
