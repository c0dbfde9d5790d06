"""Writes that wait for the volume anyway are one transaction, and one shipping."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, TypeVar, cast

import anyio

from shared.store.contract import Tx, Work

T = TypeVar("T")


class _Asked:
    """A write of somebody who waits, and what became of it."""

    def __init__(self, work: Work[Any]) -> None:
        self.work: Final = work
        self.result: Any = None
        self.error: Exception | None = None

    async def do(self, tx: Tx) -> None:
        """Run the work; what it raises undoes it alone."""
        await tx.execute("SAVEPOINT one")
        try:
            self.result, self.error = await self.work(tx), None
        except sqlite3.OperationalError:
            raise  # the database's, which ends the transaction of all
        except Exception as error:  # noqa: BLE001 - raised to whoever asked
            self.error = error
            await tx.execute("ROLLBACK TO one")
        await tx.execute("RELEASE one")


class Together:
    """Whoever comes while the volume is being written to is served with all the others after that."""

    def __init__(
        self, write: Callable[[Work[None]], Awaitable[None]], durable: Callable[[], Awaitable[None]]
    ) -> None:
        self._write = write
        self._durable = durable
        self._turn = anyio.Lock()
        self._waiting: list[_Asked] = []

    async def write(self, work: Work[T]) -> T:
        """Run a function in a transaction, and return what it returns once that is on the volume.

        Raises what the function does, and as the engine's ``write`` and ``durable``.
        """
        mine = _Asked(work)
        self._waiting.append(mine)
        try:
            async with self._turn:
                if mine in self._waiting:
                    await self._serve()
        finally:
            if mine in self._waiting:
                self._waiting.remove(mine)
        if mine.error is not None:
            raise mine.error
        return cast(T, mine.result)

    async def _serve(self) -> None:
        asked, self._waiting = self._waiting, []
        # Whoever leaves leaves the others behind.
        with anyio.CancelScope(shield=True):
            try:
                await self._write(partial(_do_all, asked))
                await self._durable()
            except Exception as error:  # noqa: BLE001 - raised to all who asked
                for each in asked:
                    each.error = each.error or error


async def _do_all(asked: Sequence[_Asked], tx: Tx) -> None:
    for each in asked:
        await each.do(tx)
