"""What the model's API refuses is replaced by a line of text, so that no block ends its conversation.

Servers differ in what they take: pictures, thinking, blocks of the API's own tools, ids and names of calls.
A refusal that names a kind of block, or the place of one, is about that kind; one that names nothing may be
about any of them.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Literal

from host.ports import ModelError, Reply
from shared.jsons import dumps
from shared.values import Block

Kind = Literal["picture", "document", "thinking", "thinking_mode", "unknown", "call"]
"""``thinking_mode`` is the request's own ``thinking``; ``unknown`` are blocks of its own tools and more."""

NAMES: Final[Mapping[str, str]] = {
    "picture": "pictures",
    "document": "documents",
    "thinking": "earlier thinking",
    "thinking_mode": "thinking",
    "unknown": "blocks of an unknown kind",
    "call": "calls of tools and their results",
}

TOO_LARGE: Final = 413
_LARGE: Final[frozenset[Kind]] = frozenset({"picture", "document"})
_OTHERS_BUSINESS: Final = frozenset({401, 403, 404, 429})
_WORDS: Final[Mapping[Kind, re.Pattern[str]]] = {
    "picture": re.compile(r"image|picture|vision|multi-?modal", re.IGNORECASE),
    "document": re.compile(r"document|\bpdf\b", re.IGNORECASE),
    "thinking": re.compile(r"thinking|signature|reasoning", re.IGNORECASE),
    "thinking_mode": re.compile(r"thinking|reasoning", re.IGNORECASE),
    "unknown": re.compile(
        r"server_tool|(?:search|fetch|execution|mcp)_tool_|expected tags|citation|caller"
        r"|(?:unknown|unsupported|invalid|unrecognized)\W.{0,20}(?:block|content|part|type)",
        re.IGNORECASE,
    ),
    "call": re.compile(
        r"tool_?(?:use|result|call)|\btool (?:use|name|id|call)|function|\b(?:chat|jinja) template",
        re.IGNORECASE,
    ),
}
_PLACE: Final = re.compile(r"messages[.\[](\d+)\]?\.content[.\[](\d+)")
_DEEPER: Final = re.compile(r"\.content[.\[](\d+)")

_KIND_OF_TYPE: Final[Mapping[str, Kind]] = {
    "image": "picture",
    "document": "document",
    "thinking": "thinking",
    "redacted_thinking": "thinking",
    "tool_use": "call",
    "tool_result": "call",
}
_FIELDS: Final[Mapping[str, frozenset[str]]] = {
    "text": frozenset({"type", "text", "cache_control"}),
    "tool_use": frozenset({"type", "id", "name", "input", "cache_control"}),
}
_LINE: Final = "[{what} was here; the model's API refused it, so it was left out]"
_LINES: Final[Mapping[str, str]] = {
    "picture": _LINE.format(what="a picture"),
    "document": _LINE.format(what="a document"),
}


def suspects(error: ModelError, request: Mapping[str, Any], gone: Collection[Kind]) -> frozenset[Kind]:
    """Return the kinds in the request that it may have been refused for, but for those ``gone`` already.

    Kinds that the error names are suspected of any status; without a name a 4xx may be about each kind, but
    one about credentials, addresses, rates or sizes. Calls go last: they are the most of what was done. Too
    large a request (413) may be so for its pictures and documents.
    """
    status = error.status or 0
    there = _kinds(request) - frozenset(gone)
    if status == TOO_LARGE:
        return frozenset(there & _LARGE)
    if error.reason or status < 400 or status in (401, 429):
        return frozenset()
    place = _kind_at(error.said, request["messages"])
    named = {place} if place in there else {kind for kind in there if _WORDS[kind].search(error.said)}
    if "thinking" in named:
        named -= {"thinking_mode"}
    if not named and status < 500 and status not in _OTHERS_BUSINESS:
        named = there
    return frozenset(named - {"call"} or named)


