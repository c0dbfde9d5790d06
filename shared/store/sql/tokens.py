"""Tokens of principals; of the operator's MCP servers the sign-ins, and how their tools looked."""

from collections.abc import Sequence
from typing import Final

from shared.errors import Conflict, Duplicate, NoConversation
from shared.ids import Token
from shared.principals import OPERATOR, Principal
from shared.store import rows
from shared.store.contract import Missing, Taken, Tx
from shared.store.rows import Noun, writes
from shared.store.sql import audit
from shared.store.sql.principals import BEARER_COLUMNS, check_lives, to_bearer
from shared.values import Page

to_token: Final = rows.reader(Token, is_main=bool, scopes=lambda stored: tuple(stored.split()))

_COLUMNS: Final = "id digest conversation_id is_main created_at expires_at principal_id name scopes"
COLUMNS: Final = tuple(_COLUMNS.split())

REVOKE: Final = """DELETE FROM tokens WHERE id = $1 AND principal_id = coalesce($2, principal_id)
    RETURNING principal_id"""
MINUTE_MS: Final = 60_000
MOST: Final = 1000
"""Tokens of a principal but the operator, expired ones too: whoever has one may make others."""


class Tokens(Noun):
    """Credentials of principals, each bound to a conversation; only a digest of each is stored."""

    async def add(self, token: Token, digest: bytes) -> None:
        """Store a token by its SHA-256.

        Raises NotFound (its conversation), Suspended, Duplicate (its id), Conflict ``token_limit``.
        """
        bound = (token.conversation_id, int(token.is_main), token.created_at, token.expires_at)
        values = (token.id, digest, *bound, token.principal_id, token.name, " ".join(token.scopes))

        async def work(tx: Tx) -> None:
            await check_lives(tx, token.principal_id)
            if token.principal_id != OPERATOR:
                await tx.lock("tokens", token.principal_id)
                of = "SELECT count(*) FROM tokens WHERE principal_id = $1"
                if await tx.fetchval(of, token.principal_id) >= MOST:
                    raise Conflict(f"There are {MOST} tokens already: delete one first", code="token_limit")
            await tx.execute(rows.insertion("tokens", COLUMNS), *values)
            await audit.note(tx, "token.created", token.principal_id, token.id)

        try:
            await self._engine.write(work)
        except Missing:
            raise NoConversation(token.conversation_id) from None
        except Taken:
            raise Duplicate(f"token exists already: {token.id}") from None

    async def find(self, digest: bytes, now: int) -> tuple[Token, Principal] | None:
        """Return the token with this digest and whose it is, who may be suspended.

        None: it is revoked, expired, or its conversation or its principal is deleted.
        """
        statement = f"""SELECT t.*, {BEARER_COLUMNS} FROM tokens AS t JOIN principals AS p
            ON p.id = t.principal_id WHERE t.digest = $1 AND (t.expires_at IS NULL OR t.expires_at > $2)"""
        return await self._one(lambda row: (to_token(row), to_bearer(row)), statement, digest, now)

    async def living(self, token_ids: Sequence[str], now: int) -> frozenset[str]:
        """Return those of these tokens that have not ended."""
        statement = """SELECT id FROM tokens WHERE id = ANY($1::text[])
            AND (expires_at IS NULL OR expires_at > $2)"""
        return frozenset(await self._all(lambda row: str(row["id"]), statement, list(token_ids), now))

    async def page(self, *, limit: int, cursor: str | None, principal_id: str | None = None) -> Page[Token]:
        """Return tokens (only a principal's), expired ones too, in the order they were made."""
        where = rows.Where()
        where.after("number > {0}", cursor, int)
        where.add("principal_id = {0}", principal_id)
        statement = f"SELECT * FROM tokens WHERE {where} ORDER BY number LIMIT $1"
        return await self._page(to_token, ("number",), statement, limit, *where.values)

    @writes()
    async def revoke(self, tx: Tx, token_id: str, principal_id: str | None = None) -> bool:
        """Remove a token (only a principal's) for good; False if there is none."""
        whose = await tx.fetchval(REVOKE, token_id, principal_id)
        if whose is not None:
            await audit.note(tx, "token.revoked", whose, token_id)
        return whose is not None

    async def touched(self, token_ids: Sequence[str], now: int) -> None:
        """Remember that tokens were used; by the minute is enough."""
        statement = """UPDATE tokens SET last_used_at = $2
            WHERE id = ANY($1::text[]) AND coalesce(last_used_at, 0) <= $3"""
        await self._change(statement, list(token_ids), now, now - MINUTE_MS)


class ToolPins(Noun):
    """What the tools of the operator's MCP servers looked like when they were last seen, as digests."""

    @writes()
    async def swap(self, tx: Tx, place: bytes, digest: bytes, now: int) -> bytes | None:
        """Keep a place's digest and return the one that was kept before, None for a new place."""
        before = await tx.fetchval("SELECT digest FROM tool_pins WHERE place = $1 FOR UPDATE", place)
        if before is None or bytes(before) != digest:
            statement = """INSERT INTO tool_pins VALUES ($1, $2, $3)
                ON CONFLICT (place) DO UPDATE SET digest = excluded.digest, seen_at = excluded.seen_at"""
            await tx.execute(statement, place, digest, now)
        return None if before is None else bytes(before)


class SignIns(Noun):
    """What a server's authorization server gave, as ciphertext."""

    async def find(self, server: str) -> bytes | None:
        """Return the sealed record of a server."""
        statement = "SELECT sealed FROM mcp_sign_ins WHERE server = $1"
        return await self._one(lambda row: bytes(row["sealed"]), statement, server)

    async def keep(self, server: str, sealed: bytes, now: int) -> None:
        """Put a record in place of the one before."""
        statement = """INSERT INTO mcp_sign_ins (server, sealed, changed_at) VALUES ($1, $2, $3)
            ON CONFLICT (server) DO UPDATE SET sealed = excluded.sealed, changed_at = excluded.changed_at"""
        await self._change(statement, server, sealed, now)

    async def forget(self, server: str) -> bool:
        """Remove a record for good; False if there is none."""
        return await self._change("DELETE FROM mcp_sign_ins WHERE server = $1", server) > 0

    async def claim(self, server: str, within: int) -> bool:
        """Take the right to renew a record, for so many milliseconds; False while another has it."""
        # One that lasts for longer is by another clock: the machine was started anew, or the store moved.
        statement = """UPDATE mcp_sign_ins SET renewing_until = lease_now() + $2::bigint WHERE server = $1
            AND (renewing_until < lease_now() OR renewing_until > lease_now() + $2::bigint)"""
        return await self._change(statement, server, within) > 0

    async def release(self, server: str) -> None:
        """Give the right back."""
        await self._change("UPDATE mcp_sign_ins SET renewing_until = 0 WHERE server = $1", server)
