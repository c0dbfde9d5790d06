"""Conversations and their messages."""

from collections.abc import Sequence
from operator import attrgetter, itemgetter
from typing import Final

from shared import jsons
from shared.errors import Conflict, ConversationBusy, Duplicate, NoConversation, Suspended
from shared.ids import SESSION, new_id
from shared.principals import OPERATOR, stored_name
from shared.store import rows
from shared.store.contract import Taken, Tx
from shared.store.rows import Noun, writes
from shared.values import Conversation, HistoryEntry, Message, NewMessage, Page

# A conversation runs as long as a run row says so: there is no second place that could be stale.
SELECT: Final = """SELECT c.*, EXISTS (
    SELECT 1 FROM runs WHERE conversation_id = c.id AND state = 'running') AS running
    FROM conversations AS c"""

FAMILY: Final = """SELECT id, principal_id FROM conversations
    WHERE id = $1 OR (owner_id = $1 AND temporary = 1)
    ORDER BY id FOR UPDATE"""
GONE: Final = """SELECT id, principal_id FROM gone_conversations AS g
    WHERE NOT EXISTS (SELECT 1 FROM conversations WHERE id = g.id) ORDER BY id LIMIT $1"""
"""One that was made anew in the meantime keeps what it has, until it is deleted again."""

KEYS: Final = """DELETE FROM idempotency_keys WHERE conversation_id IN
    (SELECT id FROM conversations WHERE id = ANY($1::text[]) AND temporary = 0)"""
"""What was asked in a temporary one is not asked again by its key: nobody deleted that."""

FOUND: Final = """(strpos(folded(c.title), folded({0})) > 0 OR strpos(folded(c.id), folded({0})) > 0
    OR EXISTS (SELECT 1 FROM messages AS m
        WHERE m.conversation_id = c.id AND strpos(folded(m.text), folded({0})) > 0))"""

OF_PRINCIPAL: Final = """EXISTS (SELECT 1 FROM conversations AS c
    WHERE c.id = conversation_id AND c.principal_id = {0})"""
"""A condition for rows of other tables: whose their conversation is."""

INSERT: Final = """INSERT INTO conversations
    (id, session_id, owner_id, temporary, created_at, last_activity, trusted, principal_id, begun_by)
    SELECT $1, $2, $3, $4, $5, $5, w.trusted, w.principal_id, $8 FROM (SELECT
        coalesce((SELECT coalesce(trusted, 0) FROM conversations WHERE id = coalesce($8, $3)), $6) AS trusted,
        coalesce((SELECT principal_id FROM conversations WHERE id = $3), $7) AS principal_id) AS w
    WHERE w.principal_id = 'operator' OR principal_lives(w.principal_id)"""

LAST_SEQ: Final = 2**62

PIECE: Final = 500
"""Rows that one transaction removes of a table."""

MESSAGE_COLUMNS: Final = ("id", "role", "sender", "sender_name", "text")
MESSAGE_VALUES: Final = attrgetter(*MESSAGE_COLUMNS)
INSERT_MESSAGE: Final = rows.insertion(
    "messages", ("conversation_id", "run_id", "created_at", "seq", "blocks", *MESSAGE_COLUMNS)
)

REFUSED: Final = "refused"
"""Code of a run that the model refused; its turn is marked so."""

MOST_TIMES: Final = 20
"""Refusals in a row that are counted: by then a million turns are marked."""

to_conversation: Final = rows.reader(Conversation, temporary=bool, running=bool, trusted=bool)
to_message: Final = rows.reader(Message, refused=bool)
to_history_entry: Final = rows.reader(HistoryEntry, blocks=jsons.loads, refused=bool)


