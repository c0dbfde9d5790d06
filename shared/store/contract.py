"""The Store contract: what everything above the store may rely on, whatever engine is below.

Every method is atomic. Rows that have an owner are reached with the owner in the statement:
``owner=None`` means the caller may see all (the main conversation, the HTTP API); "absent" and
"not yours" give the same answer. Nothing may be acknowledged to anyone before ``durable()``
returned after the write.

Leases and claims last ``lease_ms`` milliseconds of the engine's own lease clock, which a change of the
wall clock doesn't move; ``now`` is the wall clock and only ever a timestamp or a schedule's present.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from shared.models import (
    Amount,
    Conversation,
    DayUsage,
    Event,
    HistoryEntry,
    Idempotency,
    KeyedAnswer,
    Lease,
    Message,
    NewMessage,
    NewRun,
    Outbound,
    Page,
    Run,
    RunEnd,
    Spending,
    Standing,
)
from shared.store.compactions import Compactions
from shared.store.sql.channels import Channels
from shared.store.sql.tokens import Tokens, ToolPins
from shared.store.task_contract import Tasks


@dataclass(frozen=True, slots=True)
class StoreCounts:
    """Row counts kept as counters, never by scanning."""

    conversations: int
    tasks: int


class Conversations(Protocol):
    """Conversations and their messages."""

    async def ensure(self, conversation_id: str, now: int) -> Conversation:
        """Return the conversation, made now if it is absent."""
        ...

    async def create(
        self, conversation_id: str, now: int, *, owner_id: str | None = None, temporary: bool = False
    ) -> Conversation:
        """Make a conversation (owned by itself unless ``owner_id``); raises Duplicate."""
        ...

    async def get(self, conversation_id: str) -> Conversation | None:
        """Return the conversation or None."""
        ...

    async def page(
        self, *, limit: int, cursor: str | None, include_temporary: bool = False
    ) -> Page[Conversation]:
        """Return conversations, newest activity first; raises InvalidInput on a cursor it didn't make."""
        ...

    async def messages(self, conversation_id: str, *, limit: int, cursor: str | None) -> Page[Message]:
        """Return the messages people see, in stored order."""
        ...

    async def history(
        self, conversation_id: str, *, after: int = 0, through: int | None = None
    ) -> list[HistoryEntry]:
        """Return messages for the model, in stored order (not yet repaired): those with a larger ``seq`` than
        ``after``, up to ``through``.
        """
        ...

    async def delete(self, conversation_id: str) -> None:
        """Remove every row of it and of its temporary conversations; raises NotFound, ConversationBusy."""
        ...


class Runs(Protocol):
    """Runs, their lease, their events, and idempotency keys."""

    async def begin(self, new: NewRun) -> Lease:
        """Take the conversation's lease and store the first message, or leave no trace.

        Raises NotFound (no such conversation), ConversationBusy, KeyTaken (the key's run or answer),
        Conflict ``idempotency_mismatch``. A key whose run ended as ``retryable`` starts a new run on the
        message that is already stored. Without a message: Conflict ``not_paused`` unless the conversation's
        last run paused, or went on after a pause and failed.
        """
        ...

    async def renew(self, leases: Sequence[Lease], lease_ms: int) -> set[str]:
        """Prolong leases in one transaction; return the ids of the runs whose lease is lost."""
        ...

    async def append(
        self,
        lease: Lease,
        messages: Sequence[NewMessage],
        now: int,
        *,
        effect_ahead: bool = False,
        spent: Spending | None = None,
    ) -> None:
        """Store finished steps and what they spent, and give back what was reserved; raises LeaseLost.

        ``effect_ahead``: the next thing that happens may have an outward effect, so a run that is cut off
        before its next ``append`` ends as ``interrupted``, not as ``retryable``.
        """
        ...

    async def record(self, told: Sequence[tuple[Lease, Sequence[Event]]], now: int) -> set[str]:
        """Store events of several runs; return the ids of those whose lease is lost, of which nothing is."""
        ...

    async def finish(
        self,
        lease: Lease,
        end: RunEnd,
        messages: Sequence[NewMessage],
        events: Sequence[Event],
        now: int,
    ) -> None:
        """End the run with its last messages and events, and give the lease back; raises LeaseLost."""
        ...

    async def get(self, conversation_id: str, run_id: str) -> Run | None:
        """Return a run of the conversation or None."""
        ...

    async def active(self, conversation_id: str) -> Run | None:
        """Return the conversation's running run or None."""
        ...

    async def page(self, conversation_id: str, *, limit: int, cursor: str | None) -> Page[Run]:
        """Return the conversation's runs, newest first."""
        ...

    async def events(self, run_id: str, *, after: int, limit: int = 1000) -> list[Event]:
        """Return stored events with a larger ``seq``, in order."""
        ...

    async def recover(self, now: int, *, all_but: str | None = None) -> list[str]:
        """End running runs whose lease ran out, or (``all_but``) that anyone but this owner holds.

        They end as ``error``, code ``interrupted`` or ``retryable``, with the ``error`` event that a
        waiting reader needs. Returns the ids of the ended runs.
        """
        ...

    async def ask_cancel(self, conversation_id: str) -> str | None:
        """Note that the conversation's running run is to stop; returns its id, None if there is none."""
        ...

    async def cancels_asked(self, owner: str) -> list[str]:
        """Return the ids of the owner's running runs that somebody wants to stop."""
        ...

    async def keyed(self, idempotency: Idempotency, now: int) -> KeyedAnswer | None:
        """Return what a key of the last 24 h stands for, or None."""
        ...

    async def keep_answer(
        self, idempotency: Idempotency, subject: str, status: int, body: dict[str, Any], now: int
    ) -> None:
        """Store the answer for a key (routes that are not runs)."""
        ...


