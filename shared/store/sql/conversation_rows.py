"""What belongs to a conversation beside its messages: what its agent says, compactions, responses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any, Final

from shared import jsons
from shared.errors import NoConversation
from shared.ids import MESSAGE, new_id
from shared.store import rows
from shared.store.contract import Tx
from shared.store.rows import Noun, reader, writes
from shared.store.sql import conversations, usage
from shared.store.sql.lifetimes import hold
from shared.usage_values import Spending
from shared.values import After, Compaction, Lease


@dataclass(frozen=True, slots=True)
class Outbound:
    """A message from an agent to people. ``source_id`` is the conversation that spoke, ``seq`` orders all.

    ``file``, as JSON: path, size and SHA-256 of one that is sent with it, and the name of its copy if any.
    """

    seq: int
    id: str
    conversation_id: str
    source_id: str
    text: str
    sender: str
    created_at: int
    file: str | None = None


to_outbound: Final = reader(Outbound)

# Nobody speaks into another principal's conversation; a principal's own may be named as it says it. With the
# bare column SQLite would look for it among all of the principal's.
INSERT_OUTBOUND: Final = """INSERT INTO outbound_messages
    (id, conversation_id, source_id, text, sender, created_at, file)
    SELECT $1, target.id, source.id, $4, $5, $6, $7 FROM conversations AS source JOIN conversations AS target
        ON target.principal_id || '' = source.principal_id
    WHERE source.id = $3 AND target.id IN ($2, source.principal_id || '+' || $2) RETURNING *"""


class OutboundMessages(Noun):
    """What agents say to people through ``send_message``."""

    async def add(
        self,
        source_id: str,
        conversation_id: str,
        text: str,
        sender: str,
        now: int,
        *,
        patiently: bool = False,
        file: str | None = None,
        message_id: str | None = None,
    ) -> Outbound:
        """Store a message for ``conversation_id`` said by ``source_id``; raises NotFound.

        ``patiently``: for a host's run in flight, which outlasts a restart of the database.
        """
        return await self._engine.write(
            lambda tx: insert_outbound(tx, source_id, conversation_id, text, sender, now, file, message_id),
            patient=patiently,
        )

    async def said_by(self, source_id: str, *, after: int) -> list[Outbound]:
        """Return what the conversation said after ``after``, in order."""
        statement = "SELECT * FROM outbound_messages WHERE source_id = $1 AND seq > $2 ORDER BY seq"
        return await self._all(to_outbound, statement, source_id, after, patient=True)


async def mark_delivered(tx: Tx, ids: Sequence[str], now: int) -> None:
    """Mark messages as handed over, so that retention may remove them."""
    statement = """UPDATE outbound_messages SET delivered_at = $1
        WHERE id = ANY($2::text[]) AND delivered_at IS NULL"""
    await tx.execute(statement, now, list(ids))


async def insert_outbound(
    tx: Tx,
    source_id: str,
    conversation_id: str,
    text: str,
    sender: str,
    now: int,
    file: str | None = None,
    message_id: str | None = None,
) -> Outbound:
    """Store a message inside a transaction; raises NotFound."""
    # Numbers are given out before the commit: without this a reader could see 2, and 1 only later.
    await tx.lock("said", source_id)
    # The answer to an earlier try may have been lost.
    known = message_id and await tx.fetchrow("SELECT * FROM outbound_messages WHERE id = $1", message_id)
    named = message_id or new_id(MESSAGE)
    row = known or await tx.fetchrow(
        INSERT_OUTBOUND, named, conversation_id, source_id, text, sender, now, file
    )
    return to_outbound(NoConversation.unless(row, conversation_id))


to_compaction: Final = rows.reader(Compaction, left_out=jsons.loads, usage=rows.usage, archived=bool)

_COMPACTION_COLUMNS: Final = """number kind first_seq through_seq text cut_through_seq cut_chars
    thinking_through_seq model created_at message_seq message_chars"""
COMPACTION_COLUMNS: Final = tuple(_COMPACTION_COLUMNS.split())
INSERT_COMPACTION: Final = rows.insertion(
    "compactions", (*COMPACTION_COLUMNS, "conversation_id", "usage", "left_out")
)
COMPACTION_VALUES: Final = attrgetter(*COMPACTION_COLUMNS)


class Compactions(Noun):
    """How the beginnings of long conversations are sent; they go with their conversation."""

    async def latest(self, conversation_id: str) -> Compaction | None:
        """Return the compaction in force, None if everything is sent as it is stored."""
        statement = "SELECT * FROM compactions WHERE conversation_id = $1 ORDER BY number DESC LIMIT 1"
        return await self._one(to_compaction, statement, conversation_id, patient=True)

    @writes(patient=True)
    async def add(
        self, tx: Tx, lease: Lease, compaction: Compaction, now: int, *, spent: Spending | None = None
    ) -> Compaction:
        """Put a compaction in force and count what it cost; raises LeaseLost.

        What was reserved for its model call is given back. Returns it with its number and ``created_at``.
        """
        await hold(tx, lease, "reserved_tokens = 0, reserved_microdollars = 0")
        newest = "SELECT max(number) FROM compactions WHERE conversation_id = $1"
        number = (await tx.fetchval(newest, lease.conversation_id) or 0) + 1
        made = replace(compaction, number=number, created_at=now)
        own = (lease.conversation_id, jsons.dumps(made.usage), jsons.dumps(made.left_out))
        await tx.execute(INSERT_COMPACTION, *COMPACTION_VALUES(made), *own)
        if spent is not None:
            await usage.count(tx, lease.conversation_id, spent, now)
        return made

    async def unarchived(self, conversation_id: str) -> list[Compaction]:
        """Return those that replaced messages and are not in the archive yet, oldest first."""
        statement = """SELECT * FROM compactions WHERE conversation_id = $1 AND archived = 0 AND kind <> 'cut'
            ORDER BY number"""
        return await self._all(to_compaction, statement, conversation_id, patient=True)

    async def mark_archived(self, conversation_id: str, number: int) -> None:
        """Note that the messages which a compaction replaced are in the archive."""
        statement = "UPDATE compactions SET archived = 1 WHERE conversation_id = $1 AND number = $2"
        await self._change(statement, conversation_id, number, patient=True)


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response: the run that answers, and what it was asked.

    ``asked``: ``echo`` are the fields that the response tells again, ``items`` the input's items.
    ``made_conversation``: its conversation is there for responses alone.
    """

    id: str
    conversation_id: str
    principal_id: str
    run_id: str
    previous_id: str | None
    made_conversation: bool
    background: bool
    asked: Mapping[str, Any]
    created_at: int


