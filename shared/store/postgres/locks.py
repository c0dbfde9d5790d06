"""Locks of a transaction on things that have no row yet, or that a role may not lock.

They belong to the transaction, not to the session, so they work through a pooler. Order, where one
transaction takes several: key, conversation, task, slot.
"""

from __future__ import annotations

from shared.store.postgres.driver import Connection


async def lock(connection: Connection, kind: str, name: str) -> None:
    """Wait for everybody else who holds the lock of this kind and name, until this transaction ends."""
    await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", f"{kind}:{name}")


async def try_lock(connection: Connection, kind: str) -> bool:
    """Take the lock of this kind, if nobody has it."""
    return bool(
        await connection.fetchval("SELECT pg_try_advisory_xact_lock(hashtextextended($1, 0))", f"{kind}:")
    )
