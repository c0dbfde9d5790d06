"""Files that an agent sends to the people of its conversation: ``send_file``, and copies that wait for chats.

Whoever reads messages over HTTP fetches the file itself. For a chat a copy is kept outside of the workspace
until it has arrived: the run may change the file meanwhile.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Final

import anyio.to_thread

from host.ports import Sandbox, SandboxFault, ToolResult, ToolSpec, Workspace
from host.runs.principals import Spaces
from host.tools.arguments import BadArguments, check
from shared import jsons
from shared.clock import now_ms
from shared.errors import PicoError
from shared.ids import FILE, new_id
from shared.store.store import Store

NAME: Final = "send_file"
LARGEST_TO_CHATS: Final = 50_000_000
"""Bytes of a file that Telegram takes from bots (https://core.telegram.org/bots/api#senddocument)."""
LONGEST_CAPTION: Final = 500
SENDER: Final = "assistant"
KEEPER: Final = "\0sent"
_PIECE: Final = 256 << 10

_TEXT: Final = {"type": "string"}
SPEC: Final = ToolSpec(
    NAME,
    "Send a file of the workspace, as it is now, to the people of this conversation.",
    {
        "type": "object",
        "properties": {
            "path": {**_TEXT, "description": "The file's path in the workspace"},
            "caption": {**_TEXT, "maxLength": LONGEST_CAPTION, "description": "A line that is said with it"},
        },
        "required": ["path"],
        "additionalProperties": False,
    },
    delegable=False,
    speaks=True,
)


@dataclass(frozen=True, slots=True)
class SentFiles:
    """The copies of files on their way to chats, in a directory of their conversation's own."""

    sandbox: Sandbox
    spaces: Spaces

    async def keep(self, principal_id: str, conversation_id: str, source: int) -> tuple[str, str]:
        """Copy an open file; returns the copy's name and its SHA-256. Raises ``SandboxFault``."""
        kept = await self.spaces.of_kept(KEEPER, principal_id, conversation_id)
        begun = await self.sandbox.file(kept, "begin_upload", {})
        try:
            if begun["counted"]:
                await self.sandbox.file(kept, "reserve", {"more": os.fstat(source).st_size})
            digest = await anyio.to_thread.run_sync(_copied, source, begun["descriptor"])
            wanted = {"path": new_id(FILE), "temporary": begun["temporary"], "begun": begun["begun"]}
            await self.sandbox.file(kept, "commit_upload", wanted, [begun["descriptor"]])
        except OSError as error:
            raise SandboxFault(f"the file can't be kept for the chat: {error.strerror}") from None
        finally:
            os.close(begun["descriptor"])
        return wanted["path"], digest

    async def open(self, principal_id: str, conversation_id: str, name: str) -> int:
        """Return a descriptor of a copy. Raises ``SandboxFault``."""
        kept = await self.spaces.of_kept(KEEPER, principal_id, conversation_id)
        return int((await self.sandbox.file(kept, "open_file", {"path": name}))["descriptor"])

    async def drop(self, principal_id: str, conversation_id: str, name: str) -> None:
        """Remove a copy. Raises ``SandboxFault``."""
        kept = await self.spaces.of_kept(KEEPER, principal_id, conversation_id)
        await self.sandbox.file(kept, "delete_path", {"path": name, "recursive": False})


@dataclass(frozen=True, slots=True)
class SendFile:
    """Implements ``host.ports.Toolset`` for one run: sends to ``target``, its own conversation's people."""

    specs: ClassVar[Sequence[ToolSpec]] = (SPEC,)
    store: Store
    sandbox: Sandbox
    spaces: Spaces
    workspace: Workspace
    source: str
    target: str

    async def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Send a file; faults are results."""
        try:
            given = check(arguments, SPEC.input_schema)
            if len(caption := given.get("caption", "")) > LONGEST_CAPTION:
                raise BadArguments(f"caption: has at most {LONGEST_CAPTION} characters")
            found = await self.sandbox.file(self.workspace, "open_file", {"path": given["path"]})
            try:
                file = await self._described(given["path"], found["descriptor"])
            finally:
                os.close(found["descriptor"])
            text = caption or given["path"].rpartition("/")[2]
            add = self.store.outbound.add
            await add(self.source, self.target, text, SENDER, now_ms(), file=jsons.dumps(file))
            await self.store.durable()
        except (SandboxFault, BadArguments, PicoError) as fault:
            return ToolResult(str(fault), is_error=True)
        return ToolResult(f"Sent {file['path']} ({file['size']} bytes).")

    async def _described(self, path: str, descriptor: int) -> dict[str, Any]:
        """Return what the message says of the file; with the name of its copy, where a chat waits for it."""
        file: dict[str, Any] = {"path": path, "size": os.fstat(descriptor).st_size}
        conversation = await self.store.conversations.get(self.target)
        if conversation is None or not await self.store.channels.has_chats(self.target):
            return {**file, "sha256": await anyio.to_thread.run_sync(partial(_copied, descriptor, None))}
        if file["size"] > LARGEST_TO_CHATS:
            raise SandboxFault(
                f"{path} has more than {LARGEST_TO_CHATS // 10**6} MB, the most that a chat takes"
            )
        copy, digest = await SentFiles(self.sandbox, self.spaces).keep(
            conversation.principal_id, self.target, descriptor
        )
        return {**file, "sha256": digest, "copy": copy}


def _copied(source: int, target: int | None) -> str:
    """Return the SHA-256 of an open file, and write it to another one."""
    # What is added meanwhile is not waited for.
    digest, at, size = hashlib.sha256(), 0, os.fstat(source).st_size
    while piece := os.pread(source, min(_PIECE, size - at), at):
        digest.update(piece)
        rest = memoryview(piece if target is not None else b"")
        while rest:
            rest = rest[os.write(target or 0, rest) :]
        at += len(piece)
    if target is not None:
        os.fsync(target)
    return digest.hexdigest()
