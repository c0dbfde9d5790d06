"""What Telegram sends (https://core.telegram.org/bots/api#message), as a channel's messages.

It is read as JSON has it, field by field, so that a kind of message that is new or odd hides no other one.
Updates of other kinds, and of bots, are passed over.
"""

import logging
import re
from collections.abc import Iterator
from typing import Any, Final

from host.channels.base import TOPIC, Attachment, Brought, Incoming, Moved, Pressed, Sender
from shared.values import Enclosed

logger = logging.getLogger("picoclaw.channels")

Json = dict[str, Any]

FILES: Final = {
    "photo": ("photo.jpg", "image/jpeg"),
    "animation": ("animation.mp4", ""),
    "live_photo": ("live_photo.mp4", ""),
    "document": ("document", ""),
    "audio": ("audio", ""),
    "video": ("video.mp4", ""),
    "video_note": ("round_video.mp4", "video/mp4"),
    "voice": ("voice.ogg", ""),
}
"""Kinds of files, and what one is called that has no name, or no type, of its own."""

TOLD: Final = (
    "sticker",
    "venue",
    "location",
    "contact",
    "poll",
    "dice",
    "game",
    "checklist",
    "story",
    "reply_to_story",
    "paid_media",
    "invoice",
    "successful_payment",
    "giveaway",
    "giveaway_winners",
    "web_app_data",
)
"""Kinds whose fields are told to the model, for want of words or of a file."""

UNTOLD: Final = re.compile(
    r"(file|file_unique|custom_emoji|persistent|game)_id|id|thumbnail|photo|.*entities"
)

_TO_A_BOT: Final = re.compile(r"(/\w{1,64})@(\w{1,64})")


def incoming(raw: Any, bot_id: str, username: str | None) -> Brought | None:
    """Return the message in an update as JSON has it, None when there is none for this bot."""
    try:
        if "callback_query" in raw:
            return _pressed(raw["callback_query"])
        edited = "edited_message" in raw
        message = raw.get("edited_message" if edited else "message")
        if message is None or (edited and "location" in message):
            # A live location is edited every few seconds.
            return None
        return _moved(message) or _message(raw["update_id"], message, bot_id, username, edited=edited)
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError, RecursionError):
        logger.warning("An update of Telegram's could not be read", extra={"channel": "telegram"})
        return None


def _pressed(query: Json) -> Pressed | None:
    """Return which button was pressed, None for one of a message that isn't the bot's own."""
    if "message" not in query or "data" not in query:
        return None
    private = query["message"]["chat"]["type"] == "private"
    return Pressed(str(query["id"]), _chat(query["message"]), _sender(query["from"]), query["data"], private)


def _sender(user: Json) -> Sender:
    return Sender(str(user["id"]), user.get("username", ""), _full_name(user))


def _moved(message: Json) -> Moved | None:
    """Return what a service message says of a group that became a supergroup, in the old one or the new."""
    chat = str(message["chat"]["id"])
    if "migrate_to_chat_id" in message:
        return Moved(chat, str(message["migrate_to_chat_id"]))
    return Moved(str(message["migrate_from_chat_id"]), chat) if "migrate_from_chat_id" in message else None


def _message(
    update_id: int, message: Json, bot_id: str, username: str | None, *, edited: bool
) -> Incoming | None:
    user = message.get("from")
    forwarded, words = "forward_origin" in message, _words(message)
    # Whom a command of somebody else's is for doesn't matter.
    text = words if forwarded else _for_this_bot(words, username)
    attachments = tuple(_attachments(message))
    enclosed = tuple(Enclosed(kind, said) for kind, said in _told(message))
    if user is None or user["is_bot"] or text is None or not (text.strip() or attachments or enclosed):
        return None
    if forwarded:
        enclosed = (Enclosed("forwarded", text, *_writer(message, bot_id)), *enclosed)
        text = ""
    reply = _replied_to(message)
    return Incoming(
        # Numbers begin anew with another bot's token.
        update_id=f"{bot_id}.{int(update_id)}",
        chat_id=_chat(message),
        sender=_sender(user),
        text=text,
        private=message["chat"]["type"] == "private",
        message_id=str(message["message_id"]),
        attachments=(*attachments, *_attachments(reply, replied=True)),
        sent_at=int(message["edit_date" if edited else "date"]) * 1000,
        enclosed=(*_reply(message, reply, bot_id), *enclosed),
        album=str(message.get("media_group_id", "")),
        edited=edited,
    )


