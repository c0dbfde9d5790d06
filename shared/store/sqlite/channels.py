"""What channels brought and what they are to deliver, in SQLite."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any, Final

from shared import jsons
from shared.channel_models import Chat, Delivery, NewUpdate, Saying, Update
from shared.errors import NoConversation
from shared.models import NewMessage
from shared.store import channel_rows
from shared.store.channel_rows import LONGEST_PAUSE_MS, SAID
from shared.store.sqlite import chats
from shared.store.sqlite.engine import Database
from shared.store.sqlite.run_rows import store_messages

ADD: Final = """INSERT INTO channel_deliveries
    (conversation_id, channel, chat_id, source, text, reply_to, draft_id, created_at)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (channel, chat_id, source) DO NOTHING"""

END: Final = """UPDATE channel_deliveries SET ended_at = ?, text = '', error = ?, untold = ?
    WHERE number = ? AND ended_at IS NULL RETURNING source"""


class SqliteChannels:
    """Implements the ChannelBook contract."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def receive(self, channel: str, updates: Sequence[NewUpdate], now: int) -> int:
        """Store the updates whose id the channel hasn't brought before; returns how many were new."""

        def work(connection: sqlite3.Connection) -> int:
            return sum(_receive(connection, channel, update, now) for update in updates)

        return await self._db.write(work)

    async def waiting(self, channel: str, chat_id: str) -> int:
        """Return how many updates of the chat wait to be handled."""
        found = await self._rows(
            """SELECT count(*) FROM channel_updates
            WHERE channel = ? AND urgent = 0 AND chat_id = ? AND settled_at IS NULL""",
            channel,
            chat_id,
        )
        return int(found[0][0])

    async def chats_waiting(self, channel: str, *, limit: int) -> list[str]:
        """Return chats with updates that wait their turn, the longest waiting first."""
        found = await self._rows(
            """SELECT chat_id FROM channel_updates WHERE channel = ? AND urgent = 0 AND settled_at IS NULL
            GROUP BY chat_id ORDER BY min(number) LIMIT ?""",
            channel,
            limit,
        )
        return [row["chat_id"] for row in found]

    async def next_update(self, channel: str, chat_id: str) -> Update | None:
        """Return the chat's first update that waits its turn."""
        found = await self._rows(
            """SELECT * FROM channel_updates WHERE channel = ? AND urgent = 0 AND chat_id = ?
            AND settled_at IS NULL ORDER BY number LIMIT 1""",
            channel,
            chat_id,
        )
        return channel_rows.update(found[0]) if found else None

    async def urgent(self, channel: str, *, limit: int) -> list[Update]:
        """Return the updates that don't wait their turn, in order."""
        found = await self._rows(
            """SELECT * FROM channel_updates WHERE channel = ? AND urgent = 1 AND settled_at IS NULL
            ORDER BY number LIMIT ?""",
            channel,
            limit,
        )
        return [channel_rows.update(row) for row in found]

    async def attach(self, number: int, run_id: str, conversation_id: str) -> None:
        """Note which run is to answer the update, before that run begins."""
        await self._change(
            "UPDATE channel_updates SET run_id = ?, conversation_id = ? WHERE number = ?",
            run_id,
            conversation_id,
            number,
        )

    async def drafted(self, number: int, draft_id: str) -> None:
        """Note the channel's message in which the answer grows."""
        await self._change("UPDATE channel_updates SET draft_id = ? WHERE number = ?", draft_id, number)

    async def settle(self, number: int, conversation_id: str, saying: Saying | None, now: int) -> None:
        """End the update, forget its body and store what is to be said to its chat, in one transaction."""

        def work(connection: sqlite3.Connection) -> None:
            row = connection.execute(
                """UPDATE channel_updates SET settled_at = ?, body = '{}' WHERE number = ?
                AND settled_at IS NULL RETURNING channel, chat_id""",
                (now, number),
            ).fetchone()
            if row is not None and saying is not None:
                _say(connection, row["channel"], row["chat_id"], conversation_id, saying, now)

        await self._db.write(work)

    async def enter(self, chat: Chat, now: int) -> str:
        """Return the conversation the chat is in, made now if there is none; remember who spoke."""
        found = await self._db.read(lambda connection: chats.current(connection, chat.channel, chat.id))
        if found is not None and channel_rows.chat(found) == chat:
            return str(found["conversation_id"])
        return await self._db.write(lambda connection: chats.enter(connection, chat, now))

    async def begin_anew(self, chat: Chat, now: int) -> str:
        """Put the chat into a new conversation."""
        return await self._db.write(lambda connection: chats.make(connection, chat, now))

    async def join(self, chat: Chat, conversation_id: str, now: int) -> None:
        """Put the chat into a conversation that exists already; raises NotFound."""
        await self._db.write(lambda connection: chats.join(connection, chat, conversation_id))

    async def leave(self, channel: str, chat_id: str, conversation_id: str) -> None:
        """Take a conversation away from the chat, which goes back to its newest other one, if any."""
        await self._db.write(lambda connection: chats.leave(connection, channel, chat_id, conversation_id))

    async def members(self, channel: str, conversation_id: str) -> list[Chat]:
        """Return the channel's chats that the conversation's messages go to."""
        found = await self._rows(
            "SELECT * FROM channel_chats WHERE conversation_id = ? AND channel = ? ORDER BY number",
            conversation_id,
            channel,
        )
        return [channel_rows.chat(row) for row in found]

    async def say(self, channel: str, chat_id: str, conversation_id: str, saying: Saying, now: int) -> None:
        """Store something to be delivered; again is harmless. Raises NotFound (the conversation)."""
        await self._db.write(
            lambda connection: _say(connection, channel, chat_id, conversation_id, saying, now)
        )

    async def chats_due(self, channel: str, now: int, *, limit: int) -> list[str]:
        """Return chats whose first undelivered message may be tried now, the oldest first."""
        found = await self._rows(
            """SELECT d.chat_id FROM channel_deliveries AS d JOIN (
                SELECT min(number) AS first FROM channel_deliveries
                WHERE channel = ?1 AND ended_at IS NULL GROUP BY chat_id) ON d.number = first
            WHERE d.not_before <= ?2 OR d.not_before > ?2 + ?3 ORDER BY d.number LIMIT ?4""",
            channel,
            now,
            LONGEST_PAUSE_MS,
            limit,
        )
        return [row["chat_id"] for row in found]

    async def next_delivery(self, channel: str, chat_id: str, now: int) -> Delivery | None:
        """Return the chat's first undelivered message, None if there is none that may be tried now."""
        found = await self._rows(
            """SELECT * FROM channel_deliveries WHERE channel = ? AND chat_id = ? AND ended_at IS NULL
            ORDER BY number LIMIT 1""",
            channel,
            chat_id,
        )
        if not found or now < found[0]["not_before"] <= now + LONGEST_PAUSE_MS:
            return None
        return channel_rows.delivery(found[0])

    async def part_sent(self, number: int, parts: int) -> None:
        """Note that so many parts have reached the chat."""
        await self._change(
            "UPDATE channel_deliveries SET parts_sent = ?, attempts = 0 WHERE number = ?", parts, number
        )

    async def put_off(self, number: int, until: int, error: str) -> None:
        """Note a try that failed; the next one is at ``until`` or later."""
        await self._change(
            """UPDATE channel_deliveries SET attempts = attempts + 1, not_before = ?, error = ?
            WHERE number = ?""",
            until,
            error,
            number,
        )

    async def sent(self, number: int, now: int) -> None:
        """End a delivery and forget its text; a message of ``send_message`` counts as handed over."""

        def work(connection: sqlite3.Connection) -> None:
            row = connection.execute(END, (now, None, 0, number)).fetchone()
            if row is not None and row["source"].startswith(SAID):
                connection.execute(
                    "UPDATE outbound_messages SET delivered_at = ? WHERE id = ? AND delivered_at IS NULL",
                    (now, row["source"].removeprefix(SAID)),
                )

        await self._db.write(work)

    async def failed(self, number: int, error: str, now: int) -> None:
        """End a delivery for good and forget its text; ``untold`` lists it until ``tell`` did its work."""
        await self._db.write(lambda connection: connection.execute(END, (now, error, 1, number)).fetchall())

    async def untold(self, channel: str, *, limit: int) -> list[Delivery]:
        """Return failed deliveries that the conversation hasn't been told of (their text is gone)."""
        found = await self._rows(
            "SELECT * FROM channel_deliveries WHERE channel = ? AND untold = 1 ORDER BY number LIMIT ?",
            channel,
            limit,
        )
        return [channel_rows.delivery(row) for row in found]

    async def tell(self, number: int, message: NewMessage, now: int) -> bool:
        """Add a notice of the failure to the conversation; False, and nothing done, while it has a run."""

        def work(connection: sqlite3.Connection) -> bool:
            # Between a running run's tool calls and their results nothing may stand.
            row = connection.execute(
                """UPDATE channel_deliveries SET untold = 0 WHERE number = ? AND untold = 1 AND NOT EXISTS (
                SELECT 1 FROM runs WHERE runs.conversation_id = channel_deliveries.conversation_id
                AND runs.state = 'running') RETURNING conversation_id""",
                (number,),
            ).fetchone()
            if row is not None:
                store_messages(connection, row["conversation_id"], None, [message], now)
            return row is not None

        return await self._db.write(work)

    async def _rows(self, statement: str, *parameters: Any) -> list[sqlite3.Row]:
        return await self._db.read(lambda connection: connection.execute(statement, parameters).fetchall())

    async def _change(self, statement: str, *parameters: Any) -> None:
        await self._db.write(lambda connection: connection.execute(statement, parameters))


def fan_out(connection: sqlite3.Connection, conversation_id: str, source: str, text: str, now: int) -> None:
    """Have every chat of the conversation get the text."""
    connection.execute(
        """INSERT INTO channel_deliveries (conversation_id, channel, chat_id, source, text, created_at)
        SELECT conversation_id, channel, chat_id, ?, ?, ? FROM channel_chats WHERE conversation_id = ?""",
        (source, text, now, conversation_id),
    )


def _receive(connection: sqlite3.Connection, channel: str, update: NewUpdate, now: int) -> int:
    return connection.execute(
        """INSERT INTO channel_updates (channel, update_id, chat_id, urgent, body, received_at)
        VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (channel, update_id) DO NOTHING""",
        (channel, update.update_id, update.chat_id, update.urgent, jsons.dumps(update.body), now),
    ).rowcount


def _say(
    connection: sqlite3.Connection, channel: str, chat_id: str, conversation_id: str, saying: Saying, now: int
) -> None:
    values = (saying.source, saying.text, saying.reply_to, saying.draft_id, now)
    try:
        connection.execute(ADD, (conversation_id, channel, chat_id, *values))
    except sqlite3.IntegrityError as error:
        raise NoConversation(conversation_id) from error
