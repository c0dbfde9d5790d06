"""The one place that knows asyncpg: what of it is used, typed, and how its connections are made.

It has no type stubs, so this module says what its objects promise here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Protocol, cast

from shared.store.rows import Row

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


REFUSALS: Final = {
    "08": "the server, or what is between, ended the connection",
    "08P01": "a pooler needs DATABASE_POOLER=true, and has to know the role of DATABASE_TOOLS_URL",
    "25006": "the server is read-only: let DATABASE_URL lead to one that takes writes",
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


class Transaction(Protocol):
    """A transaction that was not begun yet."""

    async def start(self) -> None:
        """Begin it."""
        ...

    async def commit(self) -> None:
        """Commit; when the connection breaks here, nobody knows whether it did."""
        ...

    async def rollback(self) -> None:
        """Undo it."""
        ...


class Connection(Protocol):
    """One connection, inside or outside a transaction."""

    async def execute(self, statement: str, *values: Any) -> str:
        """Run a statement and return its tag, such as ``UPDATE 1``."""
        ...

    async def executemany(self, statement: str, values: Iterable[Sequence[Any]]) -> None:
        """Run a statement once for each row of values, in one go."""
        ...

    async def fetch(self, statement: str, *values: Any) -> list[Row]:
        """Return all rows."""
        ...

    async def fetchrow(self, statement: str, *values: Any) -> Row | None:
        """Return the first row or None."""
        ...

    async def fetchval(self, statement: str, *values: Any) -> Any:
        """Return the first value of the first row or None."""
        ...

    def terminate(self) -> None:
        """End it at once, without a word to the server."""
        ...

    def transaction(self) -> Transaction:
        """Return a transaction of this connection."""
        ...


class Pool(Protocol):
    """Connections that are made when they are needed."""

    def acquire(self, *, timeout: float) -> AbstractAsyncContextManager[Connection]:
        """Lend a connection; raises TimeoutError, OSError and the driver's errors."""
        ...

    async def close(self) -> None:
        """Close all connections once they are given back."""
        ...

    def terminate(self) -> None:
        """End all connections at once."""
        ...


def load() -> None:
    """Import the client (some hundredths of a second)."""
    _module()


async def make_pool(url: str, *, most: int, pooled: bool, owner: str) -> Pool:
    """Return a pool; no connection is made yet, so that a host can start while the database is away.

    ``pooled``: the address is that of a pooler in transaction mode, which knows no prepared statements.
    """
    asyncpg = _module()
    made: Callable[..., Awaitable[Any]] = asyncpg.create_pool
    return cast(
        Pool,
        await made(
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
        ),
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