def without(request: Mapping[str, Any], kinds: Collection[Kind]) -> Mapping[str, Any]:
    """Return the request with these kinds left out."""
    if not kinds:
        return request
    made = dict(request)
    has_budget = request.get("thinking", {}).get("type") == "enabled"
    if "thinking_mode" in kinds or ("thinking" in kinds and has_budget):
        # A model that thinks on a budget wants to see the thinking of its running turn.
        made.pop("thinking", None)
    messages = ({**one, "content": left_out(one["content"], kinds)} for one in request["messages"])
    made["messages"] = [message for message in messages if message["content"]]
    return made


def left_out(blocks: Sequence[Block], kinds: Collection[str]) -> list[Block]:
    """Return a message's blocks with these kinds replaced by a line; thinking leaves no line."""
    return [made for block in blocks for made in _mended(block, kinds)]


def unrepeated(reply: Reply, messages: Iterable[Mapping[str, Any]]) -> Reply:
    """Return the reply with ids of calls that the conversation doesn't have yet: some servers count anew."""
    if not reply.tool_uses:
        return reply
    used = {
        block["id"] for message in messages for block in message["content"] if block["type"] == "tool_use"
    }
    renamed = {call["id"]: _unused(call["id"], used) for call in reply.tool_uses if call["id"] in used}
    if not renamed:
        return reply
    own = [
        {**block, "id": renamed.get(block["id"], block["id"])} if block["type"] == "tool_use" else block
        for block in reply.blocks
    ]
    malformed = {renamed.get(call, call): text for call, text in reply.malformed.items()}
    return replace(reply, blocks=own, malformed=malformed)


def _unused(call: str, used: set[str]) -> str:
    number = 2
    while f"{call}_{number}" in used:
        number += 1
    used.add(f"{call}_{number}")
    return f"{call}_{number}"


def _kinds(request: Mapping[str, Any]) -> set[Kind]:
    found: set[Kind] = {"thinking_mode"} if request.get("thinking") else set()
    for message in request["messages"]:
        for block in message["content"]:
            found.update(kind for one in (block, *_parts(block)) if (kind := _kind(one)))
    return found


def _parts(block: Block) -> Sequence[Block]:
    content = block.get("content") if block["type"] == "tool_result" else ()
    return content if isinstance(content, list) else ()


def _kind(block: Block) -> Kind | None:
    kind = _KIND_OF_TYPE.get(block["type"])
    known = _FIELDS.get(block["type"])
    if known is not None and not known.issuperset(block):
        return "unknown"
    return kind or (None if known else "unknown")


def _kind_at(said: str, messages: Sequence[Mapping[str, Any]]) -> Kind | None:
    """Return the kind of the block whose place the error names."""
    found = _PLACE.search(said)
    if found is None:
        return None
    try:
        block = messages[int(found[1])]["content"][int(found[2])]
        deeper = _DEEPER.search(said, found.end())
        return _kind(_parts(block)[int(deeper[1])] if deeper else block)
    except IndexError:
        return None


def _mended(block: Block, kinds: Collection[str]) -> list[Block]:
    kind = _kind(block)
    if kind == "unknown" and block["type"] in _FIELDS:
        if "unknown" in kinds:
            known = _FIELDS[block["type"]]
            block = {name: value for name, value in block.items() if name in known}
        kind = _KIND_OF_TYPE.get(block["type"])
    if kind is None or (kind not in kinds and not _parts(block)):
        return [block]
    if block["type"] == "tool_result":
        return _mended_result(block, kinds)
    if kind == "thinking":
        return []
    if kind == "call":
        return [_line(block, f"[The tool {block['name']} was called with {dumps(block['input'])}]")]
    return [_line(block, _LINES.get(kind) or _LINE.format(what=f"a block of the kind {block['type']}"))]


def _mended_result(block: Block, kinds: Collection[str]) -> list[Block]:
    content = block.get("content", "")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}] if content.strip() else []
    parts = left_out(content, kinds)
    if "call" not in kinds:
        return [{**block, "content": parts}]
    head = "[The call failed:]" if block.get("is_error") else "[The call's result:]"
    made: list[Block] = [{"type": "text", "text": head}, *parts]
    made[-1] = {**made[-1], **_cache_control(block)}
    return made


def _line(block: Block, text: str) -> Block:
    return {"type": "text", "text": text, **_cache_control(block)}


def _cache_control(block: Block) -> Block:
    return {"cache_control": block["cache_control"]} if "cache_control" in block else {}