class Conversations(Noun):
    """Conversations and their messages."""

    async def ensure(
        self, conversation_id: str, now: int, *, trusted: bool = True, principal_id: str = OPERATOR
    ) -> Conversation:
        """Return the conversation, made now if it is absent (then ``trusted`` or not, for good).

        Raises Suspended.
        """
        found = await self.get(conversation_id)
        if found is not None:
            return found
        try:
            return await self.create(conversation_id, now, trusted=trusted, principal_id=principal_id)
        except Duplicate:
            found = await self.get(conversation_id)
            if found is None:
                raise
            return found

    @writes()
    async def create(
        self,
        tx: Tx,
        conversation_id: str,
        now: int,
        *,
        owner_id: str | None = None,
        temporary: bool = False,
        trusted: bool = True,
        principal_id: str = OPERATOR,
    ) -> Conversation:
        """Make a conversation (owned by itself unless ``owner_id``, and then that one's principal's and
        trusted as that is).

        Raises Duplicate, Suspended.
        """
        await insert(tx, conversation_id, now, owner_id, temporary, trusted, principal_id)
        row = await tx.fetchrow(f"{SELECT} WHERE c.id = $1", conversation_id)
        return to_conversation(NoConversation.unless(row, conversation_id))

    async def get(self, conversation_id: str) -> Conversation | None:
        """Return the conversation or None."""
        return await self._one(to_conversation, f"{SELECT} WHERE c.id = $1", conversation_id)

    async def reach(self, principal_id: str | None, said: str) -> Conversation | None:
        """Return the principal's conversation that it calls so; None: absent or another's, as it may be.

        Whoever reaches all (``principal_id`` None) says the id that is stored.
        """
        if principal_id is None:
            return await self.get(said)
        statement = f"{SELECT} WHERE c.id IN ($1, $2) AND c.principal_id = $3"
        name = stored_name(principal_id, said)
        return await self._one(to_conversation, statement, said, name, principal_id)

    async def owners(self, conversation_ids: Sequence[str]) -> dict[str, str]:
        """Return whose these conversations are: principals by conversation."""
        statement = "SELECT id, principal_id FROM conversations WHERE id = ANY($1::text[])"
        found = await self._all(lambda row: (row["id"], row["principal_id"]), statement, [*conversation_ids])
        return dict(found)

    async def page(
        self,
        *,
        limit: int,
        cursor: str | None,
        include_temporary: bool = False,
        search: str = "",
        principal_id: str | None = None,
    ) -> Page[Conversation]:
        """Return conversations (only a principal's), newest activity first; raises InvalidInput (the cursor).

        ``search``: those alone that have it in their title, their id or a message, in capitals or not,
        however accents are written.
        """
        where = rows.Where()
        where.add("c.principal_id = {0}", principal_id)
        where.add(FOUND, search or None)
        where.after("(c.last_activity, c.id) < ({0}, {1})", cursor, int, str)
        newest = "ORDER BY last_activity DESC, id DESC LIMIT $1"
        # The temporary ones lie apart in the indexes: each turn of a conversation changes those.
        kinds = " UNION ALL ".join(
            f"SELECT * FROM ({SELECT} WHERE c.temporary = {kind} AND {where} {newest}) AS kind_{kind}"
            for kind in range(1 + include_temporary)
        )
        statement = f"{kinds} {newest}"
        key = ("last_activity", "id")
        return await self._page(to_conversation, key, statement, limit, *where.values, long=bool(search))

    async def rename(self, conversation_id: str, title: str | None) -> None:
        """Give it a title, or take it away; raises NoConversation."""
        statement = "UPDATE conversations SET title = $2 WHERE id = $1"
        if not await self._change(statement, conversation_id, title):
            raise NoConversation(conversation_id)

    async def messages(self, conversation_id: str, *, limit: int, cursor: str | None) -> Page[Message]:
        """Return the messages people see, in stored order."""
        (after,) = rows.decode_cursor(cursor, int) or [0]
        statement = """SELECT id, conversation_id, seq, role, sender, sender_name, text, created_at, refused
            FROM messages WHERE conversation_id = $2 AND seq > $3 AND text IS NOT NULL
            ORDER BY seq LIMIT $1"""
        return await self._page(to_message, ("seq",), statement, limit, conversation_id, after)

    async def history(
        self, conversation_id: str, *, after: int = 0, through: int | None = None
    ) -> list[HistoryEntry]:
        """Return messages for the model, in stored order (not yet repaired): those with a larger ``seq`` than
        ``after``, up to ``through``.
        """
        return await self._all(
            to_history_entry,
            """SELECT role, blocks, seq, run_id, text, sender_name, created_at, refused FROM messages
            WHERE conversation_id = $1 AND seq > $2 AND seq <= $3 ORDER BY seq""",
            conversation_id,
            after,
            LAST_SEQ if through is None else through,
            patient=True,
        )

    async def unkept(self, before: int, limit: int) -> list[str]:
        """Return conversations that were to go with their answers, in which nothing was said since, and those
        of which a host that died has removed a part.
        """
        statement = """SELECT id FROM (SELECT id FROM conversations WHERE temporary = 1 AND begun_by = id
            AND last_activity < $1 ORDER BY last_activity LIMIT $2) AS unkept
            UNION ALL SELECT id FROM conversations WHERE leaving = 1"""
        return await self._all(itemgetter("id"), statement, before, limit)

    async def delete(self, conversation_id: str) -> str:
        """Remove every row of it and of its temporary conversations; returns whose it was.

        What has much in it goes in pieces, so that others are served in between; nothing begins in it any
        more, and a host that dies leaves the rest to the next. Raises NotFound, ConversationBusy, NotDurable.
        """
        whose, more = await self._delete_some(conversation_id)
        while more:
            await self._engine.durable()
            try:
                whose, more = await self._delete_some(conversation_id)
            except NoConversation:
                break  # somebody else was quicker
        return whose

    @writes(long=True)
    async def _delete_some(self, tx: Tx, conversation_id: str) -> tuple[str, bool]:
        """Remove all of it, or a piece; returns whose it was, and whether there is more."""
        # Whoever begins a run locks its conversation first, so none begins between this look and the end.
        principals = {row["id"]: row["principal_id"] for row in await tx.fetch(FAMILY, conversation_id)}
        family = list(principals)
        if conversation_id not in family:
            raise NoConversation(conversation_id)
        running = await tx.fetchval(
            "SELECT 1 FROM runs WHERE state = 'running' AND conversation_id = ANY($1::text[]) LIMIT 1", family
        )
        if running is not None:
            raise ConversationBusy(conversation_id)
        for each in family:
            if (await remove_page(tx, each, PIECE))[1]:
                leave = "UPDATE conversations SET leaving = 1 WHERE id = ANY($1::text[])"
                await tx.execute(leave, family)
                return principals[conversation_id], True
        await tx.execute(KEYS, family)
        await tx.execute("DELETE FROM conversations WHERE id = ANY($1::text[])", family)
        return principals[conversation_id], False

    async def gone(self, limit: int) -> list[tuple[str, str]]:
        """Return deleted conversations that may have files yet, each with whose it was."""
        return await self._all(itemgetter("id", "principal_id"), GONE, limit)

    async def forget(self, conversation_id: str) -> None:
        """Take note that a deleted conversation has nothing any more."""
        await self._change("DELETE FROM gone_conversations WHERE id = $1", conversation_id)


