"""The one place that knows asyncpg: what of it is used, typed, and how its connections are made.

It has no type stubs, so this module says what its objects promise here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Protocol, cast

from shared.store.postgres.nul import decode, encode
from shared.store.rows import Row

CONNECT_S: Final = 5.0
"""How long making a connection may take, in seconds."""
STATEMENT_S: Final = 15.0
"""How long one statement may take, in seconds."""
IDLE_S: Final = 300.0
"""An unused connection is closed after this long, in seconds."""


SESSION: Final = {
    # What makes a commit durable, whatever the server's default is.
    "synchronous_commit": "on",
    # A host that is stopped in the middle of a transaction must not keep its locks, in milliseconds.
    "idle_in_transaction_session_timeout": "5000",
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
            command_timeout=STATEMENT_S,
            statement_cache_size=0 if pooled else 256,
            server_settings=None if pooled else {**SESSION, "application_name": owner},
            init=_prepare,
            reset=_nothing_to_reset,
        ),
    )


def is_server_error(error: BaseException, *states: str) -> bool:
    """Return whether the server reported one of these states (PostgreSQL, appendix A: error codes)."""
    return getattr(error, "sqlstate", None) in states


def is_away(error: BaseException) -> bool:
    """Return whether the database couldn't be reached, or ended the connection."""
    if isinstance(error, OSError | TimeoutError):
        return True
    state = getattr(error, "sqlstate", None)
    if isinstance(state, str):
        # Connection exceptions, resources, operator intervention (shutdown, crash, starting up).
        return state[:2] in ("08", "53", "57") and state != "57014"
    return isinstance(error, _module().InterfaceError)


async def _prepare(connection: Any) -> None:
    await connection.set_type_codec(
        "text", schema="pg_catalog", encoder=encode, decoder=decode, format="text"
    )


async def _nothing_to_reset(connection: Any) -> None:
    """No statement of this engine leaves anything behind in a session."""


def _module() -> Any:
    import asyncpg  # type: ignore[import-untyped]  # it ships none; the protocols above are its types here

    return asyncpg
