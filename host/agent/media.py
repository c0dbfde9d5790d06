"""Pictures and documents on their way to the model: few enough for one request, and with their content.

A stored message only names them (``kept``). What one request can't hold is a line, the oldest first, and many
at a time, so that the prompt cache loses its place seldom. It depends on the messages alone: what was sent of
a conversation is sent the same way again.
"""

import base64
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import anyio.to_thread

from host.agent.window import shown
from host.ports import Message
from shared.untrusted import attribute, escaped
from shared.values import Block

KEPT: Final = "kept"
"""The type of a source that names its content: ``sha256``, ``media_type``, ``path``, ``size`` in bytes; of a
PDF ``pages``."""
TEXT: Final = ".txt"
"""What the name of a PDF's text has behind the digest of the PDF."""
SHOWN: Final = frozenset({"image", "document"})
NO_ROOM: Final = "was here; it was left out to save room"

Read = Callable[[str], Awaitable[bytes | None]]
"""Returns what is kept under a name, None if it isn't here."""


@dataclass(slots=True)
class _Weight:
    """What media weigh: characters of base64, pictures, pages."""

    encoded: int = 0
    pictures: int = 0
    pages: int = 0

    def add(self, block: Block, sign: int = 1) -> None:
        source = block["source"]
        size = source["size"] * 4 // 3 + 4 if source["type"] == KEPT else len(source.get("data", ""))
        self.encoded += sign * size
        self.pictures += sign * (block["type"] == "image")
        self.pages += sign * (source.get("pages", 1) if block["type"] == "document" else 0)

    def is_over(self, part: float = 1) -> bool:
        return self.encoded > part * (20 << 20) or max(self.pictures, self.pages) > part * 100


def beyond(messages: Sequence[Message]) -> set[int]:
    """Return the ids (``id``) of the blocks that are too many, as they would have been found turn by turn.

    Those of earlier messages go until half of what may be is left.
    """
    weight, kept, gone = _Weight(), list[Block](), set[int]()
    for message in messages:
        before = len(kept)
        for block in shown(message):
            weight.add(block)
            kept.append(block)
        if not weight.is_over():
            continue
        while kept and (weight.is_over() or (before > 0 and weight.is_over(0.5))):
            weight.add(kept[0], -1)
            gone.add(id(kept.pop(0)))
            before -= 1
    return gone


def stand_in(block: Block, why: str = NO_ROOM) -> Block:
    """Return the line that stands for a picture or a document."""
    what = block["source"].get("path") or {"image": "an image"}.get(block["type"], "a document")
    mark = {"cache_control": block["cache_control"]} if "cache_control" in block else {}
    return {"type": "text", "text": f"[{what} {why}]", **mark}


def without_media(messages: Sequence[Message]) -> list[Message]:
    """Return messages with a line for each picture and document."""
    return [
        {**one, "content": [stand_in(block) if block["type"] in SHOWN else block for block in one["content"]]}
        for one in messages
    ]


async def nothing_kept(name: str) -> bytes | None:
    """Be ``Read`` where nothing is kept."""
    return None


class Media:
    """What one run shows its models; ``read`` looks where the conversation's are kept."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._known: dict[str, str] = {}

    async def sent(self, messages: Sequence[Message], *, documents: bool) -> list[Message]:
        """Return messages with the content of what they show; ``documents``: the model's API reads PDF."""
        gone = beyond(messages)
        return [{**one, "content": await self._all(one["content"], gone, documents)} for one in messages]

    async def _all(self, blocks: Sequence[Block], gone: set[int], documents: bool) -> list[Block]:
        return [await self._one(block, gone, documents) for block in blocks]

    async def _one(self, block: Block, gone: set[int], documents: bool) -> Block:
        if block["type"] == "tool_result" and isinstance(block.get("content"), list):
            return {**block, "content": await self._all(block["content"], gone, documents)}
        if block["type"] not in SHOWN:
            return block
        if id(block) in gone:
            return stand_in(block)
        if block["source"]["type"] != KEPT:
            return block
        return await self._shown(block, block["source"], documents)

    async def _shown(self, block: Block, source: dict[str, Any], documents: bool) -> Block:
        as_text = block["type"] == "document" and not documents
        content = await self._content(source["sha256"] + (TEXT if as_text else ""))
        if not content:
            return stand_in(block, "can't be shown: it isn't kept here")
        if not as_text:
            data = {"type": "base64", "media_type": source["media_type"], "data": content}
            return {**block, "source": data}
        named = attribute(source["path"])
        text = f'<enclosed kind="document" from={named}>{escaped(content)}</enclosed>'
        return {**stand_in(block), "text": text}

    async def _content(self, name: str) -> str:
        if name not in self._known:
            data = await self._read(name)
            made = "" if data is None else await anyio.to_thread.run_sync(_encoded, data, name)
            self._known[name] = made
        return self._known[name]


def _encoded(data: bytes, name: str) -> str:
    return data.decode() if name.endswith(TEXT) else base64.b64encode(data).decode()
