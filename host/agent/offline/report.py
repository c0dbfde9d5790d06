"""What the offline model says at the end of a run: first what it is, and nothing that did not happen."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from host.agent.offline.calls import Call, code
from host.agent.offline.history import Outcome
from host.agent.offline.wishes import Recall, Unclear, Wish

LABEL: Final = "[offline model]"
_MAX_QUOTE: Final = 2_000
_MAX_RECALLED: Final = 10
_TICKS: Final = re.compile(r"`{3,}")
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
class Item:
    """A wish, the call for it if it takes one that is ``offered``, and what came of it."""

    wish: Wish
    call: Call | None
    offered: bool
    outcome: Outcome | None = None

    @property
    def failed(self) -> bool:
        """Whether what comes after it must not be done; notes that are not there yet are no failure."""
        return self.outcome is not None and self.outcome.is_error and not isinstance(self.wish, Recall)


def report(items: Iterable[Item], before: Sequence[str]) -> str:
    """Return the answer after the last step: each wish, and what the tools returned."""
    return f"{LABEL} " + "\n\n".join(_said(item, before) for item in items)


def helpless(words: str) -> str:
    """Return the answer to words that hold no wish."""
    if not words.strip():
        return f"{LABEL} I found no words in the message.\n\n{_ABILITIES}"
    return f"{LABEL} I understood no wish in your message: {code(words)}\n\n{_ABILITIES}"


def _said(item: Item, before: Sequence[str]) -> str:
    parts = [_recalled(before)] if isinstance(item.wish, Recall) else []
    if isinstance(item.wish, Unclear):
        parts.append(f"{item.wish.reason} ({code(item.wish.text)})")
    if item.call is not None:
        parts.append(_done(item, item.call))
    return "\n\n".join(parts)


def _done(item: Item, call: Call) -> str:
    if not item.offered:
        return f"I cannot {call.to}: the tool {call.tool} is not offered to me here."
    if item.outcome is None:
        return f"I did not {call.to}: something before it failed."
    if item.outcome.is_error:
        return f"I could not {call.to}. {call.tool} answered:\n{quote(item.outcome.text)}"
    return f"{call.done}:\n{quote(item.outcome.text)}"


def _recalled(before: Sequence[str]) -> str:
    if not before:
        return "I was shown nothing that you said before this."
    said = [f"- {code(words)}" for words in before[-_MAX_RECALLED:]]
    left_out = len(before) - len(said)
    head = f"You said ({left_out} earlier left out):" if left_out else "You said:"
    return "\n".join([head, *said])


def quote(text: str) -> str:
    """Return what a tool said as a code block that it cannot end, cut to a bounded length."""
    shown = text[:_MAX_QUOTE]
    rest = f"\n… ({len(text) - len(shown)} more characters)" if len(text) > len(shown) else ""
    fence = "`" * max([3, *(len(ticks) + 1 for ticks in _TICKS.findall(shown))])
    return f"{fence}\n{shown}{rest}\n{fence}"
