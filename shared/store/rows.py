"""Rows of any engine to values, cursors to texts and back; ``Noun``, whose methods read and write rows."""

import hashlib
import hmac
import os
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import fields
from functools import wraps
from operator import itemgetter
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from shared import jsons
from shared.errors import InvalidInput
from shared.store.contract import Engine, Row, T, Tx
from shared.usage_values import Usage
from shared.values import Page

Reading = Callable[[Any], Any]


def reader(
    kind: Callable[..., T], columns: Mapping[str, str] | None = None, **read: Reading
) -> Callable[[Row], T]:
    """Return what makes a value of a row: each field of the dataclass from the column of its name.

    ``columns``: other names of columns, by field. ``read``: what makes a field's value of what is stored.
    """
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]  # a dataclass, called to make one
    stored = itemgetter(*({name: name for name in names} | dict(columns or {})).values())
    readings = [(names.index(name), reading) for name, reading in read.items()]

    def make(row: Row) -> T:
        values = list(stored(row))
        for place, reading in readings:
            values[place] = reading(values[place])
        return kind(*values)

    return make


def optional(reading: Reading) -> Reading:
    """Return a reading that leaves NULL alone."""
    return lambda stored: None if stored is None else reading(stored)


def usage(stored: str) -> Usage:
    """Read what a run or a compaction used."""
    return Usage(**jsons.loads(stored))


def there(row: Row | None) -> Row:
    """Return a row that can't be absent: the transaction has locked it, or has just written it."""
    if row is None:
        raise RuntimeError("a row is gone that must be there")
    return row


def insertion(table: str, columns: Sequence[str]) -> str:
    """Return the statement that adds a row with these columns, in this order."""
    places = ", ".join(f"${number}" for number in range(1, len(columns) + 1))
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({places})"


class Cursors:
    """Seals where a page begins: a row's number would tell how many rows all others have.

    The key is this process's and its forks' until ``share`` was called.
    """

    def __init__(self) -> None:
        self._key = os.urandom(32)

    def share(self, secret: str) -> None:
        """Make cursors that hold after a restart, and at every host that has this secret."""
        self._key = hashlib.sha256(b"cursors " + secret.encode()).digest()

    def seal(self, position: Sequence[Any]) -> str:
        """Return a cursor; its length tells nothing of a number's."""
        said = jsons.dump_bytes(position)
        padded = said.ljust(len(said) + -len(said) % PAD)
        mark = self._mark(padded)
        return (mark + self._masked(mark, padded)).hex()

    def unseal(self, cursor: str) -> Any:
        """Return the position; raises ValueError for what is no cursor of ours."""
        sealed = bytes.fromhex(cursor)
        mark = sealed[:MARK]
        said = self._masked(mark, sealed[MARK:])
        if not hmac.compare_digest(mark, self._mark(said)):
            raise ValueError("not sealed here")
        return jsons.loads(said)

    def _mark(self, said: bytes) -> bytes:
        return hashlib.blake2b(said, key=self._key, digest_size=MARK).digest()

    def _masked(self, mark: bytes, data: bytes) -> bytes:
        stream = hashlib.shake_256(self._key + mark).digest(len(data))
        return bytes(one ^ other for one, other in zip(data, stream, strict=True))


PAD: Final = 32
MARK: Final = 16
CURSORS: Final = Cursors()


def decode_cursor(cursor: str | None, *kinds: type) -> list[Any] | None:
    """Return the keyset position of a cursor with these kinds of parts; raises InvalidInput."""
    if not cursor:
        return None
    try:
        key = CURSORS.unseal(cursor)
    except ValueError:
        key = None
    if (
        not isinstance(key, list)
        or len(key) != len(kinds)
        or any(type(part) is not kind for part, kind in zip(key, kinds, strict=True))
        or any(isinstance(part, int) and abs(part) >= 2**63 for part in key)
    ):
        raise InvalidInput("cursor: must be the next_cursor of an earlier answer")
    return key


class Where:
    """Conditions of a statement whose ``$1`` is a number of rows, and their values from ``$2`` on."""

    def __init__(self, *conditions: str) -> None:
        self._conditions = ["true", *conditions]
        self.values: list[Any] = []

    def add(self, condition: str, *values: Any) -> None:
        """Add a condition that has ``{0}``, ``{1}`` and so on in the place of its values; none for None."""
        if None in values:
            return
        first = len(self.values) + 2
        self._conditions.append(condition.format(*(f"${first + place}" for place in range(len(values)))))
        self.values += values

    def after(self, condition: str, cursor: str | None, *kinds: type) -> None:
        """Add a condition on where a page begins, unless it is the first one; raises InvalidInput."""
        if position := decode_cursor(cursor, *kinds):
            self.add(condition, *position)

    def __str__(self) -> str:
        return " AND ".join(self._conditions)


N = TypeVar("N", bound="Noun")
P = ParamSpec("P")


def writes(
    *, patient: bool = False, long: bool = False, durably: bool = False
) -> Callable[
    [Callable[Concatenate[N, Tx, P], Awaitable[T]]], Callable[Concatenate[N, P], Coroutine[Any, Any, T]]
]:
    """Make a method of a ``Noun`` a transaction, which whoever calls it leaves out; as ``Engine.write``."""

    def decorate(
        work: Callable[Concatenate[N, Tx, P], Awaitable[T]],
    ) -> Callable[Concatenate[N, P], Coroutine[Any, Any, T]]:
        @wraps(work)
        async def method(noun: N, /, *args: P.args, **named: P.kwargs) -> T:
            def again(tx: Tx) -> Awaitable[T]:
                return work(noun, tx, *args, **named)

            return await noun._engine.write(again, patient=patient, long=long, durably=durably)

        return method

    return decorate


class Noun:
    """A noun of the store over one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def _one(
        self, make: Callable[[Row], T], statement: str, *values: Any, patient: bool = False
    ) -> T | None:
        row = await self._engine.read(lambda tx: tx.fetchrow(statement, *values), patient=patient)
        return None if row is None else make(row)

    async def _value(self, statement: str, *values: Any) -> Any:
        return await self._engine.read(lambda tx: tx.fetchval(statement, *values))

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
        """Return a page; the next begins after the columns of ``key``. ``$1`` is how many rows it takes."""
        rows, more = await self._engine.read(lambda tx: tx.fetch_page(limit, statement, *values), long=long)
        cursor = CURSORS.seal([rows[-1][column] for column in key]) if more else None
        return Page([make(row) for row in rows], cursor)

    async def _change(self, statement: str, *values: Any, patient: bool = False) -> int:
        """Run a statement in a transaction of its own; returns how many rows it changed."""
        return await self._engine.write(lambda tx: tx.execute(statement, *values), patient=patient)
