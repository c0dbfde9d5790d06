"""From a request to the next reply: the call of the next wish, or what was done after the last one.

People's words come as ``<message sender="…" time="…">escaped text</message>``, or plain; a subagent's as
``<task from="agent">escaped text</task>``.

The transport under the SDK streams it: no socket, no clock, no state.
"""

import html
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Final
from uuid import uuid4

import httpx2
from anyio.lowlevel import checkpoint

from host.models.accumulator import events_of
from host.models.offline.wishes import Wish, code, parse
from shared.jsons import dump_bytes, loads
from shared.untrusted import unwrapped
from shared.usage_values import Usage
from shared.values import Block

MODEL: Final = "picoclaw-offline"
LABEL: Final = "[offline model]"
FINAL_ANSWER: Final = "final_answer"
_BYTES_PER_TOKEN: Final = 4
_MAX_QUOTE: Final = 2_000
_MAX_RECALLED: Final = 10
_TICKS: Final = re.compile(r"`{3,}")
_SPOKEN: Final = re.compile(r"<(?:message|task)\b([^>]*)>(.*?)</(?:message|task)>", re.DOTALL)
_ENCLOSED: Final = re.compile(r"<enclosed\b[^>]*>[^<]*</enclosed>")
_TIME: Final = re.compile(r"\d{4}-\d{2}-\d{2}T\S+")
_BEGUN: Final = "<notice>The scheduler begins a run"
_ATTRIBUTE: Final = re.compile(r"(\w+)=(?:\"([^\"]*)\"|'([^']*)')")
_ABILITIES: Final = """\
I am the model that PicoClaw carries along to be tried without an API key.
I do not think; I know a few plain wishes:
- remember that I like tea
- run `ls -l`
- write hello to notes.txt and then read notes.txt
- list files
- every day at 9 run `date`
- remind me in 10 minutes to stretch
- list tasks, cancel task <id>
- send me a message saying hello
- what did I say?, what do you remember?
With ANTHROPIC_API_KEY set, a real model answers in my place."""


@dataclass(slots=True)
class Turn:
    """The person's last words and when they came (UTC), their words before, what tools returned since.

    ``begun``: the scheduler says them, for they were scheduled.
    """

    words: str = ""
    begun: bool = False
    now: datetime | None = None
    before: list[str] = field(default_factory=list)
    results: list[Block] = field(default_factory=list)


