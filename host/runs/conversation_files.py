"""Files that the host writes for a conversation: the archive, and copies of what is sent to chats.

The archive is Markdown in the workspace, for people and agents. Each compaction writes a file of its own,
``conversations/<conversation>/<number>.md``, and no other one. The store has the messages anyway; a file that
could not be written is written with a later compaction.

Whoever reads messages over HTTP fetches a sent file itself. For a chat a copy is kept outside of the
workspace until it has arrived: the run may change the file meanwhile.
"""

import hashlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Final
from urllib.parse import quote

import anyio.to_thread

from host.agent.text import strip_internal
from host.ports import Sandbox, SandboxFault, ToolResult, ToolSpec, Workspace
from host.runs.meter import Ledger
from host.runs.principals import Spaces
from host.tools.arguments import BadArguments, check
from host.tools.files_and_commands import within
from shared import jsons
from shared.clock import iso, now_ms
from shared.errors import PicoError
from shared.ids import FILE, new_id
from shared.principals import said_name
from shared.store.store import Store
from shared.values import Block, Compaction, HistoryEntry

FOLDER: Final = "conversations"
LONGEST_NAME: Final = 180
RESULT_CHARS: Final = 4_000
"""Characters of a tool's input or result that the archive shows."""

WRITER: Final = "\0archive"
"""Whose worker writes and removes; no conversation can have this id, and nobody's turn waits for it."""

logger = logging.getLogger("picoclaw.agent")


class Archive:
    """Writes and removes the archive's files."""

    def __init__(self, ledger: Ledger, sandbox: Sandbox, spaces: Spaces) -> None:
        self._store = ledger.store
        self._redactor = ledger.redactor
        self._sandbox = sandbox
        self._spaces = spaces

    async def catch_up(self, principal_id: str, conversation_id: str) -> str | None:
        """Write what is not in the archive yet; return a warning if that failed."""
        try:
            for compaction in await self._store.compactions.unarchived(conversation_id):
                await self._write(principal_id, conversation_id, compaction)
        except SandboxFault as fault:
            logger.warning("The archive of a conversation could not be written: %s", fault)
            return f"The archive of older messages could not be written: {fault}"
        return None

    async def remove(self, principal_id: str, conversation_id: str) -> None:
        """Remove the archive of a conversation that is gone. Raises ``SandboxFault``."""
        said = said_name(principal_id, conversation_id)
        workspace = await self._spaces.of_host(WRITER, principal_id, conversation_id)
        await self._sandbox.file(workspace, "remove_folder", {"path": folder_of(said)})

    async def _write(self, principal_id: str, conversation_id: str, compaction: Compaction) -> None:
        entries = await self._store.conversations.history(
            conversation_id, after=compaction.first_seq - 1, through=compaction.through_seq
        )
        said = said_name(principal_id, conversation_id)
        text = self._redactor.text(document(said, compaction, entries))
        path = f"{folder_of(said)}/{compaction.number:05}.md"
        workspace = await self._spaces.of_host(WRITER, principal_id, conversation_id)
        wanted = {"path": path, "content": text, "overwrite": True}
        await self._sandbox.file(workspace, "write_file", wanted)
        await self._store.compactions.mark_archived(conversation_id, compaction.number)


def folder_of(conversation_id: str, top: str = FOLDER) -> str:
    """Return the folder of a conversation's archive; whatever the id, a single name inside ``top``."""
    name = quote(conversation_id, safe="")
    if name.startswith("."):
        name = f"%2E{name[1:]}"
    if len(name) > LONGEST_NAME:
        mark = hashlib.blake2b(name.encode(), digest_size=8).hexdigest()
        name = f"{name[: LONGEST_NAME - len(mark)]}{mark}"
    return f"{top}/{name}"


def document(conversation_id: str, compaction: Compaction, entries: Iterable[HistoryEntry]) -> str:
    """Return the Markdown of what a compaction replaced; what anyone said stands in quotes, line by line."""
    head = (
        f"# Conversation {conversation_id}, messages {compaction.first_seq} to {compaction.through_seq}\n\n"
        f"Summed up on {iso(compaction.created_at)}. Times are UTC.\n"
    )
    return "\n".join([head, *(_section(entry) for entry in entries)])


