"""What the OpenAI-compatible door does with requests; loaded with the first of them."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from host.agent.endings import Cancelled
from host.http.bodies import JSON, idempotency, parse_body, raw_body
from host.http.openai.answers import DONE, Answer, Envelope, failed
from host.http.openai.errors import NO_RETRY
from host.http.openai.shapes import ChatCompletionRequest
from host.http.openai.threads import Thread, Threads
from host.http.sse import FrameStreamResponse
from host.runs.run import ActiveRun
from host.runs.service import RunService
from host.runs.spec import RunSpec
from shared.clock import now_ms
from shared.errors import Duplicate, KeyTaken, NotFound
from shared.settings import Settings
from shared.settings.choices import model_names
from shared.store.store import Store
from shared.values import Event

ASSISTANT: Final = "picoclaw"
"""The model that is the assistant as it is configured."""

NO_THINKING: Final = ("none", "minimal")


@dataclasses.dataclass(frozen=True, slots=True)
class _Turn:
    """A request that has its run: what to answer, and from what."""

    body: ChatCompletionRequest
    thread: Thread
    conversation_id: str
    run_id: str
    events: AsyncIterator[Event]
    run: ActiveRun | None

    @property
    def envelope(self) -> Envelope:
        return Envelope(f"chatcmpl-{self.run_id}", now_ms() // 1000, self.body.model)

    @property
    def headers(self) -> dict[str, str]:
        return {"X-Conversation-ID": self.conversation_id, "X-Run-ID": self.run_id}

    def gone(self) -> None:
        """The reader left: that is how chat programs stop an answer."""
        if self.run is not None:
            self.run.stop(Cancelled("The reader went away; the finished steps are kept."))


class OpenAiDoor:
    """Answers what comes to the routes below /v1; ``created``: seconds since 1970, of the models."""

    def __init__(self, store: Store, runs: RunService, settings: Settings, created: int) -> None:
        self._runs = runs
        self._threads = Threads(store)
        self._created = created
        self._marker = settings.session_end_marker
        listed = model_names(settings) or (() if settings.offline else (settings.model.model,))
        self._models = tuple(dict.fromkeys((ASSISTANT, *listed)))
        self._listed = frozenset(listed)

    async def list(self, request: Request) -> Response:
        """List the models."""
        return JSON({"object": "list", "data": [self._view(name) for name in self._models]})

    async def get(self, request: Request) -> Response:
        """Return one model."""
        return JSON(self._view(self._known(request.path_params["id"])))

    async def complete(self, request: Request) -> ASGIApp:
        """Say the last message in its conversation, and answer whole or in pieces."""
        raw = await raw_body(request)
        body = parse_body(raw, ChatCompletionRequest)
        self._known(body.model)
        thread = await self._threads.find(request, body)
        spec = dataclasses.replace(self._spec(body, thread), idempotency=idempotency(request, raw))
        turn = await self._begin(body, thread, spec)
        if body.stream:
            return FrameStreamResponse(self._pieces(turn), headers=turn.headers, on_gone=turn.gone)
        return await self._whole(turn)

    def _spec(self, body: ChatCompletionRequest, thread: Thread) -> RunSpec:
        sender = (body.user or "").strip() or "user"
        effort = body.reasoning_effort
        return RunSpec(
            message=thread.last.content,
            conversation_id=thread.conversation_id,
            new_conversation_id=thread.new_id,
            preface="" if thread.conversation_id else thread.preface,
            sender=sender,
            sender_name=thread.last.name or sender,
            model=body.model if body.model in self._listed else None,
            thinking=None if effort is None else effort not in NO_THINKING,
            live=bool(body.stream),
        )

    async def _begin(self, body: ChatCompletionRequest, thread: Thread, spec: RunSpec) -> _Turn:
        try:
            run = await self._start(spec)
        except KeyTaken as taken:
            conversation_id, run_id = taken.answer.conversation_id or "", taken.answer.subject
            events = await self._runs.events(conversation_id, run_id, after=0)
            return _Turn(body, thread, conversation_id, run_id, events, None)
        lease = run.lease
        events = await self._runs.events(lease.conversation_id, lease.run_id, after=0, run=run)
        return _Turn(body, thread, lease.conversation_id, lease.run_id, events, run)

    async def _start(self, spec: RunSpec) -> ActiveRun:
        try:
            return await self._runs.start(spec)
        except Duplicate:
            # Another request has just made the conversation of this name.
            made = dataclasses.replace(
                spec, conversation_id=spec.new_conversation_id, new_conversation_id=None, preface=""
            )
            return await self._runs.start(made)

    async def _whole(self, turn: _Turn) -> Response:
        answer = Answer(self._marker)
        async for event in turn.events:
            answer.take(event)
        failure = answer.failure
        if failure is not None:
            headers = {**turn.headers, **NO_RETRY}
            return JSON(failure.body, status_code=failure.status, headers=headers)
        await self._threads.remember(turn.thread, turn.conversation_id, answer.text)
        return JSON(turn.envelope.completion(answer), headers=turn.headers)

    async def _pieces(self, turn: _Turn) -> AsyncIterator[bytes]:
        answer, envelope = Answer(self._marker), turn.envelope
        async for piece in envelope.stream(turn.events, answer):
            yield piece
        failure = answer.failure
        if failure is not None:
            yield failed(failure)
            return
        await self._threads.remember(turn.thread, turn.conversation_id, answer.text)
        yield envelope.chunk({}, answer.finish_reason)
        options = turn.body.stream_options
        if options is not None and options.include_usage:
            yield envelope.usage(answer)
        yield DONE

    def _known(self, name: str) -> str:
        if name not in self._models:
            known = ", ".join(self._models)
            raise NotFound(f"There is no model {name[:100]}; there are: {known}", code="model_not_found")
        return name

    def _view(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._created, "owned_by": ASSISTANT}