async def insert(
    tx: Tx,
    conversation_id: str,
    now: int,
    owner_id: str | None,
    temporary: bool,
    trusted: bool = True,
    principal_id: str = OPERATOR,
    begun_by: str | None = None,
) -> None:
    """Add a conversation inside a transaction; one that is another's has its principal and its trust.

    Raises Duplicate, Suspended.
    """
    try:
        added = await tx.execute(
            INSERT,
            conversation_id,
            new_id(SESSION),
            owner_id or conversation_id,
            int(temporary),
            now,
            int(trusted),
            principal_id,
            begun_by,
        )
    except Taken:
        raise Duplicate(f"conversation_id exists already: {conversation_id}") from None
    if not added:
        raise Suspended(principal_id)


async def remove_page(tx: Tx, conversation_id: str, limit: int) -> tuple[int, bool]:
    """Remove a page of a conversation's messages, or of its runs where no message is left; returns how many
    rows went, and whether there are more.
    """
    gone = 0
    for table, key in (("messages", "seq"), ("runs", "number")):
        page = f"SELECT * FROM {table} WHERE conversation_id = $2 ORDER BY {key} LIMIT $1"
        found, more = await tx.fetch_page(limit, page, conversation_id)
        if found:
            statement = f"DELETE FROM {table} WHERE conversation_id = $1 AND {key} <= $2"
            gone += await tx.execute(statement, conversation_id, found[-1][key])
        if more:
            return gone, True
    return gone, False