def _section(entry: HistoryEntry) -> str:
    who = entry.sender_name or entry.role
    title = f"## {' '.join(who.split())}, {iso(entry.created_at)}\n"
    return "\n".join([title, *_body(entry)])


def _body(entry: HistoryEntry) -> Iterator[str]:
    if entry.text is not None:
        yield _quoted(entry.text)
        return
    for block in entry.blocks:
        match block["type"]:
            case "text":
                yield _quoted(strip_internal(block["text"]))
            case "tool_use":
                yield f"Called `{block['name']}`:\n"
                yield _quoted(_short(jsons.dumps(block["input"])))
            case "tool_result":
                yield "Result (failed):\n" if block.get("is_error") else "Result:\n"
                yield _quoted(_short(_result(block)))


def _result(block: Block) -> str:
    content = block.get("content", "")
    if isinstance(content, str):
        return content
    return "\n".join(part.get("text", f"[{part['type']}]") for part in content)


def _short(text: str) -> str:
    return (
        text if len(text) <= RESULT_CHARS else f"{text[:RESULT_CHARS]}\n[… {len(text) - RESULT_CHARS} more]"
    )


def _quoted(text: str) -> str:
    return "".join(f"> {line}\n" for line in text.splitlines() or [""])


SEND_FILE: Final = "send_file"
LARGEST_TO_CHATS: Final = 50_000_000
"""Bytes of a file that Telegram takes from bots (https://core.telegram.org/bots/api#senddocument)."""
LONGEST_CAPTION: Final = 500
SENDER: Final = "assistant"
SENT_KEEPER: Final = "\0sent"
_PIECE: Final = 256 << 10

_STRING: Final = {"type": "string"}
SEND_FILE_SPEC: Final = ToolSpec(
    SEND_FILE,
    "Send a file of the workspace, as it is now, to the people of this conversation.",
    {
        "type": "object",
        "properties": {
            "path": {**_STRING, "description": "The file's path in the workspace"},
            "caption": {
                **_STRING,
                "maxLength": LONGEST_CAPTION,
                "description": "A line that is said with it",
            },
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
        kept = await self.spaces.of_kept(SENT_KEEPER, principal_id, conversation_id)
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
        kept = await self.spaces.of_kept(SENT_KEEPER, principal_id, conversation_id)
        return int((await self.sandbox.file(kept, "open_file", {"path": name}))["descriptor"])

    async def drop(self, principal_id: str, conversation_id: str, name: str) -> None:
        """Remove a copy. Raises ``SandboxFault``."""
        kept = await self.spaces.of_kept(SENT_KEEPER, principal_id, conversation_id)
        await self.sandbox.file(kept, "delete_path", {"path": name, "recursive": False})


@dataclass(frozen=True, slots=True)
class SendFile:
    """Implements ``host.ports.Toolset`` for one run: sends to ``target``, its own conversation's people."""

    specs: ClassVar[Sequence[ToolSpec]] = (SEND_FILE_SPEC,)
    store: Store
    sandbox: Sandbox
    spaces: Spaces
    workspace: Workspace
    source: str
    target: str

    async def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Send a file; faults are results."""
        try:
            given = check(arguments, SEND_FILE_SPEC.input_schema)
            if len(caption := given.get("caption", "")) > LONGEST_CAPTION:
                raise BadArguments(f"caption: has at most {LONGEST_CAPTION} characters")
            # As it is said, it is what the route of files takes.
            if (path := within(self.workspace, given["path"])) is None:
                raise BadArguments("path: must lead to a file in the workspace; copy others there")
            found = await self.sandbox.file(self.workspace, "open_file", {"path": path})
            try:
                file = await self._described(path, found["descriptor"])
            finally:
                os.close(found["descriptor"])
            text = caption.strip() or path.rpartition("/")[2]
            add = self.store.outbound.add
            await add(self.source, self.target, text, SENDER, now_ms(), file=jsons.dumps(file))
            await self.store.durable()
        except (SandboxFault, BadArguments, PicoError) as fault:
            return ToolResult(str(fault).removeprefix("./"), is_error=True)
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
