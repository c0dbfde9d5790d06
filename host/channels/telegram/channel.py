"""Telegram: a bot that is polled or called, answers by messages that grow, and brings files along."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, BinaryIO, Final

import anyio
import anyio.to_thread
from telegram import InputFile

from host.channels.base import (
    TOPIC,
    Attachment,
    Brought,
    Button,
    Channel,
    ChannelDown,
    ChannelFault,
    Door,
    Forged,
    Gone,
    Pressed,
    Undeliverable,
)
from host.channels.telegram.client import FILE_WITHIN_S, NOT_MODIFIED, POLL_S, TelegramClient
from host.channels.telegram.markup import to_html
from host.channels.telegram.updates import incoming
from shared import jsons
from shared.errors import PicoError
from shared.settings.access import Telegram

logger = logging.getLogger("picoclaw.channels")

LONGEST: Final = 4096
"""UTF-16 code units of a message's text, tags not counted (https://core.telegram.org/bots/api#sendmessage)."""

EDIT_EVERY_S: Final = 2.0
"""In a private chat about one call a second is welcome, in a group twenty a minute."""

KINDS: Final = ("message", "edited_message", "callback_query")
LONGEST_NOTICE: Final = 200
UNREADABLE: Final = ("can't parse entities", "text is empty")
SECRET_HEADER: Final = "x-telegram-bot-api-secret-token"  # noqa: S105 - the header's name
SECRET: Final = re.compile(r"[A-Za-z0-9_-]{1,256}")
WEBHOOK_PATH: Final = "/channels/telegram/webhook"
STORE_AGAIN_S: Final = 2.0
TOKEN: Final = re.compile(r"[0-9]{1,20}:[A-Za-z0-9_-]{1,100}")


def telegram_channel(settings: Telegram) -> TelegramChannel:
    """Return the channel that the settings describe; raises ChannelDown when they lack something."""
    if settings.token is None:
        raise ChannelDown("channels.telegram.token is not set")
    token = settings.token.get_secret_value().strip()
    if not TOKEN.fullmatch(token):
        raise ChannelDown("channels.telegram.token does not look like a bot's token (123456:ABC...)")
    secret = settings.webhook_secret.get_secret_value() if settings.webhook_secret else secret_of(token)
    if not SECRET.fullmatch(secret):
        raise ChannelDown("channels.telegram.webhook_secret must be 1 to 256 of A-Z, a-z, 0-9, _ and -")
    return TelegramChannel(settings, token, secret)


def secret_of(token: str) -> str:
    """Return a webhook secret that stays the same for a token and doesn't tell it."""
    return hmac.new(token.encode(), b"picoclaw webhook", hashlib.sha256).hexdigest()