RESPONSE_COLUMNS: Final = """id conversation_id principal_id run_id previous_id made_conversation background
    asked created_at"""
INSERT_RESPONSE: Final = rows.insertion("responses", RESPONSE_COLUMNS.split())
HISTORY: Final = """SELECT * FROM messages WHERE conversation_id = $1 AND seq <= (
    SELECT max(seq) FROM messages WHERE conversation_id = $1 AND run_id = $2) ORDER BY seq"""
COPY: Final = """INSERT INTO messages (conversation_id, seq, id, run_id, role, sender, sender_name, text,
    blocks, created_at, refused) VALUES ($1, $2, $3, NULL, $4, $5, $6, $7, $8, $9, $10)"""

to_response: Final = rows.reader(StoredResponse, made_conversation=bool, background=bool, asked=jsons.loads)


class Responses(Noun):
    """Responses; they go with their conversation, or when they are old."""

    async def add(self, made: StoredResponse) -> None:
        """Store a response; one that is there stays as it is."""
        await self._change(
            f"{INSERT_RESPONSE} ON CONFLICT DO NOTHING",
            made.id,
            made.conversation_id,
            made.principal_id,
            made.run_id,
            made.previous_id,
            int(made.made_conversation),
            int(made.background),
            jsons.dumps(made.asked),
            made.created_at,
        )

    async def get(self, response_id: str, principal_id: str | None) -> StoredResponse | None:
        """Return a principal's response (None: anybody's) or None."""
        statement = "SELECT * FROM responses WHERE id = $1 AND coalesce($2, principal_id) = principal_id"
        return await self._one(to_response, statement, response_id, principal_id)

    async def is_last(self, response: StoredResponse) -> bool:
        """Return whether nothing was said in its conversation after it."""
        after = After(response.conversation_id, response.run_id)
        return await self._engine.read(lambda tx: is_last(tx, after))

    @writes()
    async def remove(self, tx: Tx, response: StoredResponse) -> bool:
        """Remove a response; False for the last one of a conversation that was made for responses.

        That goes with its conversation.
        """
        statement = "SELECT count(*) FROM responses WHERE conversation_id = $1 AND id <> $2"
        others = await tx.fetchval(statement, response.conversation_id, response.id)
        if response.made_conversation and not others:
            return False
        await tx.execute("DELETE FROM responses WHERE id = $1", response.id)
        return True


async def is_last(tx: Tx, run: After) -> bool:
    """Return whether nothing was said in a run's conversation after it."""
    newer = """SELECT 1 FROM messages WHERE conversation_id = $1 AND text IS NOT NULL AND role = 'user'
        AND seq > (SELECT max(seq) FROM messages WHERE conversation_id = $1 AND run_id = $2) LIMIT 1"""
    return await tx.fetchval(newer, *run) is None


async def branch(tx: Tx, of: After, conversation_id: str, principal_id: str, now: int) -> None:
    """Make a conversation that has what was said in another one up to a run's end.

    Raises NoConversation, Suspended.
    """
    source = await tx.fetchrow("SELECT trusted FROM conversations WHERE id = $1", of.conversation_id)
    trusted = bool(NoConversation.unless(source, of.conversation_id)["trusted"])
    told = await tx.fetch(HISTORY, of.conversation_id, of.run_id)
    await conversations.insert(tx, conversation_id, now, None, False, trusted, principal_id)
    columns = ("role", "sender", "sender_name", "text", "blocks", "created_at", "refused")
    copies = [
        (conversation_id, seq, new_id(MESSAGE), *(row[name] for name in columns))
        for seq, row in enumerate(told, start=1)
    ]
    await tx.executemany(COPY, copies)
    shown = sum(row["text"] is not None for row in told)
    counted = "UPDATE conversations SET next_seq = $2, message_count = $3 WHERE id = $1"
    await tx.execute(counted, conversation_id, len(told) + 1, shown)
