"""Functions of OpenAI's clients, for every door that speaks like it: what is offered, called and given back.

A function is a client tool, and the id of its call is that of the request that waits for the result.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from starlette.requests import Request

from host.http.approvals import answered_by, result_text
from host.http.callers import Caller, caller_of
from host.telemetry import Metrics
from host.tools.without_sandbox import ClientTool
from shared import jsons
from shared.approval_values import MOST_OF_A_STEP, Answer, Approval, ApprovalStatus
from shared.clock import now_ms
from shared.errors import AlreadyDecided, ApprovalPending, InvalidInput
from shared.store.store import Store

CHOICES: Final = ("none", "auto", "required")
FUNCTION: Final = "function"


@dataclass(frozen=True, slots=True)
class Offer:
    """The functions that the model is told of, and those of which its first reply has to call one."""

    tools: tuple[ClientTool, ...]
    must_call: tuple[str, ...] = ()


def offer(tools: Sequence[ClientTool], choice: Any) -> Offer:
    """Return what ``tool_choice`` makes of a request's functions; raises InvalidInput."""
    mode, names = _chosen(choice)
    known = [tool.name for tool in tools]
    for name in names:
        if name not in known:
            raise InvalidInput(f"tool_choice: there is no function {str(name)[:100]} among tools")
    if mode == "required" and not known:
        raise InvalidInput("tool_choice: must not be required without tools")
    if mode == "named":
        return Offer(tuple(tools), tuple(names))
    left = () if mode == "none" else tuple(tool for tool in tools if not names or tool.name in names)
    return Offer(left, tuple(tool.name for tool in left) if mode == "required" else ())


def _chosen(choice: Any) -> tuple[str, list[Any]]:
    """Return a choice's mode (one of CHOICES, or ``named``), and the functions that it names."""
    if choice is None or choice in CHOICES:
        return choice or "auto", []
    said = _flat(choice)
    kind, allowed = said.get("type"), said.get("tools")
    if kind == FUNCTION:
        return "named", [said.get("name")]
    if kind == "allowed_tools" and said.get("mode") in CHOICES and isinstance(allowed, list):
        return str(said["mode"]), [_flat(tool).get("name") for tool in allowed]
    raise InvalidInput(
        f"tool_choice: must be {', '.join(CHOICES)}, a function of tools, or allowed_tools of them"
    )


def _flat(said: Any) -> dict[str, Any]:
    """Return an object in which chat completions nest what responses don't: below the name of its type."""
    if not isinstance(said, dict):
        return {}
    inside = said.get(str(said.get("type")))
    return {**said, **inside} if isinstance(inside, dict) else said


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a function, as an event of its run tells it."""

    id: str
    name: str
    arguments: str

    @classmethod
    def of(cls, request: Mapping[str, Any]) -> Call | None:
        """Return the call of an ``approval_request``; None where a person is asked."""
        if request["kind"] != "client_tool":
            return None
        return cls(request["id"], request["tool"], jsons.dumps(request["input"]))


class Functions:
    """The calls that wait for results, and the results."""

    def __init__(self, store: Store, counts: Metrics) -> None:
        self._store = store
        self._counts = counts

    async def called(self, caller: Caller, ids: Iterable[str]) -> list[Approval]:
        """Return those of the ids that are calls of the caller's functions."""
        asked = list(dict.fromkeys(ids))[:MOST_OF_A_STEP]
        found = [await self._store.approvals.get(each, caller.within) for each in asked]
        return [each for each in found if each is not None and each.kind == "client_tool"]

    async def give(
        self, request: Request, results: Mapping[str, str], field: str, home: str | None
    ) -> list[Approval]:
        """Store the results of a step's calls in the conversation ``home``, by their ids; return the calls.

        Results that were given before are left as they were. Raises InvalidInput naming a call that isn't
        there, lacks its result or ended without it, Expired, and ApprovalPending where people are asked too.
        """
        calls = await self.called(caller_of(request), results)
        if unknown := results.keys() - {call.id for call in calls}:
            raise InvalidInput(f"{field}: there is no call {min(unknown)[:100]}")
        for call in calls:
            if call.conversation_id != home:
                raise InvalidInput(f"{field}: the call {call.id} is of another conversation")
        step = await self._store.approvals.open_step(calls[0].conversation_id)
        waiting = [each for each in step if each.status is ApprovalStatus.PENDING and each.id not in results]
        for each in waiting:
            if each.kind == "client_tool":
                raise InvalidInput(f"{field}: the result of the call {each.id} ({each.tool}) is missing")
        for call in calls:
            await self._give(request, call, results[call.id], field)
        await self._store.durable()
        if waiting:
            raise ApprovalPending(calls[0].conversation_id, [each.id for each in waiting])
        return calls

    async def continued(self, call: Approval) -> str | None:
        """Return the run that goes on with a call's result, None if none has begun yet."""
        newest = await self._store.approvals.get(call.id, None)
        return None if newest is None else newest.next_run_id

    async def all_called(self, ids: Iterable[str]) -> bool:
        """Return whether functions alone are waited for."""
        found = [await self._store.approvals.get(each, None) for each in ids]
        return all(each is not None and each.kind == "client_tool" for each in found)

    async def _give(self, request: Request, call: Approval, result: str, field: str) -> None:
        caller = caller_of(request)
        answer = Answer("result", answered_by(caller), result_text(result))
        try:
            await self._store.approvals.decide(call.id, caller.within, answer, now_ms())
        except AlreadyDecided as known:
            if known.decision != ApprovalStatus.RESULTED:
                raise InvalidInput(f"{field}: the call {call.id} has ended as {known.decision}") from None
        else:
            self._counts.approvals_decided[call.kind, answer.decision] += 1
