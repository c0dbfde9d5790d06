"""The archive: what was taken out of long conversations, as Markdown in the workspace, for people and agents.

Each compaction writes a file of its own, ``conversations/<conversation>/<number>.md``, and no other one. The
store has the messages anyway; a file that could not be written is written with a later compaction.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Final
from urllib.parse import quote

from host.agent.text import strip_internal
from host.ports import Sandbox, SandboxFault
from host.runs.meter import Ledger
from host.runs.principals import Spaces
from shared import jsons
from shared.clock import iso
from shared.principals import said_name
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
        """Remove the archive of a conversation that is gone."""
        try:
            said = said_name(principal_id, conversation_id)
            workspace = await self._spaces.of_host(WRITER, principal_id, conversation_id)
            await self._sandbox.file(workspace, "remove_folder", {"path": folder_of(said)})
        except SandboxFault as fault:
            logger.warning("The archive of a deleted conversation could not be removed: %s", fault)

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
    return f"{top}/{name[:LONGEST_NAME]}"


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