async def store_messages(
    tx: Tx, conversation_id: str, run_id: str | None, messages: Sequence[NewMessage], now: int
) -> None:
    """Append messages to a conversation inside a transaction; ``run_id`` None: no run said them."""
    if not messages:
        return
    visible = sum(message.text is not None for message in messages)
    statement = """UPDATE conversations SET next_seq = next_seq + $2, message_count = message_count + $3,
        last_activity = greatest(last_activity, $4) WHERE id = $1 RETURNING next_seq"""
    following = await tx.fetchval(statement, conversation_id, len(messages), visible, now)
    numbered = enumerate(messages, start=following - len(messages))
    stored = [
        (conversation_id, run_id, now, seq, jsons.dumps(message.blocks), *MESSAGE_VALUES(message))
        for seq, message in numbered
    ]
    await tx.executemany(INSERT_MESSAGE, stored)


async def remove_last(tx: Tx, conversation_id: str, message_id: str) -> str:
    """Remove a conversation's last message and what followed it; return the id of the session that begins.

    With another session's id, no host takes what it has built of the conversation for what is stored. Raises
    Conflict for any other message, and for one that was summed up already.
    """
    statement = """SELECT id, seq,
        EXISTS (SELECT 1 FROM compactions WHERE conversation_id = $1 AND through_seq >= seq) AS summed_up
        FROM messages WHERE conversation_id = $1 AND role = 'user' AND text IS NOT NULL
        ORDER BY seq DESC LIMIT 1"""
    last = await tx.fetchrow(statement, conversation_id)
    if last is None or last["id"] != message_id:
        raise Conflict(f"replaces: {message_id} is not the last message", code="not_last_message")
    if last["summed_up"]:
        raise Conflict("replaces: the message was summed up already; say it anew", code="not_last_message")
    session_id, seq = new_id(SESSION), last["seq"]
    await tx.execute("DELETE FROM messages WHERE conversation_id = $1 AND seq >= $2", conversation_id, seq)
    statement = """UPDATE conversations SET session_id = $2, message_count = (
            SELECT count(text) FROM messages WHERE conversation_id = $1) WHERE id = $1"""
    await tx.execute(statement, conversation_id, session_id)
    return session_id


async def mark_refused(tx: Tx, conversation_id: str) -> None:
    """Mark the newest turn, from its message on, as one that the model refused to answer.

    If it refuses again, the cause is older: 2 turns more are marked, then 4, 8 and so on, until it answers.
    """
    statement = """SELECT count(*) FROM runs WHERE conversation_id = $1 AND code = $2 AND number > coalesce(
            (SELECT max(number) FROM runs WHERE conversation_id = $1 AND state = 'success'), 0)"""
    times = await tx.fetchval(statement, conversation_id, REFUSED)
    earlier = 2 ** min(times, MOST_TIMES) - 2
    statement = """UPDATE messages SET refused = 1 WHERE conversation_id = $1
        AND (run_id IS NOT NULL OR $2 > 0) AND seq >= coalesce((SELECT seq FROM messages
            WHERE conversation_id = $1 AND role = 'user' AND text IS NOT NULL
            ORDER BY seq DESC LIMIT 1 OFFSET $2), 0)"""
    await tx.execute(statement, conversation_id, earlier)
