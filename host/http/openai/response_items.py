"""A run's events as items and events of a response, in the document's state machines.

What the host's own tools do are items of a prefixed type, ``picoclaw:exec``, which no client answers.
Source: Open Responses 2026-04-24, ResponseResource and its streaming events.
"""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, Literal, NotRequired

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from host.http.openai.answers import LENGTH, Answer, takeable
from host.http.openai.functions import Call
from host.http.openai.response_requests import OWN
from shared import jsons
from shared.clock import now_ms
from shared.store.sql.conversation_rows import StoredResponse
from shared.values import Event, Run

Item = dict[str, Any]
Told = tuple[str, dict[str, Any]]
"""An event of a response: its type without the prefix, and what it says."""

IN_PROGRESS: Final = "in_progress"
COMPLETED: Final = "completed"
SAID: Final = "output_text.delta"
INCOMPLETE: Final = "incomplete"
ASKED: Final = ("approval", "question")
APPROVAL: Final = f"{OWN}approval_request"


@dataclass(slots=True)
class ResponseItems:
    """The items of one response. ``take`` each event of its run; the run's outcome comes last.

    ``functions`` are the names of the program's own tools: their calls are items that it answers.
    """

    id: str
    answer: Answer
    functions: frozenset[str] = frozenset()
    output: list[Item] = field(default_factory=list)
    _saying: Item | None = None
    _thinking: Item | None = None

    def take(self, event: Event) -> list[Told]:
        """Return what the event adds to the response."""
        if event.name == "chunk":
            return self._say(self.answer.take(event).get("content", ""))
        if event.name == "tool_use" and event.data["tool"] not in self.functions:
            item = {"type": f"{OWN}{event.data['tool']}", "input": event.data["input"]}
            return [*self._close(), self._add("tool", item)]
        if event.name == "tool_result":
            return self._tool_result(event.data)
        if event.name == "approval_request" and Call.of(event.data) is None:
            asked = {name: event.data[name] for name in ("tool", "input", "reason")}
            item = {"type": APPROVAL, "approval_id": event.data["id"], **asked}
            return [*self._close(), self._add("request", item), self._done(self.output[-1])]
        delta = self.answer.take(event)
        if event.name == "done":
            return [*self._say(delta.get("content", "")), *self._end()]
        if "tool_calls" in delta:
            return [*self._close(), *self._call(self.answer.calls[-1])]
        return [*self._think(delta.get("reasoning_content", "")), *self._say(delta.get("content", ""))]

    @property
    def ended(self) -> bool:
        """Whether the run has told its outcome."""
        return bool(self.answer.outcome or self.answer.fault)

    def state(self) -> dict[str, Any]:
        """Return how the response stands: its status, and why if it isn't completed."""
        outcome = self.answer.outcome
        why: dict[str, Any] = {"status": IN_PROGRESS, "incomplete_details": None, "error": None}
        if not self.ended:
            return why
        code, reason = outcome.get("code", ""), self.answer.finish_reason
        if code == "cancelled":
            return why | {"status": "cancelled"}
        if code in (*ASKED, "budget"):
            return self._incomplete("budget" if code == "budget" else "approval_required")
        if reason == "length":
            cut = outcome.get("stop_reason") in LENGTH or code == "max_tokens"
            return self._incomplete("max_output_tokens" if cut else code)
        if reason == "content_filter":
            return self._incomplete(reason)
        if reason is None:
            failure = self.answer.failure
            return why | {"status": "failed", "error": {"code": failure.code, "message": failure.message}}
        return why | {"status": COMPLETED}

    def usage(self) -> dict[str, Any] | None:
        """Return the tokens of the run's model calls, None while it goes on."""
        if not self.ended:
            return None
        used = self.answer.usage
        return {
            "input_tokens": used["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": used["prompt_tokens_details"]["cached_tokens"]},
            "output_tokens": used["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": used["total_tokens"],
        }

    def _incomplete(self, reason: str) -> dict[str, Any]:
        return {"status": INCOMPLETE, "incomplete_details": {"reason": reason}, "error": None}

    def _add(self, kind: str, item: Item) -> Told:
        number = len(self.output)
        made = {"id": f"{kind}-{self.id}-{number}", "status": IN_PROGRESS, **item}
        self.output.append(made)
        return "output_item.added", {"output_index": number, "item": dict(made)}

    def _done(self, item: Item, status: str = COMPLETED) -> Told:
        item["status"] = status
        return "output_item.done", {"output_index": self._index(item), "item": dict(item)}

    def _index(self, item: Item) -> int:
        return next(number for number, each in enumerate(self.output) if each is item)

    def _say(self, text: str) -> list[Told]:
        begun: list[Told] = []
        if self._saying is None:
            # What parts two steps parts two items.
            text = text.lstrip("\n")
            begun = [*self._begin_to_say()] if text else []
        if self._saying is None or not text:
            return []
        self._saying["content"][0]["text"] += text
        return [*begun, (SAID, {**self._where(self._saying["id"]), "delta": text})]

    def _begin_to_say(self) -> Iterator[Told]:
        yield from self._close()
        part: Item = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        yield self._add("msg", {"type": "message", "role": "assistant", "content": []})
        self._saying = self.output[-1]
        yield "content_part.added", {**self._where(self._saying["id"]), "part": dict(part)}
        self._saying["content"] = [part]

    def _where(self, item_id: str) -> dict[str, Any]:
        """Return where what is said stands: whatever comes after it closes it first."""
        return {"item_id": item_id, "output_index": len(self.output) - 1, "content_index": 0}

    def _think(self, text: str) -> Iterator[Told]:
        if not text:
            return
        if self._thinking is None:
            yield from self._close()
            yield self._add("rs", {"type": "reasoning", "summary": []})
            self._thinking = self.output[-1]
            self._thinking["summary"] = [{"type": "summary_text", "text": ""}]
        self._thinking["summary"][0]["text"] += text

    def _close(self, status: str = COMPLETED) -> Iterator[Told]:
        """End the message and the thinking that are in progress."""
        if (thinking := self._thinking) is not None:
            self._thinking = None
            yield self._done(thinking)
        if (saying := self._saying) is not None:
            self._saying = None
            (part,) = saying["content"]
            yield "output_text.done", {**self._where(saying["id"]), "text": part["text"], "logprobs": []}
            yield "content_part.done", {**self._where(saying["id"]), "part": dict(part)}
            yield self._done(saying, status)

    def _tool_result(self, data: Mapping[str, Any]) -> list[Told]:
        kind = f"{OWN}{data['tool']}"
        for item in self.output:
            if item["type"] == kind and item["status"] == IN_PROGRESS:
                item["output"] = takeable(data["preview"])
                return [self._done(item, INCOMPLETE if data["is_error"] else COMPLETED)]
        return []

    def _call(self, call: Mapping[str, Any]) -> Iterator[Told]:
        said = call["function"]
        item = {"type": "function_call", "call_id": call["id"], "name": said["name"], "arguments": ""}
        yield self._add("fc", item)
        made = self.output[-1]
        where = {"item_id": made["id"], "output_index": self._index(made)}
        made["arguments"] = said["arguments"]
        yield "function_call_arguments.delta", {**where, "delta": said["arguments"]}
        yield "function_call_arguments.done", {**where, "name": said["name"], "arguments": said["arguments"]}
        yield self._done(made)

    def _end(self) -> Iterator[Told]:
        """End what is in progress as the run ended."""
        status = COMPLETED if self.state()["status"] == COMPLETED else INCOMPLETE
        yield from self._close(status)
        if (refusal := self.answer.refusal) is not None:
            part = {"type": "refusal", "refusal": refusal}
            yield self._add("msg", {"type": "message", "role": "assistant", "content": [part]})
        for item in self.output:
            if item["status"] == IN_PROGRESS:
                yield self._done(item, status)


@with_config(ConfigDict(extra="allow"))
class ResponseShape(TypedDict):
    """A response, as the document has it; ``output`` are its items."""

    id: str
    object: Literal["response"]
    created_at: int
    status: str
    model: str
    output: list[dict[str, Any]]
    previous_response_id: str | None
    conversation: NotRequired[dict[str, str]]


@dataclass(slots=True)
class Response:
    """A response that is being told: what is stored of it, and its items so far."""

    stored: StoredResponse
    items: ResponseItems
    run: Run | None = None

    def view(self) -> ResponseShape:
        """Return it as a whole."""
        stored, state = self.stored, self.items.state()
        ended = None
        if state["status"] == "completed":
            ended = ((self.run and self.run.finished_at) or now_ms()) // 1000
        view: Any = {
            **stored.asked["echo"],
            "id": stored.id,
            "object": "response",
            "created_at": stored.created_at // 1000,
            "completed_at": ended,
            **state,
            "output": [dict(item) for item in self.items.output],
            "previous_response_id": stored.previous_id,
            "conversation": {"id": stored.conversation_id},
            "usage": self.items.usage(),
        }
        return view  # type: ignore[no-any-return]  # the shape's fields and those of the echo

    async def frames(self, batches: AsyncIterator[Sequence[Event]], after: int) -> AsyncIterator[bytes]:
        """Yield the frames whose sequence numbers are at least ``after``, those of a batch in one piece."""
        begun = {"response": dict(self.view())}
        yield _framed([("created", begun), ("in_progress", begun)], 0, after)
        number = 2
        async for events in batches:
            told = [each for event in events for each in self.items.take(event)]
            if piece := _framed(told, number, after):
                yield piece
            number += len(told)
        ended = dict(self.view())
        name = ended["status"] if ended["status"] in ("completed", "failed") else "incomplete"
        # How it ended is told also to who asks for what comes after it.
        yield _framed([(name, {"response": ended})], number, min(after, number))


def _framed(told: Sequence[Told], first: int, after: int) -> bytes:
    """Return frames, of which ``first`` is the number, from ``after`` on."""
    numbered = list(enumerate(told, first))[max(after - first, 0) :]
    return b"".join(as_frame(name, data, number) for number, (name, data) in numbered)


def as_frame(name: str, data: Mapping[str, Any], number: int) -> bytes:
    """Return an event of a stream."""
    if name == SAID:
        # Of a long answer these are nearly all: what is the same in them is encoded once.
        return _piece(data["item_id"], data["output_index"]) % (number, jsons.dump_bytes(data["delta"]))
    kind = f"response.{name}" if name != "error" else name
    told = {"type": kind, "sequence_number": number, **data}
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), jsons.dump_bytes(told))


@lru_cache(maxsize=256)
def _piece(item_id: str, index: int) -> bytes:
    """Return the frame of a piece of text, with room for its number and the text."""
    where = {"item_id": item_id, "output_index": index, "content_index": 0}
    told = {"type": f"response.{SAID}", "sequence_number": -1, **where, "delta": -1, "logprobs": []}
    data = jsons.dump_bytes(told).replace(b"%", b"%%").replace(b"-1", b"%d", 1)
    return b"event: response.%b\ndata: %b\n\n" % (SAID.encode(), data.replace(b'"delta":-1', b'"delta":%b'))
