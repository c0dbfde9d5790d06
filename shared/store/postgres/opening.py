"""Opening the engine for several hosts: as a host, which looks after the schema, or as a tool server."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Final
from uuid import uuid4

from shared import jsons
from shared.errors import StoreError, StoreRefused, Unavailable
from shared.store.contract import Row, Tx
from shared.store.postgres.database import INSUFFICIENT_PRIVILEGE, LEAVE_MARK, Database, Place, words
from shared.store.postgres.driver import is_server_error, sqlstate
from shared.store.postgres.migrations import LOCK, TABLES, ToolKey, ToolRole, address_for, migrate, tool_key
from shared.store.sql.lifetimes import Retention
from shared.store.store import Store

# Nobody asks what became of a commit for longer than a run waits; the clock is the marks' own.
MARKS: Final = """DELETE FROM commit_marks WHERE mark IN (SELECT mark FROM commit_marks
    WHERE made_at <= now() - interval '1 hour' ORDER BY made_at LIMIT $1)"""

# Changes no row, and needs what a turn does: the tables, the rights, and nobody who keeps writers out.
TURN: Final = ";".join(
    f"INSERT INTO {table} ({column}) SELECT {column} FROM {table} WHERE false;"
    f"UPDATE {table} SET {column} = {column} WHERE false"
    for table, column in (
        ("conversations", "id"),
        ("messages", "id"),
        ("runs", "id"),
        ("run_events", "run_id"),
        ("idempotency_keys", "key"),
        ("usage_by_day", "day"),
        ("usage_by_conversation", "day"),
    )
)


async def _try_a_turn(tx: Tx) -> None:
    await tx.execute(TURN)
    await tx.execute(LEAVE_MARK, uuid4())


class PostgresStore(Store):
    """Connects when it is first used.

    What is committed is on the server's disk (``synchronous_commit``, checked at a host's start), so nothing
    has to be carried anywhere before it is acknowledged.
    """

    several_hosts = True

    def __init__(self, place: Place, retention: Retention | None = None) -> None:
        self.database = Database(place)
        self.tools: ToolRole | None = None
        super().__init__(self.database, retention)

    def tool_access(self, conversation_id: str, *, is_main: bool, principal_id: str) -> str | None:
        """Return a tool server's address, role and token, as one text; None before ``open_shared_store``."""
        if self.tools is None:
            return None
        return self.tools.text_for(conversation_id, is_main=is_main, principal_id=principal_id)

    async def probe(self) -> None:
        """Commit a row, and ask for what a turn writes to: a server may answer all else."""
        await self._engine.write(_try_a_turn)

    def make_room(self) -> None:
        """Do nothing: there is no local disk to fill."""

    async def prune(self, now: int, *, limit: int) -> int:
        """Remove at most ``limit`` rows that retention no longer keeps; returns how many went."""
        gone = await super().prune(now, limit=limit)
        return gone + await self._engine.write(lambda tx: tx.execute(MARKS, limit - gone))

    async def close(self) -> None:
        """Give all connections back."""
        await self.database.close()


logger = logging.getLogger("picoclaw.store")

STARTING_OR_STOPPING: Final = "57"

OLDEST_SERVER: Final = 130_000
"""PostgreSQL 13 has ``pg_current_xact_id``; older ones are out of support."""

SERVER: Final = """SELECT current_setting('server_version_num')::int AS version,
    current_setting('fsync') = 'on' AS fsync, current_setting('synchronous_commit') <> 'off' AS waits,
    pg_encoding_to_char(encoding) = 'UTF8' AS unicode, rolsuper AS superuser, current_database() AS name
    FROM pg_database, pg_roles WHERE datname = current_database() AND rolname = current_user"""

TOO_MUCH: Final = """SELECT rolsuper OR rolbypassrls OR coalesce(pg_has_role((SELECT tableowner FROM pg_tables
    WHERE tablename = 'conversations' AND schemaname = current_schema()), 'MEMBER'), false)
    FROM pg_roles WHERE rolname = current_user"""

COPY: Final = """CREATE TABLE IF NOT EXISTS store_copy (
    source TEXT PRIMARY KEY, finished INTEGER NOT NULL)"""

MAKE_ROLE: Final = """DO $do$ BEGIN
    IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = {name}) THEN
        EXECUTE format('CREATE ROLE %I LOGIN PASSWORD %L', {name}, {password});
    END IF;
END $do$"""


async def open_shared_store(
    place: Place, retention: Retention | None = None, *, tools_url: str | None = None
) -> PostgresStore:
    """Return a host's store: reached, migrated, and with a role for its tool servers.

    ``tools_url``: the address with the role of the tool servers; without one the host makes that role.
    Raises StoreError, with a sentence that names no secret, StoreRefused and StoreVersion.
    """
    _need_client()
    store = PostgresStore(place, retention)
    try:
        with in_sentences("DATABASE_URL"):
            server = await _first_answer(store.database)
            _look_at(server)
            await migrate(store.database)
            if await store.database.read(unfinished_copy) is not None:
                raise StoreError(
                    "DATABASE_URL: a copy into this database is not finished; "
                    "run `picoclaw store migrate` again"
                )
            key = await store.database.write(tool_key)
            url = tools_url or await _made_role(store.database, place.url, str(server["name"]), key)
        store.tools = ToolRole(url, key, place.pooled)
        await _check_tools(store.database, url, place.pooled)
    except BaseException:
        await store.close()
        raise
    return store


