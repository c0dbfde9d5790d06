"""Files that people send: into ``inbox/`` of the workspace, under safe names, through the sandbox's door."""

from __future__ import annotations

import logging
import re
from typing import Final

import anyio

from host.channels.base import Attachment, Channel, ChannelFault, TryLater
from host.channels.messages import Stored
from host.ports import SandboxFault
from host.runs.attachments import INBOX, Attachments, line, safe_name
from host.runs.spec import Attached
from shared.ids import MESSAGE, new_id
from shared.principals import principal_of
from shared.values import Block, Lease

logger = logging.getLogger("picoclaw.channels")

TRIES: Final = 4
PAUSE_S: Final = 2.0
_UNSAFE: Final = re.compile(r"[^\w.-]+")


def place_of(message: Stored, number: int, attachment: Attachment, unique: str) -> str:
    """Return where an attachment is written: the same place if it has to be fetched again."""
    prefix = _UNSAFE.sub("_", unique) + (f"-{number}" if number else "")
    chat = _UNSAFE.sub("_", f"{message.chat.channel}-{message.chat.id}")
    return f"{INBOX}/{chat}/{prefix}-{safe_name(attachment.name)}"


class InboxFiles:
    """Fetches attachments, and says where they are and what the model is shown of them."""

    def __init__(self, channel: Channel, attachments: Attachments) -> None:
        self._channel = channel
        self._attachments = attachments

    async def store(self, message: Stored, unique: str, conversation_id: str) -> Attached | None:
        """Fetch and write all attachments for a conversation: a line for each, also for what could not be
        kept; None if there are none.
        """
        if not message.attachments:
            return None
        whose = principal_of(conversation_id), conversation_id
        lines, blocks = list[str](), list[Block]()
        for number, attachment in enumerate(message.attachments):
            path = place_of(message, number, attachment, unique)
            said, block = await self._one(attachment, path, whose)
            lines.append(said)
            blocks += [] if block is None else [block]
        return Attached(new_id(MESSAGE), tuple(lines), tuple(blocks), already_placed)

    async def _one(
        self, attachment: Attachment, path: str, whose: tuple[str, str]
    ) -> tuple[str, Block | None]:
        name = safe_name(attachment.name)
        if (attachment.size or 0) > self._channel.largest_file:
            return f"[Attached: {name}, not fetched: larger than {self._channel.largest_file} bytes]", None
        try:
            data = await self._fetched(attachment)
        except ChannelFault as fault:
            logger.warning("An attachment could not be fetched", extra={"error": str(fault)})
            return f"[Attached: {name}, which could not be fetched]", None
        if len(data) > self._channel.largest_file:
            return f"[Attached: {name}, not kept: larger than {self._channel.largest_file} bytes]", None
        try:
            await self._attachments.save(*whose, path, data)
            seen = await self._attachments.seen(data, path)
            await self._attachments.keep(*whose, seen.copies)
        except SandboxFault as fault:
            logger.warning("An attachment could not be written", extra={"error": str(fault)})
            return f"[Attached: {name}, which could not be written]", None
        of = ", of the message replied to" if attachment.replied else ""
        return line(path, attachment.media_type, len(data), seen.why, of), seen.block

    async def _fetched(self, attachment: Attachment) -> bytes:
        for attempt in range(TRIES - 1):
            try:
                return await self._channel.fetch(attachment)
            except TryLater as fault:
                await anyio.sleep(PAUSE_S * 2**attempt if fault.after_s is None else fault.after_s)
        return await self._channel.fetch(attachment)


async def already_placed(lease: Lease) -> str | None:
    """Be ``Attached.place`` of what was written when it was fetched: it is the same if it comes again."""
    return None
