"""Other agents ask this one: the tools ask, get_run and cancel_run, and a long answer as an MCP task.

Sources: the Tasks extension io.modelcontextprotocol/tasks (SEP-2663); multi round-trip requests of the
protocol's version 2026-07-28, by which the agent asks back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import anyio

from host.agent.endings import Cancelled
from host.http.approvals import answer_of, answered_by, input_requests
from host.http.callers import Caller
from host.http.mcp import wire
from host.mcp_clients.json_rpc import RequestRefused
from host.runs.leases import Meanwhile
from host.runs.run import ActiveRun
from host.runs.service import RunService
from host.runs.spec import RunSpec
from host.telemetry import Metrics
from shared import jsons
from shared.approval_values import Approval, Ready
from shared.ask_contract import DEPTH, TASKS, Ask, RunId, ask_declarations
from shared.clock import DAY_MS, iso, now_ms
from shared.errors import AlreadyDecided, Conflict, Expired, InvalidInput, NotFound, NotRunning, PicoError
from shared.principals import said_name
from shared.store.store import Store
from shared.values import Conversation, Run, RunState

Result = dict[str, Any]
Tell = Callable[[Result], None]
"""Takes how far a run is."""

PATIENCE_S: Final = 20.0
"""How long an answer is waited for before it becomes a task."""
TELL_EVERY_S: Final = 1.0
POLL_MS: Final = 2000
DEEPEST: Final = 4
"""So deep in a chain of agents that ask each other, an ask is refused."""
TOO_DEEP: Final = (
    f"Agents have asked each other {DEEPEST} deep; here that ends. Do it yourself, or say why not."
)
SENDER: Final = "another agent"
DOOR: Final = "mcp"
CAPABILITIES: Final = "io.modelcontextprotocol/clientCapabilities"
NO_RUN: Final = "Run not found or access denied."
NO_CONVERSATION: Final = "Conversation not found or access denied."
LEFT: Final = "Who asked has cancelled the request; the finished steps are kept."
FAILED: Final = (RunState.ERROR, RunState.TIMEOUT, RunState.CANCELLED)
TOLD: Final = ("result", "output", "error", "code", "requests")
"""What is told of a run's answer."""


