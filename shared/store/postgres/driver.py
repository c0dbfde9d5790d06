"""The one place that knows asyncpg, which has no types: its connections, what its errors mean."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Final

from shared.store.contract import Filling, Missing, Row, Taken

ESCAPE: Final = "\ufdd0"


def encode(text: str) -> str:
    """Return what is stored for a text; raises TypeError for anything else."""
    if not isinstance(text, str):
        raise TypeError("a text is needed")
    if "\0" not in text and ESCAPE not in text:
        return str(text)
    return text.replace(ESCAPE, f"{ESCAPE}1").replace("\0", f"{ESCAPE}0")


def decode(stored: str) -> str:
    """Return the text that is stored."""
    if ESCAPE not in stored:
        return stored
    return stored.replace(f"{ESCAPE}0", "\0").replace(f"{ESCAPE}1", ESCAPE)


CONNECT_S: Final = 5.0
"""How long making a connection may take, in seconds."""
STATEMENT_S: Final = 15.0
"""How long one statement may take, in seconds."""
IDLE_S: Final = 300.0
"""An unused connection is closed after this long, in seconds."""

READ_ONLY: Final = "25006"
REFUSALS: Final = {
    "08": "the server, or what is between, ended the connection",
    "08P01": "a pooler needs DATABASE_POOLER=true, and has to know the role of DATABASE_TOOLS_URL",
    READ_ONLY: "the server is read-only: let DATABASE_URL lead to one that takes writes",
    "25P03": "the host was stopped in the middle of a transaction",
    "25P04": "raise transaction_timeout for DATABASE_URL's role",
    "26000": "a pooler needs DATABASE_POOLER=true",
    "28": "look at user and password in DATABASE_URL, and at the role's LOGIN",
    "3D000": "look at the database's name in DATABASE_URL",
    "42501": "GRANT DATABASE_URL's role what it needs",
    "42P01": "a table of the host is missing: restore a backup, or undo what renamed it",
    "42P05": "a pooler needs DATABASE_POOLER=true",
    "53": "the server has no disk or memory left",
    "53300": "lower DATABASE_CONNECTIONS, or raise the server's or the role's limit",
    "55000": "allow connections to the database (ALTER DATABASE … ALLOW_CONNECTIONS true)",
    "57": "the server is starting or stopping",
    "58": "the server's disk fails: look at the server's log",
}
"""What a server answers that doesn't serve, by SQLSTATE or class (PostgreSQL, appendix A), and what mends it.

The longest that fits counts. docs/scale.md has the same table.
"""
CANCELLED: Final = "57014"
"""Of class 57, but about one statement: somebody cancelled it, or statement_timeout did."""

SESSION: Final = {
    # What makes a commit durable, whatever the server's default is.
    "synchronous_commit": "on",
    # A host that is stopped in the middle of a transaction must not keep its locks, in milliseconds.
    "idle_in_transaction_session_timeout": "5000",
    # The host bounds each statement itself; a role's shorter limits would undo what it can wait for.
    "statement_timeout": "0",
    "lock_timeout": "0",
}
"""Settings of every session. Poolers refuse them: there they belong to the role (docs/scale.md)."""

Connection = Any
"""A connection of asyncpg's, in a transaction or not; ``PostgresTx`` gives its methods their types."""
Pool = Any
"""Connections of asyncpg's that are made when they are needed."""


def load() -> None:
    """Import the client (some hundredths of a second)."""
    _module()


async def make_pool(url: str, *, most: int, pooled: bool, owner: str) -> Pool:
    """Return a pool; no connection is made yet, so that a host can start while the database is away.

    ``pooled``: the address is that of a pooler in transaction mode, which knows no prepared statements.
    """
    asyncpg = _module()
    return await asyncpg.create_pool(
        url,
        min_size=0,
        max_size=most,
        max_inactive_connection_lifetime=IDLE_S,
        timeout=CONNECT_S,
        connect=_connect,
        command_timeout=STATEMENT_S,
        statement_cache_size=0 if pooled else 256,
        server_settings=None if pooled else {**SESSION, "application_name": owner},
        init=_prepare,
        reset=_nothing_to_reset,
    )


