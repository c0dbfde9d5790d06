"""What a request's messages say: the person's last words, what came before, what tools have returned since.

People's words come as ``<message sender="…" time="…">escaped text</message>``, or plain; a subagent's as
``<task from="agent">escaped text</task>``.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from host.agent.untrusted import unwrapped
from shared.models import Block

_SPOKEN: Final = re.compile(r"<(?:message|task)\b([^>]*)>(.*?)</(?:message|task)>", re.DOTALL)
_ATTRIBUTE: Final = re.compile(r"(\w+)=(?:\"([^\"]*)\"|'([^']*)')")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a tool returned."""

    text: str
    is_error: bool


@dataclass(slots=True)
class Turn:
    """The person's last words and when they came (UTC), their words before, the tool steps taken since."""

    words: str = ""
    now: datetime | None = None
    before: list[str] = field(default_factory=list)
    done: list[list[Outcome]] = field(default_factory=list)


def turn_of(messages: Sequence[Mapping[str, Any]]) -> Turn:
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
        turn.done = []
    return turn


def _spoken(texts: Sequence[str]) -> tuple[str, datetime | None]:
    """Return the words and their time; facts the host adds stand in blocks of their own, after the words."""
    found = [match for text in texts for match in _SPOKEN.finditer(text)]
    if not found:
        return (texts[0] if texts else ""), None
    words = "\n".join(html.unescape(match[2]) for match in found)
    return words, _instant(found[-1][1])


def _instant(attributes: str) -> datetime | None:
    # All attributes are read in turn, so that a sender called 'x time="…"' sets no clock.
    stated = {name: double or single for name, double, single in _ATTRIBUTE.findall(attributes)}
    try:
        return datetime.fromisoformat(stated.get("time", "")).astimezone(UTC)
    except ValueError:
        return None


def _blocks(content: Any) -> list[Block]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _outcome(block: Block) -> Outcome:
    parts = _blocks(block.get("content") or "")
    text = "\n".join(unwrapped(str(part.get("text", f"[{part.get('type')}]"))) for part in parts)
    return Outcome(text, bool(block.get("is_error")))
