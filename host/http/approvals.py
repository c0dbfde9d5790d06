"""Calls that wait: for a person's word, asked for and answered; for the program whose tools they are.

An MCP client asks its person by elicitation (the Model Context Protocol 2026-07-28, client/elicitation, "Form
Mode").
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal, cast, get_args

from pydantic import BeforeValidator, Field, StringConstraints
from starlette.requests import Request

from host.http.bodies import WHOLE, Body, Text, idempotency, storable
from host.http.callers import Caller, caller_of
from host.http.conversations import asked_for, conversation_of
from host.http.routing import KEY, OF_CONVERSATION, OF_PRINCIPAL, PAGE, Api, Parameter, operation, page_of
from host.mcp_clients.json_rpc import cut
from host.runs.service import RunService
from host.runs.spec import RequestShape
from host.schemas import SchemaJudge
from host.telemetry import Metrics
from host.tools.without_sandbox import ClientTool
from shared import jsons
from shared.approval_values import Answer, Approval, ApprovalStatus, Decision, Kind, Ready
from shared.clock import now_ms
from shared.errors import Forbidden, InvalidInput, KeyTaken, NotFound
from shared.shapes import PageShape, Shape, view
from shared.store.contract import acting
from shared.store.store import Store

MOST_TOOLS: Final = 64
LARGEST_TOOLS: Final = 256 * 1024
"""Bytes of all definitions, as JSON."""
NO_INPUT: Final[dict[str, Any]] = {"type": "object", "properties": {}}

ToolName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class ToolDefinition(Body):
    """A tool that the caller carries out itself."""

    name: ToolName
    description: Text = ""
    input_schema: Annotated[dict[str, Any], Field(json_schema_extra={"format": "json-schema"})]

    def tool(self) -> ClientTool:
        """Return the tool."""
        return ClientTool(self.name, self.description, self.input_schema)


async def checked_tools(
    tools: Sequence[ClientTool], judge: SchemaJudge, schema_at: str = "input_schema"
) -> tuple[ClientTool, ...]:
    """Return the tools as the model can be told of them; raises InvalidInput naming the field.

    ``schema_at``: where a definition has its schema.
    """
    if len(tools) > MOST_TOOLS:
        raise InvalidInput(f"tools: must be at most {MOST_TOOLS}")
    twice = [name for name, times in Counter(tool.name for tool in tools).items() if times > 1]
    if twice:
        raise InvalidInput(f"tools: two have the name {twice[0]}")
    made = [ClientTool(tool.name, tool.description, {**NO_INPUT, **tool.input_schema}) for tool in tools]
    for number, tool in enumerate(made):
        fault = (await judge.schema(tool.input_schema, input_only=True)).schema_fault
        if fault is None and tool.input_schema["type"] != "object":
            fault = 'type: must be "object"'
        if fault is not None:
            raise InvalidInput(f"tools.{number}.{schema_at}: {fault}")
    if sum(len(jsons.dump_bytes([tool.description, tool.input_schema])) for tool in made) > LARGEST_TOOLS:
        raise InvalidInput(f"tools: must have at most {LARGEST_TOOLS} bytes together")
    return tuple(made)


def result_text(output: Any) -> str:
    """Return what a program says of a call as a text for the model, cut to a length; raises InvalidInput."""
    if not jsons.fits(output):
        raise InvalidInput("output: is nested too deep, or has a number too large")
    return cut(output if isinstance(output, str) else jsons.dumps(output))


LONGEST_ANSWER: Final = 64 * 1024


class ApprovalShape(RequestShape):
    """A request; ``run_id`` asked, ``next_run_id`` went on."""

    status: ApprovalStatus
    conversation_id: str
    run_id: str
    next_run_id: str | None
    created_at: str
    decided_at: str | None
    decided_by: dict[str, Any] | None
    message: str | None


class ApprovalsShape(PageShape):
    """A page of requests."""

    approvals: list[ApprovalShape]


class DecidedShape(Shape):
    """A request that was answered; ``run_id`` of the run that goes on, once it has begun."""

    id: str
    status: ApprovalStatus
    decided_by: dict[str, Any]
    run_id: str | None


class RememberedShape(Shape):
    """Calls that a conversation isn't asked about any more."""

    conversation_id: str
    remembered: list[ApprovalShape]


