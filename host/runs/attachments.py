"""Files that come with a message: into its conversation's ``inbox/``, and before the eyes of the model.

The model is shown pictures and PDF. A copy of what it is shown lies outside the workspace, where no run can
change it, under its digest; the message that is stored only names it (``host.agent.media``).
"""

import base64
import binascii
import hashlib
import mimetypes
import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import anyio.to_thread

from host.agent.media import KEPT, TEXT
from host.ports import Sandbox, SandboxFault
from host.runs.conversation_files import folder_of
from host.runs.principals import Spaces
from host.runs.spec import Attached
from host.telemetry import Metrics
from host.tools.pictures_and_documents import LARGEST, Unfit, is_picture, picture_of, told
from shared.ids import MESSAGE, new_id
from shared.principals import said_name
from shared.values import Block, Lease

INBOX: Final = "inbox"
WRITER: Final = "\0inbox"
KEEPER: Final = "\0kept"
"""Who writes, in a worker of its own: the conversation may be trusted more than what it is sent."""

PDF: Final = b"%PDF-"
LONGEST_SIDE: Final = 2000
"""Pixels: where a request has more than 20 pictures, the API takes none with a longer side."""
MOST_PAGES: Final = 100
LARGEST_OF_ALL: Final = 20 << 20
"""Bytes of all files that come with a message."""
LARGEST_TEXT: Final = 200_000
"""Characters of a PDF's text that are shown where PDF itself isn't read."""

TEXTS: Final = re.compile(r"^text/|\b(json|xml|yaml|toml)\b")
LONGEST_STEM: Final = 60
LONGEST_SUFFIX: Final = 12
MOST_BYTES: Final = 150
"""Bytes of a name without its suffix: with what stands around it may have 255 (NAME_MAX)."""


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


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file that comes with a message; ``path``: where it is already in the workspace, of so many bytes, of
    which ``data`` is nothing where the model is not shown it, ``why`` if it could be shown such a file.
    """

    name: str
    media_type: str
    data: bytes
    path: str | None = None
    size: int = 0
    why: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the model is shown of a file: a block, and what has to be kept for it by its names; or ``why`` it
    isn't, where it should have been.
    """

    block: Block | None = None
    copies: dict[str, bytes] = field(default_factory=dict)
    why: str = ""


