"""Scheduled tasks as runs: claim a slot, run it, write its real outcome."""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack
from typing import Final

import anyio
from anyio.abc import TaskGroup

from host.agent.endings import Overtaken
from host.runs.events import EVENTS_EVERY_S
from host.runs.meter import Ledger
from host.runs.run import ActiveRun
from host.runs.scheduler import Heartbeat
from host.runs.service import RunService
from host.runs.spec import BegunShape, ChatShape, ExecutedShape, RunSpec, outbound_view
from shared.clock import now_ms
from shared.errors import Conflict, ConversationBusy, KeyTaken, LeaseLost, NotFound, PicoError, Unavailable
from shared.jsons import loads
from shared.logging import Rounds
from shared.principals import EVERYTHING, HOST, OPERATOR, Reach
from shared.shapes import task_view
from shared.store.contract import acting
from shared.store.sql.task_rows import ALL_QUIET
from shared.store.sql.tasks import FOREIGN
from shared.store.store import Store
from shared.task_values import Task, TaskRun, TaskRunState
from shared.untrusted import escaped
from shared.values import Idempotency, KeyedAnswer

logger = logging.getLogger("picoclaw.tasks")

SENDER: Final = "scheduler"
FAILED: Final = "The task run failed inside the host."

NOTICE: Final = (
    "The scheduler begins a run of the scheduled task {} with the message above; no person waits for it. "
    "Do now what the message asks for. It is scheduled already, so don't schedule it again."
)
DELIVERED: Final = (
    "Your final answer goes to the people of the conversation. If there is nothing that they should hear, "
    f"answer {ALL_QUIET} and nothing else."
)
NOT_DELIVERED: Final = "Your final answer goes to nobody; use send_message for what people should hear."

LOOKED_AT: Final = 100
"""How many of a task's newest runs are looked at for one that was triggered before."""

BUSY_TRIES: Final = 8
"""How many due tasks a check passes over because their conversation became busy a moment ago."""

WAITS: Final = frozenset({"approval", "question"})
"""Codes of a pause after which the slot takes the outcome of the run that goes on last."""

_STATES: Final = {
    "success": TaskRunState.SUCCESS,
    "timeout": TaskRunState.TIMEOUT,
    "paused": TaskRunState.PAUSED,
}


class TaskRunner:
    """Owns the task runs of this host: they go on when the caller who started them goes away."""

    def __init__(self, ledger: Ledger, runs: RunService, heartbeat: Heartbeat) -> None:
        self._ledger = ledger
        self._store = ledger.store
        self._runs = runs
        self._heartbeat = heartbeat
        self._owner, self._claim_ms = runs.limits.owner, runs.limits.lease_ms
        self._stack = AsyncExitStack()
        self._tasks: TaskGroup

    async def __aenter__(self) -> TaskRunner:
        self._tasks = await self._stack.enter_async_context(anyio.create_task_group())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def trigger(
        self, task_id: str, idempotency: Idempotency | None = None, reach: Reach = EVERYTHING
    ) -> ExecutedShape:
        """Run the task now, whatever its schedule says. Raises NotFound, ConversationBusy, and as runs do."""
        begun = await self._trigger(task_id, idempotency, reach)
        if isinstance(begun, KeyedAnswer):
            return await self._joined(task_id, reach, begun)
        return await begun.wait()

    async def trigger_in_background(
        self, task_id: str, idempotency: Idempotency | None, reach: Reach
    ) -> BegunShape:
        """Let the task run now and return once that is durable; raises as ``trigger``."""
        begun = await self._trigger(task_id, idempotency, reach, background=True)
        if isinstance(begun, KeyedAnswer):
            return await self._runs.background.begun_before(begun)
        return await self._runs.background.begun(begun.run)

    async def _trigger(
        self, task_id: str, idempotency: Idempotency | None, reach: Reach, *, background: bool = False
    ) -> _Service | KeyedAnswer:
        while True:
            try:
                claimed = await self._store.tasks.claim_manual(
                    task_id, reach, host=self._owner, now=now_ms(), lease_ms=self._claim_ms
                )
                return await self._start(*claimed, idempotency, background=background)
            except KeyTaken as taken:
                return taken.answer
            except Conflict:
                if idempotency is None:
                    raise
                # The same request once more, while the first one's run goes on, or is about to begin.
                begins = await self._store.tasks.is_beginning(task_id, reach)
                kept = await self._store.runs.keyed(idempotency, now_ms())
                if kept is not None:
                    return kept
                if not begins:
                    raise
            except LeaseLost:
                NotFound.unless(await self._store.tasks.get(task_id, reach), FOREIGN)
                said = "The host was held up before the run began: try again"
                raise Unavailable(said, retry_after=1) from None
            await anyio.sleep(EVENTS_EVERY_S)

    async def begin_again(self) -> None:
        """Begin slots again that were triggered in the background on hosts that are gone."""
        try:
            while claimed := await self._store.tasks.claim_left(
                host=self._owner, now=now_ms(), lease_ms=self._claim_ms
            ):
                await self._start(*claimed, background=True)
        except (Unavailable, ConversationBusy, LeaseLost):
            return  # the next round tries again

    async def _joined(self, task_id: str, reach: Reach, kept: KeyedAnswer) -> ExecutedShape:
        """Return the view of a run that was triggered with the same key before."""
        answer = await self._runs.joined(kept)
        said = await self._store.outbound.said_by(answer["conversation_id"], after=0)
        page = await self._store.tasks.runs(task_id, reach, limit=LOOKED_AT, cursor=None)
        for run in page.items if page else ():
            if run.run_id == answer["run_id"] and run.finished_at is not None:
                told = [each for each in said if run.started_at <= each.created_at <= run.finished_at]
                answer["outbound_messages"] = [outbound_view(each, self._ledger.redactor) for each in told]
        return await _view(self._store, task_id, answer)

    async def run_due(self, most: int = 1) -> list[ExecutedShape]:
        """Run up to ``most`` due tasks side by side and return their views, earliest slot first."""
        services: list[_Service] = []
        while len(services) < most:
            service = await self._start_next()
            if service is None:
                break
            services.append(service)
        return [await service.wait() for service in services]

    async def _start_next(self) -> _Service | None:
        for _ in range(BUSY_TRIES):
            claimed = await self._store.tasks.claim_due(
                host=self._owner, now=now_ms(), lease_ms=self._claim_ms, but=self._runs.full
            )
            if claimed is None:
                return None
            try:
                return await self._start(*claimed)
            except (ConversationBusy, LeaseLost):
                continue
        return None

    async def _start(
        self, task: Task, claim: TaskRun, idempotency: Idempotency | None = None, *, background: bool = False
    ) -> _Service:
        group = task.context_mode == "group"
        prompt = await self._heartbeat.prompt(task)
        home = await self._store.conversations.get(task.conversation_id)
        spec = RunSpec(
            message=prompt,
            answer=self._heartbeat.answer(task, prompt),
            conversation_id=task.conversation_id if group else None,
            sender=SENDER,
            sender_name=SENDER,
            temporary=not group,
            parent_id=None if group else task.conversation_id,
            idempotency=idempotency,
            claim=claim,
            output_schema=None if task.output_schema is None else loads(task.output_schema),
            notice=_notice(task),
            live=background,
            background=background,
            principal_id=OPERATOR if home is None else home.principal_id,
        )
        try:
            run = await self._runs.start(spec)
        except BaseException:
            # Nothing ran, so the slot is due again as if nobody had claimed it.
            with anyio.CancelScope(shield=True):
                await self._store.tasks.release(claim)
            raise
        service = _Service(self._ledger, task, claim, run, claim_ms=self._claim_ms)
        self._tasks.start_soon(service.execute)
        return service