async def ask(url: str, pooled: bool) -> str:
    """Return the version of the server that a host would use; raises StoreError as a start would."""
    _need_client()
    database = Database(Place(url, owner="picoclaw doctor", connections=1, pooled=pooled))
    try:
        with in_sentences("DATABASE_URL"):
            _look_at(await database.read(_server))
            return str(await database.read(lambda tx: tx.fetchval("SHOW server_version")))
    finally:
        await database.close()


def open_tool_store(access: str, token_id: str | None = None) -> PostgresStore:
    """Return the store of a tool server; it connects when it is first used."""
    return PostgresStore(place_of(access, token_id))


def place_of(access: str, token_id: str | None = None) -> Place:
    """Return where the database is for whom ``ToolRole.text_for`` made ``access``."""
    url, token, pooled = jsons.loads(access)
    return Place(url, "picoclaw tools", 1, pooled, token, token_id)


async def unfinished_copy(tx: Tx) -> str | None:
    """Return what the database is being filled from, if that is under way."""
    if await tx.fetchval("SELECT to_regclass('store_copy')::text") is None:
        return None
    source = await tx.fetchval("SELECT source FROM store_copy WHERE finished = 0")
    return None if source is None else str(source)


async def _server(tx: Tx) -> Row:
    row = await tx.fetchrow(SERVER)
    if row is None:
        raise StoreError("The database says nothing about itself")
    return row


def _look_at(server: Row) -> None:
    """Refuse a server that can't keep the promises, warn of one that keeps them badly."""
    if server["version"] < OLDEST_SERVER:
        raise StoreError("DATABASE_URL: PostgreSQL 13 or newer is needed")
    if not server["unicode"]:
        raise StoreError("DATABASE_URL: the database's encoding must be UTF8")
    if not server["waits"]:
        raise StoreError(
            "DATABASE_URL: synchronous_commit is off, so what was acknowledged could be lost; "
            "ALTER ROLE … SET synchronous_commit = on"
        )
    if not server["fsync"]:
        logger.warning("The database runs with fsync=off: a power cut loses what was acknowledged")
    if server["superuser"]:
        logger.warning("SECURITY: DATABASE_URL's role is a superuser: give the host a role of its own")


async def _made_role(database: Database, url: str, name: str, key: ToolKey) -> str:
    """Make the tool servers' role if it is absent, and return the address with it."""
    # Of this key: a database that was made anew gets a new role, whose password it knows.
    role = f"{name[:40]}_tools_{key.password()[:8]}"
    statement = MAKE_ROLE.format(name=_quoted(role), password=_quoted(key.password()))

    async def work(tx: Tx) -> None:
        await tx.execute("SELECT pg_advisory_xact_lock($1)", LOCK)
        await tx.execute(statement)

    try:
        await database.write(work)
    except Exception as error:
        if not is_server_error(error.__cause__ or error, INSUFFICIENT_PRIVILEGE):
            raise
        raise StoreError(
            "DATABASE_URL's role may not make a role for the tool servers: make one "
            "(CREATE ROLE picoclaw_tools LOGIN PASSWORD '…') and set DATABASE_TOOLS_URL"
        ) from error
    return address_for(url, role, key.password())


async def _check_tools(database: Database, url: str, pooled: bool) -> None:
    """Give the role what tool servers need, and make sure that it may do no more."""
    tools = Database(Place(url, owner="picoclaw", connections=1, pooled=pooled))
    try:
        with in_sentences("The tool servers' role"):
            role = await tools.read(lambda tx: tx.fetchval("SELECT current_user::text"))
        if await tools.read(lambda tx: tx.fetchval(TOO_MUCH)):
            raise StoreError(
                f"The role {role} of the tool servers would bypass row-level security: it must be no "
                "superuser, not have BYPASSRLS, and not belong to the tables' owner"
            )
        await database.write(lambda tx: _grant(tx, role))
    finally:
        await tools.close()


async def _grant(tx: Tx, role: str) -> None:
    quoted = await tx.fetchval("SELECT quote_ident($1)", role)
    schema = await tx.fetchval("SELECT quote_ident(current_schema()::text)")
    # The server refuses two grants at once on one table.
    await tx.execute("SELECT pg_advisory_xact_lock($1)", LOCK)
    await tx.execute(f"GRANT USAGE ON SCHEMA {schema} TO {quoted}")
    for table, rights in TABLES.items():
        await tx.execute(f"GRANT {rights} ON {table} TO {quoted}")


def _need_client() -> None:
    if find_spec("asyncpg") is None:
        raise StoreError("DATABASE_URL needs the PostgreSQL client: pip install 'picoclaw[postgres]'")


async def _first_answer(database: Database) -> Row:
    """Wait for a server that isn't there yet, but not for one that refuses."""
    try:
        return await database.read(_server)
    except Unavailable as error:
        if (sqlstate(error.__cause__) or STARTING_OR_STOPPING)[:2] != STARTING_OR_STOPPING:
            raise
    return await database.read(_server, patient=True)


@contextmanager
def in_sentences(who: str) -> Iterator[None]:
    """Make whatever ails a database a sentence: StoreRefused where it answers, else StoreError."""
    try:
        yield
    except ValueError as error:
        # Its text may hold the address, and so the password.
        raise StoreRefused(f"{who}: the address cannot be read") from error.__cause__
    except Exception as error:
        found = error.__cause__ if isinstance(error, Unavailable) else error
        if found is error and sqlstate(error) is None:
            raise
        kind = StoreError if sqlstate(found) is None else StoreRefused
        raise kind(f"{who}: the database {words(found)}") from error


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
