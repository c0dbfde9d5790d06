"""One store, shared by the host and the tool servers: every noun over one engine."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Final, NamedTuple

from shared.store.contract import Engine
from shared.store.sql.approvals import Approvals
from shared.store.sql.arrivals import Arrivals
from shared.store.sql.audit import Audit
from shared.store.sql.channels import Channels
from shared.store.sql.conversation_rows import Compactions, OutboundMessages, Responses
from shared.store.sql.conversations import Conversations
from shared.store.sql.lifetimes import Pruner, Retention
from shared.store.sql.principals import Principals
from shared.store.sql.runs import Runs
from shared.store.sql.tasks import Tasks
from shared.store.sql.tokens import SignIns, Tokens, ToolPins
from shared.store.sql.usage import UsageBook
from shared.store.sql.webhooks import Webhooks

COUNTS: Final = """SELECT name, sum(value)::bigint AS value FROM counters GROUP BY name UNION ALL
    SELECT 'others', count(*) FROM (SELECT 1 FROM principals WHERE id <> 'operator' LIMIT 1) AS one"""


@dataclass(frozen=True, slots=True)
class StoreCounts:
    """Row counts kept as counters, never by scanning."""

    conversations: int
    tasks: int
    others: bool
    """Whether there is a principal beside the operator."""


class StoreOrigin(NamedTuple):
    """Which store lies on the volume (``STORE_ID``), and whether this very start made it."""

    id: str
    new: bool


class Store(ABC):
    """What everything above the store may rely on, whatever engine is below.

    Every method of its nouns is atomic. Rows that have an owner are reached with the owner in the statement:
    ``owner=None`` means the caller may see all (the main conversation, the HTTP API); "absent" and "not
    yours" give the same answer. Nothing may be acknowledged to anyone before ``durable()`` returned after the
    write.

    Leases and claims last ``lease_ms`` milliseconds of the engine's own lease clock, which a change of the
    wall clock doesn't move; ``now`` is the wall clock and only ever a timestamp or a schedule's present.
    """

    several_hosts = False
    """Whether other hosts may serve the same store at the same time."""

    origin: StoreOrigin | None = None
    """Which store this is; None where no volume has an identity."""

    def __init__(self, engine: Engine, retention: Retention | None) -> None:
        self._engine = engine
        self.durable = engine.durable
        self.volume_ok = engine.volume_ok
        self.hanging = engine.hanging
        self._pruner = Pruner(engine, retention or Retention())
        self.principals = Principals(engine)
        self.conversations = Conversations(engine)
        self.compactions = Compactions(engine)
        self.runs = Runs(engine)
        self.usage = UsageBook(engine)
        self.outbound = OutboundMessages(engine)
        self.tasks = Tasks(engine)
        self.channels = Channels(engine)
        self.tokens = Tokens(engine)
        self.tool_pins = ToolPins(engine)
        self.sign_ins = SignIns(engine)
        self.approvals = Approvals(engine)
        self.audit = Audit(engine)
        self.responses = Responses(engine)
        self.arrivals = Arrivals(engine)
        self.webhooks = Webhooks(engine)

    @abstractmethod
    def tool_access(self, conversation_id: str, *, is_main: bool, principal_id: str) -> str | None:
        """Return how a tool server reaches the store for one conversation; None: by the database's path."""

    @abstractmethod
    async def probe(self) -> None:
        """Try out what the next write needs; raises Unavailable with what is wrong."""

    @abstractmethod
    def make_room(self) -> None:
        """Give back the space that is kept for when the local disk is full; ``prune`` takes it again."""

    @abstractmethod
    async def close(self) -> None:
        """Make everything durable and give all connections back."""

    async def counts(self) -> StoreCounts:
        """Return the counters for /health."""
        found = await self._engine.read(lambda tx: tx.fetch(COUNTS))
        values = {row["name"]: row["value"] for row in found}
        others = values["others"] > 0
        return StoreCounts(values.get("conversations", 0), values.get("tasks", 0), others)

    async def prune(self, now: int, *, limit: int) -> int:
        """Remove at most ``limit`` rows that retention no longer keeps; returns how many went."""
        return await self._pruner.prune(now, limit)
