"""The values that cross the store's border: frozen, plain, instants in milliseconds since the epoch (UTC)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from shared.approval_values import NewApproval
from shared.principals import OPERATOR
from shared.task_values import TaskRun
from shared.usage_values import Amount, Spending, Usage
from shared.webhook_values import Webhook

T = TypeVar("T")

Block = dict[str, Any]
"""One content block of the Messages API, as it is sent to the model and stored."""

Role = Literal["user", "assistant"]


class RunState(StrEnum):
    """Where a run stands. Everything but RUNNING is an ending."""

    RUNNING = "running"
    SUCCESS = "success"
    TIMEOUT = "timeout"
    ERROR = "error"
    CANCELLED = "cancelled"
    PAUSED = "paused"


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation. ``owner_id`` is who owns its tasks and receives its messages: itself, or its parent.

    ``trusted``, fixed at its birth by where it came from: whether it may change the words that agents obey.
    ``title`` is what people called it. ``begun_by`` is the conversation for which another agent began it.
    """

    id: str
    session_id: str
    owner_id: str
    temporary: bool
    created_at: int
    last_activity: int
    message_count: int
    running: bool
    trusted: bool = True
    title: str | None = None
    principal_id: str = OPERATOR
    begun_by: str | None = None

    @property
    def parent_id(self) -> str | None:
        """The conversation it was made for, None when it is its own."""
        return None if self.owner_id == self.id else self.owner_id


@dataclass(frozen=True, slots=True)
class Message:
    """A message as people see it; ``seq`` orders a conversation."""

    id: str
    conversation_id: str
    seq: int
    role: Role
    sender: str
    sender_name: str
    text: str
    created_at: int
    refused: bool = False
    """Of a turn that the model refused to answer: the model is not sent it any more."""


@dataclass(frozen=True, slots=True)
class NewMessage:
    """A message to be stored: ``blocks`` for the model, ``text`` for people (None: a step they don't see)."""

    id: str
    role: Role
    blocks: list[Block]
    text: str | None = None
    sender: str = ""
    sender_name: str = ""


