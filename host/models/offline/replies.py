"""From a request to the next reply: the tool calls of the next step, or what was done after the last one.

People's words come as ``<message sender="…" time="…">escaped text</message>``, or plain; a subagent's as
``<task from="agent">escaped text</task>``.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain
from typing import Any, Final
from uuid import uuid4

from host.models.offline.protocol import CHARS_PER_TOKEN, Message, input_tokens, tokens
from host.models.offline.wishes import Wish, code, parse
from shared.untrusted import unwrapped
from shared.values import Block, Usage

MODEL: Final = "picoclaw-offline"
LABEL: Final = "[offline model]"
_SIGNATURE: Final = "cGljb2NsYXctb2ZmbGluZQ=="
_THINKING: Final = frozenset({"enabled", "adaptive"})
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


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a tool returned."""

    text: str
    is_error: bool


@dataclass(slots=True)
class Turn:
    """The person's last words and when they came (UTC), their words before, the tool steps taken since.

    ``begun``: the scheduler says them, for they were scheduled.
    """

    words: str = ""
    begun: bool = False
    now: datetime | None = None
    before: list[str] = field(default_factory=list)
    done: list[list[Outcome]] = field(default_factory=list)


@dataclass(slots=True)
class Item:
    """A wish, whether its tool is ``offered``, and what came of it."""

    wish: Wish
    offered: bool
    outcome: Outcome | None = None

    @property
    def failed(self) -> bool:
        """Whether what comes after it must not be done; notes that are not there yet are no failure."""
        return self.outcome is not None and self.outcome.is_error and not self.wish.recalls


def reply_to(request: Mapping[str, Any]) -> Message:
    """Return the next reply to a checked request. The same request gives the same reply, but for its ids."""
    turn = _turn(request["messages"])
    steps = _steps(turn, _offered(request))
    calls = _next_calls(steps, turn)
    blocks = [*_thoughts(request, steps), *(calls or [{"type": "text", "text": _answer(steps, turn)}])]
    stop = "tool_use" if calls else _cut(blocks, request["max_tokens"])
    return Message(f"msg_{uuid4().hex}", MODEL, blocks, stop, _usage(request, blocks))


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
        results = [_outcome(block) for block in blocks if block["type"] == "tool_result"]
        if results and not any(map(_SPOKEN.search, texts)):
            turn.done.append(results)
            continue
        if turn.words:
            turn.before.append(turn.words)
        turn.words, turn.now = _spoken(texts)
        turn.begun = any(text.startswith(_BEGUN) for text in texts)
        turn.done = []
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


def _outcome(block: Block) -> Outcome:
    parts = _blocks(block.get("content") or "")
    text = "\n".join(unwrapped(str(part.get("text", f"[{part.get('type')}]"))) for part in parts)
    return Outcome(text, bool(block.get("is_error")))


def _offered(request: Mapping[str, Any]) -> frozenset[str]:
    if (request.get("tool_choice") or {}).get("type") == "none":
        return frozenset()
    return frozenset(tool["name"] for tool in request.get("tools") or [])


def _steps(turn: Turn, offered: frozenset[str]) -> list[list[Item]]:
    """Return the wished steps; those that have been taken know what the tools returned."""
    steps = [
        [Item(wish, wish.tool in offered) for wish in step]
        for step in parse(turn.words, turn.now, begun=turn.begun)
    ]
    taken = filter(None, map(_callable, steps))
    for items, outcomes in zip(taken, turn.done, strict=False):
        for item, outcome in zip(items, outcomes, strict=False):
            item.outcome = outcome
    return steps


def _callable(step: Sequence[Item]) -> list[Item]:
    return [item for item in step if item.offered]


def _next_calls(steps: Sequence[Sequence[Item]], turn: Turn) -> list[Block]:
    if any(item.failed for item in chain.from_iterable(steps)):
        return []
    waiting = [items for step in steps if (items := _callable(step))][len(turn.done) :]
    return [
        {"type": "tool_use", "id": f"toolu_{uuid4().hex}", "name": item.wish.tool, "input": item.wish.input}
        for item in (waiting[0] if waiting else [])
    ]


def _thoughts(request: Mapping[str, Any], steps: Sequence[Sequence[Item]]) -> list[Block]:
    thinking = request.get("thinking") or {}
    if thinking.get("type") not in _THINKING:
        return []
    wished = ", then to ".join(item.wish.to for item in chain.from_iterable(steps) if item.wish.tool)
    text = f"I am asked to {wished}." if wished else "I am asked for nothing I need a tool for."
    shown = "" if thinking.get("display") == "omitted" else text
    return [{"type": "thinking", "thinking": shown, "signature": _SIGNATURE}]


def _answer(steps: Sequence[Sequence[Item]], turn: Turn) -> str:
    """Say first what this model is, then of each wish what came of it, and nothing that did not happen."""
    if steps:
        return f"{LABEL} " + "\n\n".join(_said(item, turn.before) for item in chain.from_iterable(steps))
    if not turn.words.strip():
        return f"{LABEL} I found no words in the message.\n\n{_ABILITIES}"
    return f"{LABEL} I understood no wish in your message: {code(turn.words)}\n\n{_ABILITIES}"


def _said(item: Item, before: Sequence[str]) -> str:
    parts = [_recalled(before) if item.wish.recalls else "", item.wish.unclear, _done(item)]
    return "\n\n".join(filter(None, parts))


def _done(item: Item) -> str:
    wish = item.wish
    if not wish.tool:
        return ""
    if not item.offered:
        return f"I cannot {wish.to}: the tool {wish.tool} is not offered to me here."
    if item.outcome is None:
        return f"I did not {wish.to}: something before it failed."
    if item.outcome.is_error:
        return f"I could not {wish.to}. {wish.tool} answered:\n{_quote(item.outcome.text)}"
    return f"{wish.done}:\n{_quote(item.outcome.text)}"


def _recalled(before: Sequence[str]) -> str:
    if not before:
        return "I was shown nothing that you said before this."
    said = [f"- {code(words)}" for words in before[-_MAX_RECALLED:]]
    left_out = len(before) - len(said)
    head = f"You said ({left_out} earlier left out):" if left_out else "You said:"
    return "\n".join([head, *said])


def _quote(text: str) -> str:
    """Return what a tool said as a code block that it cannot end, cut to a bounded length."""
    shown = text[:_MAX_QUOTE]
    rest = f"\n… ({len(text) - len(shown)} more characters)" if len(text) > len(shown) else ""
    fence = "`" * max([3, *(len(ticks) + 1 for ticks in _TICKS.findall(shown))])
    return f"{fence}\n{shown}{rest}\n{fence}"


def _cut(blocks: list[Block], max_tokens: int) -> str:
    """Cut the text to the request's limit and return the stop reason."""
    text: str = blocks[-1]["text"]
    if tokens(text) <= max_tokens:
        return "end_turn"
    blocks[-1]["text"] = text[: max_tokens * CHARS_PER_TOKEN]
    return "max_tokens"


def _usage(request: Mapping[str, Any], blocks: Sequence[Block]) -> Usage:
    """Estimate the usage: a marked prefix counts as written by the first reply, as read by later ones."""
    total = input_tokens(request)
    marked = "cache_control" in str((request.get("system"), request.get("tools")))
    prefix = sum(tokens(request[key]) for key in ("tools", "system") if request.get(key)) if marked else 0
    output = sum(map(tokens, blocks))
    if any(message["role"] == "assistant" for message in request["messages"]):
        return Usage(total - prefix, output, 0, prefix)
    return Usage(total - prefix, output, prefix, 0)
