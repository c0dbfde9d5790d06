"""The OpenAI-compatible door: POST /v1/chat/completions and GET /v1/models, for existing chat programs."""

import dataclasses
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import anyio
import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response

from host.agent.endings import Cancelled
from host.http.approvals import checked_tools
from host.http.bodies import JSON, forget_body, idempotency
from host.http.callers import caller_of
from host.http.file_requests import Intake
from host.http.openai.answers import (
    DONE,
    NO_RETRY,
    Answer,
    CompletionShape,
    ModelShape,
    ModelsShape,
    OpenAiErrorShape,
    as_event,
    error_body,
    openai_error,
)
from host.http.openai.functions import Functions, offer
from host.http.openai.requests import ChatCompletionRequest, fetched, taken
from host.http.openai.threads import CALL_ID, NAMED, Thread, Threads
from host.http.routing import ANY, KEY, Api, Operation, Route, operation
from host.http.runs import FrameStreamResponse
from host.runs.events import one_by_one
from host.runs.run import ActiveRun
from host.runs.service import RunService
from host.runs.spec import RunSpec
from host.schemas import SchemaJudge
from host.telemetry import Metrics
from shared.clock import now_ms
from shared.errors import ApprovalPending, ConversationBusy, Duplicate, KeyTaken, NotFound
from shared.settings import Settings
from shared.settings.tree import model_names
from shared.store.store import Store
from shared.values import Event

NO_V1: Final = "The base address ends in /v1: "
CHAT: Final = "use POST /v1/chat/completions."
ELSEWHERE: Final = {
    "/chat/completions": f"{NO_V1}{CHAT}",
    "/models": f"{NO_V1}use GET /v1/models.",
    **{f"/{name}": f"{NO_V1}{CHAT}" for name in ("completions", "embeddings")},
    "/responses": f"{NO_V1}use POST /v1/responses.",
    "/v1": f"This is the base address: {CHAT}",
    "/v1/completions": f"There are no completions of plain text here: {CHAT}",
    "/v1/conversations": 'A conversation is made by the first response; name it by "conversation": "conv-…".',
    "/v1/responses/compact": "The host compacts conversations by itself: use POST /v1/responses.",
    "/v1/embeddings": "There are no embeddings here: use a server that has a model for them.",
}
"""What OpenAI's clients ask for that isn't here, or isn't there, and what to use."""

ASSISTANT: Final = "picoclaw"
"""The model that is the assistant as it is configured."""

MOST_FETCHING: Final = 8
"""Messages whose pictures are fetched at once; others wait."""
NO_THINKING: Final = ("none", "minimal")


@dataclasses.dataclass(frozen=True, slots=True)
class Turn:
    """A request that has its run: what to answer, and from what."""

    body: ChatCompletionRequest
    thread: Thread
    answer: Answer
    conversation_id: str
    run_id: str
    events: AsyncIterator[Sequence[Event]]
    run: ActiveRun | None

    @property
    def headers(self) -> dict[str, str]:
        return {"X-Conversation-ID": self.conversation_id, "X-Run-ID": self.run_id}

    def gone(self) -> None:
        """The reader left: that is how chat programs stop an answer."""
        if self.run is not None:
            self.run.stop(Cancelled("The reader went away; the finished steps are kept."))