def _chat(message: Json) -> str:
    """Return the chat's id, with the topic if it is one of a forum's (the general one has none)."""
    topic = f"{TOPIC}{int(message['message_thread_id'])}" if message.get("is_topic_message") else ""
    return f"{int(message['chat']['id'])}{topic}"


def _for_this_bot(text: str, username: str | None) -> str | None:
    """Return the text without the bot's name after a command; None if it is another bot's."""
    found = _TO_A_BOT.match(text)
    if found is None:
        return text
    if username is not None and found[2].casefold() != username.casefold():
        return None
    return found[1] + text[found.end() :]


def _words(message: Json) -> str:
    """Return the text or caption; addresses and people behind words stand as Markdown links."""
    text = message.get("text") or message.get("caption") or ""
    # Places of entities are UTF-16 code units.
    units = text.encode("utf-16-le", "surrogatepass")
    entities = message.get("entities") or message.get("caption_entities") or ()
    for entity in sorted(entities, key=lambda each: -int(each["offset"])):
        start = 2 * entity["offset"]
        end = start + 2 * entity["length"]
        user = entity.get("user")
        target = f"tg://user?id={user['id']}" if user else entity.get("url")
        if target:
            label = units[start:end].decode("utf-16-le", "surrogatepass")
            units = units[:start] + f"[{label}]({target})".encode("utf-16-le", "surrogatepass") + units[end:]
    return units.decode("utf-16-le", "surrogatepass")


def _replied_to(message: Json) -> Json:
    """Return the message that is replied to, in this chat or another, or nothing.

    What begins a forum's topic counts as replied to by all that stands in it.
    """
    original: Json = message.get("reply_to_message") or message.get("external_reply") or {}
    return {} if "forum_topic_created" in original else original


def _reply(message: Json, original: Json, bot_id: str) -> Iterator[Enclosed]:
    quote = message.get("quote")
    if original or quote:
        told = (f"{kind}: {said}" for kind, said in _told(original))
        words = _words(quote or original)
        yield Enclosed("reply", "\n".join(filter(None, (words, *told))), *_writer(original, bot_id))


def _writer(message: Json, bot_id: str) -> tuple[str, str]:
    """Return whose words a message holds, and their id: of a forwarded one, who wrote it first."""
    origin = message.get("forward_origin") or message.get("origin") or message
    user = origin.get("sender_user") or origin.get("from") or {}
    chat = origin.get("sender_chat") or origin.get("chat") or {}
    if str(user.get("id")) == bot_id:
        return "", "you"
    if user and not origin.get("sender_chat"):
        return _full_name(user), f"telegram:{user['id']}"
    if chat and chat.get("type") != "private":
        return chat.get("title") or chat.get("username") or "", f"telegram:{chat['id']}"
    return origin.get("sender_user_name") or "", ""


def _full_name(user: Json) -> str:
    return f"{user['first_name']} {user.get('last_name', '')}".strip()


def _attachments(message: Json, *, replied: bool = False) -> Iterator[Attachment]:
    for kind, (name, media_type) in FILES.items():
        found = message.get(kind)
        if not found or (kind == "document" and "animation" in message):
            continue  # An animation comes as a document too, for programs that are older than animations.
        file = max(found, key=_area) if isinstance(found, list) else found
        yield Attachment(
            file["file_id"],
            file.get("file_name") or name,
            file.get("mime_type") or media_type,
            file.get("file_size"),
            replied,
        )


def _area(size: Json) -> int:
    return int(size["width"]) * int(size["height"])


def _told(message: Json) -> Iterator[tuple[str, str]]:
    for kind in TOLD:
        if kind in message and not (kind == "location" and "venue" in message):
            yield kind, _said(message[kind])


def _said(value: Any) -> str:
    """Return what a field of the Bot API says, by its names."""
    if isinstance(value, dict):
        said = (f"{name}: {_said(each)}" for name, each in value.items() if not UNTOLD.fullmatch(name))
        return ", ".join(said)
    if isinstance(value, list):
        return "; ".join(map(_said, value))
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)