@dataclass(frozen=True, slots=True)
class _Client:
    """What a request says of the program that sends it. ``approves``: people allow calls through it.

    ``tell``: it wants to hear how far its run is.
    """

    tasks: bool
    elicitation: bool
    depth: int
    approves: bool
    tell: Tell | None

    @classmethod
    def of(cls, params: Mapping[str, Any], tell: Tell | None, *, approves: bool) -> _Client:
        meta = _object(params.get("_meta"))
        able, depth = _object(meta.get(CAPABILITIES)), meta.get(DEPTH)
        tasks = TASKS in _object(able.get("extensions"))
        depth = int(min(depth, DEEPEST)) if isinstance(depth, int | float) else 1
        # Who says how deep it is works for an agent: its questions may reach people who may not allow calls.
        tell = tell if "progressToken" in meta else None
        return cls(tasks, "elicitation" in able, depth, approves and DEPTH not in meta, tell)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of requests that its person may see and answer."""
        if not self.elicitation:
            return ()
        return ("question", "approval") if self.approves else ("question",)


class Asks:
    """Serves callers, whose token says who they are: each reaches what its conversation may."""

    def __init__(self, store: Store, runs: RunService, counts: Metrics, *, approvals: bool) -> None:
        self._store = store
        self._approvals = approvals
        self._runs = runs
        self._counts = counts

    async def serve(
        self, caller: Caller, method: str, params: Mapping[str, Any], tell: Tell | None = None
    ) -> Result:
        """Return the result of a call of one of the tools, or of a method of tasks; raises RequestRefused."""
        # With API_TOKEN clients come that no person watches, unless the operator says otherwise.
        approves = caller.may("approve") and (caller.token_id is not None or self._approvals)
        client = _Client.of(params, tell, approves=approves)
        if method == "tools/call":
            return await self._call(caller, client, params)
        if not client.tasks:
            needed: Result = {"requiredCapabilities": {"extensions": {TASKS: {}}}}
            raise _refusal(wire.MISSING_CAPABILITY, "Missing required client capability", needed)
        try:
            run = await self._find(caller, params.get("taskId"))
            now = await self._newest(run)
            if method == "tasks/get":
                return await self._task(caller, client, run, now)
            if method == "tasks/cancel":
                await self._cancel(now)
            else:
                await self._answer(caller, client, now, params.get("inputResponses"))
        except PicoError as error:
            code = wire.INVALID_PARAMS if isinstance(error, NotFound) else wire.INTERNAL_ERROR
            raise _refusal(code, error.message) from None
        return {}

    async def _call(self, caller: Caller, client: _Client, params: Mapping[str, Any]) -> Result:
        try:
            checked = ask_declarations()[params["name"]].parse(_object(params.get("arguments")))
            if isinstance(checked, Ask):
                return await self._ask(caller, client, checked, params)
            assert isinstance(checked, RunId)  # noqa: S101 - the other two tools have the same arguments
            run = await self._newest(await self._find(caller, checked.run_id))
            if params["name"] == "get_run":
                return _result(await self._view(caller, run))
            if not await self._cancel(run):
                raise Conflict(f"The run has ended already: {run.state.value}.")
            return _result({**await self._view(caller, run), "status": "cancelling"})
        except PicoError as error:
            self._counts.asks["refused"] += params["name"] == "ask"
            return {"content": [{"type": "text", "text": error.message}], "isError": True}

    async def _ask(self, caller: Caller, client: _Client, asked: Ask, params: Mapping[str, Any]) -> Result:
        """Begin a run, or with ``requestState`` go on with one; return what came of it in good time."""
        if (state := params.get("requestState")) is not None:
            waiting = await self._newest(await self._find(caller, state))
            run = await self._answer(caller, client, waiting, params.get("inputResponses"))
        else:
            run = await self._begin(caller, client, asked)
        view = await self._view(caller, run)
        self._counts.asks[view["status"]] += 1
        said = _object(params.get("inputResponses"))
        dismissed = {key for key, each in said.items() if _object(each).get("action") == "cancel"}
        # Whose form was closed isn't asked again at once: the result says where people answer.
        questions = [each for each in await self._questions(client, run) if each.id not in dismissed]
        if client.tasks and (questions or view["status"] == "running"):
            return {"resultType": "task", **_task(run, run, "working")}
        if questions:
            wanted = input_requests(questions)
            return {"resultType": "input_required", "inputRequests": wanted, "requestState": run.root_run_id}
        return _result(view)

    async def _begin(self, caller: Caller, client: _Client, asked: Ask) -> Run:
        if not asked.message.strip():
            raise InvalidInput("message: must not be blank")
        if "\0" in asked.message:
            raise InvalidInput("message: must not contain the character U+0000")
        # What another program passes on may be too little; who acts for a conversation is as deep as its run.
        depth = max(client.depth, 1, self._runs.depth_in(caller.conversation_id) + 1)
        if depth >= DEEPEST:
            raise Conflict(TOO_DEEP)
        conversation = None
        if asked.conversation_id:
            conversation = await self._conversation(caller, asked.conversation_id)
        spec = RunSpec(
            asked.message,
            conversation.id if conversation else None,
            parent_id=conversation.parent_id if conversation else None,
            door=DOOR,
            sender=SENDER,
            sender_name=SENDER,
            max_execution_ms=asked.max_execution_ms or None,
            output_schema=asked.output_schema,
            live=True,
            background=True,
            principal_id=caller.principal.id,
            depth=depth,
            begun_by=None if caller.is_main else caller.conversation_id,
        )
        active = await self._runs.start(spec)
        await self._wait(active, caller, client.tell)
        return await self._find(caller, active.lease.run_id)

    async def _wait(self, active: ActiveRun, caller: Caller, tell: Tell | None) -> None:
        """Return once the run has ended, or in a while once its begin is durable."""
        try:
            with anyio.move_on_after(PATIENCE_S):
                if tell is not None:
                    await self._accompany(active, self._telling(caller, tell))
                await active.wait()
                return
        except anyio.get_cancelled_exc_class():
            if not self._runs.draining:
                active.stop(Cancelled(LEFT))
            raise
        await self._runs.background.begun(active)

    async def _accompany(self, active: ActiveRun, telling: Meanwhile) -> None:
        """Tell how far a run is until it ends."""
        while not active.ended.is_set():
            with anyio.move_on_after(TELL_EVERY_S):
                await active.ended.wait()
            if (run := await self._store.runs.find(active.lease.run_id, None)) is not None:
                await telling(run)

    def _telling(self, caller: Caller, tell: Tell) -> Meanwhile:
        """Return what tells how far a run is, each time that it has done more."""
        told = 0

        async def telling(run: Run) -> None:
            nonlocal told
            view = await self._view(caller, run)
            if view.get("steps", 0) > told:
                told = view["steps"]
                tell({"progress": told, "message": _so_far(view)})

        return telling

    async def _conversation(self, caller: Caller, said: str) -> Conversation:
        found = await self._store.conversations.reach(caller.principal.id, said)
        if found is None or not _reaches(caller, found):
            raise NotFound(NO_CONVERSATION)
        return found

    async def _find(self, caller: Caller, run_id: object) -> Run:
        run = await self._store.runs.find(run_id, caller.principal.id) if isinstance(run_id, str) else None
        home = await self._store.conversations.get(run.conversation_id) if run else None
        if run is None or home is None or not _reaches(caller, home):
            raise NotFound(NO_RUN)
        return run

    async def _newest(self, run: Run) -> Run:
        return await self._runs.waiters.wait(run, 0, chain=True, principal_id=run.principal_id)

    async def _cancel(self, run: Run) -> bool:
        """Stop a run; False if it has ended."""
        with suppress(NotRunning):
            await self._runs.cancel(run.conversation_id, run.id)
            return True
        return False

    async def _questions(self, client: _Client, run: Run) -> list[Approval]:
        """Return what the run asks, the client's person may answer, and nobody has answered."""
        if run.state is not RunState.PAUSED or not client.kinds:
            return []
        wanted: dict[str, str | None] = {"run_id": run.id, "status": "pending"}
        found = await self._store.approvals.page(wanted, None, limit=100, cursor=None)
        return [each for each in found.items if each.kind in client.kinds]

    async def _answer(self, caller: Caller, client: _Client, run: Run, responses: Any) -> Run:
        """Hand answers to the run's questions on; return the run that goes on, as it is in a while.

        What nobody asked, or somebody answered before, means nothing.
        """
        by = {**answered_by(caller), "door": DOOR}
        for question in await self._questions(client, run):
            answer = answer_of(question, _object(_object(responses).get(question.id)), by)
            if answer is None:
                continue
            with suppress(AlreadyDecided, Expired):
                await self._store.approvals.decide(question.id, caller.principal.id, answer, now_ms())
                self._counts.approvals_decided[question.kind, answer.decision] += 1
        await self._store.durable()
        home = await self._store.conversations.get(run.conversation_id)
        if home is not None:
            await self._runs.go_on(Ready(home.id, home.parent_id, home.principal_id))
        newest, wait = await self._newest(run), self._runs.waiters.wait
        telling = None if client.tell is None else self._telling(caller, client.tell)
        wait_ms = round(PATIENCE_S * 1000)
        whose = run.principal_id
        return await wait(newest, wait_ms, chain=False, principal_id=whose, meanwhile=telling)

    async def _view(self, caller: Caller, run: Run) -> Result:
        """Return a run as the tools show it."""
        view: Result = {
            "status": "running" if run.waits else run.state.value,
            "run_id": run.root_run_id,
            "conversation_id": said_name(caller.principal.id, run.conversation_id),
        }
        if view["status"] == "running":
            steps, last_tool = await self._store.runs.progress(run)
            return {**view, "steps": steps, "last_tool": last_tool}
        return view | {key: run.answer[key] for key in TOLD if run.answer and key in run.answer}

    async def _task(self, caller: Caller, client: _Client, first: Run, run: Run) -> Result:
        """Return the task that ``first`` began, as its newest run stands."""
        if run.finished_at is not None and not _goes_on(run) and run.finished_at + DAY_MS < now_ms():
            raise NotFound(NO_RUN)
        view = await self._view(caller, run)
        if _goes_on(run):
            if questions := await self._questions(client, run):
                return _task(first, run, "input_required", inputRequests=input_requests(questions))
            return _task(first, run, "working", statusMessage=view.get("error") or _so_far(view))
        if run.state is RunState.CANCELLED:
            return _task(first, run, "cancelled", statusMessage=view.get("error", ""))
        return _task(first, run, "completed", result=_result(view))