class TelegramChannel(Channel):
    """Implements ``Channel`` on the Bot API."""

    longest = LONGEST
    has_buttons = True
    edit_every_s = EDIT_EVERY_S

    def __init__(self, settings: Telegram, token: str, secret: str) -> None:
        self.streams = settings.streaming
        self.largest_file = settings.max_file_mb * 1_000_000
        self._webhook_url = settings.webhook_url
        self._secret = secret
        self._bot_id = token.partition(":")[0]
        self._username: str | None = None
        self._client = TelegramClient(token, settings.api_base)

    async def receive(self, door: Door) -> None:
        """Be called by Telegram, or ask it for messages. Raises ChannelDown, TryLater."""
        me = await self._client.call("getMe")
        self._username = me.get("username")
        if self._webhook_url is None:
            await self._client.call("deleteWebhook", drop_pending_updates=False)
            door.connected()
            await self._poll(door)
        await self._client.call(
            "setWebhook",
            url=f"{str(self._webhook_url).rstrip('/')}{WEBHOOK_PATH}",
            secret_token=self._secret,
            # One after the other, so that a chat's messages come in their order.
            max_connections=1,
            allowed_updates=list(KINDS),
        )
        door.connected()
        await anyio.sleep_forever()

    async def _poll(self, door: Door) -> None:
        """Ask for messages; asking beyond one confirms it, and that happens only after it was stored."""
        offset: int | None = None
        while True:
            updates = await self._client.call(
                "getUpdates", offset=offset, timeout=POLL_S, limit=100, allowed_updates=list(KINDS)
            )
            door.connected()
            if not updates:
                continue
            await _stored(door, self._messages(updates))
            offset = max(update["update_id"] for update in updates) + 1

    async def send(self, chat_id: str, text: str, reply_to: str | None) -> str:
        """Send a message and return its id. Raises TryLater, Undeliverable."""
        parameters = {**_target(chat_id), "link_preview_options": {"is_disabled": True}}
        if reply_to is not None and reply_to.isdecimal():
            parameters["reply_parameters"] = {
                "message_id": int(reply_to),
                "allow_sending_without_reply": True,
            }
        sent = await self._with_text("sendMessage", text, parameters)
        return str(sent["message_id"])

    async def send_file(self, chat_id: str, file: BinaryIO, name: str, caption: str) -> None:
        """Send a document. Raises TryLater, Undeliverable."""
        document = InputFile(file, filename=name, read_file_handle=False)
        within = FILE_WITHIN_S
        await self._client.call(
            "sendDocument", within, **_target(chat_id), document=document, caption=caption
        )

    async def edit(self, chat_id: str, message_id: str, text: str) -> None:
        """Replace a message's text. Raises TryLater, Undeliverable, Gone."""
        parameters = {
            "chat_id": _target(chat_id)["chat_id"],
            "message_id": int(message_id),
            "link_preview_options": {"is_disabled": True},
        }
        try:
            await self._with_text("editMessageText", text, parameters)
        except Undeliverable as fault:
            if NOT_MODIFIED not in str(fault).lower():
                raise

    async def delete(self, chat_id: str, message_id: str) -> None:
        """Delete a message. Raises TryLater."""
        try:
            chat = _target(chat_id)["chat_id"]
            await self._client.call("deleteMessage", chat_id=chat, message_id=int(message_id))
        except (Gone, Undeliverable):
            logger.info("A message could not be removed", extra={"channel": "telegram"})

    async def ask(self, chat_id: str, text: str, buttons: Sequence[Sequence[Button]]) -> str:
        """Send a text as it is, with buttons below it. Raises TryLater, Undeliverable."""
        rows = [[{"text": each.label, "callback_data": each.data} for each in row] for row in buttons]
        keyboard: dict[str, Any] = {"reply_markup": {"inline_keyboard": rows}} if rows else {}
        sent = await self._client.call("sendMessage", text=text, **_target(chat_id), **keyboard)
        return str(sent["message_id"])

    async def close(self, chat_id: str, message_id: str, text: str) -> None:
        """Replace a text with buttons by one without. Raises TryLater, Undeliverable, Gone."""
        chat = _target(chat_id)["chat_id"]
        await self._client.call("editMessageText", chat_id=chat, message_id=int(message_id), text=text)

    async def acknowledge(self, pressed: Pressed, text: str) -> None:
        """Show a notice to whoever pressed a button."""
        with suppress(ChannelFault):
            notice = text[:LONGEST_NOTICE]
            await self._client.call("answerCallbackQuery", callback_query_id=pressed.id, text=notice)

    async def typing(self, chat_id: str) -> None:
        """Show that an answer is on its way. Raises ChannelFault."""
        await self._client.call("sendChatAction", **_target(chat_id), action="typing")

    async def fetch(self, attachment: Attachment) -> bytes:
        """Download a file. Raises TryLater, Undeliverable."""
        found = await self._client.call("getFile", file_id=attachment.id)
        if (found.get("file_size") or 0) > self.largest_file:
            raise Undeliverable("the file is too large")
        return await self._client.download(str(found["file_path"]))

    async def webhook(self, headers: Mapping[str, str]) -> None:
        """Check the secret that Telegram was given by setWebhook. Raises Forged."""
        given = headers.get(SECRET_HEADER, "")
        if self._webhook_url is None or not hmac.compare_digest(given.encode(), self._secret.encode()):
            raise Forged("the secret token is wrong")

    async def called(self, body: bytes) -> Sequence[Brought]:
        """Return the message of an update. Raises ValueError."""
        return self._messages([jsons.loads(body)])

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _with_text(self, method: str, text: str, parameters: dict[str, Any]) -> Any:
        """Call with the text as HTML; as it is, if Telegram can't make anything of that."""
        html = await anyio.to_thread.run_sync(to_html, text)  # up to a tenth of a second for brackets
        try:
            return await self._client.call(method, text=html, parse_mode="HTML", **parameters)
        except Undeliverable as fault:
            if not any(sign in str(fault).lower() for sign in UNREADABLE):
                raise
        return await self._client.call(method, text=text, **parameters)

    def _messages(self, updates: Sequence[Any]) -> list[Brought]:
        found = (incoming(update, self._bot_id, self._username) for update in updates)
        return [message for message in found if message is not None]


def _target(chat_id: str) -> dict[str, Any]:
    """Return the parameters that name a chat, and the topic in it."""
    chat, _, topic = chat_id.partition(TOPIC)
    return {"chat_id": chat, "message_thread_id": int(topic)} if topic else {"chat_id": chat}


async def _stored(door: Door, messages: Sequence[Brought]) -> None:
    """Return when the messages are stored, however long the store takes to come back."""
    while True:
        try:
            await door.take(*messages)
        except PicoError as error:
            logger.warning("Telegram's messages cannot be stored yet: %s", error.message)
            await anyio.sleep(STORE_AGAIN_S)
        else:
            return
