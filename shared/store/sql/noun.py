"""What the nouns of the store have in common: an engine, and the steps that are one statement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from shared.store import rows
from shared.store.contract import Engine
from shared.store.rows import Row
from shared.values import Page

T = TypeVar("T")


class Noun:
    """A noun of the store over one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def _one(
        self, make: Callable[[Row], T], statement: str, *values: Any, patient: bool = False
    ) -> T | None:
        row = await self._engine.read(lambda tx: tx.fetchrow(statement, *values), patient=patient)
        return None if row is None else make(row)

    async def _all(
        self, make: Callable[[Row], T], statement: str, *values: Any, patient: bool = False
    ) -> list[T]:
        found = await self._engine.read(lambda tx: tx.fetch(statement, *values), patient=patient)
        return [make(row) for row in found]

    async def _page(
        self,
        make: Callable[[Row], T],
        key: Sequence[str],
        statement: str,
        limit: int,
        *values: Any,
        long: bool = False,
    ) -> Page[T]:
        """Return a page; the statement's ``$1`` is how many rows it takes."""
        found = await self._engine.read(lambda tx: tx.fetch(statement, limit + 1, *values), long=long)
        return rows.page(found, limit, make, key)

    async def _change(self, statement: str, *values: Any, patient: bool = False) -> int:
        """Run a statement in a transaction of its own; returns how many rows it changed."""
        return await self._engine.write(lambda tx: tx.execute(statement, *values), patient=patient)
