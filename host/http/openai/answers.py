"""A run's events as OpenAI's clients read an answer: deltas, an ending, usage; refusals in their words.

Source: the API reference of chat completions, models and errors (https://platform.openai.com/docs/api-reference).
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NotRequired, cast

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from host.agent.text import MarkerFilter
from host.http.bodies import JSON
from host.http.openai.functions import Call
from host.http.openai.requests import DoorCall, DoorMessage
from shared import jsons
from shared.clock import now_ms
from shared.errors import ApprovalPending, PicoError
from shared.shapes import Shape
from shared.values import Event

PREFIX: Final = "/v1/"
"""Everything below answers, and fails, in OpenAI's shapes."""

NO_RETRY: Final = {"x-should-retry": "false"}
"""What the official clients obey: the message is stored, so sending it again would say it twice."""

SPENT: Final = "insufficient_quota"
TYPES: Final = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class OpenAiFaultShape(Shape):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


@with_config(ConfigDict(extra="ignore"))
class OpenAiErrorShape(TypedDict):
    """Every error below /v1."""

    error: OpenAiFaultShape


def error_body(error: PicoError) -> OpenAiErrorShape:
    """Return an error as OpenAI's clients read it; ``param`` is the field that the sentence begins with."""
    code = "invalid_api_key" if error.status == 401 else error.code
    kind = TYPES.get(error.status, "server_error" if error.status >= 500 else "invalid_request_error")
    field, colon, _ = error.message.partition(": ")
    named = error.status == 400 and colon and " " not in field
    return {
        "error": {
            "message": error.message,
            "type": SPENT if code == SPENT else kind,
            "param": field if named else None,
            "code": code,
        }
    }


def openai_error(error: PicoError, headers: Mapping[str, str]) -> JSON[OpenAiErrorShape]:
    """Return a refusal in OpenAI's shape, with the headers that it has anyway."""
    # Official clients repeat a 409 by themselves, and a person takes longer than they wait.
    status = 400 if isinstance(error, ApprovalPending) else error.status
    return JSON(error_body(error), status_code=status, headers=dict(headers))


FinishReason = Literal["stop", "length", "content_filter", "tool_calls"]


class ModelShape(Shape):
    """A model that may be asked for."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelsShape(Shape):
    """All models."""

    object: Literal["list"]
    data: list[ModelShape]


class FunctionShape(Shape):
    """The function and its input, as JSON."""

    name: str
    arguments: str


class CallShape(Shape):
    """A call that the program is to make."""

    id: str
    type: Literal["function"]
    function: FunctionShape


class CompletionMessageShape(Shape):
    """What the agent answers."""

    role: Literal["assistant"]
    content: str | None
    refusal: str | None
    tool_calls: NotRequired[list[CallShape]]
    reasoning_content: NotRequired[str]


class ChoiceShape(Shape):
    """The one choice."""

    index: Literal[0]
    message: CompletionMessageShape
    logprobs: None
    finish_reason: FinishReason


class TokenDetailsShape(Shape):
    """Of the prompt's tokens, those read from the cache."""

    cached_tokens: int


class CompletionUsageShape(Shape):
    """Tokens of all model calls of the run."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: TokenDetailsShape


class CompletionShape(Shape):
    """The answer without ``stream``."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChoiceShape]
    usage: CompletionUsageShape
    metadata: NotRequired[dict[str, str]]
    warnings: NotRequired[list[str]]


DONE: Final = b"data: [DONE]\n\n"

FINISHED: Final[dict[str, FinishReason]] = {
    "": "stop",
    "refused": "content_filter",
    # What the run said last is what waits, and where it is answered.
    "approval": "stop",
    "question": "stop",
    "client_tool": "tool_calls",
}
CUT_SHORT: Final = frozenset({"timeout", "iteration_limit", "max_tokens", "no_progress", "cancelled"})
"""Endings whose text so far is an answer that ``length`` describes best."""

LENGTH: Final = frozenset({"max_tokens", "model_context_window_exceeded"})
"""Stop reasons of an answer that goes on."""

TRY_LATER: Final = frozenset({"shutdown", "interrupted", "retryable", "lease_lost"})


