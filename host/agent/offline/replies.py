"""From a request to the next reply: the tool calls of the next step, or the report after the last one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, Final
from uuid import uuid4

from host.agent.offline.calls import call_of
from host.agent.offline.history import Turn, turn_of
from host.agent.offline.protocol import CHARS_PER_TOKEN, Message, input_tokens, tokens
from host.agent.offline.report import Item, helpless, report
from host.agent.offline.sentences import parse
from host.agent.offline.wishes import Wish
from shared.models import Block, Usage

MODEL: Final = "picoclaw-offline"
_SIGNATURE: Final = "cGljb2NsYXctb2ZmbGluZQ=="
_THINKING: Final = frozenset({"enabled", "adaptive"})


def reply_to(request: Mapping[str, Any]) -> Message:
    """Return the next reply to a checked request. The same request gives the same reply, but for its ids."""
    turn = turn_of(request["messages"])
    steps = _steps(turn, _offered(request))
    calls = _next_calls(steps, turn)
    blocks = [*_thoughts(request, steps), *(calls or [{"type": "text", "text": _answer(steps, turn)}])]
    stop = "tool_use" if calls else _cut(blocks, request["max_tokens"])
    return Message(f"msg_{uuid4().hex}", MODEL, blocks, stop, _usage(request, blocks))


def _offered(request: Mapping[str, Any]) -> frozenset[str]:
    if (request.get("tool_choice") or {}).get("type") == "none":
        return frozenset()
    return frozenset(tool["name"] for tool in request.get("tools") or [])


def _steps(turn: Turn, offered: frozenset[str]) -> list[list[Item]]:
    """Return the wished steps; those that have been taken know what the tools returned."""
    steps = [[_item(wish, offered) for wish in step] for step in parse(turn.words, turn.now)]
    taken = filter(None, map(_callable, steps))
    for items, outcomes in zip(taken, turn.done, strict=False):
        for item, outcome in zip(items, outcomes, strict=False):
            item.outcome = outcome
    return steps


def _item(wish: Wish, offered: frozenset[str]) -> Item:
    call = call_of(wish)
    return Item(wish, call, call is not None and call.tool in offered)


def _callable(step: Sequence[Item]) -> list[Item]:
    return [item for item in step if item.offered]


def _next_calls(steps: Sequence[Sequence[Item]], turn: Turn) -> list[Block]:
    if any(item.failed for item in chain.from_iterable(steps)):
        return []
    waiting = [items for step in steps if (items := _callable(step))][len(turn.done) :]
    return [
        {"type": "tool_use", "id": f"toolu_{uuid4().hex}", "name": item.call.tool, "input": item.call.input}
        for item in (waiting[0] if waiting else [])
        if item.call is not None
    ]


def _answer(steps: Sequence[Sequence[Item]], turn: Turn) -> str:
    return report(chain.from_iterable(steps), turn.before) if steps else helpless(turn.words)


def _thoughts(request: Mapping[str, Any], steps: Sequence[Sequence[Item]]) -> list[Block]:
    thinking = request.get("thinking") or {}
    if thinking.get("type") not in _THINKING:
        return []
    wished = [item.call.to for item in chain.from_iterable(steps) if item.call is not None]
    text = (
        f"I am asked to {', then to '.join(wished)}."
        if wished
        else "I am asked for nothing I need a tool for."
    )
    shown = "" if thinking.get("display") == "omitted" else text
    return [{"type": "thinking", "thinking": shown, "signature": _SIGNATURE}]


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
