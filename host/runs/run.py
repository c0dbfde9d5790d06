"""One run, from its lease to its stored answer."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Final, cast

import anyio

from host.agent.endings import Ending, OutputInvalid, Overtaken, Paused, TimedOut
from host.agent.toolbox import without_secrets
from host.runs.events import EventLog
from host.runs.meter import Ledger
from host.runs.recorder import RunRecorder
from host.runs.spec import ChatShape, Ended, RunLimits, RunSpec, UsageShape, outbound_view, request_view
from shared.clock import monotonic_ms, now_ms
from shared.errors import LeaseLost, PicoError
from shared.ids import MESSAGE, id_of_pause, new_id
from shared.principals import HOST, Principal
from shared.store.contract import acting, asking
from shared.values import Event, Lease, NewMessage, RunEnd, RunState

logger = logging.getLogger("picoclaw.runs")

NOT_KEPT: Final = "Without SEAL_KEY no credentials are kept over a pause, so calls of these MCP servers fail"
FAILED: Final = "The run failed inside the host."
FINISH_WITHIN_S: Final = 120.0
"""A run that ended has this long to be stored: a thousand that end at once take their time."""


Converse = Callable[[RunSpec, Lease, RunRecorder], Awaitable[None]]
"""Carries the conversation on until the model has finished. Raises Ending."""


class ActiveRun:
    """A run in flight. ``wait`` gives the answer once it is on the volume."""

    def __init__(
        self,
        ledger: Ledger,
        converse: Converse,
        spec: RunSpec,
        lease: Lease,
        limits: RunLimits,
        principal: Principal,
    ) -> None:
        self.spec = spec
        self.lease = lease
        self.log = EventLog()
        self._ledger = ledger
        self._store = ledger.store
        self._converse = converse
        self._limit_ms = min(spec.max_execution_ms or limits.max_execution_ms, limits.max_execution_ms)
        self._end_marker = limits.end_marker
        self._seal = limits.seal
        self._started = monotonic_ms()
        self._recorder = RunRecorder(ledger, lease, spec, self.log, principal)
        self._scope = anyio.CancelScope()
        self._reason: Ending | None = None
        self.ended = asyncio.Event()
        self._outcome: ChatShape | PicoError | None = None
        self._unacknowledged: Exception | None = None

    def stop(self, reason: Ending) -> None:
        """End the run soon, with this ending; the first reason counts."""
        if self._reason is None:
            self._reason = reason
            self._scope.cancel()

    async def wait(self) -> ChatShape:
        """Return the answer (the body of ``done``); raises what kept it from being stored."""
        await self.ended.wait()
        if isinstance(self._outcome, dict):
            return self._outcome
        raise self._outcome or PicoError(FAILED)

    async def acknowledged(self) -> None:
        """Return once the start of a ``live`` run is on the volume; raises what kept it from that."""
        while self.log.after(0) == [] and not self.log.closed:
            await self.log.wait()
        if isinstance(self._outcome, PicoError):
            raise self._outcome

    async def execute(self) -> None:
        """Run to the end. Nothing is raised: every ending is an answer or a fault that ``wait`` raises."""
        # The run is its principal's, whatever becomes of the token by which it was begun.
        acting.set(HOST)
        asking.set(self.spec.principal_id)
        # The start event acknowledges the message, so nobody sees it before that is on the volume; the model
        # is asked meanwhile.
        self.log.held = self.spec.live
        self.log.emit(
            "start",
            {
                "conversation_id": self.lease.conversation_id,
                "message_id": self.lease.message_id,
                "run_id": self.lease.run_id,
                "root_run_id": self.lease.chain.root_run_id,
                "session_end_marker": self._end_marker,
            },
        )
        if not self.spec.live:
            await self._execute()
            return
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._acknowledge)
            await self._execute()

    async def _acknowledge(self) -> None:
        try:
            await self._store.durable()
        except Exception as error:  # noqa: BLE001 - the run ends by it, and says or logs it then
            self._unacknowledged = error
            self._scope.cancel()
        else:
            self.log.release()

    async def _execute(self) -> None:
        try:
            ending = await self._work()
            if self._unacknowledged is not None:
                raise self._unacknowledged
            with anyio.move_on_after(FINISH_WITHIN_S, shield=True) as bound:
                await self._finish(ending)
            if bound.cancelled_caught:
                raise TimeoutError
        except LeaseLost:
            self._lose()
        except PicoError as error:
            self._fail(error)
        except Exception:
            logger.exception("A run failed inside the host", extra={"run_id": self.lease.run_id})
            self._fail(PicoError(FAILED))
        finally:
            self.log.close()
            self.ended.set()

    async def _work(self) -> Ending | None:
        self._scope.deadline = anyio.current_time() + self._limit_ms / 1000
        with self._scope:
            try:
                if self.spec.answer is None:
                    await self._converse(self.spec, self.lease, self._recorder)
                else:
                    shown = self._recorder.shown
                    self.log.emit_text(shown.feed(self.spec.answer) + shown.end_step())
            except Exception as error:  # noqa: BLE001 - what isn't known is logged
                return self._ending_of(error)
            return None
        if self._reason is None and self._unacknowledged is None:
            return TimedOut(f"The run was stopped after {self._limit_ms} ms; its finished steps are kept.")
        return self._reason

    def _ending_of(self, error: Exception) -> Ending:
        """Return the ending that an error is, also out of calls made side by side; raises LeaseLost."""
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        if isinstance(error, Ending):
            return error
        if isinstance(error, PicoError):
            return Ending(error.message, code=error.code)
        if isinstance(error, LeaseLost):
            raise error
        # It ends like any other run: without an end in the store it would seem to go on.
        logger.error("A run failed inside the host", extra={"run_id": self.lease.run_id}, exc_info=error)
        return Ending(FAILED)

    async def _finish(self, ending: Ending | None) -> None:
        recorder = self._recorder
        await recorder.meter.settle()
        if isinstance(ending, Paused):
            if unkept := self.spec.unkept(self._seal):
                recorder.warn(f"{NOT_KEPT}: {', '.join(unkept)}.")
            await self._ask(ending)
        await recorder.tell_said()
        text = recorder.shown.text.strip()
        messages = self._last_message(text, ending)
        answer = self._answer_body(text, messages, ending)
        if recorder.files is not None and recorder.files.changes is not None:
            changed = await recorder.files.changes.told()
            answer["files_changed"] = changed["changes"]
            if changed["more"]:
                answer["files_changed_more"] = True
        told = self._last_events(answer)
        end = RunEnd(
            state=RunState.SUCCESS if ending is None else ending.state,
            answer=dict(answer),
            usage=recorder.meter.spent.usage,
            model=recorder.model,
            error=answer.get("error"),
            code=answer.get("code"),
            spending=recorder.meter.uncounted,
            spent=recorder.meter.spent.amount,
        )
        if isinstance(ending, Paused):
            asked = self.spec.asked(self._seal)
            end = replace(end, requests=ending.requests, asked=asked, stopped=ending.stopped)
        events, said = [*self.log.unsaved(), *told], [message.id for message in recorder.said]
        await self._store.runs.finish(self.lease, end, messages, events, now_ms(), told=said)
        self._outcome = answer
        self._count(end)
        self.log.publish(told)

    async def _ask(self, pause: Paused) -> None:
        """Say to people what the run needs to go on; a program reads the answer."""
        if pause.code == "client_tool":
            return
        source = self.lease.conversation_id
        to = self.spec.parent_id or source
        said = id_of_pause(self.lease.run_id)
        await self._store.outbound.add(
            source, to, pause.message, "assistant", now_ms(), patiently=True, message_id=said
        )

    def _last_message(self, text: str, ending: Ending | None) -> list[NewMessage]:
        """Return the answer as people read it; the steps' blocks are stored already, but for the last."""
        final = self._recorder.final
        blocks = final.blocks if final is not None and ending is None else []
        blocks = without_secrets(blocks, self._ledger.redactor)
        if not text and not blocks:
            return []
        return [NewMessage(new_id(MESSAGE), "assistant", blocks, text, "assistant", "assistant")]

    def _answer_body(self, text: str, messages: list[NewMessage], ending: Ending | None) -> ChatShape:
        recorder = self._recorder
        outbound = [outbound_view(message, self._ledger.redactor) for message in recorder.said]
        marker, chain, typed = self._end_marker, self.lease.chain, recorder.typed
        answer: ChatShape = {
            "status": "success" if ending is None else _ENDED.get(ending.state, "error"),
            "conversation_id": self.lease.conversation_id,
            "message_id": messages[-1].id if messages else self.lease.message_id,
            "run_id": self.lease.run_id,
            "root_run_id": chain.root_run_id,
            "result": text,
            "model": recorder.model,
            "stop_reason": recorder.final.stop_reason if recorder.final else None,
            "session_id": self.lease.session_id,
            "duration_ms": round(monotonic_ms() - self._started),
            "usage": cast(UsageShape, recorder.meter.spent.usage.counts),
            "outbound_messages": outbound,
            "files_changed": [],
            "session_end_marker": marker,
            "session_end_marker_detected": (typed is not None and typed.marked)
            or (
                bool(marker) and any(marker in said for said in (text, *(each["text"] for each in outbound)))
            ),
        }
        if ending is None and typed is not None:
            answer["output"] = typed.value
        if chain.previous_run_id is not None:
            answer["previous_run_id"] = chain.previous_run_id
        if recorder.warnings:
            answer["warnings"] = recorder.warnings
        if ending is not None:
            answer["error"] = ending.message
            answer["code"] = ending.code
        if isinstance(ending, Paused):
            answer["requests"] = [request_view(request, now_ms()) for request in ending.requests]
        return answer

    def _last_events(self, answer: ChatShape) -> list[Event]:
        requests = [("approval_request", dict(request)) for request in answer.get("requests", ())]
        told: list[tuple[str, dict[str, Any]]] = [*requests, ("done", dict(answer))]
        if "error" in answer and answer["status"] != "paused":
            told.insert(0, ("error", {"error": answer["error"], "code": answer["code"]}))
        seq = self.log.last_seq
        return [Event(seq + number, name, data) for number, (name, data) in enumerate(told, start=1)]

    def _count(self, end: RunEnd) -> None:
        counts = self._ledger.counts
        counts.runs[end.state.value] += 1
        if (typed := self._recorder.typed) is not None and (typed.given or end.code == OutputInvalid.code):
            counts.outputs["invalid" if not typed.given else "valid" if typed.tries == 1 else "repaired"] += 1
        counts.approvals_requested.update(request.kind for request in end.requests)
        counts.compactions.update(self._recorder.compactions)
        counts.run_seconds.add((monotonic_ms() - self._started) / 1000)
        counts.tokens.update(end.answer["usage"])

    def _lose(self) -> None:
        """End without a word to the store, where the run is another host's to end."""
        self._forget()
        answer = self._answer_body(self._recorder.shown.text.strip(), [], Overtaken())
        self._outcome = answer
        self._ledger.counts.runs[RunState.ERROR.value] += 1
        for event in self._last_events(answer):
            self.log.emit(event.name, event.data)

    def _fail(self, error: PicoError) -> None:
        self._outcome = error
        self._forget()
        self.log.emit("error", {"error": error.message, "code": error.code})

    def _forget(self) -> None:
        if self.log.held:
            self.log.forget()
        files = self._recorder.files
        if files is not None and files.changes is not None:
            files.changes.forget()


_ENDED: Final[dict[RunState, Ended]] = {RunState.TIMEOUT: "timeout", RunState.PAUSED: "paused"}
