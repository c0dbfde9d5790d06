"""Who each principal is, as the parts of this host ask for it."""

import time
from collections.abc import Sequence
from typing import Final

import anyio

from shared.errors import NotFound, Suspended
from shared.principals import OPERATOR, Principal, PrincipalStatus
from shared.store.store import Store

FRESH_S: Final = 1.0
MOST: Final = 4096
THE_OPERATOR: Final = Principal(OPERATOR, OPERATOR, directory="", created_at=0)


class PrincipalCache:
    """Each is asked for anew once a second at most, and at once after a change on this host (``forget``)."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, tuple[float, Principal]] = {}
        self._others = False
        self._counted = 0.0
        self._changed = anyio.Event()

    async def get(self, principal_id: str) -> Principal:
        """Return a principal, also one that is suspended or going. The operator costs nothing.

        Raises NotFound.
        """
        if principal_id == OPERATOR:
            return THE_OPERATOR
        asked, found = self._known.get(principal_id, (0.0, None))
        if found is None or time.monotonic() - asked > FRESH_S:
            found = (await self.some([principal_id])).get(principal_id)
            if found is None:
                raise NotFound(f"principal not found: {principal_id}")
        return found

    async def some(self, principal_ids: Sequence[str]) -> dict[str, Principal]:
        """Ask for some principals anew, and return those that there are."""
        asked = time.monotonic()
        found = await self._store.principals.some(principal_ids)
        for each in found.values():
            self.keep(each, asked)
        return found

    def keep(self, principal: Principal, asked: float | None = None) -> None:
        """Take note of a principal as the store has just shown it."""
        if len(self._known) >= MOST:
            self._known.clear()
        self._known[principal.id] = asked or time.monotonic(), principal

    async def active(self, principal_id: str) -> Principal:
        """Return a principal that may act; raises Suspended, NotFound."""
        found = await self.get(principal_id)
        if found.status is not PrincipalStatus.ACTIVE:
            raise Suspended(principal_id)
        return found

    async def is_active(self, principal_id: str) -> bool:
        """Return whether there is such a principal and it may act."""
        try:
            await self.active(principal_id)
        except (NotFound, Suspended):
            return False
        return True

    async def are_there(self) -> bool:
        """Return whether the store has other principals than the operator."""
        if not self._others and time.monotonic() - self._counted > FRESH_S:
            self._counted = time.monotonic()
            self._others = len((await self._store.principals.page(limit=2, cursor=None)).items) > 1
        return self._others

    def forget(self, principal_id: str) -> None:
        """Ask anew at the next ``get``: it was changed on this host."""
        self._known.pop(principal_id, None)
        self.look()

    def look(self) -> None:
        """Let all who wait for changes look at once."""
        self._changed.set()
        self._changed = anyio.Event()

    async def changed(self, within_s: float) -> None:
        """Return once a principal or a token was changed on this host, or so many seconds later."""
        with anyio.move_on_after(within_s):
            await self._changed.wait()
