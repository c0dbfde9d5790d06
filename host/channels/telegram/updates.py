"""What Telegram sends, as a channel's messages. Updates of other kinds, and of bots, are passed over."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from typing import Any, Final

from telegram import Message, PhotoSize, Update
from telegram.constants import ChatType

from host.channels.base import Attachment, Incoming, Sender
from shared.clock import ms_of

logger = logging.getLogger("picoclaw.channels")

_TO_A_BOT: Final = re.compile(r"(/\w{1,64})@(\w{1,64})")


def incoming(raw: Any, bot_id: str, username: str | None) -> Incoming | None:
    """Return the message in an update as JSON has it, None when there is none for this bot."""
    try:
        update = Update.de_json(raw, None)
        message = update.message
        if message is None or message.from_user is None or message.from_user.is_bot:
            return None
        return _message(update.update_id, message, bot_id, username)
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError, OSError):
        logger.warning("An update of Telegram's could not be read", extra={"channel": "telegram"})
        return None


def _message(update_id: int, message: Message, bot_id: str, username: str | None) -> Incoming | None:
    text = _for_this_bot(message.text or message.caption or "", username)
    attachments = tuple(_attachments(message))
    if text is None or not (text.strip() or attachments):
        return None
    user = message.from_user
    assert user is not None  # noqa: S101 - looked at by the caller
    return Incoming(
        # Numbers begin anew with another bot's token.
        update_id=f"{bot_id}.{update_id}",
        chat_id=str(message.chat.id),
        sender=Sender(str(user.id), user.username or "", user.full_name),
        text=text,
        private=message.chat.type == ChatType.PRIVATE,
        quoted=_quoted(message),
        message_id=str(message.message_id),
        attachments=attachments,
        sent_at=ms_of(message.date),
    )


def _for_this_bot(text: str, username: str | None) -> str | None:
    """Return the text without the bot's name after a command; None if it is another bot's."""
    found = _TO_A_BOT.match(text)
    if found is None:
        return text
    if username is not None and found[2].casefold() != username.casefold():
        return None
    return found[1] + text[found.end() :]


def _quoted(message: Message) -> str:
    if message.quote is not None:
        return message.quote.text
    original = message.reply_to_message
    return "" if original is None else original.text or original.caption or ""


def _attachments(message: Message) -> Iterator[Attachment]:
    if message.photo:
        photo = max(message.photo, key=_area)
        yield Attachment(photo.file_id, "photo.jpg", "image/jpeg", photo.file_size)
    if message.document:
        document = message.document
        name = document.file_name or "document"
        yield Attachment(document.file_id, name, document.mime_type or "", document.file_size)
    if message.audio:
        audio = message.audio
        yield Attachment(audio.file_id, audio.file_name or "audio", audio.mime_type or "", audio.file_size)
    if message.video:
        video = message.video
        yield Attachment(
            video.file_id, video.file_name or "video.mp4", video.mime_type or "", video.file_size
        )
    if message.voice:
        voice = message.voice
        yield Attachment(voice.file_id, "voice.ogg", voice.mime_type or "", voice.file_size)


def _area(photo: PhotoSize) -> int:
    return photo.width * photo.height
