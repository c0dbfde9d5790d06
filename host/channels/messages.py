"""A person's message as it is stored while it waits: cleaned, bounded, and read back."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from host.channels.base import Attachment, Incoming, Sender
from shared.channel_models import Chat, NewUpdate, Update

LONGEST_TEXT: Final = 100_000
LONGEST_QUOTE: Final = 500
LONGEST_NAME: Final = 120
MOST_ATTACHMENTS: Final = 10
LONGEST_ID: Final = 200

CHAT_ID: Final = re.compile(r"[A-Za-z0-9._@+-]{1,100}")
URGENT: Final = frozenset({"/stop", "/tasks", "/start", "/help"})
"""Commands that don't wait for the run in front of them."""

_COMMAND: Final = re.compile(r"(/[a-z_]{1,32})(?:\s+|$)", re.I)


@dataclass(frozen=True, slots=True)
class Stored:
    """A message read back from an update's body."""

    chat: Chat
    display: str
    text: str
    quoted: str
    message_id: str | None
    attachments: tuple[Attachment, ...]

    @property
    def command(self) -> str | None:
        """The command that the message begins with."""
        return command_in(self.text)

    @property
    def reply_to(self) -> str | None:
        """What an answer replies to: among several people it has to be seen whom it is for."""
        return None if self.chat.private else self.message_id


def command_in(text: str) -> str | None:
    """Return the command that a text begins with, such as ``/new``."""
    found = _COMMAND.match(text)
    return found[1].lower() if found else None


def usable(message: Incoming) -> bool:
    """Return whether the channel keeps its promise about ids, on which ours rest."""
    ids = (message.update_id, message.sender.id)
    return CHAT_ID.fullmatch(message.chat_id) is not None and all(0 < len(each) <= LONGEST_ID for each in ids)


def to_update(message: Incoming) -> NewUpdate:
    """Return the message as it is stored."""
    text = cleaned(message.text)[:LONGEST_TEXT]
    body: dict[str, Any] = {
        "sender_id": cleaned(message.sender.id),
        "sender_name": cleaned(message.sender.name)[:LONGEST_NAME],
        "display": cleaned(message.sender.display)[:LONGEST_NAME],
        "private": message.private,
        "text": text,
        "quoted": cleaned(message.quoted)[:LONGEST_QUOTE],
        "message_id": None if message.message_id is None else cleaned(message.message_id)[:LONGEST_ID],
        "attachments": [_attachment(each) for each in message.attachments[:MOST_ATTACHMENTS]],
    }
    urgent = command_in(text) in URGENT
    return NewUpdate(cleaned(message.update_id), message.chat_id, body, urgent)


def from_update(update: Update) -> Stored:
    """Read a stored message back."""
    body = update.body
    chat = Chat(update.channel, update.chat_id, body["private"], body["sender_id"], body["sender_name"])
    return Stored(
        chat=chat,
        display=body["display"] or body["sender_name"] or body["sender_id"],
        text=body["text"],
        quoted=body["quoted"],
        message_id=body["message_id"],
        attachments=tuple(Attachment(**each) for each in body["attachments"]),
    )


def sender_of(chat: Chat) -> Sender:
    """Return who spoke last in a chat."""
    return Sender(chat.sender_id, chat.sender_name)


def cleaned(text: str) -> str:
    """Return text that every part of the host can hold: no NUL, no halves of characters."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()


def _attachment(attachment: Attachment) -> dict[str, Any]:
    return {
        "id": cleaned(attachment.id),
        "name": cleaned(attachment.name)[:LONGEST_ID],
        "media_type": cleaned(attachment.media_type)[:LONGEST_NAME],
        "size": attachment.size,
    }