class _Service:
    """One claimed slot and the run that serves it."""

    def __init__(self, ledger: Ledger, task: Task, claim: TaskRun, run: ActiveRun, *, claim_ms: int) -> None:
        self._ledger = ledger
        self._store = ledger.store
        self._claim_ms = claim_ms
        self._task = task
        self._claim = claim
        self.run = run
        self._ended = anyio.Event()
        self._outcome: ExecutedShape | PicoError = PicoError(FAILED)

    async def wait(self) -> ExecutedShape:
        """Return the view of the ended run; raises what kept it from being stored."""
        await self._ended.wait()
        if isinstance(self._outcome, PicoError):
            raise self._outcome
        return self._outcome

    async def execute(self) -> None:
        """Follow the run to its end and write the outcome; the token that asked for it may end before."""
        acting.set(HOST)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._keep_claim)
                await self._follow()
                tasks.cancel_scope.cancel()
        except Exception:
            logger.exception("A task run failed inside the host", extra={"task_id": self._task.id})
            self._outcome = PicoError(FAILED)
        finally:
            self._ended.set()

    async def _follow(self) -> None:
        try:
            answer = await self.run.wait()
            await self._finish(answer)
        except LeaseLost:
            if await self._store.tasks.get(self._task.id, EVERYTHING) is None:
                self._outcome = Conflict("The task was deleted while it ran.", code="cancelled")
            else:
                self._outcome = PicoError("The task run was taken over.", code="lease_lost")
        except PicoError as error:
            self._outcome = error

    async def _finish(self, answer: ChatShape) -> None:
        with anyio.CancelScope(shield=True):
            told = await self._store.tasks.finish(
                self._claim,
                state=_state(answer),
                result=answer["result"],
                output=answer["result"] if "output" in answer else None,
                error=answer.get("error"),
                now=now_ms(),
                waits=answer.get("code") in WAITS,
            )
            self._ledger.counts.task_runs[answer["status"]] += 1
            said = [outbound_view(message, self._ledger.redactor) for message in told]
            outbound = [*answer["outbound_messages"], *said]
            self._outcome = await _view(self._store, self._task.id, {**answer, "outbound_messages": outbound})

    async def _keep_claim(self) -> None:
        rounds = Rounds(logger, f"The claim of task {self._task.id} could not be renewed")
        while True:
            await anyio.sleep(self._claim_ms / 3000)
            with rounds:
                try:
                    await self._store.tasks.renew_claim(self._claim, self._claim_ms)
                except LeaseLost:
                    self.run.stop(Overtaken())
                    return


def _notice(task: Task) -> str:
    """Return what the agent is told of a task's run: the words alone may sound like a wish to schedule."""
    heard = DELIVERED if task.deliver == "answer" else NOT_DELIVERED
    return f"{NOTICE.format(escaped(task.id))} {heard}"


def _state(answer: ChatShape) -> TaskRunState:
    if answer.get("code") == "cancelled":
        return TaskRunState.CANCELLED
    return _STATES.get(answer["status"], TaskRunState.ERROR)


async def _view(store: Store, task_id: str, answer: ChatShape) -> ExecutedShape:
    task = await store.tasks.get(task_id, EVERYTHING)
    view: ExecutedShape = {
        "status": answer["status"],
        "task_id": task_id,
        "run_id": answer["run_id"],
        "conversation_id": answer["conversation_id"],
        "result": answer.get("result", ""),
        "duration_ms": answer.get("duration_ms", 0),
        "next_run": task_view(task)["next_run"] if task else None,
        "outbound_messages": answer.get("outbound_messages", []),
    }
    if "output" in answer:
        view["output"] = answer["output"]
    if "error" in answer:
        view["error"] = answer["error"]
    return view
