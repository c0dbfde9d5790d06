"""What every engine removes, and what it keeps."""

from __future__ import annotations

from datetime import datetime

import pytest

from shared.approval_values import Answer, NewApproval
from shared.clock import ms_of
from shared.principals import EVERYTHING
from shared.store.sql.conversation_rows import StoredResponse
from shared.store.store import Store
from shared.task_values import Task, TaskRunState, TaskStatus
from shared.values import Event, RunState
from tests.contract.store.making import DAY, LEASE, T0, a_key, a_principal, a_run, an_end


@pytest.fixture(autouse=True)
async def conversation(store: Store) -> None:
    await store.conversations.create("c", T0)


async def prune_all(store: Store, now: int, limit: int = 50) -> int:
    gone = 0
    while batch := await store.prune(now, limit=limit):
        assert batch <= limit
        gone += batch
    return gone


async def test_delivered_messages_go_after_a_week_and_others_stay(store: Store) -> None:
    delivered = await store.outbound.add("c", "c", "one", "Pico", T0)
    waiting = await store.outbound.add("c", "c", "two", "Pico", T0)
    for run, now in (("first", T0), ("second", T0 + DAY)):
        lease = await store.runs.begin(a_run(run))
        await store.runs.finish(lease, an_end(), [], [], now, told=[delivered.id])
    assert await prune_all(store, T0 + 7 * DAY - 1) == 0
    assert await prune_all(store, T0 + 7 * DAY) == 1
    assert await store.outbound.said_by("c", after=0) == [waiting]


async def test_what_was_to_go_with_its_answer_is_told_once_nothing_is_said_in_it(store: Store) -> None:
    for name, apart in (("apart", {"temporary": True, "begun_by": "apart"}), ("kept", {"begun_by": "c"})):
        await store.runs.begin(a_run(name, name, create=True, **apart))
    assert await store.conversations.unkept(T0, 9) == []
    assert await store.conversations.unkept(T0 + 1, 9) == ["apart"]


async def test_the_audit_goes_after_a_year(store: Store) -> None:
    await store.principals.add(a_principal("a"))
    (act,) = (await store.audit.page(limit=9, cursor=None)).items
    assert (act["action"], act["principal_id"]) == ("principal.created", "prin-a")
    await prune_all(store, ms_of(datetime.fromisoformat(act["at"])) + 365 * DAY - 1)
    assert (await store.audit.page(limit=9, cursor=None)).items == [act]
    await prune_all(store, ms_of(datetime.fromisoformat(act["at"])) + 365 * DAY)
    assert (await store.audit.page(limit=9, cursor=None)).items == []


async def test_events_and_keys_go_after_a_day(store: Store) -> None:
    lease = await store.runs.begin(a_run("1", idempotency=a_key()))
    await store.runs.finish(lease, an_end(), [], [Event(number, "chunk", {}) for number in range(1, 8)], T0)
    assert await prune_all(store, T0 + DAY - 1) == 0
    assert await store.prune(T0 + DAY, limit=3) == 3
    assert [event.seq for event in await store.runs.events("run-1", after=0)] == [4, 5, 6, 7]
    assert await prune_all(store, T0 + DAY) == 5
    run = await store.runs.get("c", "run-1")
    assert run is not None
    assert run.answer is not None


async def test_requests_go_ninety_days_after_their_end_and_what_waits_or_is_remembered_stays(
    store: Store,
) -> None:
    requests = [NewApproval(f"appr-{name}", "approval", "exec", {}, name) for name in ("old", "kept")]
    lease = await store.runs.begin(a_run("1"))
    end = an_end(RunState.PAUSED, code="approval", requests=requests)
    await store.runs.finish(lease, end, [], [], T0)
    assert await prune_all(store, T0 + 100 * DAY) == 0
    for each in requests:
        answer = Answer("allow", {}, input_sha256=each.input_sha256, remember=each.id == "appr-kept")
        await store.approvals.decide(each.id, None, answer, T0)
    lease = await store.runs.begin(a_run("2", message=None, ready=True))
    await store.runs.append(lease, [], T0, ends_step=True)
    assert await prune_all(store, T0 + 90 * DAY - 1) == 0
    assert await prune_all(store, T0 + 90 * DAY) == 1
    page = await store.approvals.page({}, None, limit=9, cursor=None)
    assert [each.id for each in page.items] == ["appr-kept"]


async def test_responses_go_after_a_month_and_their_conversations_stay(store: Store) -> None:
    for number in range(2):
        made = StoredResponse(f"r{number}", "c", "operator", "run", None, True, False, {}, T0 + number)
        await store.responses.add(made)
    assert await prune_all(store, T0 + 30 * DAY) == 1
    assert await store.responses.get("r0", None) is None
    kept = await store.responses.get("r1", "operator")
    assert kept is not None
    assert await store.responses.get("r1", "prin-other") is None
    assert not await store.responses.remove(kept), "the last one goes with its conversation"
    assert await store.conversations.get("c") is not None


async def test_a_tasks_log_keeps_its_newest_rows_and_their_conversations(store: Store) -> None:
    await store.tasks.add(a_task(), quota=10)
    for number in range(105):
        await _serve(store, number)
    assert await prune_all(store, T0) == 5
    page = await store.tasks.runs("task-1", EVERYTHING, limit=1000, cursor=None)
    assert page is not None
    kept = [run.conversation_id for run in page.items]
    assert kept == [f"temp{number}" for number in range(104, 4, -1)]
    assert await store.conversations.get("temp4") is None
    assert await store.conversations.get("temp5") is not None


async def test_a_removed_tasks_temporary_conversations_go_after_a_day(store: Store) -> None:
    await store.tasks.add(a_task(), quota=10)
    await _serve(store, 0)
    await store.tasks.remove("task-1", EVERYTHING)
    await prune_all(store, T0 + DAY)
    assert await store.conversations.get("temp0") is not None
    assert await prune_all(store, T0 + DAY + 1) == 1
    assert await store.conversations.get("temp0") is None
    assert await store.conversations.get("c") is not None


async def test_a_temporary_conversation_that_runs_or_owns_itself_stays(store: Store) -> None:
    await store.conversations.create("own", T0, temporary=True)
    await store.conversations.create("busy", T0, owner_id="c", temporary=True)
    await store.runs.begin(a_run("1", "busy"))
    assert await prune_all(store, T0 + 100 * DAY) == 0


async def _serve(store: Store, number: int) -> None:
    name = f"temp{number}"
    await store.conversations.create(name, T0, owner_id="c", temporary=True)
    _, claim = await store.tasks.claim_manual("task-1", EVERYTHING, host="h", now=T0, lease_ms=LEASE)
    lease = await store.runs.begin(a_run(str(number), name, claim=claim))
    await store.runs.finish(lease, an_end(), [], [], T0)
    await store.tasks.finish(claim, state=TaskRunState.SUCCESS, result="ok", error=None, now=T0)


def a_task() -> Task:
    return Task(
        id="task-1",
        conversation_id="c",
        prompt="Look",
        schedule_type="interval",
        schedule_value="60000",
        timezone="UTC",
        context_mode="isolated",
        catch_up="once",
        status=TaskStatus.ACTIVE,
        next_run=T0 + DAY,
        attempts=0,
        revision=0,
        created_at=T0,
        updated_at=T0,
    )
