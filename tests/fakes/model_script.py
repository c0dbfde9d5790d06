"""What the fake model does next: steps from a directive in the user's words, from the queue, or an echo.

A directive is JSON after ``@@model`` in the person's last message, so that parallel tests cannot collide:

    @@model {"text": "hi", "deltas": ["h", "i"], "thinking": "...", "tools": [{"name": ..., "input": {...}}],
             "stop_reason": "...", "delay_ms": 5, "delta_delay_ms": 5, "hang": true}

``"server_tools"`` are calls that the API answers itself (``model_web``), ``"citations"`` those of the text.

Failures, for the first ``times`` requests (always, if not given), then the step as written:

    "status": 529, "error_type": "overloaded_error", "retry_after": "0", "headers": {}, "message": "..."
    "body": {}                   what to answer instead of the API's error object
    "drop_after_deltas": n       the connection is reset
    "truncate_after_deltas": n   a clean end without message_stop
    "error_after_deltas": n      an error event of "error_type"
    "hang_after_deltas": n       silence until the client goes away

``"raw"`` is a whole body of ``"content_type"`` (an event stream by default), sent as it stands with a 200.

``"steps": [{...}, {...}]`` are the successive replies of one run: the step's number is the number of
assistant turns since the person's message. A tool's ``input_json`` is sent as it stands, to be malformed.
``$results`` in ``text`` stands for what the last tools returned.

Asked to sum a conversation up, it answers with every ``FACT-…`` that it was sent; JSON after ``@@summary`` in
a person's message is the step to take instead. Once ``@@poison`` stands anywhere before the newest message,
it declines whatever a person asks, unless the newest message has ``@@antidote``.
A model whose id ends in ``window-<tokens>`` has that window.
"""

from __future__ import annotations

import html
import json
import re
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any, Final

from shared.untrusted import unwrapped
from tests.fakes.model_thinking import refusal
from tests.fakes.protocol import input_tokens

Step = dict[str, Any]

MARKER: Final = "@@model"
FAILURES: Final = (
    "status",
    "drop_after_deltas",
    "truncate_after_deltas",
    "error_after_deltas",
    "hang_after_deltas",
)
_WRAPPED: Final = re.compile(r"<(?:message|task)\b[^>]*>(.*?)</(?:message|task)>", re.DOTALL)
ASKED_TO_SUM_UP: Final = "<host_request>"
NOTICE: Final = "<notice>"
SUMMARY_MARKER: Final = "@@summary"
POISON: Final = "@@poison"
ANTIDOTE: Final = "@@antidote"
_FACT: Final = re.compile(r"FACT-\w+")
_WINDOW: Final = re.compile(r"window-(\d+)$")
_FINISHED: Final[Step] = {"text": "done"}


