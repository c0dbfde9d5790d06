"""Files that people send: into ``inbox/`` of the workspace, under safe names, through the sandbox's door."""

from __future__ import annotations

import base64
import logging
import re
import unicodedata
from typing import Final

import anyio
import anyio.to_thread

from host.channels.base import Attachment, Channel, ChannelFault, TryLater
from host.channels.messages import Stored
from host.ports import Sandbox, SandboxFault, Workspace
from host.runs.spaces import Spaces
from shared.principals import principal_of

logger = logging.getLogger("picoclaw.channels")

DIRECTORY: Final = "inbox"
WRITER: Final = "\0inbox"  # no conversation can have this id
TRIES: Final = 4
PAUSE_S: Final = 2.0
LONGEST_STEM: Final = 60
LONGEST_SUFFIX: Final = 12
MOST_BYTES: Final = 150
"""Bytes of a name without its suffix: with what stands around it may have 255 (NAME_MAX)."""

_UNSAFE: Final = re.compile(r"[^\w.-]+")


def safe_name(name: str) -> str:
    """Return a file name that is one harmless component: letters, digits, ``_``, ``-`` and single dots.

    Letters are those of all scripts, with their marks: vowels of many scripts are marks.
    """
    last = unicodedata.normalize("NFC", name).replace("\\", "/").rpartition("/")[2]
    plain = "".join(char if char in "._-" or unicodedata.category(char)[0] in "LMN" else " " for char in last)
    plain = re.sub(r"\.{2,}", ".", re.sub(" +", "_", plain)).strip("._-")
    stem, dot, suffix = plain.rpartition(".")
    if not dot or not stem:
        stem, suffix = plain, ""
    stem = stem[:LONGEST_STEM].encode()[:MOST_BYTES].decode(errors="ignore").strip("._-") or "file"
    return f"{stem}.{suffix[:LONGEST_SUFFIX]}" if suffix else stem


def place_of(message: Stored, number: int, attachment: Attachment, unique: str) -> str:
    """Return where an attachment is written: the same place if it has to be fetched again."""
    prefix = _UNSAFE.sub("_", unique) + (f"-{number}" if number else "")
    chat = _UNSAFE.sub("_", f"{message.chat.channel}-{message.chat.id}")
    return f"{DIRECTORY}/{chat}/{prefix}-{safe_name(attachment.name)}"


class InboxFiles:
    """Fetches attachments and says in the message's text where they are."""

    def __init__(self, channel: Channel, sandbox: Sandbox, spaces: Spaces) -> None:
        self._channel = channel
        self._sandbox = sandbox
        self._spaces = spaces

    async def store(self, message: Stored, unique: str, conversation_id: str) -> list[str]:
        """Fetch and write all attachments for a conversation; return a line for each, also for what could not
        be kept.
        """
        workspace = await self._spaces.of_host(WRITER, principal_of(conversation_id), conversation_id)
        lines = []
        for number, attachment in enumerate(message.attachments):
            path = place_of(message, number, attachment, unique)
            lines.append(await self._one(attachment, path, workspace))
        return lines

    async def _one(self, attachment: Attachment, path: str, workspace: Workspace) -> str:
        name = safe_name(attachment.name)
        if (attachment.size or 0) > self._channel.largest_file:
            return f"[Attached: {name}, not fetched: larger than {self._channel.largest_file} bytes]"
        try:
            data = await self._fetched(attachment)
        except ChannelFault as fault:
            logger.warning("An attachment could not be fetched", extra={"error": str(fault)})
            return f"[Attached: {name}, which could not be fetched]"
        if len(data) > self._channel.largest_file:
            return f"[Attached: {name}, not kept: larger than {self._channel.largest_file} bytes]"
        try:
            await self._save(path, data, workspace)
        except SandboxFault as fault:
            logger.warning("An attachment could not be written", extra={"error": str(fault)})
            return f"[Attached: {name}, which could not be written]"
        kind = f"{attachment.media_type}, " if attachment.media_type else ""
        of = ", of the message replied to" if attachment.replied else ""
        return f"[Attached: {path} ({kind}{len(data)} bytes){of}]"

    async def _save(self, path: str, data: bytes, workspace: Workspace) -> None:
        """Write a file, in a worker of its own: the conversation may be trusted more than what it is sent."""
        encoded = await anyio.to_thread.run_sync(lambda: base64.b64encode(data).decode())
        await self._sandbox.file(workspace, "save_file", {"path": path, "data": encoded})

    async def _fetched(self, attachment: Attachment) -> bytes:
        for attempt in range(TRIES - 1):
            try:
                return await self._channel.fetch(attachment)
            except TryLater as fault:
                await anyio.sleep(PAUSE_S * 2**attempt if fault.after_s is None else fault.after_s)
        return await self._channel.fetch(attachment)
