"""The one place that knows asyncpg, which has no types: its connections, what its errors mean."""

from __future__ import annotations

from typing import Any, Final

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
