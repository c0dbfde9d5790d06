"""What channels brought and what they are to deliver."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import itemgetter
from typing import Final

from shared import jsons
from shared.errors import NoConversation
from shared.store.contract import Missing, Row, Tx
from shared.store.rows import reader, writes
from shared.store.sql.chats import SAID, Chat, Chats, Delivery, NewUpdate, Saying, Update, to_chat
from shared.store.sql.conversations import store_messages
from shared.values import NewMessage

ADD: Final = """INSERT INTO channel_deliveries
    (conversation_id, channel, chat_id, source, text, reply_to, draft_id, created_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (channel, chat_id, source) DO NOTHING"""

END: Final = """UPDATE channel_deliveries SET ended_at = $2, text = '', error = $3, untold = $4
    WHERE number = $1 AND ended_at IS NULL RETURNING source"""

LONGEST_PAUSE_MS: Final = 3600 * 1000
"""A try that is put off for longer was put off by another clock."""

to_update: Final = reader(Update, body=jsons.loads)


def to_delivery(row: Row) -> Delivery:
    """Read a row of ``channel_deliveries``."""
    return Delivery(
        number=row["number"],
        conversation_id=row["conversation_id"],
        channel=row["channel"],
        chat_id=row["chat_id"],
        saying=Saying(row["source"], row["text"], row["reply_to"], row["draft_id"]),
        parts_sent=row["parts_sent"],
        attempts=row["attempts"],
        created_at=row["created_at"],
        error=row["error"],
    )


# What a suspended principal has to say waits.
AWAKE: Final = """NOT EXISTS (SELECT 1 FROM conversations AS c JOIN principals AS p ON p.id = c.principal_id
    WHERE c.id = d.conversation_id AND p.status <> 'active')"""


# Between tool calls and their results nothing may stand, also while people are asked about them.
NO_STEP: Final = """NOT EXISTS (SELECT 1 FROM approvals AS a WHERE a.ended_at IS NULL
    AND a.conversation_id = channel_deliveries.conversation_id AND a.kind <> 'budget')"""


class Channels(Chats):
    """Updates of channels, chats and their conversations, deliveries to chats."""

    @writes()
    async def receive(self, tx: Tx, channel: str, updates: Sequence[NewUpdate], now: int) -> int:
        """Store the updates whose id the channel hasn't brought before; returns how many were new."""
        return sum([await _receive(tx, channel, update, now) for update in updates])

    async def waiting(self, channel: str, chat_id: str) -> int:
        """Return how many updates of the chat wait to be handled."""
        statement = """SELECT count(*) FROM channel_updates
            WHERE channel = $1 AND urgent = 0 AND chat_id = $2 AND settled_at IS NULL"""
        return int(await self._value(statement, channel, chat_id))

    async def chats_waiting(self, channel: str, *, limit: int) -> list[str]:
        """Return chats with updates that wait their turn, the longest waiting first."""
        statement = """SELECT chat_id FROM channel_updates WHERE channel = $1 AND urgent = 0
            AND settled_at IS NULL GROUP BY chat_id ORDER BY min(number) LIMIT $2"""
        return await self._all(itemgetter("chat_id"), statement, channel, limit)

    async def next_update(self, channel: str, chat_id: str) -> Update | None:
        """Return the chat's first update that waits its turn."""
        found = await self.next_updates(channel, chat_id, limit=1)
        return found[0] if found else None

    async def next_updates(self, channel: str, chat_id: str, *, limit: int) -> list[Update]:
        """Return the chat's first updates that wait their turn."""
        statement = """SELECT * FROM channel_updates WHERE channel = $1 AND urgent = 0 AND chat_id = $2
            AND settled_at IS NULL ORDER BY number LIMIT $3"""
        return await self._all(to_update, statement, channel, chat_id, limit)

    async def urgent(self, channel: str, *, limit: int) -> list[Update]:
        """Return the updates that don't wait their turn, in order."""
        statement = """SELECT * FROM channel_updates WHERE channel = $1 AND urgent = 1 AND settled_at IS NULL
            ORDER BY number LIMIT $2"""
        return await self._all(to_update, statement, channel, limit)

    async def attach(self, number: int, run_id: str, conversation_id: str) -> None:
        """Note which run is to answer the update, before that run begins."""
        statement = "UPDATE channel_updates SET run_id = $2, conversation_id = $3 WHERE number = $1"
        await self._change(statement, number, run_id, conversation_id, patient=True)

    async def drafted(self, number: int, draft_id: str) -> None:
        """Note the channel's message in which the answer grows."""
        statement = "UPDATE channel_updates SET draft_id = $2 WHERE number = $1"
        await self._change(statement, number, draft_id, patient=True)

    @writes(patient=True)
    async def settle(
        self, tx: Tx, number: int, conversation_id: str, saying: Saying | None, now: int
    ) -> None:
        """End the update, forget its body and store what is to be said to its chat, in one transaction.

        An update that was settled before stays as it is. Raises NotFound (the conversation).
        """
        statement = """UPDATE channel_updates SET settled_at = $2, body = '{}' WHERE number = $1
            AND settled_at IS NULL RETURNING channel, chat_id"""
        row = await tx.fetchrow(statement, number, now)
        if row is not None and saying is not None:
            await say(tx, row["channel"], row["chat_id"], conversation_id, saying, now)

    @writes()
    async def decide_trust(self, tx: Tx, channel: str, trusts: Callable[[Chat], bool]) -> None:
        """Decide about conversations that the channel began before anybody asked for its chats' trust."""
        statement = """SELECT channel_chats.* FROM channel_chats JOIN conversations AS c
            ON c.id = conversation_id WHERE channel = $1 AND trusted IS NULL ORDER BY number"""
        unknown = await tx.fetch(statement, channel)
        for row in unknown:
            statement = "UPDATE conversations SET trusted = $2 WHERE id = $1"
            await tx.execute(statement, row["conversation_id"], int(trusts(to_chat(row))))

    async def members(self, channel: str, conversation_id: str) -> list[Chat]:
        """Return the channel's chats that the conversation's messages go to."""
        statement = "SELECT * FROM channel_chats WHERE conversation_id = $1 AND channel = $2 ORDER BY number"
        return await self._all(to_chat, statement, conversation_id, channel)

    async def say(self, channel: str, chat_id: str, conversation_id: str, saying: Saying, now: int) -> None:
        """Store something to be delivered; again is harmless. Raises NotFound (the conversation)."""
        await self._engine.write(lambda tx: say(tx, channel, chat_id, conversation_id, saying, now))

    async def chats_due(self, channel: str, now: int, *, limit: int) -> list[str]:
        """Return chats whose first undelivered message may be tried now, the oldest first."""
        statement = f"""SELECT d.chat_id FROM channel_deliveries AS d JOIN (
                SELECT min(number) AS first FROM channel_deliveries
                WHERE channel = $1 AND ended_at IS NULL GROUP BY chat_id) AS firsts ON d.number = first
            WHERE (d.not_before <= $2 OR d.not_before > $2 + $3) AND {AWAKE} ORDER BY d.number LIMIT $4"""
        return await self._all(itemgetter("chat_id"), statement, channel, now, LONGEST_PAUSE_MS, limit)

    async def next_delivery(self, channel: str, chat_id: str, now: int) -> Delivery | None:
        """Return the chat's first undelivered message, None if there is none that may be tried now."""
        statement = f"""SELECT d.*, (SELECT file FROM outbound_messages AS o
                WHERE o.id = substr(d.source, {len(SAID) + 1})) AS file
            FROM channel_deliveries AS d WHERE channel = $1 AND chat_id = $2
            AND ended_at IS NULL AND {AWAKE} ORDER BY number LIMIT 1"""
        row = await self._engine.read(lambda tx: tx.fetchrow(statement, channel, chat_id))
        if row is None or now < row["not_before"] <= now + LONGEST_PAUSE_MS:
            return None
        return replace(to_delivery(row), file=row["file"])

    async def has_chats(self, conversation_id: str) -> bool:
        """Return whether what the conversation says goes to chats."""
        statement = "SELECT 1 FROM channel_chats WHERE conversation_id = $1 LIMIT 1"
        return await self._value(statement, conversation_id) is not None

    async def is_waited_for(self, source: str) -> bool:
        """Return whether some chat has yet to get this."""
        statement = "SELECT 1 FROM channel_deliveries WHERE source = $1 AND ended_at IS NULL LIMIT 1"
        return await self._value(statement, source) is not None

    async def part_sent(self, number: int, parts: int) -> None:
        """Note that so many parts have reached the chat."""
        statement = "UPDATE channel_deliveries SET parts_sent = $2, attempts = 0 WHERE number = $1"
        await self._change(statement, number, parts, patient=True)

    async def put_off(self, number: int, until: int, error: str) -> None:
        """Note a try that failed; the next one is at ``until`` or later."""
        statement = """UPDATE channel_deliveries SET attempts = attempts + 1, not_before = $2, error = $3
            WHERE number = $1"""
        await self._change(statement, number, until, error, patient=True)

    @writes(patient=True)
    async def sent(self, tx: Tx, number: int, now: int) -> None:
        """End a delivery and forget its text; a message of ``send_message`` counts as handed over."""
        row = await tx.fetchrow(END, number, now, None, 0)
        if row is not None and row["source"].startswith(SAID):
            statement = (
                "UPDATE outbound_messages SET delivered_at = $1 WHERE id = $2 AND delivered_at IS NULL"
            )
            await tx.execute(statement, now, row["source"].removeprefix(SAID))

    async def failed(self, number: int, error: str, now: int) -> None:
        """End a delivery for good and forget its text; ``untold`` lists it until ``tell`` did its work."""
        await self._change(END, number, now, error, 1, patient=True)

    async def untold(self, channel: str, *, limit: int) -> list[Delivery]:
        """Return failed deliveries that the conversation hasn't been told of (their text is gone), and can
        be told of: no calls of it wait.
        """
        statement = f"""SELECT * FROM channel_deliveries WHERE channel = $1 AND untold = 1 AND {NO_STEP}
            ORDER BY number LIMIT $2"""
        return await self._all(to_delivery, statement, channel, limit)

    @writes()
    async def tell(self, tx: Tx, number: int, message: NewMessage, now: int) -> bool:
        """Add a notice of the failure to the conversation; False, and nothing done, while it has a run or its
        calls wait.
        """
        # Whoever begins a run, or asks, locks its conversation.
        statement = """SELECT 1 FROM conversations WHERE id =
                (SELECT conversation_id FROM channel_deliveries WHERE number = $1) FOR NO KEY UPDATE"""
        await tx.execute(statement, number)
        statement = f"""UPDATE channel_deliveries SET untold = 0 WHERE number = $1 AND untold = 1
            AND NOT EXISTS (SELECT 1 FROM runs WHERE runs.conversation_id = channel_deliveries.conversation_id
            AND runs.state = 'running') AND {NO_STEP} RETURNING conversation_id"""
        row = await tx.fetchrow(statement, number)
        if row is not None:
            await store_messages(tx, row["conversation_id"], None, [message], now)
        return row is not None


async def _receive(tx: Tx, channel: str, update: NewUpdate, now: int) -> int:
    return await tx.execute(
        """INSERT INTO channel_updates (channel, update_id, chat_id, urgent, body, received_at)
        VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (channel, update_id) DO NOTHING""",
        channel,
        update.update_id,
        update.chat_id,
        int(update.urgent),
        jsons.dumps(update.body),
        now,
    )


async def say(tx: Tx, channel: str, chat_id: str, conversation_id: str, saying: Saying, now: int) -> None:
    """Store something to be delivered inside a transaction; raises NotFound (the conversation)."""
    values = (saying.source, saying.text, saying.reply_to, saying.draft_id, now)
    try:
        await tx.execute(ADD, conversation_id, channel, chat_id, *values)
    except Missing:
        raise NoConversation(conversation_id) from None
