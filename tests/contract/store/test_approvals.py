"""What every engine promises about calls that wait for a person: asked and decided once, run at most once."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from shared.approval_values import Answer, Approval, ApprovalStatus, NewApproval, Waiting
from shared.errors import (
    AlreadyDecided,
    ApprovalPending,
    Conflict,
    ConversationBusy,
    Expired,
    InvalidInput,
    KeyTaken,
    NotFound,
    PicoError,
)
from shared.principals import PrincipalStatus
from shared.store.store import Store
from shared.values import Event, Idempotency, Lease, NewMessage, RunState
from tests.contract.store.making import T0, a_key, a_principal, a_run, an_end, said

BY = {"principal_id": "operator", "door": "http"}
CALL = {"command": "git push origin"}


@pytest.fixture(autouse=True)
async def conversation(store: Store) -> None:
    await store.conversations.create("c", T0)


def a_request(name: str = "1", **changes: Any) -> NewApproval:
    values: dict[str, Any] = {"kind": "approval", "tool": "exec", "input": CALL, "call_id": f"call-{name}"}
    return NewApproval(f"appr-{name}", **(values | changes))


async def paused(store: Store, *requests: NewApproval, name: str = "1", **run: Any) -> Lease:
    lease = await store.runs.begin(a_run(name, **run))
    uses = [{"type": "tool_use", "id": each.call_id, "name": "exec", "input": CALL} for each in requests]
    await store.runs.append(lease, [NewMessage(f"step-{name}", "assistant", uses)], T0)
    end = an_end(RunState.PAUSED, code="approval", requests=requests, asked='{"model": "m"}')
    await store.runs.finish(lease, end, [], [Event(1, "done", {})], T0)
    return lease


async def decide(store: Store, request: NewApproval, decision: Any = "allow", **more: Any) -> Approval:
    answer = Answer(decision, BY, **{"input_sha256": request.input_sha256, **more})
    return await store.approvals.decide(request.id, None, answer, T0)


async def status(store: Store, request: NewApproval) -> ApprovalStatus:
    found = await store.approvals.get(request.id, None)
    assert found is not None
    return found.status


async def goes_on(store: Store, name: str = "2") -> Lease:
    (ready,) = await store.approvals.ready(10)
    return await store.runs.begin(a_run(name, ready.conversation_id, message=None, ready=True))


async def told(store: Store) -> list[str]:
    """Return what the model is told of the calls, in stored order."""
    entries = await store.conversations.history("c")
    blocks = [block for entry in entries for block in entry.blocks if block["type"] == "tool_result"]
    return [block["content"][0]["text"] for block in blocks]


async def test_a_request_waits_as_a_row_and_the_last_answer_makes_its_step_ready(store: Store) -> None:
    first, second = a_request("1"), a_request("2")
    await paused(store, first, second)
    page = await store.approvals.page({"status": "pending"}, None, limit=10, cursor=None)
    assert [(each.id, each.input, each.run_id) for each in page.items] == [
        ("appr-1", CALL, "run-1"),
        ("appr-2", CALL, "run-1"),
    ]
    assert await store.approvals.pending(["c", "d"]) == {"c": 2}
    decided = await decide(store, first)
    assert (decided.status, decided.decided_by, decided.decided_at) == ("allowed", BY, T0)
    assert await store.approvals.ready(10) == []
    await decide(store, second, "deny", message="no")
    lease = await goes_on(store)
    assert (lease.step, lease.asked, lease.chain.previous_run_id) == (True, '{"model": "m"}', "run-1")
    assert [each.status for each in await store.approvals.open_step("c")] == ["allowed", "denied"]
    await store.runs.append(lease, [said("results", None)], T0, ends_step=True)
    assert [await status(store, each) for each in (first, second)] == ["done", "denied"]
    await store.runs.finish(lease, an_end(), [], [], T0)
    assert await store.approvals.open_step("c") == []
    assert (await store.runs.begin(a_run("3"))).step is False


async def test_of_twenty_answers_at_once_one_counts(store: Store) -> None:
    request = a_request()
    await paused(store, request)

    async def answer(number: int) -> str:
        try:
            return (await decide(store, request, "allow" if number % 2 else "deny")).status
        except AlreadyDecided as late:
            return f"late: {late.decision}"

    ended = await asyncio.gather(*(answer(number) for number in range(20)))
    (first,) = {each for each in ended if not each.startswith("late")}
    assert ended.count(f"late: {first}") == 19
    assert len(await store.approvals.ready(10)) == 1


async def test_two_last_answers_at_once_make_the_step_ready(store: Store) -> None:
    requests = [a_request(str(number)) for number in range(8)]
    await paused(store, *requests)
    await asyncio.gather(*(decide(store, each) for each in requests))
    assert len(await store.approvals.ready(10)) == 1


async def test_a_ready_step_is_claimed_by_one_host(store: Store) -> None:
    request = a_request()
    await paused(store, request)
    await decide(store, request)

    async def claim(number: int) -> str:
        try:
            new = a_run(f"host-{number}", message=None, ready=True, owner=f"host-{number}")
            return (await store.runs.begin(new)).run_id
        except ConversationBusy:
            return ""

    claimed = list(filter(None, await asyncio.gather(*(claim(number) for number in range(5)))))
    assert len(claimed) == 1
    assert await store.approvals.ready(10) == []


async def test_an_answer_has_to_fit_what_was_asked(store: Store) -> None:
    request, question = a_request("1"), a_request("2", kind="question", tool="ask_person")
    await paused(store, request, question)
    with pytest.raises(Conflict) as changed:
        await decide(store, request, input_sha256="0" * 64)
    assert changed.value.code == "changed"
    with pytest.raises(InvalidInput, match=r"^input_sha256: is required"):
        await decide(store, request, input_sha256=None)
    with pytest.raises(InvalidInput, match=r"^decision: must be allow or deny"):
        await decide(store, request, "answer")
    with pytest.raises(InvalidInput, match=r"^decision: must be answer or deny"):
        await decide(store, question, "allow")
    with pytest.raises(NotFound):
        await store.approvals.decide("appr-9", None, Answer("deny", BY), T0)
    with pytest.raises(NotFound):
        await store.approvals.decide(request.id, "prin-other", Answer("deny", BY), T0)
    assert await store.approvals.get(request.id, "prin-other") is None
    assert (await store.approvals.page({}, "prin-other", limit=9, cursor=None)).items == []
    await decide(store, question, "answer", message="Rome", input_sha256=question.input_sha256)
    await decide(store, request, "deny", input_sha256=None)


async def test_a_message_meets_what_waits(store: Store) -> None:
    first, second = a_request("1"), a_request("2")
    await paused(store, first, second)
    with pytest.raises(ApprovalPending) as waits:
        await store.runs.begin(a_run("2"))
    assert waits.value.approval_ids == ["appr-1", "appr-2"]
    with pytest.raises(ApprovalPending):
        await store.runs.begin(a_run("2", message=None))
    await decide(store, first)
    lease = await store.runs.begin(a_run("2", deny_pending=True))
    assert lease.step is False
    assert [await status(store, each) for each in (first, second)] == ["dropped", "denied"]
    assert await told(store) == [
        "This call was not made: it was dropped before it ran.",
        "This call was not made: it was denied.",
    ]
    entries = await store.conversations.history("c")
    assert [entry.text for entry in entries][-1] == "hello"


async def test_a_message_answers_a_question_and_its_run_goes_on_with_what_was_asked(store: Store) -> None:
    question, call = a_request("1", kind="question", tool="ask_person"), a_request("2")
    await paused(store, question, call)
    with pytest.raises(ApprovalPending):
        await store.runs.begin(a_run("2"))
    lease = await store.runs.begin(a_run("2", deny_pending=True, by=BY))
    assert (lease.step, lease.asked, lease.chain.previous_run_id) == (False, '{"model": "m"}', "run-1")
    assert [await status(store, each) for each in (question, call)] == ["answered", "denied"]
    answered = await store.approvals.get(question.id, None)
    assert answered is not None
    assert (answered.message, answered.decided_by, answered.next_run_id) == ("hello", BY, "run-2")
    assert await told(store) == ["<answer>hello</answer>", "This call was not made: it was denied."]
    assert [entry.text for entry in await store.conversations.history("c")][-1] == "hello"


async def test_a_message_in_the_place_of_the_last_one_answers_no_question(store: Store) -> None:
    question = a_request("1", kind="question", tool="ask_person")
    lease = await paused(store, question)
    new = a_run("2", deny_pending=True, replaces=lease.message_id)
    assert (await store.runs.begin(new)).chain.previous_run_id is None
    assert await status(store, question) == "denied"


async def test_a_message_waits_for_a_step_that_is_about_to_go_on(store: Store) -> None:
    request = a_request()
    await paused(store, request)
    await decide(store, request)
    with pytest.raises(ConversationBusy):
        await store.runs.begin(a_run("2"))
    # Whoever resumes is just another who begins it.
    assert (await store.runs.begin(a_run("2", message=None))).step


async def test_an_expired_step_runs_nothing_any_more(store: Store) -> None:
    old, allowed = a_request("1", life_ms=-1), a_request("2")
    await paused(store, old, allowed)
    await decide(store, allowed)
    with pytest.raises(Expired):
        await decide(store, old)
    assert await store.approvals.expire(T0) == 1
    assert [await status(store, each) for each in (old, allowed)] == ["expired", "expired"]
    with pytest.raises(Expired):
        await decide(store, old)
    run = await store.runs.get("c", "run-1")
    assert run is not None
    assert (run.state, run.code) == (RunState.PAUSED, "approval_expired")
    assert await store.approvals.ready(10) == []
    lease = await store.runs.begin(a_run("2", message=None))
    assert lease.step
    assert {each.result()["is_error"] for each in await store.approvals.open_step("c")} == {True}


async def test_an_expired_step_lets_a_message_pass(store: Store) -> None:
    await paused(store, a_request(life_ms=-1))
    await store.runs.begin(a_run("2"))
    assert await told(store) == ["This call was not made: nobody answered in time."]


async def test_what_waits_can_be_cancelled(store: Store) -> None:
    request = a_request()
    await paused(store, request)
    assert await store.approvals.drop("c", T0) == "run-1"
    assert await status(store, request) is ApprovalStatus.DROPPED
    run = await store.runs.get("c", "run-1")
    assert run is not None
    assert (run.state, run.code) == (RunState.CANCELLED, "cancelled")
    assert await store.approvals.drop("c", T0) is None
    with pytest.raises(AlreadyDecided):
        await decide(store, request)
    await store.runs.begin(a_run("2"))


@pytest.mark.parametrize("acted", [False, True])
async def test_a_step_whose_host_dies_goes_on_unless_it_may_have_acted(store: Store, acted: bool) -> None:
    request = a_request()
    await paused(store, request)
    await decide(store, request)
    lease = await goes_on(store)
    if acted:
        await store.runs.append(lease, [], T0, effect_ahead=True)
    await store.runs.recover(T0, all_but="host-2")
    run = await store.runs.get("c", lease.run_id)
    assert run is not None
    assert run.code == ("interrupted" if acted else "retryable")
    assert await status(store, request) == ("interrupted" if acted else "allowed")
    assert len(await store.approvals.ready(10)) == (0 if acted else 1)
    if acted:
        assert "may have been made" in (await told(store))[0]
        assert (await store.runs.begin(a_run("3", message=None))).step is False
    else:
        assert (await goes_on(store, "3")).step


async def test_a_step_outlives_a_stop_of_its_host_and_a_failure_before_it_acted(store: Store) -> None:
    request = a_request()
    await paused(store, request)
    await decide(store, request)
    lease = await goes_on(store)
    await store.runs.finish(lease, _failed("shutdown"), [], [], T0)
    again = await goes_on(store, "3")
    await store.runs.finish(again, _failed("timeout"), [], [], T0)
    assert await store.approvals.ready(10) == []
    assert (await store.runs.begin(a_run("4", message=None))).step


def _failed(code: str) -> Any:
    return an_end(RunState.ERROR, code=code, answer={"status": "error", "code": code})


async def test_a_yes_can_be_remembered_and_forgotten(store: Store) -> None:
    request = a_request()
    await paused(store, request)
    await decide(store, request, remember=True)
    assert [each.input for each in await store.approvals.remembered("c")] == [CALL]
    assert await store.approvals.forget("c") == 1
    assert await store.approvals.remembered("c") == []


async def test_a_budget_is_a_request_that_holds_up_nothing(store: Store) -> None:
    budget = a_request("1", kind="budget", tool="", input={"allow_tokens": 9}, life_ms=None)
    lease = await store.runs.begin(a_run("1"))
    end = an_end(RunState.PAUSED, code="budget", requests=[budget])
    await store.runs.finish(lease, end, [], [], T0)
    with pytest.raises(InvalidInput, match=r"^allow_tokens: is for"):
        await decide(store, budget, "deny", allow_tokens=5)
    await decide(store, budget, "allow", allow_tokens=5, input_sha256=None)
    on = await goes_on(store)
    assert (on.step, on.asked) == (False, '{"allow_tokens":5}')
    await store.runs.finish(on, an_end(), [], [], T0)
    last = a_request("2", kind="budget", tool="", input={}, life_ms=None)
    other = await store.runs.begin(a_run("3"))
    await store.runs.finish(other, an_end(RunState.PAUSED, code="budget", requests=[last]), [], [], T0)
    await store.runs.begin(a_run("4"))
    assert await status(store, last) is ApprovalStatus.DROPPED


async def test_a_message_passes_a_lifted_budget_with_which_nothing_goes_on_then(store: Store) -> None:
    budget = a_request("1", kind="budget", tool="", input={}, life_ms=None)
    lease = await store.runs.begin(a_run("1"))
    await store.runs.finish(lease, an_end(RunState.PAUSED, code="budget", requests=[budget]), [], [], T0)
    with pytest.raises(InvalidInput, match=r"^remember: is for"):
        await decide(store, budget, input_sha256=None, remember=True)
    await decide(store, budget, input_sha256=None)
    said = await store.runs.begin(a_run("2"))
    await store.runs.finish(said, an_end(), [], [], T0)
    assert await store.approvals.ready(10) == []


async def test_an_answer_that_is_given_again_with_its_key_is_the_first_one(store: Store) -> None:
    request = a_request()
    await paused(store, request)

    async def answer(message: str, key: Idempotency) -> str:
        given = Answer("deny", BY, message)
        try:
            return (await store.approvals.decide(request.id, None, given, T0, key)).status
        except KeyTaken as taken:
            return taken.answer.subject

    ended = await asyncio.gather(*(answer("no", a_key()) for _ in range(5)))
    assert sorted(ended) == [*["appr-1"] * 4, "denied"]
    with pytest.raises(AlreadyDecided):
        await answer("no", a_key("other"))
    with pytest.raises(Conflict, match="another body"):
        await answer("never", a_key(digest="other"))


async def test_what_waits_goes_with_its_conversation_and_costs_little(store: Store) -> None:
    request = a_request()
    await paused(store, request)
    await store.conversations.delete("c")
    assert await store.approvals.get(request.id, None) is None
    with pytest.raises(PicoError):
        await decide(store, request)


async def test_what_waits_is_counted_for_people_and_for_hosts(store: Store) -> None:
    assert await store.approvals.waiting(T0 + 9) == Waiting(0, 0, 0)
    first, second = a_request("1"), a_request("2")
    await paused(store, first, second)
    await decide(store, first)
    assert await store.approvals.waiting(T0 + 9) == Waiting(1, 9, 0)
    await decide(store, second)
    assert await store.approvals.waiting(T0 + 9) == Waiting(0, 0, 9)
    await goes_on(store)
    assert await store.approvals.waiting(T0 + 9) == Waiting(0, 0, 0)
    await store.principals.add(ann := a_principal("ann"))
    await store.conversations.create("hers", T0, principal_id=ann.id)
    third = a_request("3")
    await paused(store, third, name="3", conversation_id="hers", principal_id=ann.id)
    await decide(store, third)
    await store.principals.change(replace(ann, status=PrincipalStatus.SUSPENDED))
    assert await store.approvals.waiting(T0 + 9) == Waiting(0, 0, 0)


async def test_a_step_that_a_run_is_at_is_not_cancelled_beside_it(store: Store) -> None:
    request = a_request()
    await paused(store, request)
    await decide(store, request)
    lease = await goes_on(store)
    assert await store.approvals.drop("c", T0) is None
    assert await status(store, request) is ApprovalStatus.ALLOWED
    assert await told(store) == []
    run = await store.runs.get("c", lease.run_id)
    assert run is not None
    assert run.state is RunState.RUNNING
    assert await store.runs.ask_cancel("c") == lease.run_id