class Refused(Exception):
    """The server refused the connection itself, whatever for."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.sqlstate = sqlstate(error)


def sqlstate(error: BaseException | None) -> str | None:
    """Return the state that the server reported, None for other errors."""
    state = getattr(error, "sqlstate", None)
    return state if isinstance(state, str) else None


def is_server_error(error: BaseException, *states: str) -> bool:
    """Return whether the server reported one of these states."""
    return sqlstate(error) in states


def is_away(error: BaseException) -> bool:
    """Return whether the database can't be reached or doesn't serve (``REFUSALS``)."""
    if isinstance(error, OSError | TimeoutError | Refused):
        return True
    state = sqlstate(error)
    if state is None:
        # The second: what is sent on a connection whose end the client is just reading.
        return isinstance(error, _module().InterfaceError | _module().InternalClientError)
    return state != CANCELLED and cure(state) is not None


def cure(state: str) -> str | None:
    """Return what mends a refusal, None for what is no refusal."""
    return REFUSALS.get(state, REFUSALS.get(state[:2]))


async def _connect(*arguments: Any, **options: Any) -> Any:
    asyncpg = _module()
    try:
        return await asyncpg.connect(*arguments, **options)
    except asyncpg.PostgresError as error:
        raise Refused(error) from error


async def _prepare(connection: Any) -> None:
    await connection.set_type_codec(
        "text", schema="pg_catalog", encoder=encode, decoder=decode, format="text"
    )


async def _nothing_to_reset(connection: Any) -> None:
    """No statement of this engine leaves anything behind in a session."""


def _module() -> Any:
    import asyncpg  # type: ignore[import-untyped]  # it ships none; the protocols above are its types here

    return asyncpg


CONSTRAINTS: Final = {"23503": Missing, "23505": Taken}
"""What is raised for a foreign key, and for a unique one, that doesn't hold."""

LEASE_NOW: Final = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint"
"""The lease clock in milliseconds: the server's, because clocks of several hosts differ.

No statement sees a clock that a change of the server's wall clock doesn't move, so that server should slew
its time, as NTP daemons do (docs/scale.md).
"""

SHARDS: Final = 32
"""Rows over which a counter is spread, by the server process that counts."""

LOCK: Final = "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))"
"""Belongs to the transaction, not to the session, so it works through a pooler."""
NUMBER_FROM: Final = """SELECT setval(name, greatest(nextval(name), $2::bigint))
    FROM pg_get_serial_sequence($1, 'number') AS name"""
TRY_LOCK: Final = "SELECT pg_try_advisory_xact_lock(hashtextextended($1, 0))"


@cache
def translated(statement: str) -> str:
    """Return a statement with what the names of ``shared.store.contract`` stand for here."""
    for name in ("lease_now()", "wall_now()"):
        statement = statement.replace(name, LEASE_NOW)
    return statement.replace("shard()", f"pg_backend_pid() % {SHARDS}")


class PostgresTx:
    """Implements Tx over one connection."""

    __slots__ = ("_connection",)

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def execute(self, statement: str, *values: Any) -> int:
        """Run a statement and return how many rows it changed."""
        with _constraints():
            done = await self._connection.execute(translated(statement), *values)
        changed = done.rpartition(" ")[2]
        return int(changed) if changed.isdecimal() else 0

    async def executemany(self, statement: str, values: Iterable[Sequence[Any]]) -> None:
        """Run a statement once for each row of values, in one go."""
        with _constraints():
            await self._connection.executemany(translated(statement), values)

    async def fetch(self, statement: str, *values: Any) -> Sequence[Row]:
        """Return all rows."""
        rows: Sequence[Row] = await self._connection.fetch(translated(statement), *values)
        return rows

    async def fetch_page(self, limit: int, statement: str, *values: Any) -> tuple[list[Row], bool]:
        """Return at most so many rows, and whether there are more."""
        page = Filling(limit)
        async with self._connection.transaction():
            async for row in self._connection.cursor(translated(statement), limit + 1, *values):
                if not page.takes(row):
                    break
        return page.rows, page.more

    async def fetchrow(self, statement: str, *values: Any) -> Row | None:
        """Return the first row or None."""
        with _constraints():
            row: Row | None = await self._connection.fetchrow(translated(statement), *values)
        return row

    async def fetchval(self, statement: str, *values: Any) -> Any:
        """Return the first value of the first row or None."""
        return await self._connection.fetchval(translated(statement), *values)

    async def number_from(self, table: str, least: int) -> None:
        """Let the numbers of a table's rows be above ``least``."""
        await self._connection.execute(NUMBER_FROM, table, least)

    async def lock(self, kind: str, name: str) -> None:
        """Wait for whoever holds the lock of this kind and name."""
        await self._connection.execute(LOCK, f"{kind}:{name}")

    async def try_lock(self, kind: str) -> bool:
        """Take the lock of this kind, if nobody has it."""
        return bool(await self._connection.fetchval(TRY_LOCK, f"{kind}:"))


@contextmanager
def _constraints() -> Iterator[None]:
    """Raise what the contract says for a constraint that doesn't hold."""
    try:
        yield
    except Exception as error:
        if (kind := CONSTRAINTS.get(sqlstate(error) or "")) is not None:
            raise kind(str(error)) from error
        raise