def _so_far(view: Result) -> str:
    return f"{view.get('steps', 0)} steps done; last tool: {view.get('last_tool')}"


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _refusal(code: int, message: str, data: Any = None) -> RequestRefused:
    return RequestRefused({"code": code, "message": message, **({} if data is None else {"data": data})})


def _reaches(caller: Caller, conversation: Conversation) -> bool:
    """Return whether a conversation of the caller's principal is its own, or one that it began."""
    own = (conversation.id, conversation.owner_id, conversation.begun_by)
    return caller.is_main or caller.conversation_id in own


def _goes_on(run: Run) -> bool:
    """Return whether the run's chain goes on by itself, or as soon as somebody answers."""
    paused = run.state is RunState.PAUSED and (run.answer or {}).get("code") != "budget"
    return run.waits or paused or run.state is RunState.RUNNING


def _result(view: Result) -> Result:
    text = {"type": "text", "text": jsons.dumps(view)}
    return {"content": [text], "structuredContent": view, "isError": view["status"] in FAILED}


def _task(first: Run, run: Run, status: str, **more: Any) -> Result:
    """Return a task of the extension: its id is that of the first run, and it is kept a day after its end."""
    changed = run.finished_at or run.created_at
    return {
        "taskId": first.id,
        "status": status,
        "createdAt": iso(first.created_at),
        "lastUpdatedAt": iso(changed),
        "ttlMs": (run.finished_at or now_ms()) - first.created_at + DAY_MS,
        "pollIntervalMs": POLL_MS,
        **more,
    }