class UsageBook(Protocol):
    """What model calls used, by day (UTC) and conversation; a temporary one's counts for its owner.

    Spending is counted by ``runs.append`` and ``runs.finish``, in their own transactions. What was reserved
    for a call counts as spent when its run is cut off before anybody learnt what the call used.
    """

    async def reserve(self, lease: Lease, decide: Callable[[Standing], Amount], now: int) -> None:
        """Reserve for the run's next model call, in the place of what it had reserved; raises LeaseLost.

        ``decide`` says how much, by what is spent and reserved so far; what it raises passes, and nothing
        is reserved. No two reservations are decided on the same figures.
        """
        ...

    async def by_day(self, *, limit: int, cursor: str | None) -> Page[DayUsage]:
        """Return what all conversations used, deleted ones too, newest day first."""
        ...

    async def by_conversation(
        self, *, conversation_id: str | None, limit: int, cursor: str | None
    ) -> Page[DayUsage]:
        """Return what each conversation (or only one) used each day, newest day first."""
        ...


class OutboundMessages(Protocol):
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
    ) -> Outbound:
        """Store a message for ``conversation_id`` said by ``source_id``; raises NotFound.

        ``patiently``: for a host's run in flight, which outlasts a restart of the database.
        """
        ...

    async def last_seq(self, source_id: str) -> int:
        """Return the seq of the newest message ``source_id`` said, 0 if none."""
        ...

    async def said_by(self, source_id: str, *, after: int) -> list[Outbound]:
        """Return what the conversation said after ``after``, in order."""
        ...

    async def delivered(self, ids: Sequence[str], now: int) -> None:
        """Mark messages as handed over, so that retention may remove them."""
        ...


class StoreOrigin(NamedTuple):
    """Which store lies on the volume (``STORE_ID``), and whether this very start made it."""

    id: str
    new: bool


class Store(Protocol):
    """One store, shared by the host and the tool servers."""

    @property
    def conversations(self) -> Conversations: ...

    @property
    def compactions(self) -> Compactions: ...

    @property
    def runs(self) -> Runs: ...

    @property
    def usage(self) -> UsageBook: ...

    @property
    def outbound(self) -> OutboundMessages: ...

    @property
    def tasks(self) -> Tasks: ...

    @property
    def channels(self) -> Channels: ...

    @property
    def tokens(self) -> Tokens: ...

    @property
    def tool_pins(self) -> ToolPins: ...

    @property
    def several_hosts(self) -> bool:
        """Return whether other hosts may serve the same store at the same time."""
        ...

    @property
    def origin(self) -> StoreOrigin | None:
        """Return which store this is; None where no volume has an identity."""
        ...

    def tool_access(self, conversation_id: str, *, is_main: bool) -> str | None:
        """Return how a tool server reaches the store for one conversation; None: by the database's path."""
        ...

    async def durable(self) -> None:
        """Return once everything committed so far is on the volume; raises NotDurable."""
        ...

    def volume_ok(self) -> bool:
        """Return whether the last attempt to write the volume worked (True before the first)."""
        ...

    def silent_s(self) -> float:
        """Return for how many seconds the volume hasn't answered; 0 where there is none."""
        ...

    async def probe(self) -> None:
        """Try out what the next write needs; raises Unavailable with what is wrong."""
        ...

    def make_room(self) -> None:
        """Give back the space that is kept for when the local disk is full; ``prune`` takes it again."""
        ...

    async def counts(self) -> StoreCounts:
        """Return the counters for /health."""
        ...

    async def prune(self, now: int, *, limit: int) -> int:
        """Remove at most ``limit`` rows that retention no longer keeps; returns how many went."""
        ...

    async def close(self) -> None:
        """Make everything durable and give all connections back."""
        ...
