"""A person's message as it is stored while it waits: cleaned, bounded, and read back."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from host.channels.base import Attachment, Incoming, Sender
from host.channels.rules import Rules
from shared.channel_values import Chat, NewUpdate, Update
from shared.values import Enclosed

LONGEST_TEXT: Final = 100_000
LONGEST_ENCLOSED: Final = 5_000
MOST_ENCLOSED: Final = 10
LONGEST_NAME: Final = 120
MOST_ATTACHMENTS: Final = 10
LONGEST_ID: Final = 200

CHAT_ID: Final = re.compile(r"[A-Za-z0-9._@+-]{1,100}")
URGENT: Final = frozenset({"/stop", "/tasks", "/start", "/help"})
"""Commands that don't wait for the run in front of them."""

EDITED: Final = "[The sender edited an earlier message. It reads now:]\n\n"

_MEDIA_TYPE: Final = re.compile(r"[\w.+-]+/[\w.+-]+", re.ASCII)
_COMMAND: Final = re.compile(r"(/[a-z_]{1,32})(?:\s+|$)", re.I)


@dataclass(frozen=True, slots=True)
class Stored:
    """A message read back from an update's body."""

    chat: Chat
    display: str
    text: str
    enclosed: tuple[Enclosed, ...]
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
    text = (EDITED if message.edited else "") + cleaned(message.text)[:LONGEST_TEXT]
    quoted = (Enclosed("reply", message.quoted),) if message.quoted else ()
    body: dict[str, Any] = {
        "sender_id": cleaned(message.sender.id),
        "sender_name": cleaned(message.sender.name)[:LONGEST_NAME],
        "display": cleaned(message.sender.display)[:LONGEST_NAME],
        "private": message.private,
        "text": text,
        "enclosed": [_enclosed(each) for each in (*quoted, *message.enclosed)[:MOST_ENCLOSED]],
        "album": cleaned(message.album),
        "message_id": None if message.message_id is None else cleaned(message.message_id)[:LONGEST_ID],
        "attachments": [_attachment(each) for each in message.attachments[:MOST_ATTACHMENTS]],
    }
    urgent = command_in(text) in URGENT
    return NewUpdate(cleaned(message.update_id), message.chat_id, body, urgent)


def from_update(update: Update, rules: Rules) -> Stored:
    """Read a stored message back; whose its chat is, the rules say as they are now."""
    body = update.body
    sender = Sender(body["sender_id"], body["sender_name"])
    return Stored(
        chat=rules.chat(update.chat_id, sender, private=body["private"]),
        display=body["display"] or body["sender_name"] or body["sender_id"],
        text=body["text"],
        enclosed=tuple(Enclosed(**each) for each in body.get("enclosed", ())),
        message_id=body["message_id"],
        attachments=tuple(Attachment(**each) for each in body["attachments"]),
    )


def as_one(parts: Sequence[Update], rules: Rules) -> Stored:
    """Return the message that an album's updates are together: one text, all files."""
    read = [from_update(part, rules) for part in parts]
    # Each part of a forwarded album says so, and one of them has the words.
    enclosed = dict.fromkeys(each for one in read for each in one.enclosed)
    worded = {(each.kind, each.who, each.id) for each in enclosed if each.text}
    return replace(
        read[0],
        text="\n\n".join(one.text for one in read if one.text.strip()),
        enclosed=tuple(e for e in enclosed if e.text or (e.kind, e.who, e.id) not in worded),
        attachments=tuple(each for one in read for each in one.attachments),
    )


def cleaned(text: str) -> str:
    """Return text that every part of the host can hold: no NUL, no halves of characters."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()


def _attachment(attachment: Attachment) -> dict[str, Any]:
    kind = cleaned(attachment.media_type)[:LONGEST_NAME]
    return {
        **asdict(attachment),
        "id": cleaned(attachment.id),
        "name": cleaned(attachment.name)[:LONGEST_ID],
        "media_type": kind if _MEDIA_TYPE.fullmatch(kind) else "",
    }


def _enclosed(enclosed: Enclosed) -> dict[str, str]:
    text = cleaned(enclosed.text)
    return {
        "kind": cleaned(enclosed.kind)[:LONGEST_NAME],
        "text": text if len(text) <= LONGEST_ENCLOSED else f"{text[:LONGEST_ENCLOSED]}… [cut]",
        "who": cleaned(enclosed.who)[:LONGEST_NAME],
        "id": cleaned(enclosed.id)[:LONGEST_ID],
    }
