"""What crosses the store's border for channels: chats, updates that came in, deliveries that go out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shared.principals import OPERATOR


@dataclass(frozen=True, slots=True)
class Chat:
    """A chat of a channel and who spoke in it last; ``private``: nobody else is in it.

    ``principal_id``: whose conversation it is in.
    """

    channel: str
    id: str
    private: bool
    sender_id: str
    sender_name: str = ""
    principal_id: str = OPERATOR


@dataclass(frozen=True, slots=True)
class NewUpdate:
    """Something that came in, under the channel's own id for it; ``urgent``: it doesn't wait its turn."""

    update_id: str
    chat_id: str
    body: dict[str, Any]
    urgent: bool = False


@dataclass(frozen=True, slots=True)
class Update:
    """An update that waits to be handled; ``run_id`` is the run that was to answer it, if one was begun.

    ``draft_id`` is the channel's message in which that answer is growing.
    """

    number: int
    channel: str
    update_id: str
    chat_id: str
    body: dict[str, Any]
    received_at: int
    run_id: str | None = None
    conversation_id: str | None = None
    draft_id: str | None = None


@dataclass(frozen=True, slots=True)
class Saying:
    """What is to be delivered to a chat; ``source`` names it, and one chat gets a source once.

    ``draft_id``: the channel's message that already shows a beginning of it.
    """

    source: str
    text: str
    reply_to: str | None = None
    draft_id: str | None = None


def told_of(text: str, answer: Mapping[str, Any]) -> str:
    """Return what a chat is told of a run's end whose answer it is; ``text`` is what the run said."""
    if answer["status"] in ("success", "paused"):
        return text
    return f"{text}\n\n⚠️ {answer.get('error') or 'The run failed.'}".strip()


@dataclass(frozen=True, slots=True)
class Delivery:
    """A saying on its way to a chat; ``parts_sent`` of its parts are there. ``file`` as in ``Outbound``."""

    number: int
    conversation_id: str
    channel: str
    chat_id: str
    saying: Saying
    parts_sent: int
    attempts: int
    created_at: int
    error: str | None = None
    file: str | None = None
