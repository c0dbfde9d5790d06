"""What a tool server may reach: a role of its own, row-level security, and a token for one conversation.

The role sees no row by itself. Each transaction of a tool server shows a token: the conversation it acts for,
whose that is and whether it is the main one, signed (HMAC-SHA-256, RFC 2104) with a key that only the host's
role can read. The policies compare rows with what the token says, so whoever has a tool server's whole access
can act for that one conversation, whatever statements it sends. A token is made by the host when the session
is born.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from shared import jsons
from shared.principals import OPERATOR
from shared.store.contract import Tx

BLOCK: Final = 64
"""Bytes of a block of SHA-256 (FIPS 180-4)."""

TABLES: Final[Mapping[str, str]] = {
    "conversations": "SELECT, INSERT, DELETE",
    "outbound_messages": "SELECT, INSERT",
    "scheduled_tasks": "SELECT, INSERT, UPDATE, DELETE",
    "task_runs": "SELECT",
    "runs": "SELECT (id, conversation_id, state)",
}
"""What a tool server's role may do at all; the policies say to which rows."""

FUNCTIONS: Final = ("tool_token()", "tool_conversation()", "tool_owner()", "tool_is_main()")


def fixed_search_path(function: str) -> tuple[str]:
    """Return the statement that keeps a function from finding tables of whoever calls it."""
    return (
        f"""DO $$ BEGIN EXECUTE format(
            'ALTER FUNCTION {function} SET search_path = %I, pg_temp', current_schema()); END $$""",
    )


SCHEMA: Final = (
    "CREATE TABLE tool_key (one INTEGER PRIMARY KEY CHECK (one = 1), inner_pad BYTEA, outer_pad BYTEA)",
    # m.<signature>.<conversation> for the main conversation, o.… for any other; NULL unless it is genuine.
    """CREATE FUNCTION tool_token() RETURNS text LANGUAGE plpgsql STABLE SECURITY DEFINER AS $$
        DECLARE
            token text := current_setting('picoclaw.token', true);
            said text := substr(token, 1, 2) || substr(token, 68);
            signature text;
        BEGIN
            SELECT encode(sha256(outer_pad || sha256(inner_pad || convert_to(said, 'UTF8'))), 'hex')
                INTO signature FROM tool_key;
            IF signature = substr(token, 3, 64) THEN RETURN said; END IF;
            RETURN NULL;
        END $$""",
    """CREATE FUNCTION tool_conversation() RETURNS text LANGUAGE sql STABLE
        AS $$ SELECT substr(tool_token(), 3) $$""",
    """CREATE FUNCTION tool_is_main() RETURNS boolean LANGUAGE sql STABLE
        AS $$ SELECT coalesce(substr(tool_token(), 1, 2) = 'm.', false) $$""",
    # What an isolated run does, it does for the conversation that owns it.
    """CREATE FUNCTION tool_owner() RETURNS text LANGUAGE plpgsql STABLE SECURITY DEFINER AS $$
        DECLARE
            own text := tool_conversation();
        BEGIN
            RETURN coalesce((SELECT owner_id FROM conversations WHERE id = own), own);
        END $$""",
    *(statement for name in FUNCTIONS for statement in fixed_search_path(name)),
    *(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY" for table in TABLES),
    # Asked for once in a statement, not once a row: the sub-select makes it a constant of the plan.
    """CREATE POLICY tool_sees ON conversations FOR SELECT USING (
        id = (SELECT tool_conversation()) OR id = (SELECT tool_owner()) OR (SELECT tool_is_main()))""",
    """CREATE POLICY tool_makes ON conversations FOR INSERT WITH CHECK (
        id = (SELECT tool_conversation()) AND owner_id = id AND temporary = 0)""",
    """CREATE POLICY tool_removes ON conversations FOR DELETE
        USING (temporary = 1 AND (SELECT tool_is_main()))""",
    """CREATE POLICY tool_hears ON outbound_messages FOR SELECT
        USING (source_id = (SELECT tool_conversation()))""",
    """CREATE POLICY tool_says ON outbound_messages FOR INSERT WITH CHECK (
        source_id = (SELECT tool_conversation())
        AND (conversation_id = (SELECT tool_owner()) OR (SELECT tool_is_main())))""",
    """CREATE POLICY tool_tasks ON scheduled_tasks
        USING (conversation_id = (SELECT tool_owner()) OR (SELECT tool_is_main()))""",
    """CREATE POLICY tool_logs ON task_runs FOR SELECT USING ((SELECT tool_is_main()) OR EXISTS (
        SELECT 1 FROM scheduled_tasks AS t
        WHERE t.id = task_id AND t.conversation_id = (SELECT tool_owner())))""",
    """CREATE POLICY tool_runs ON runs FOR SELECT USING (
        conversation_id = (SELECT tool_conversation()) OR conversation_id = (SELECT tool_owner())
        OR (SELECT tool_is_main()))""",
)


@dataclass(frozen=True, slots=True)
class ToolKey:
    """The key that tokens are signed with, as the two padded blocks of HMAC."""

    inner_pad: bytes
    outer_pad: bytes

    @classmethod
    def new(cls) -> ToolKey:
        """Make one at random."""
        key = secrets.token_bytes(BLOCK)
        return cls(bytes(byte ^ 0x36 for byte in key), bytes(byte ^ 0x5C for byte in key))

    def token(self, conversation_id: str, *, is_main: bool, principal_id: str) -> str:
        """Return the token of a tool server's session, as the policies read it (``sql.migrations``)."""
        if principal_id == OPERATOR:
            kind, whom = "m" if is_main else "o", conversation_id
        else:
            kind, whom = "p" if is_main else "q", f"{principal_id}/{conversation_id}"
        return f"{kind}.{self._sign(f'{kind}.{whom}')}.{whom}"

    def password(self) -> str:
        """Return the password of the role that hosts make for their tool servers."""
        return self._sign("the role of the tool servers")

    def _sign(self, text: str) -> str:
        key = bytes(byte ^ 0x36 for byte in self.inner_pad)
        return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


@dataclass(frozen=True, slots=True)
class ToolRole:
    """How a host makes what its tool servers reach the database with."""

    url: str
    key: ToolKey
    pooled: bool

    def text_for(self, conversation_id: str, *, is_main: bool, principal_id: str) -> str:
        """Return all that one session's process is told of the database, for ``open_tool_store``."""
        token = self.key.token(conversation_id, is_main=is_main, principal_id=principal_id)
        return jsons.dumps([self.url, token, self.pooled])


async def tool_key(tx: Tx) -> ToolKey:
    """Return this database's key, made now if it is absent."""
    new = ToolKey.new()
    await tx.execute(
        "INSERT INTO tool_key VALUES (1, $1, $2) ON CONFLICT DO NOTHING", new.inner_pad, new.outer_pad
    )
    row = await tx.fetchrow("SELECT inner_pad, outer_pad FROM tool_key")
    if row is None:
        raise RuntimeError("the key is absent")
    return ToolKey(row["inner_pad"], row["outer_pad"])


def address_for(url: str, role: str, password: str) -> str:
    """Return the host's address of the database with another role's credentials."""
    parts = urlsplit(url)
    place = parts.netloc.rpartition("@")[2]
    query = [(name, value) for name, value in parse_qsl(parts.query) if name not in ("user", "password")]
    netloc = f"{quote(role, safe='')}:{password}@{place}"
    return urlunsplit((parts.scheme, netloc, parts.path, urlencode(query), ""))
