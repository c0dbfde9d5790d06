"""The sign-ins at other people's MCP servers: one record a server, sealed by the host."""

from __future__ import annotations

from shared.store.rows import Noun


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
        statement = """UPDATE mcp_sign_ins SET renewing_until = lease_now() + $2
            WHERE server = $1 AND renewing_until < lease_now()"""
        return await self._change(statement, server, within) > 0

    async def release(self, server: str) -> None:
        """Give the right back."""
        await self._change("UPDATE mcp_sign_ins SET renewing_until = 0 WHERE server = $1", server)