class OpenAiApi(Api):
    """What is there below /v1."""

    def __init__(
        self,
        store: Store,
        runs: RunService,
        judge: SchemaJudge,
        counts: Metrics,
        intake: Intake,
        settings: Settings,
    ) -> None:
        self._intake = intake
        self._runs = runs
        self.judge = judge
        self.functions = Functions(store, counts)
        self.threads = Threads(store, self.functions)
        self._created = now_ms() // 1000
        self._picture_hosts = settings.files.picture_hosts
        self._fetching = anyio.Semaphore(MOST_FETCHING)
        self.marker = settings.session_end_marker
        listed = model_names(settings) or (() if settings.offline else (settings.model.model,))
        self._models = tuple(dict.fromkeys((ASSISTANT, *listed)))
        self._any_id = not settings.models

    def routes(self) -> list[Route]:
        """Return the operations, and what says at other paths which of them to use."""
        elsewhere = [
            Route(self, Operation(OpenAiApi._elsewhere, method, path, scope=ANY, listed=False))
            for path in ELSEWHERE
            for method in ("GET", "POST")
        ]
        return [*super().routes(), *elsewhere]

    async def _elsewhere(self, request: Request) -> None:
        raise NotFound(ELSEWHERE[request.scope["path"]])

    @operation("GET", "/v1/models", scope="chat", error=OpenAiErrorShape)
    async def list(self, request: Request) -> ModelsShape:
        """The models, as OpenAI's clients list them."""
        return {"object": "list", "data": [self._view(name) for name in self._offered(request)]}

    @operation("GET", "/v1/models/{id:path}", scope="chat", error=OpenAiErrorShape)
    async def get(self, request: Request) -> ModelShape:
        """One model."""
        return self._view(self.known(request, request.path_params["id"]))

    @operation(
        "POST",
        "/v1/chat/completions",
        scope="chat",
        parameters=(KEY, NAMED),
        errors=(404, 409, 507),
        error=OpenAiErrorShape,
    )
    async def complete(
        self, request: Request, body: ChatCompletionRequest
    ) -> JSON[CompletionShape] | FrameStreamResponse | Response:
        """Say something, as OpenAI's clients do."""
        self.known(request, body.model)
        if body.output_schema is not None:
            await self.judge.require(body.output_schema, "response_format")
        thread = await self.threads.find(request, body)
        spec = dataclasses.replace(await self.spec(body, thread), idempotency=await idempotency(request))
        if thread.last.role == "user" and thread.last.parts:
            spec = await self.with_files(request, spec, thread.last.parts)
        for message in body.messages:
            message.parts.clear()
        forget_body(request)
        turn = await self.begin(request, body, thread, spec)
        if body.stream:
            return FrameStreamResponse(self._pieces(turn), headers=turn.headers, on_gone=turn.gone)
        return await self._whole(turn)

    async def with_files(self, request: Request, spec: RunSpec, parts: Sequence[Any]) -> RunSpec:
        parts = await fetched(parts, self._picture_hosts, self._fetching)
        text, files = await anyio.to_thread.run_sync(taken, parts)
        spec = dataclasses.replace(spec, message=text)
        return await self._intake.with_files(spec, caller_of(request), files) if files else spec

    async def spec(self, body: ChatCompletionRequest, thread: Thread) -> RunSpec:
        sender = (body.user or "").strip() or "user"
        effort, last = body.reasoning_effort, thread.last
        declared = [tool.tool() for tool in body.tools or ()]
        functions = offer(await checked_tools(declared, self.judge, "function.parameters"), body.tool_choice)
        return RunSpec(
            message=last.content if last.role == "user" else None,
            conversation_id=thread.conversation_id,
            new_conversation_id=thread.new_id,
            preface="" if thread.conversation_id else thread.preface,
            sender=sender,
            sender_name=last.name or sender,
            model=None if body.model == ASSISTANT else body.model,
            thinking=None if effort is None else effort not in NO_THINKING,
            live=bool(body.stream),
            output_schema=body.output_schema,
            principal_id=thread.principal_id,
            client_tools=functions.tools,
            must_call=functions.must_call,
            one_call=body.parallel_tool_calls is False,
            max_tokens=body.max_completion_tokens or body.max_tokens,
            stop=tuple(body.stop or ()),
            deny_pending=bool(thread.results),
            ready=last.role == "tool",
        )

    async def begin(
        self,
        request: Request,
        body: ChatCompletionRequest,
        thread: Thread,
        spec: RunSpec,
        field: str = CALL_ID,
    ) -> Turn:
        run: ActiveRun | None = None
        conversation_id, run_id = thread.conversation_id or "", None
        home = thread.conversation.id if thread.conversation else None
        calls = await self.functions.give(request, thread.results, field, home) if thread.results else []
        if spec.ready:
            run_id = await self.functions.continued(calls[0])
        try:
            if run_id is None:
                run = await self._start(spec)
                conversation_id, run_id = run.lease.conversation_id, run.lease.run_id
        except KeyTaken as taken:
            conversation_id, run_id = taken.answer.conversation_id or "", taken.answer.subject
        except ConversationBusy:
            # A ready step is begun by whoever comes first.
            run_id = await self.functions.continued(calls[0]) if spec.ready else None
            if run_id is None:
                raise
        keyed = run is None and not spec.ready
        events = await self._runs.event_batches(conversation_id, run_id, after=0, run=run, keyed=keyed)
        more = {"metadata": body.metadata, "warnings": body.warnings}
        typed = body.output_schema is not None
        answer = Answer(f"chatcmpl-{run_id}", body.model, self.marker, typed, more=more)
        return Turn(body, thread, answer, conversation_id, run_id, events, run)

    async def _start(self, spec: RunSpec) -> ActiveRun:
        try:
            return await self._runs.start(spec)
        except ApprovalPending as pending:
            # A message in place of results means that there will be none.
            if not await self.functions.all_called(pending.approval_ids):
                raise
            return await self._runs.start(dataclasses.replace(spec, deny_pending=True))
        except Duplicate:
            # Another request has just made the conversation of this name.
            made = dataclasses.replace(
                spec, conversation_id=spec.new_conversation_id, new_conversation_id=None, preface=""
            )
            return await self._runs.start(made)

    async def _whole(self, turn: Turn) -> JSON[CompletionShape] | Response:
        answer = turn.answer
        async for event in one_by_one(turn.events):
            answer.take(event)
        reason = answer.finish_reason
        if reason is None:
            return openai_error(answer.failure, {**turn.headers, **NO_RETRY})
        await self.threads.remember(turn.thread, turn.conversation_id, answer.message)
        return JSON(answer.completion(reason), headers=turn.headers)

    async def _pieces(self, turn: Turn) -> AsyncIterator[bytes]:
        answer = turn.answer
        async for piece in answer.stream(one_by_one(turn.events)):
            yield piece
        reason = answer.finish_reason
        if reason is None:
            yield as_event(error_body(answer.failure))
            return
        await self.threads.remember(turn.thread, turn.conversation_id, answer.message)
        if answer.refusal is not None:
            yield answer.chunk({"refusal": answer.refusal})
        yield answer.chunk({}, reason)
        options = turn.body.stream_options
        if options is not None and options.include_usage:
            yield answer.usage_chunk()
        yield DONE

    def _offered(self, request: Request) -> tuple[str, ...]:
        allowed = caller_of(request).principal.terms.models
        if allowed is None:
            return self._models
        return (ASSISTANT, *(name for name in allowed if self._any_id or name in self._models))

    def known(self, request: Request, name: str) -> str:
        models = self._offered(request)
        if name not in models:
            known = ", ".join(models)
            raise NotFound(f"There is no model {name[:100]}; there are: {known}", code="model_not_found")
        return name

    def _view(self, name: str) -> ModelShape:
        return {"id": name, "object": "model", "created": self._created, "owned_by": ASSISTANT}
