"""A run's events as OpenAI's clients read an answer: deltas, an ending, usage."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Final

from host.http.openai.errors import error_body
from host.runs.text import MarkerFilter
from shared import jsons
from shared.values import Event

DONE: Final = b"data: [DONE]\n\n"

FINISHED: Final = {"": "stop", "refused": "content_filter"}
CUT_SHORT: Final = frozenset({"timeout", "iteration_limit", "max_tokens", "no_progress", "cancelled"})
"""Endings whose text so far is an answer that ``length`` describes best."""

LENGTH: Final = frozenset({"max_tokens", "model_context_window_exceeded"})
"""Stop reasons of an answer that goes on."""

TRY_LATER: Final = frozenset({"shutdown", "interrupted", "retryable", "lease_lost"})


@dataclass(slots=True)
class Failure:
    """A run that ended without an answer."""

    message: str
    code: str

    @property
    def status(self) -> int:
        """The status, as OpenAI would give it."""
        if self.code == "insufficient_quota":
            return 429
        return 503 if self.code in TRY_LATER else 500

    @property
    def body(self) -> dict[str, Any]:
        """The error as it leaves."""
        return error_body(self.message, self.status, self.code)


@dataclass(slots=True)
class Answer:
    """What a run has answered so far. ``take`` each event; ``outcome`` is known when they are over."""

    marker: str = ""
    """The session end marker, which isn't shown."""
    text: str = ""
    reasoning: str = ""
    outcome: dict[str, Any] = field(default_factory=dict)
    fault: str = ""
    _gap: bool = False
    _shown: MarkerFilter = field(init=False)

    def __post_init__(self) -> None:
        self._shown = MarkerFilter(self.marker)

    def take(self, event: Event) -> dict[str, str]:
        """Return what the event adds to the answer; empty when nothing."""
        if event.name == "chunk":
            return self._add(self._shown.feed(event.data["text"]), gap=self._gap)
        if event.name == "message":
            # A message of its own: apart from what is around it.
            shown = self._shown.flush() + self._shown.without(event.data["text"])
            delta = self._add(shown, gap=bool(self.text))
            self._gap = True
            return delta
        if event.name == "thinking":
            self.reasoning += event.data["text"]
            return {"reasoning_content": event.data["text"]}
        if event.name == "error":
            self.fault = event.data["error"]
        elif event.name == "done":
            self.outcome = event.data
            return self._add(self._shown.flush(), gap=False)
        return {}

    @property
    def finish_reason(self) -> str | None:
        """Why it ended, None when the run has failed."""
        code = self.outcome.get("code", "")
        if self.outcome and code in CUT_SHORT and self.text.strip():
            return "length"
        if self.outcome.get("stop_reason") in LENGTH and not code:
            return "length"
        return FINISHED.get(code) if self.outcome else None

    @property
    def failure(self) -> Failure | None:
        """How the run failed, None when it answered."""
        if self.finish_reason is not None:
            return None
        message = self.outcome.get("error") or self.fault or "The run ended without an answer."
        paused = self.outcome.get("status") == "paused"
        return Failure(message, "insufficient_quota" if paused else self.outcome.get("code", "internal"))

    @property
    def usage(self) -> dict[str, Any]:
        """The tokens of all the run's model calls."""
        used = self.outcome.get("usage") or {}
        cached = used.get("cache_read_input_tokens", 0)
        prompt = used.get("input_tokens", 0) + used.get("cache_creation_input_tokens", 0) + cached
        output = used.get("output_tokens", 0)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": output,
            "total_tokens": prompt + output,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    def _add(self, text: str, *, gap: bool) -> dict[str, str]:
        if gap and text.strip():
            text = ("" if self.text.endswith("\n\n") else "\n\n") + text
            self._gap = False
        self.text += text
        return {"content": text} if text else {}


@dataclass(frozen=True, slots=True)
class Envelope:
    """What stands around every piece of one answer."""

    id: str
    created: int
    model: str

    def completion(self, answer: Answer) -> dict[str, Any]:
        """Return the whole answer."""
        message = {"role": "assistant", "content": answer.text.strip(), "refusal": None}
        if answer.reasoning:
            message["reasoning_content"] = answer.reasoning
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": answer.finish_reason,
        }
        return {**self._head("chat.completion"), "choices": [choice], "usage": answer.usage}

    def chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        """Return a piece of a stream."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return _data({**self._head("chat.completion.chunk"), "choices": [choice]})

    def usage(self, answer: Answer) -> bytes:
        """Return the piece that tells the usage."""
        return _data({**self._head("chat.completion.chunk"), "choices": [], "usage": answer.usage})

    async def stream(self, events: AsyncIterator[Event], answer: Answer) -> AsyncIterator[bytes]:
        """Yield the pieces of the answer as the run's events come; the ending is the caller's."""
        yield self.chunk({"role": "assistant", "content": ""})
        async for event in events:
            delta = answer.take(event)
            if delta:
                yield self.chunk(delta)

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def failed(failure: Failure) -> bytes:
    """Return the piece by which a stream fails."""
    return _data(failure.body)


def _data(value: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % jsons.dump_bytes(value)