class AnswerRequest(Body):
    """POST /approvals/{id}."""

    decision: Decision
    input_sha256: Annotated[Text | None, Field(max_length=64)] = None
    message: Annotated[Text | None, Field(max_length=LONGEST_ANSWER)] = None
    remember: Literal["conversation"] | None = None
    allow_tokens: Annotated[int, Field(gt=0, le=2**53), WHOLE] | None = None
    output: Annotated[Any, BeforeValidator(storable)] = None
    is_error: bool = False

    def answer(self, by: dict[str, Any]) -> Answer:
        """Return the answer; raises InvalidInput where its parts don't fit each other."""
        if self.decision == "answer" and not (self.message or "").strip():
            raise InvalidInput("message: is required for an answer")
        said = self.model_fields_set
        if self.decision == "result" and ("output" not in said or "message" in said):
            raise InvalidInput("output: is required for a result, in place of message")
        if self.decision != "result" and not said.isdisjoint({"output", "is_error"}):
            raise InvalidInput("output, is_error: are for a result")
        if self.remember and self.decision != "allow":
            raise InvalidInput("remember: is for allowing a call")
        remember, message = self.remember is not None, self.message
        if self.decision == "result":
            message = result_text(self.output)
        return Answer(
            self.decision,
            by,
            message,
            self.input_sha256,
            remember=remember,
            allow_tokens=self.allow_tokens,
            is_error=self.is_error,
        )


OF_STATUS: Final = Parameter("status", "Only those in this status", tuple(ApprovalStatus))
OF_KIND: Final = Parameter("kind", "Only those of this kind", get_args(Kind))
OF_RUN: Final = Parameter("run_id", "Only those that this run asked")
SINCE: Final = Parameter("since", "Only those asked from then on", "instant")
OF: Final = (OF_STATUS, OF_KIND, OF_CONVERSATION, OF_RUN, OF_PRINCIPAL, SINCE)


class ApprovalsApi(Api):
    """What waits for people's word."""

    def __init__(self, store: Store, runs: RunService, counts: Metrics) -> None:
        self._counts = counts
        self._store = store
        self._runs = runs

    @operation("GET", "/approvals", scope="chat|approve", parameters=(*PAGE, *OF))
    async def list(self, request: Request) -> ApprovalsShape:
        """List requests: those that wait oldest first, all others newest first."""
        wanted = {each.name: each.text(request) for each in (OF_STATUS, OF_KIND, OF_RUN)}
        wanted["conversation_id"] = await asked_for(request, self._store)
        whose = caller_of(request).listed(request)
        page = await self._store.approvals.page(
            wanted, whose, since=SINCE.instant(request) or 0, **page_of(request)
        )
        return {"approvals": list(map(approval_view, page.items)), "next_cursor": page.next_cursor}

    @operation("GET", "/approvals/{id}", scope="chat|approve")
    async def get(self, request: Request) -> ApprovalShape:
        """One request."""
        approval_id = request.path_params["id"]
        approval = await self._store.approvals.get(approval_id, caller_of(request).within)
        return approval_view(NotFound.unless(approval, f"approval not found: {approval_id}"))

    @operation("POST", "/approvals/{id}", scope="chat|approve", parameters=[KEY], errors=(409, 410))
    async def answer(self, request: Request, body: AnswerRequest) -> DecidedShape:
        """Allow or deny a call, answer a question, or give a program's result; the first answer counts."""
        scope = "chat" if body.decision == "result" else "approve"
        caller = caller_of(request)
        caller.allow(f"The decision {body.decision}", [scope])
        key, now = await idempotency(request), now_ms()
        answer = body.answer(answered_by(caller))
        if answer.allow_tokens is not None and caller.token_id is not None:
            raise Forbidden("allow_tokens: a budget of the operator is lifted with API_TOKEN alone.")
        approval_id = request.path_params["id"]
        try:
            decided = await self._store.approvals.decide(approval_id, caller.within, answer, now, key)
            self._counts.approvals_decided[decided.kind, answer.decision] += 1
        except KeyTaken as taken:
            if taken.answer.body is not None:
                return cast(DecidedShape, taken.answer.body)
            # The first attempt is still being answered, or was cut off after it counted.
            found = await self._store.approvals.get(approval_id, caller.within)
            decided = NotFound.unless(found, f"approval not found: {approval_id}")
        await self._store.durable()
        told: DecidedShape = {
            "id": decided.id,
            "status": decided.status,
            "decided_by": dict(decided.decided_by or {}),
            "run_id": await self._begun(decided),
        }
        if key is not None:
            await self._store.runs.keep_answer(key, decided.id, 200, dict(told), now)
        return told

    async def _begun(self, decided: Approval) -> str | None:
        """Return the run that goes on now, if the answer was the last one and it can begin; any host may be
        the first to begin it.
        """
        conversation = await self._store.conversations.get(decided.conversation_id)
        if conversation is None:
            return None
        step = Ready(conversation.id, conversation.parent_id, conversation.principal_id)
        begun = await self._runs.go_on(step)
        newest = await self._store.approvals.get(decided.id, None) if begun is None else None
        return begun if newest is None else newest.next_run_id

    @operation("GET", "/chat/{id}/remembered", scope="chat")
    async def remembered(self, request: Request) -> RememberedShape:
        """The calls that this conversation isn't asked about any more."""
        conversation = await conversation_of(request, self._store)
        found = await self._store.approvals.remembered(conversation.id)
        return {"conversation_id": conversation.id, "remembered": list(map(approval_view, found))}

    @operation("DELETE", "/chat/{id}/remembered", scope="approve")
    async def forget(self, request: Request) -> None:
        """Ask about all calls again."""
        conversation = await conversation_of(request, self._store)
        await self._store.approvals.forget(conversation.id)
        await self._store.durable()