@dataclass(frozen=True, slots=True)
class Enclosed:
    """What a message brought along beside its sender's own words: words of others, a place, a poll.

    ``who`` wrote it, as they are called, and ``id``, which nobody chooses; empty where that isn't known.
    """

    kind: str
    text: str
    who: str = ""
    id: str = ""


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """A message as the model sees it; ``text`` is what people see of it, None for a step they don't see."""

    role: Role
    blocks: list[Block]
    seq: int
    run_id: str | None
    text: str | None = None
    sender_name: str = ""
    created_at: int = 0
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to write a run's results: whose it is and its fencing number; it ends unless renewed.

    ``session_id``, ``temporary``, ``trusted`` and ``principal_id`` are the conversation's, which don't change
    while a run has it. ``chain``: which runs it continues. ``said_seq`` is its newest outbound message and
    ``compaction`` the number of the one in force, as the run begins; 0: none.
    """

    run_id: str
    conversation_id: str
    owner: str
    fence: int
    message_id: str
    session_id: str
    temporary: bool
    trusted: bool
    said_seq: int = 0
    compaction: int = 0
    principal_id: str = OPERATOR
    chain: Chain = field(default_factory=lambda: Chain(""))
    step: bool = False
    """It begins by finishing a step whose calls a person was asked about."""
    asked: str | None = None
    """What the run before it was asked with (JSON), where that paused."""


@dataclass(frozen=True, slots=True)
class Chain:
    """Runs that continue each other: the first one, the one before this, and what those before have spent."""

    root_run_id: str
    previous_run_id: str | None = None
    spent: Amount = field(default_factory=Amount)


CompactionKind = Literal["cut", "summary", "dropped"]


@dataclass(frozen=True, slots=True)
class Compaction:
    """How a conversation's beginning is sent from now on; the messages themselves stay as they are.

    Messages up to ``through_seq`` (0: none) are replaced by ``text``; ``first_seq`` is the first of those
    that this compaction replaced. Of the rest, tool results and images up to ``cut_through_seq`` are cut to
    ``cut_chars`` characters, and thinking up to ``thinking_through_seq`` is left out: its signature no longer
    fits what stands before it. ``left_out`` are kinds of blocks that the model's API refused
    (``host.models.mending``), and up to which message a line of text stands for them.

    ``kind``: ``cut`` replaced no message, ``summary`` has a summary that
    ``model`` made for ``usage``, ``dropped`` only a note, because no summary could be made. ``number`` counts
    the conversation's compactions from 1; ``archived``: what was replaced is in the workspace's archive.
    Of the replaced messages the one at ``message_seq`` (0: none) still stands, with at most ``message_chars``
    characters of its text: the rest of its turn is sent.
    """

    kind: CompactionKind
    through_seq: int = 0
    first_seq: int = 0
    text: str = ""
    cut_through_seq: int = 0
    cut_chars: int = 0
    thinking_through_seq: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)
    model: str = ""
    usage: Usage = field(default_factory=Usage)
    number: int = 0
    created_at: int = 0
    archived: bool = False
    message_seq: int = 0
    message_chars: int = 0


@dataclass(frozen=True, slots=True)
class Run:
    """One run from request to answer. ``answer`` is the body of its ``done`` event once it has ended.

    Runs that continue each other are a chain: its first one, and the ones before and after this. ``waits``:
    it is to be begun again, by itself.
    """

    id: str
    conversation_id: str
    state: RunState
    fence: int
    message_id: str
    created_at: int
    finished_at: int | None
    model: str
    usage: Usage
    error: str | None
    code: str | None
    answer: dict[str, Any] | None
    root_run_id: str
    previous_run_id: str | None
    next_run_id: str | None
    principal_id: str
    waits: bool


class After(NamedTuple):
    """A run after which something is said: in its conversation, or in one that branches off there."""

    conversation_id: str
    run_id: str


@dataclass(frozen=True, slots=True)
class NewRun:
    """What starts a run: the conversation (made now when ``create`` is set, then the principal's), the first
    message, the lease.

    Without a message the run goes on where the conversation's last one ended without a final answer. The
    message takes the place of the one that ``replaces`` names and of all that followed it. ``claim``: the
    slot of a task that it serves. ``deny_pending``: the message answers the
    questions that wait for a person and denies all else that does; ``by`` says whose it is. ``ready``: it
    goes on only where a step is ready to. ``background``: nobody waits for it; ``again`` says how often it
    may then be begun again by itself, ``asked`` with what (JSON), and ``begun_again`` is the run in whose
    place this one is begun. ``begun_by``: see ``Conversation``. ``lifts``: it may pass budgets.
    ``webhook`` hears of it and of what continues it. ``after``: what its message goes on from; a conversation
    that is made now knows what was said up to there, in another nothing may have been said since.
    """

    run_id: str
    conversation_id: str
    message: NewMessage | None
    owner: str
    now: int
    lease_ms: int
    create: bool = False
    parent_id: str | None = None
    temporary: bool = False
    model: str = ""
    idempotency: Idempotency | None = None
    replaces: str | None = None
    deny_pending: bool = False
    ready: bool = False
    claim: TaskRun | None = None
    principal_id: str = OPERATOR
    background: bool = False
    again: int | None = None
    asked: str | None = None
    begun_again: str | None = None
    by: Mapping[str, Any] = field(default_factory=dict)
    begun_by: str | None = None
    lifts: bool = False
    webhook: Webhook | None = None
    after: After | None = None


@dataclass(frozen=True, slots=True)
class RunFilter:
    """Which runs a list has: those for which all that is given holds; ``since`` and ``until`` by their start,
    in UTC milliseconds, both included.
    """

    principal_id: str | None = None
    conversation_id: str | None = None
    task_id: str | None = None
    root_run_id: str | None = None
    state: RunState | None = None
    code: str | None = None
    since: int | None = None
    until: int | None = None


@dataclass(frozen=True, slots=True)
class Idempotency:
    """A caller's key for one route, and the digest of the body it came with."""

    route: str
    key: str
    digest: str


@dataclass(frozen=True, slots=True)
class KeyedAnswer:
    """What an idempotency key stands for: a run (in progress or ended), or a stored answer."""

    subject: str
    conversation_id: str | None
    status: int | None
    body: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class RunEnd:
    """How a run ended, written in one transaction with its last messages and events.

    ``spending`` is the part of what it spent that was not stored with its steps, ``spent`` all of it.
    ``requests``: what a person has to decide before it goes on; ``asked``: with what it then goes on;
    ``stopped``: how far its subagents came that wait, by the call that began each.
    """

    state: RunState
    answer: dict[str, Any]
    usage: Usage
    model: str
    error: str | None = None
    code: str | None = None
    spending: Spending = field(default_factory=Spending)
    spent: Amount = field(default_factory=Amount)
    requests: Sequence[NewApproval] = ()
    asked: str = "{}"
    stopped: Mapping[str, Any] = field(default_factory=dict)

    @property
    def waits(self) -> bool:
        """Whether it goes on when people have answered."""
        return any(request.kind != "budget" for request in self.requests)


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event of a run; ``seq`` starts at 1 and rises."""

    seq: int
    name: str
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """A page of a list and the cursor of the next one (None at the end)."""

    items: list[T]
    next_cursor: str | None = field(default=None)