class Attachments:
    """Takes files in, keeps what the model is shown of them, finds it again. One per host."""

    def __init__(self, sandbox: Sandbox, spaces: Spaces, counts: Metrics) -> None:
        self.sandbox = sandbox
        self.spaces = spaces
        self._counts = counts

    async def staged(self, files: Sequence[NewFile], principal_id: str, conversation_id: str) -> Attached:
        """Look at files that come with a message that is to be stored: nothing is written yet.

        Raises ``SandboxFault`` where there is no room or no place for them.
        """
        message_id = new_id(MESSAGE)
        folder = folder_of(said_name(principal_id, conversation_id), INBOX)
        lines, blocks, copies, new = list[str](), list[Block](), dict[str, bytes](), dict[str, bytes]()
        for file in files:
            name = safe_name(file.name)
            while f"{message_id}-{name}" in new:
                name = f"{len(new)}-{name}"
            path = file.path or f"{folder}/{message_id}-{name}"
            seen = await self.seen(file.data, path)
            if file.path is None:
                new[f"{message_id}-{name}"] = file.data
            lines.append(line(path, file.media_type, file.size or len(file.data), seen.why or file.why))
            blocks += [] if seen.block is None else [seen.block]
            copies |= seen.copies
        workspace = await self.spaces.of_host(WRITER, principal_id, conversation_id)
        more = sum(map(len, [*new.values(), *copies.values()]))
        wanted = {"more": more, "path": f"{folder}/{message_id}" if new else None}
        await self.sandbox.file(workspace, "reserve", wanted)

        async def place(lease: Lease) -> None:
            """Write all of it for the message that is stored now; raises ``SandboxFault``."""
            # Said once more with a key, it is the message of before, in its conversation.
            whose = lease.principal_id, lease.conversation_id
            folder = folder_of(said_name(*whose), INBOX)
            try:
                for name, data in new.items():
                    path = f"{folder}/{name.replace(message_id, lease.message_id)}"
                    await self.save(*whose, path, data)
                await self.keep(*whose, copies)
            finally:
                new.clear()
                copies.clear()

        return Attached(message_id, tuple(lines), tuple(blocks), place)

    async def seen(self, data: bytes, path: str) -> Seen:
        """Return what the model is shown of a file."""
        if data.startswith(PDF):
            self._counts.attachments["pdf"] += 1
            return await self._document(data, path)
        if is_picture(data):
            self._counts.attachments["image"] += 1
            return await self._picture(data, path)
        self._counts.attachments["text" if TEXTS.search(media_type_of(path)) else "other"] += 1
        return Seen()

    async def _picture(self, data: bytes, path: str) -> Seen:
        why = f"a side has more than {LONGEST_SIDE} pixels"
        try:
            picture = await anyio.to_thread.run_sync(picture_of, data)
        except Unfit as fault:
            picture, why = None, str(fault)
        if picture is None or max(picture.width, picture.height) > LONGEST_SIDE:
            found = await self._view(data, "picture", most=LARGEST * 3 // 4)
            if "data" in found:
                data = base64.b64decode(found["data"])
                picture = picture_of(data)
            elif picture is None:
                return Seen(why=f"{why}, and it can't be made smaller: {found['fault']}")
        return _shown("image", picture.media_type, data, path)

    async def _document(self, data: bytes, path: str) -> Seen:
        found = await self._view(data, "text", first=1, last=MOST_PAGES, most=LARGEST_TEXT)
        if "fault" in found:
            return Seen(why=found["fault"])
        if not 0 < found["count"] <= MOST_PAGES:
            return Seen(why=f"it has {found['count']} pages; read_file shows up to {MOST_PAGES} and more")
        seen = _shown("document", "application/pdf", data, path, pages=found["count"])
        (digest,) = seen.copies
        seen.copies[digest + TEXT] = told(found, f"{path}: PDF document").encode()
        return seen

    async def _view(self, data: bytes, kind: str, **asked: int) -> dict[str, Any]:
        descriptor = os.memfd_create("attachment")
        try:
            await anyio.to_thread.run_sync(_fill, descriptor, data)
            return await self.sandbox.view(descriptor, kind, **asked)
        except SandboxFault as fault:
            return {"fault": str(fault)}
        finally:
            os.close(descriptor)

    async def keep(self, principal_id: str, conversation_id: str, copies: dict[str, bytes]) -> None:
        """Keep what the model is shown. Raises ``SandboxFault``."""
        workspace = await self.spaces.of_kept(KEEPER, principal_id, conversation_id)
        for name, data in copies.items():
            await self._save(workspace, name, data)

    async def read(self, principal_id: str, conversation_id: str, name: str) -> bytes | None:
        """Return what is kept under a name, None if it isn't here, or isn't what its name says."""
        workspace = await self.spaces.of_kept(KEEPER, principal_id, conversation_id)
        try:
            found = await self.sandbox.file(workspace, "open_file", {"path": name})
        except SandboxFault:
            return None
        data = await anyio.to_thread.run_sync(_whole, found["descriptor"])
        same = name.endswith(TEXT) or hashlib.sha256(data).hexdigest() == name
        return data if same else None

    async def save(self, principal_id: str, conversation_id: str, path: str, data: bytes) -> None:
        """Write a file that somebody sent. Raises ``SandboxFault``."""
        await self._save(await self.spaces.of_host(WRITER, principal_id, conversation_id), path, data)

    async def _save(self, workspace: Any, path: str, data: bytes) -> None:
        encoded = await anyio.to_thread.run_sync(lambda: base64.b64encode(data).decode())
        await self.sandbox.file(workspace, "save_file", {"path": path, "data": encoded})

    async def forget(self, principal_id: str, conversation_id: str) -> None:
        """Remove the inbox of a conversation that is gone. Raises ``SandboxFault``."""
        workspace = await self.spaces.of_host(WRITER, principal_id, conversation_id)
        folder = folder_of(said_name(principal_id, conversation_id), INBOX)
        await self.sandbox.file(workspace, "remove_folder", {"path": folder})


def media_type_of(name: str) -> str:
    """Return what a file is by its name, "" if that says nothing."""
    kind, packed = mimetypes.guess_type(name, strict=False)
    return "" if packed else kind or ""


def decoded(data: str) -> bytes:
    """Return the bytes of base64, with or without line ends. Raises ValueError."""
    try:
        return base64.b64decode("".join(data.split()), validate=True)
    except (binascii.Error, UnicodeError) as error:
        raise ValueError(str(error)) from None


def line(path: str, media_type: str, size: int, why: str, of: str = "") -> str:
    """Return the line that says where a file is; ``why`` the model isn't shown it."""
    kind = f"{media_type}, " if media_type else ""
    return f"[Attached: {path} ({kind}{size} bytes){of}{f'; not shown: {why}' if why else ''}]"


def _shown(kind: str, media_type: str, data: bytes, path: str, **more: int) -> Seen:
    digest = hashlib.sha256(data).hexdigest()
    source = {"type": KEPT, "sha256": digest, "media_type": media_type, "path": path, "size": len(data)}
    return Seen({"type": kind, "source": {**source, **more}}, {digest: data})


def _fill(descriptor: int, data: bytes) -> None:
    rest, at = memoryview(data), 0
    while at < len(data):
        at += os.pwrite(descriptor, rest[at:], at)


def _whole(descriptor: int) -> bytes:
    with open(descriptor, "rb") as file:
        return file.read()
