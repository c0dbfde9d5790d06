"""Webhooks and their deliveries, as they are stored; instants in milliseconds since the epoch (UTC)."""

from dataclasses import dataclass, field
from typing import Final, Literal, get_args

from shared.clock import DAY_MS

Event = Literal[
    "run.ended", "run.paused", "approval.requested", "approval.resolved", "message.created", "task.ended"
]
EVENTS: Final[tuple[Event, ...]] = get_args(Event)
"""What a webhook can ask for."""
TEST: Final = "webhook.test"
DELETED: Final = "conversation.deleted"
"""Takes the place of what a deleted conversation had to tell."""
EVERYBODY: Final = "*"

Status = Literal["waiting", "held", "delivered", "dead"]
"""``held``: the store was restored or copied, so somebody may have been told already."""
Disabled = Literal["owner", "gone", "failing", "seal_key"]

TRIED_FOR_MS: Final = 3 * DAY_MS
"""A delivery that couldn't be made for so long is dead."""
MOST: Final = 20
"""Webhooks of one principal."""
MOST_WAITING: Final = 10_000
"""Deliveries about one principal."""


@dataclass(frozen=True, slots=True)
class Webhook:
    """Who is told what. ``subject``: a principal, EVERYBODY, or the run that it was sent with.

    ``secret`` as the host keeps it; the one before it signs too until ``old_secret_until``.
    """

    id: str
    principal_id: str
    subject: str
    url: str
    events: tuple[str, ...]
    content: bool
    secret: bytes = field(repr=False)
    created_at: int
    enabled: bool = True
    disabled_reason: Disabled | None = None
    old_secret: bytes | None = field(default=None, repr=False)
    old_secret_until: int | None = None
    failing_since: int | None = None
    last_error: str | None = None


@dataclass(frozen=True, slots=True)
class WebhookDelivery:
    """An event on its way to one webhook. ``data``: its JSON, None once it is not kept any more."""

    number: int
    id: str
    webhook_id: str
    principal_id: str
    conversation_id: str | None
    run_id: str | None
    type: str
    data: str | None
    created_at: int
    began_at: int
    status: Status
    attempts: int
    not_before: int
    owner: str
    error: str | None
    ended_at: int | None


@dataclass(frozen=True, slots=True)
class Tried:
    """How a try went. ``error`` None: it arrived; ``again_at`` None: it isn't tried again."""

    error: str | None = None
    again_at: int | None = None
    disable: Disabled | None = None


@dataclass(frozen=True, slots=True)
class WebhookFigures:
    """What waits, the oldest of it since when, and how many webhooks are disabled."""

    waiting: int
    oldest: int | None
    held: int
    disabled: int