def approval_view(approval: Approval) -> ApprovalShape:
    """Return a request as it leaves the host."""
    return view(ApprovalShape, approval, subagent=approval.subagent or None)


def answered_by(caller: Caller) -> dict[str, Any]:
    """Return what is kept of who answers."""
    who = {"principal_id": caller.principal.id, "token_id": caller.token_id, "name": caller.principal.name}
    return {**who, "door": acting.get().door, "address": acting.get().address}


Form = dict[str, Any]

MAY_I: Final = "May the agent do this?{}\n\n{}"
DECISION: Final[Form] = {"type": "string", "title": "Decision", "enum": ["allow", "deny"]}
WHY: Final[Form] = {"type": "string", "title": "What the agent is told if you deny it"}


def input_requests(waiting: list[Approval]) -> Form:
    """Return what waits as elicitations, by the requests' ids."""
    return {each.id: {"method": "elicitation/create", "params": _elicitation(each)} for each in waiting}


def _elicitation(request: Approval) -> Form:
    if request.kind == "approval":
        whose = f" (subagent {request.subagent})" if request.subagent else ""
        return _form(MAY_I.format(whose, request.asked), {"decision": DECISION, "message": WHY})
    answer: Form = {"type": "string", "title": "Answer"}
    if options := request.input.get("options"):
        answer["enum"] = list(dict.fromkeys(options))
    return _form(str(request.input.get("question")), {"answer": answer})


def _form(message: str, fields: Form) -> Form:
    """Return a form whose first field has to be filled in."""
    schema = {"type": "object", "properties": fields, "required": [next(iter(fields))]}
    return {"mode": "form", "message": message, "requestedSchema": schema}


def answer_of(request: Approval, response: Mapping[str, Any], by: Mapping[str, Any]) -> Answer | None:
    """Return what a response to an elicitation says to the request, None if nothing: who cancels the form
    chooses nothing.
    """
    if response.get("action") == "decline":
        return Answer("deny", by)
    content = response.get("content")
    if response.get("action") != "accept" or not isinstance(content, Mapping):
        return None
    said = content.get("answer" if request.kind == "question" else "decision")
    if request.kind == "question":
        return Answer("answer", by, said, request.input_sha256) if _is_text(said) else None
    if said == "deny":
        why = content.get("message")
        return Answer("deny", by, why if _is_text(why) else None)
    return Answer("allow", by, None, request.input_sha256) if said == "allow" else None


def _is_text(said: Any) -> bool:
    return isinstance(said, str) and bool(said.strip()) and "\x00" not in said and len(said) <= LONGEST_ANSWER