@dataclass(slots=True)
class Answer:
    """What a run has answered so far, and how it is written. ``take`` each event; ``outcome`` comes last."""

    id: str
    model: str
    marker: str
    """The session end marker, which isn't shown."""
    typed: bool = False
    """A program reads the answer, so nothing that was said beside stands in it."""
    created: int = field(default_factory=lambda: now_ms() // 1000)
    more: Mapping[str, Any] = field(default_factory=dict)
    """What else the answer says of its request."""
    text: str = ""
    reasoning: str = ""
    calls: list[CallShape] = field(default_factory=list)
    outcome: dict[str, Any] = field(default_factory=dict)
    fault: str = ""
    _beside: list[str] = field(default_factory=list)
    _gap: bool = False
    _shown: MarkerFilter = field(init=False)

    def __post_init__(self) -> None:
        self._shown = MarkerFilter(self.marker)

    def take(self, event: Event) -> dict[str, Any]:
        """Return what the event adds to the answer; empty when nothing."""
        if event.name == "chunk":
            return self._add(self._shown.feed(event.data["text"]), gap=self._gap)
        if event.name == "message" and self.typed:
            self._beside.append(takeable(event.data["text"]))
        elif event.name == "message":
            # A message of its own: apart from what is around it.
            shown = self._shown.flush() + self._shown.without(event.data["text"])
            delta = self._add(shown, gap=bool(self.text))
            self._gap = True
            return delta
        if event.name == "thinking":
            self.reasoning += event.data["text"]
            return {"reasoning_content": event.data["text"]}
        if event.name == "approval_request" and (call := Call.of(event.data)) is not None:
            self.calls.append(_call_view(call))
            return {"tool_calls": [{"index": len(self.calls) - 1, **self.calls[-1]}]}
        if event.name == "error":
            self.fault = event.data["error"]
        elif event.name == "done":
            self.outcome = event.data
            return self._add(self._shown.flush(), gap=False)
        return {}

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why it ended, None when the run has failed."""
        code = self.outcome.get("code", "")
        if self.calls and self.outcome:
            return "tool_calls"
        if self.outcome and code in CUT_SHORT and self.text.strip():
            return "length"
        if self.outcome.get("stop_reason") in LENGTH and not code:
            return "length"
        return FINISHED.get(code) if self.outcome else None

    @property
    def refusal(self) -> str | None:
        """What is said in place of an answer that a program was to read."""
        return "\n\n".join(self._beside) or None if self.typed and not self.text else None

    @property
    def failure(self) -> PicoError:
        """How the run failed that gave no reason to finish, with the status that OpenAI would give it."""
        message = self.outcome.get("error") or self.fault or "The run ended without an answer."
        paused = self.outcome.get("status") == "paused"
        error = PicoError(message, code=SPENT if paused else self.outcome.get("code", "internal"))
        error.status = 429 if paused else 503 if error.code in TRY_LATER else 500
        return error

    @property
    def usage(self) -> CompletionUsageShape:
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

    def completion(self, finish_reason: FinishReason) -> CompletionShape:
        """Return the whole answer."""
        text = self.text.strip()
        message: CompletionMessageShape = {
            "role": "assistant",
            "content": None if self.refusal or (self.calls and not text) else text,
            "refusal": self.refusal,
        }
        if self.calls:
            message["tool_calls"] = self.calls
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        made: CompletionShape = {
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}],
            "usage": self.usage,
        }
        return cast(CompletionShape, {**made, **self.said_beside()})

    def said_beside(self) -> dict[str, Any]:
        """Return the warnings of the request and of the run, and what else the answer says of its request."""
        warnings = [*self.more.get("warnings", ()), *self.outcome.get("warnings", ())]
        said = {**self.more, "warnings": warnings}
        return {name: value for name, value in said.items() if value}

    @property
    def message(self) -> DoorMessage:
        """The answer as a program sends it again."""
        calls = [DoorCall(id=call["id"]) for call in self.calls]
        return DoorMessage(role="assistant", content=self.text, tool_calls=calls)

    def chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        """Return what is added to the answer, and with the reason for its end what is said beside it."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return self._piece(choices=[choice], **(self.said_beside() if finish_reason else {}))

    def usage_chunk(self) -> bytes:
        """Return the piece that tells the usage."""
        return self._piece(choices=[], usage=self.usage)

    async def stream(self, events: AsyncIterator[Event]) -> AsyncIterator[bytes]:
        """Yield the pieces of the answer as the run's events come; the ending is the caller's."""
        yield self.chunk({"role": "assistant", "content": ""})
        async for event in events:
            delta = self.take(event)
            if delta:
                yield self.chunk(delta)

    def _piece(self, **said: Any) -> bytes:
        kind = "chat.completion.chunk"
        return as_event({"id": self.id, "object": kind, "created": self.created, "model": self.model, **said})

    def _add(self, text: str, *, gap: bool) -> dict[str, str]:
        if gap and text.strip():
            text = ("" if self.text.endswith("\n\n") else "\n\n") + text
            self._gap = False
        text = takeable(text)
        self.text += text
        return {"content": text} if text else {}


def takeable(text: str) -> str:
    """Return what a program can send again: NUL is refused."""
    return text.replace("\0", "\ufffd")


def _call_view(call: Call) -> CallShape:
    function: FunctionShape = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def as_event(value: Mapping[str, Any]) -> bytes:
    """Return a piece of a stream."""
    return b"data: %b\n\n" % jsons.dump_bytes(value)