@dataclass(slots=True)
class Turn:
    """Where a request stands: the person's words, the replies since, what the last tools returned."""

    words: str = ""
    raw: str = ""
    replies: int = 0
    results: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Script:
    """The queue of steps, and how often each failure has been shown."""

    queue: deque[tuple[int, Step]] = field(default_factory=deque)
    shown: Counter[str] = field(default_factory=Counter)
    added: int = 0

    def add(self, *steps: Step) -> None:
        """Queue steps for requests without a directive."""
        for step in steps:
            self.added += 1
            self.queue.append((self.added, step))

    def clear(self) -> None:
        """Forget everything."""
        self.queue.clear()
        self.shown.clear()

    def next(self, request: dict[str, Any]) -> Step:
        """Return the step for this request: directive, else queue, else an echo of the person's words."""
        turn = turn_of(request)
        if ASKED_TO_SUM_UP in turn.raw:
            return self._summary(request)
        step = self._directed(turn)
        if step is None:
            step = self._queued()
        if step is None:
            step = {"text": f"echo: {turn.words}"}
        if "$results" in step.get("text", ""):
            step = {**step, "text": step["text"].replace("$results", "\n".join(turn.results))}
        return step

    def _directed(self, turn: Turn) -> Step | None:
        directive = directive_of(turn.words)
        if directive is None:
            return None
        steps = directive.get("steps")
        if steps is None:
            steps = [directive]
        step: Step = steps[turn.replies] if turn.replies < len(steps) else _FINISHED
        return self._after_failures(step, f"{turn.replies}:{turn.raw}")[0]

    def _summary(self, request: dict[str, Any]) -> Step:
        said = html.unescape(json.dumps(request["messages"][:-1], ensure_ascii=False))
        facts = sorted(set(_FACT.findall(said)))
        notes = "Notes: " + (" ".join(facts) or "nothing to remember")
        _, directed, rest = said.rpartition(SUMMARY_MARKER)
        if directed:
            step, _ = json.JSONDecoder().raw_decode(rest.lstrip().replace('\\"', '"'))
            return self._after_failures({"text": notes, **step}, f"summary:{rest[:80]}")[0]
        return {"text": notes}

    def _queued(self) -> Step | None:
        if not self.queue:
            return None
        number, written = self.queue[0]
        step, failed = self._after_failures(written, f"queue:{number}")
        if not (failed and "times" in written):
            self.queue.popleft()
        return step

    def _after_failures(self, step: Step, key: str) -> tuple[Step, bool]:
        if not any(name in step for name in FAILURES):
            return step, False
        times = step.get("times")
        self.shown[key] += 1
        if times is None or self.shown[key] <= times:
            return step, True
        return {name: value for name, value in step.items() if name not in FAILURES}, False


def refused(request: dict[str, Any]) -> Step | None:
    """Return the API's refusal of a request: for its length, or what stands in its history."""
    *earlier, newest = map(json.dumps, request["messages"])
    asked = not (ANTIDOTE in newest or ASKED_TO_SUM_UP in newest)
    if asked and any(POISON in message for message in earlier):
        return {"text": "", "stop_reason": "refusal"}
    misplaced = refusal(request)
    if misplaced is not None:
        return {"status": 400, "message": misplaced}
    window = _WINDOW.search(request["model"])
    if window is None:
        return None
    tokens = input_tokens(request)
    if tokens <= int(window[1]):
        return None
    return {"status": 400, "message": f"prompt is too long: {tokens} tokens > {window[1]} maximum"}


def directive_of(words: str) -> Step | None:
    """Return the directive in the words, None without one; junk after the marker is an error of the test."""
    _, found, rest = words.partition(MARKER)
    if not found:
        return None
    directive, _ = json.JSONDecoder().raw_decode(rest.lstrip())
    if not isinstance(directive, dict):
        raise TypeError("the directive is not a JSON object")
    return directive


def people_words(text: str) -> str:
    """Return what a person said: the unescaped inside of the last ``<message>``, or the plain text."""
    inside = _WRAPPED.findall(text)
    return html.unescape(inside[-1]) if inside else text


def turn_of(request: dict[str, Any]) -> Turn:
    """Find the person's last message: the last user turn with their words, or without tool results."""
    turn = Turn()
    for message in reversed(request.get("messages", [])):
        if message["role"] == "assistant":
            turn.replies += 1
            continue
        blocks = _blocks(message)
        texts = [block["text"] for block in blocks if block["type"] == "text"]
        results = [block for block in blocks if block["type"] == "tool_result"]
        if texts and all(text.startswith(NOTICE) for text in texts):
            continue
        if results and not any(MARKER in text or _WRAPPED.search(text) for text in texts):
            turn.results = turn.results or [_result_text(block) for block in results]
            continue
        if texts:
            turn.raw = next((text for text in texts if MARKER in text), _spoken(texts))
            turn.words = people_words(turn.raw)
            break
    return turn


def _spoken(texts: list[str]) -> str:
    return next((text for text in reversed(texts) if "<message" in text), texts[0])


def _blocks(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _result_text(block: dict[str, Any]) -> str:
    content = block.get("content", "")
    if isinstance(content, str):
        return content
    return "\n".join(unwrapped(part.get("text", f"[{part['type']}]")) for part in content)