def reply_to(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the message that answers a request of the Messages API."""
    turn = _turn(request["messages"])
    offered = _offered(request)
    results = iter(turn.results)
    wishes = [
        (wish, next(results, None) if wish.tool in offered else None)
        for wish in parse(turn.words, turn.now, begun=turn.begun)
    ]
    blocks = _thoughts(request, [wish for wish, _ in wishes])
    call = _next_call(wishes, offered) or _last_call(request)
    if call is None:
        said = "\n\n".join(_said(wish, offered, result, turn.before) for wish, result in wishes)
        text = f"{LABEL} {said or _nothing_to_do(turn.words)}"
        most = request["max_tokens"] * _BYTES_PER_TOKEN
        stop = "end_turn" if len(text) <= most else "max_tokens"
        blocks.append({"type": "text", "text": text[:most]})
    else:
        stop = "tool_use"
        blocks.append(call)
    usage = asdict(Usage(_tokens(request), _tokens(blocks)))
    return {"model": MODEL, "content": blocks, "stop_reason": stop, "usage": usage}


def _next_call(wishes: Sequence[tuple[Wish, Block | None]], offered: frozenset[str]) -> Block | None:
    for wish, result in wishes:
        if wish.tool in offered and result is None:
            return _call(wish.tool, wish.input)
        if result is not None and result.get("is_error") and not wish.recalls:
            return None  # what comes after must not be done; notes that are not there yet are no failure
    return None


def _last_call(request: Mapping[str, Any]) -> Block | None:
    """Return the call that gives an answer of a promised shape, None where the answer is text."""
    for tool in request.get("tools") or []:
        if tool["name"] == FINAL_ANSWER:
            return _call(FINAL_ANSWER, sample(tool["input_schema"]))
    return None


def _call(name: str, arguments: Mapping[str, Any]) -> Block:
    return {"type": "tool_use", "id": f"toolu_{uuid4().hex}", "name": name, "input": arguments}


def _turn(messages: Sequence[Mapping[str, Any]]) -> Turn:
    """Read the messages; the person's turns are the user messages with their words, or without tool results.

    A history repaired after a crash holds lost results and the person's next words in one message.
    """
    turn = Turn()
    for message in messages:
        if message["role"] != "user":
            continue
        blocks = _blocks(message["content"])
        texts = [block["text"] for block in blocks if block["type"] == "text"]
        results = [block for block in blocks if block["type"] == "tool_result"]
        if results and not any(map(_SPOKEN.search, texts)):
            turn.results += results
            continue
        if turn.words:
            turn.before.append(turn.words)
        turn.words, turn.now = _spoken(texts)
        turn.begun = any(text.startswith(_BEGUN) for text in texts)
        turn.results = []
    return turn


def _blocks(content: Any) -> list[Block]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _spoken(texts: Sequence[str]) -> tuple[str, datetime | None]:
    """Return the words and their time; facts the host adds stand in blocks of their own, after the words."""
    found = [match for text in texts for match in _SPOKEN.finditer(text)]
    if not found:
        return (texts[0] if texts else ""), None
    # What a message brought along is in others' words, and no wish.
    words = "\n".join(html.unescape(_ENCLOSED.sub("", match[2])).strip() for match in found)
    return words, _instant(found[-1][1])


def _instant(attributes: str) -> datetime | None:
    # All attributes are read in turn, so that a sender called 'x time="…"' sets no clock.
    stated = {name: double or single for name, double, single in _ATTRIBUTE.findall(attributes)}
    time = _TIME.search(stated.get("time", ""))
    try:
        return datetime.fromisoformat(time[0]).astimezone(UTC) if time else None
    except ValueError:
        return None


def _offered(request: Mapping[str, Any]) -> frozenset[str]:
    if (request.get("tool_choice") or {}).get("type") == "none":
        return frozenset()
    return frozenset(tool["name"] for tool in request.get("tools") or [])


def _thoughts(request: Mapping[str, Any], wishes: Sequence[Wish]) -> list[Block]:
    if not request.get("thinking"):
        return []
    wished = ", then to ".join(wish.verb for wish in wishes if wish.tool)
    text = f"I am asked to {wished}." if wished else "I am asked for nothing I need a tool for."
    return [{"type": "thinking", "thinking": text, "signature": LABEL}]


def _nothing_to_do(words: str) -> str:
    if not words.strip():
        return f"I found no words in the message.\n\n{_ABILITIES}"
    return f"I understood no wish in your message: {code(words)}\n\n{_ABILITIES}"


def _said(wish: Wish, offered: frozenset[str], result: Block | None, before: Sequence[str]) -> str:
    """Say of a wish what came of it, and nothing that did not happen."""
    parts = [_recalled(before) if wish.recalls else "", wish.unclear or _done(wish, offered, result)]
    return "\n\n".join(filter(None, parts))


def _done(wish: Wish, offered: frozenset[str], result: Block | None) -> str:
    if not wish.tool:
        return ""
    if wish.tool not in offered:
        return f"I cannot {wish.verb}: the tool {wish.tool} is not offered to me here."
    if result is None:
        return f"I did not {wish.verb}: something before it failed."
    quote = _quote(result)
    if result.get("is_error"):
        return f"I could not {wish.verb}. {wish.tool} answered:\n{quote}"
    return f"I {wish.past}:\n{quote}"


def _recalled(before: Sequence[str]) -> str:
    if not before:
        return "I was shown nothing that you said before this."
    said = [f"- {code(words)}" for words in before[-_MAX_RECALLED:]]
    left_out = len(before) - len(said)
    head = f"You said ({left_out} earlier left out):" if left_out else "You said:"
    return "\n".join([head, *said])


def _quote(result: Block) -> str:
    """Return what a tool said as a code block that it cannot end, cut to a bounded length."""
    parts = _blocks(result.get("content") or "")
    text = "\n".join(unwrapped(str(part.get("text", f"[{part.get('type')}]"))) for part in parts)
    shown = text[:_MAX_QUOTE]
    rest = f"\n… ({len(text) - len(shown)} more characters)" if len(text) > len(shown) else ""
    fence = "`" * max([3, *(len(ticks) + 1 for ticks in _TICKS.findall(shown))])
    return f"{fence}\n{shown}{rest}\n{fence}"


def _tokens(value: Mapping[str, Any] | Sequence[Block]) -> int:
    return -(-len(dump_bytes(value)) // _BYTES_PER_TOKEN)


_DEEPEST: Final = 12
"""Levels of a value: a schema may refer to itself."""
_PLAIN: Final[Mapping[str, Any]] = {"string": "", "boolean": False, "null": None}


def sample(schema: Any, root: Any = None, depth: int = 0) -> Any:
    """Return a small value that a plain schema takes; of one with many conditions it may be another."""
    if not isinstance(schema, Mapping) or depth > _DEEPEST:
        return None
    root = schema if root is None or "$id" in schema else root
    for name, first in (("const", False), ("default", False), ("enum", True), ("examples", True)):
        if name in schema:
            return schema[name][0] if first else schema[name]
    if "$ref" in schema:
        return sample(_referred(root, schema["$ref"]), root, depth + 1)
    for name in ("anyOf", "oneOf", "allOf"):
        if name in schema:
            return sample(schema[name][0], root, depth + 1)
    return _of_type(schema, root, depth)


def _of_type(schema: Mapping[str, Any], root: Any, depth: int) -> Any:
    kind = schema.get("type", "object" if "properties" in schema else "null")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object":
        known = schema.get("properties", {})
        return {name: sample(known.get(name), root, depth + 1) for name in schema.get("required", ())}
    if kind == "array":
        return [
            sample(schema.get("items"), root, depth + 1) for _ in range(min(schema.get("minItems", 0), 9))
        ]
    if kind in ("integer", "number"):
        return schema.get("minimum", 0)
    return "x" * min(schema.get("minLength", 0), 99) if kind == "string" else _PLAIN.get(kind)


def _referred(root: Any, address: str) -> Any:
    for step in address.removeprefix("#").split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        root = root.get(name) if isinstance(root, Mapping) else None
    return root


_PIECE: Final = 48
"""Characters of a text that come at a time."""


class OfflineTransport(httpx2.AsyncBaseTransport):
    """Streams a reply to every request, as ``POST /v1/messages`` does."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Answer one request."""
        message = reply_to(loads(await request.aread()))
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, stream=_Stream(message))


class _Stream(httpx2.AsyncByteStream):
    """The events of a message, giving way to other tasks between two of them as a socket would."""

    def __init__(self, message: Mapping[str, Any]) -> None:
        self._message = message

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for event in events_of(self._message):
            for piece in _in_pieces(event):
                await checkpoint()
                yield b"event: %b\ndata: %b\n\n" % (piece["type"].encode(), dump_bytes(piece))


def _in_pieces(event: dict[str, Any]) -> Iterator[dict[str, Any]]:
    block = event.get("content_block", {})
    if block.get("type") != "text":
        yield event
        return
    text = block["text"]
    yield {**event, "content_block": {**block, "text": ""}}
    for at in range(0, len(text), _PIECE):
        delta = {"type": "text_delta", "text": text[at : at + _PIECE]}
        yield {"type": "content_block_delta", "index": event["index"], "delta": delta}
