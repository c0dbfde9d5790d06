"""What every engine promises about scheduled tasks, their slots and claims."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from shared.errors import Conflict, Duplicate, InvalidInput, LeaseLost, NotFound
from shared.principals import EVERYTHING, OPERATOR, Reach
from shared.store.store import Store
from shared.task_values import Task, TaskRun, TaskRunState, TaskStatus
from shared.usage_values import Usage
from shared.values import NewMessage, NewRun, RunEnd, RunState
from tests.contract.store.conftest import OpenStore

HOME = "conv-home"
T0 = 1_800_000_000_000
SECOND = 1000
MINUTE = 60 * SECOND
LEASE = 60 * SECOND
DEAD = 0
"""A lease of no length: its owner counts as dead at once."""


def a_task(task_id: str = "task-1", **changes: Any) -> Task:
    task = Task(
        id=task_id,
        conversation_id=HOME,
        prompt="Look around",
        schedule_type="interval",
        schedule_value=str(MINUTE),
        timezone="UTC",
        context_mode="isolated",
        catch_up="once",
        status=TaskStatus.ACTIVE,
        next_run=T0,
        attempts=0,
        revision=0,
        created_at=T0,
        updated_at=T0,
    )
    return replace(task, **changes)


def a_once(task_id: str = "task-1", **changes: Any) -> Task:
    return a_task(task_id, schedule_type="once", schedule_value="2027-01-15T08:00:00", **changes)


@pytest.fixture
async def home(store: Store) -> Store:
    await store.conversations.create(HOME, T0)
    return store


async def add(store: Store, *tasks: Task) -> None:
    for task in tasks:
        await store.tasks.add(task, quota=100)


async def claim(store: Store, now: int = T0, host: str = "a", lease_ms: int = LEASE) -> tuple[Task, TaskRun]:
    claimed = await store.tasks.claim_due(host=host, now=now, lease_ms=lease_ms)
    assert claimed is not None
    return claimed


async def nothing_due(store: Store, now: int = T0) -> bool:
    return await store.tasks.claim_due(host="a", now=now, lease_ms=LEASE) is None


async def finish(
    store: Store, run: TaskRun, state: TaskRunState = TaskRunState.SUCCESS, now: int = T0
) -> None:
    await store.tasks.finish(run, state=state, result="done", error=None, now=now)


async def stored(store: Store, task_id: str = "task-1") -> Task:
    task = await store.tasks.get(task_id, EVERYTHING)
    assert task is not None
    return task


async def log(store: Store, task_id: str = "task-1") -> list[TaskRun]:
    page = await store.tasks.runs(task_id, EVERYTHING, limit=100, cursor=None)
    assert page is not None
    return page.items


def a_run(
    run_id: str = "run-1",
    conversation_id: str = HOME,
    lease_ms: int = LEASE,
    claim: TaskRun | None = None,
) -> NewRun:
    """Return a run that begins; outside HOME, in a temporary conversation of its own."""
    message = NewMessage(f"msg-{run_id}", "user", [{"type": "text", "text": "hello"}], text="hello")
    own = conversation_id != HOME
    return NewRun(
        run_id,
        conversation_id,
        message,
        owner="a",
        now=T0,
        lease_ms=lease_ms,
        create=own,
        temporary=own,
        parent_id=HOME if own else None,
        claim=claim,
    )


def run_end(state: RunState, result: str) -> RunEnd:
    return RunEnd(state, {"status": str(state), "result": result}, Usage(), "m")


# Storing


async def test_a_task_comes_back_as_it_was_stored(home: Store) -> None:
    await add(home, a_task())

    assert await home.tasks.get("task-1", EVERYTHING) == a_task()
    assert await home.tasks.get("task-1", Reach(HOME)) == a_task()
    assert (await home.counts()).tasks == 1


async def test_a_foreign_task_is_as_good_as_absent(home: Store) -> None:
    await add(home, a_task())
    other = Reach("conv-other")

    assert await home.tasks.get("task-1", other) is None
    assert await home.tasks.runs("task-1", other, limit=10, cursor=None) is None
    assert not await home.tasks.replace(a_task(prompt="mine"), other, expected_revision=0)
    assert not await home.tasks.remove("task-1", other)
    with pytest.raises(NotFound):
        await home.tasks.claim_manual("task-1", other, host="a", now=T0, lease_ms=LEASE)
    assert (await home.tasks.page(other, status=None, limit=10, cursor=None)).items == []
    assert await home.tasks.get("task-1", EVERYTHING) == a_task()


async def test_an_id_is_taken_once(home: Store) -> None:
    await add(home, a_task())

    with pytest.raises(Duplicate):
        await add(home, a_task(prompt="again"))


async def test_a_task_needs_its_conversation(home: Store) -> None:
    with pytest.raises(NotFound, match="conv-nowhere"):
        await add(home, a_task(conversation_id="conv-nowhere"))


async def test_a_refused_task_leaves_no_conversation_of_its_own(home: Store) -> None:
    await add(home, a_task())

    with pytest.raises(Duplicate):
        await home.tasks.add(a_task(conversation_id="conv-own"), quota=100, alone_for=OPERATOR)

    assert await home.conversations.get("conv-own") is None


async def test_a_tasks_own_conversation_is_hidden_and_goes_with_it(home: Store) -> None:
    await home.tasks.add(a_task(conversation_id="conv-own"), quota=100, alone_for=OPERATOR)
    own = await home.conversations.get("conv-own")
    assert own is not None
    assert own.temporary
    assert own.owner_id == "conv-own"

    assert await home.tasks.remove("task-1", EVERYTHING)

    assert await home.conversations.get("conv-own") is None
    assert await home.conversations.get(HOME) is not None


async def test_a_conversation_owns_no_more_than_its_quota(home: Store) -> None:
    await home.tasks.add(a_task("task-1"), quota=2)
    await home.tasks.add(a_task("task-2", status=TaskStatus.PAUSED), quota=2)

    with pytest.raises(Conflict) as refused:
        await home.tasks.add(a_task("task-3"), quota=2)

    assert refused.value.code == "task_quota"
    assert (await home.counts()).tasks == 2


async def test_a_completed_task_makes_room_for_a_new_one(home: Store) -> None:
    await home.tasks.add(a_once("task-1", status=TaskStatus.COMPLETED, next_run=None), quota=2)
    await home.tasks.add(a_task("task-2"), quota=2)

    await home.tasks.add(a_task("task-3"), quota=2)

    page = await home.tasks.page(Reach(HOME), status=None, limit=10, cursor=None)
    assert [task.id for task in page.items] == ["task-2", "task-3"]


async def test_lists_are_paged_in_the_order_tasks_were_made(home: Store) -> None:
    await add(home, *(a_task(f"task-{number}") for number in range(5)))
    seen: list[str] = []
    cursor = None
    while True:
        page = await home.tasks.page(EVERYTHING, status=None, limit=2, cursor=cursor)
        seen += [task.id for task in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break

    assert seen == [f"task-{number}" for number in range(5)]


async def test_lists_can_be_narrowed_to_a_status_and_an_owner(home: Store) -> None:
    await home.conversations.create("conv-b", T0)
    await add(
        home, a_task("a1"), a_task("a2", status=TaskStatus.PAUSED), a_task("b1", conversation_id="conv-b")
    )

    async def ids(owner: str | None, status: TaskStatus | None) -> list[str]:
        page = await home.tasks.page(Reach(owner), status=status, limit=10, cursor=None)
        return [task.id for task in page.items]

    assert await ids(None, TaskStatus.ACTIVE) == ["a1", "b1"]
    assert await ids(HOME, TaskStatus.PAUSED) == ["a2"]
    assert await ids("conv-b", None) == ["b1"]


async def test_a_cursor_from_elsewhere_is_refused(home: Store) -> None:
    with pytest.raises(InvalidInput, match="cursor"):
        await home.tasks.page(EVERYTHING, status=None, limit=10, cursor="junk")


async def test_only_the_first_of_two_edits_lands(home: Store) -> None:
    await add(home, a_task())

    assert await home.tasks.replace(a_task(prompt="first"), Reach(HOME), expected_revision=0)
    assert not await home.tasks.replace(a_task(prompt="second"), Reach(HOME), expected_revision=0)

    task = await stored(home)
    assert (task.prompt, task.revision) == ("first", 1)


async def test_an_edit_never_undoes_what_a_claim_wrote_meanwhile(home: Store) -> None:
    await add(home, a_task())
    await claim(home)

    assert not await home.tasks.replace(a_task(prompt="late"), EVERYTHING, expected_revision=0)
    assert (await stored(home)).next_run == T0 + MINUTE


# Claiming


async def test_nothing_is_claimed_before_it_is_due(home: Store) -> None:
    await add(home, a_task())

    assert await nothing_due(home, T0 - 1)
    assert (await claim(home, T0))[0].id == "task-1"


async def test_the_earliest_slot_goes_first(home: Store) -> None:
    await add(home, a_task("late", next_run=T0), a_task("early", next_run=T0 - SECOND))

    assert (await claim(home))[0].id == "early"
    assert (await claim(home))[0].id == "late"


async def test_a_claim_moves_the_schedule_on_and_says_which_slot_it_is(home: Store) -> None:
    await add(home, a_task())

    task, run = await claim(home, T0 + 5)

    assert (run.slot, run.attempt, run.state, run.owner) == (str(T0), 1, TaskRunState.RUNNING, "a")
    assert (run.started_at, run.finished_at) == (T0 + 5, None)
    assert task.next_run == T0 + MINUTE
    assert task.running
    assert await stored(home) == task


@pytest.mark.parametrize("status", [TaskStatus.PAUSED, TaskStatus.COMPLETED, TaskStatus.FAILED])
async def test_only_active_tasks_are_claimed(home: Store, status: TaskStatus) -> None:
    await add(home, a_task(status=status))

    assert await nothing_due(home)


async def test_two_hosts_never_get_the_same_slot(open_store: OpenStore) -> None:
    one, other = open_store(), open_store()
    await one.conversations.create(HOME, T0)
    await add(one, a_task())

    first = await one.tasks.claim_due(host="a", now=T0, lease_ms=LEASE)
    second = await other.tasks.claim_due(host="b", now=T0, lease_ms=LEASE)

    assert first is not None
    assert second is None


async def test_a_task_does_not_overlap_itself(home: Store) -> None:
    await add(home, a_task())
    _, run = await claim(home, T0)

    assert await nothing_due(home, T0 + MINUTE)

    await finish(home, run)
    assert (await claim(home, T0 + MINUTE))[1].slot == str(T0 + MINUTE)


async def test_a_slot_that_ran_does_not_run_again_when_the_clock_goes_back(home: Store) -> None:
    await add(home, a_task())
    _, run = await claim(home)
    await finish(home, run)
    task = await stored(home)
    await home.tasks.replace(replace(task, next_run=T0), EVERYTHING, expected_revision=task.revision)

    assert await nothing_due(home)
    assert (await stored(home)).next_run == T0 + MINUTE
    assert len(await log(home)) == 1


async def test_a_task_whose_zone_is_gone_fails_and_lets_the_others_run(home: Store) -> None:
    await add(home, a_task("broken", timezone="Mars/Base", next_run=T0 - SECOND), a_task("good"))

    assert (await claim(home))[0].id == "good"
    assert (await stored(home, "broken")).status is TaskStatus.FAILED


# Group tasks


async def test_a_group_task_waits_for_its_conversation_and_blocks_nobody(home: Store) -> None:
    await add(home, a_task("group", context_mode="group", next_run=T0 - SECOND), a_task("behind"))
    lease = await home.runs.begin(a_run())

    assert (await claim(home))[0].id == "behind"
    assert await nothing_due(home)
    assert await home.tasks.count_due(T0) == 1
    assert await home.tasks.next_due() == T0 - SECOND

    await home.runs.finish(lease, run_end(RunState.SUCCESS, "hi"), [], [], T0)
    assert (await claim(home))[0].id == "group"


async def test_a_group_task_does_not_wait_for_a_run_whose_host_died(home: Store) -> None:
    await add(home, a_task("group", context_mode="group"))
    await home.runs.begin(a_run(lease_ms=DEAD))

    assert (await claim(home))[0].id == "group"
    assert await home.runs.active(HOME) is None


async def test_a_waiting_task_that_becomes_isolated_waits_no_longer(home: Store) -> None:
    await add(home, a_task(context_mode="group"))
    await home.runs.begin(a_run())
    assert await nothing_due(home)
    task = await stored(home)

    await home.tasks.replace(
        replace(task, context_mode="isolated"), EVERYTHING, expected_revision=task.revision
    )

    assert (await claim(home))[0].id == "task-1"


# Catch-up


async def slots_at(store: Store, now: int) -> list[int]:
    """Run everything that is due, and return which slots ran."""
    slots: list[int] = []
    while claimed := await store.tasks.claim_due(host="a", now=now, lease_ms=LEASE):
        slots.append(int(claimed[1].slot))
        await finish(store, claimed[1], now=now)
    return slots


async def test_catch_up_once_runs_one_slot_for_all_missed_ones(home: Store) -> None:
    await add(home, a_task(catch_up="once"))

    assert await slots_at(home, T0 + 10 * MINUTE + 1) == [T0]
    assert (await stored(home)).next_run == T0 + 11 * MINUTE


async def test_catch_up_skip_goes_on_with_the_next_future_slot(home: Store) -> None:
    await add(home, a_task(catch_up="skip"))

    assert await slots_at(home, T0 + 10 * MINUTE + 1) == []
    assert (await stored(home)).next_run == T0 + 11 * MINUTE


async def test_catch_up_skip_runs_a_slot_that_is_on_time(home: Store) -> None:
    await add(home, a_task(catch_up="skip"))

    assert await slots_at(home, T0 + MINUTE - 1) == [T0]


async def test_catch_up_skip_leaves_out_a_lone_slot_that_is_hours_late(home: Store) -> None:
    await add(home, a_task(catch_up="skip", schedule_type="cron", schedule_value="0 8 * * *"))

    assert await slots_at(home, T0 + 180 * MINUTE) == []
    assert (await stored(home)).next_run == T0 + 24 * 60 * MINUTE


async def test_catch_up_all_runs_each_missed_slot_oldest_first(home: Store) -> None:
    await add(home, a_task(catch_up="all"))

    assert await slots_at(home, T0 + 3 * MINUTE) == [T0 + number * MINUTE for number in range(4)]


async def test_catch_up_all_stops_at_a_hundred(home: Store) -> None:
    await add(home, a_task(catch_up="all"))

    assert await slots_at(home, T0 + 1000 * MINUTE) == [T0 + number * MINUTE for number in range(100)]
    assert (await stored(home)).next_run == T0 + 1001 * MINUTE


async def test_a_once_task_runs_however_late_it_is(home: Store) -> None:
    await add(home, a_once(catch_up="skip"))

    assert await slots_at(home, T0 + 9000 * MINUTE) == [T0]
    assert (await stored(home)).status is TaskStatus.COMPLETED


# Outcomes


async def test_an_outcome_is_written_into_the_log_and_shown_at_the_task(home: Store) -> None:
    await add(home, a_task())
    _, run = await claim(home, T0 + 5)
    await home.runs.begin(a_run("run-9", "conv-temp", claim=run))

    await home.tasks.finish(run, state=TaskRunState.TIMEOUT, result="half", error="too slow", now=T0 + 50)

    assert await log(home) == [
        replace(
            run,
            state=TaskRunState.TIMEOUT,
            finished_at=T0 + 50,
            run_id="run-9",
            conversation_id="conv-temp",
            result="half",
            error="too slow",
        )
    ]
    task = await stored(home)
    assert (task.last_run, task.last_state, task.status) == (T0 + 5, TaskRunState.TIMEOUT, TaskStatus.ACTIVE)
    assert not task.running


async def test_a_recurring_task_goes_on_after_a_failure(home: Store) -> None:
    await add(home, a_task())
    _, run = await claim(home)
    await finish(home, run, TaskRunState.ERROR)

    assert (await claim(home, T0 + MINUTE))[1].attempt == 1


async def test_a_once_task_is_tried_three_times_with_growing_pauses_and_then_failed(home: Store) -> None:
    await add(home, a_once())
    now, waits, attempts = T0, [], []
    for _ in range(3):
        _, run = await claim(home, now)
        attempts.append(run.attempt)
        await finish(home, run, TaskRunState.ERROR, now=now)
        task = await stored(home)
        if task.next_run is not None:
            assert await nothing_due(home, task.next_run - 1)
            waits.append(task.next_run - now)
            now = task.next_run

    assert attempts == [1, 2, 3]
    assert len(waits) == 2
    assert 0 < waits[0] < waits[1]
    assert (task.status, task.next_run, task.attempts) == (TaskStatus.FAILED, None, 3)


async def test_a_once_task_that_works_the_second_time_is_completed(home: Store) -> None:
    await add(home, a_once())
    _, run = await claim(home)
    await finish(home, run, TaskRunState.TIMEOUT)
    _, run = await claim(home, T0 + 60 * MINUTE)
    await finish(home, run)

    task = await stored(home)
    assert (task.status, task.last_state) == (TaskStatus.COMPLETED, TaskRunState.SUCCESS)


async def test_a_cancelled_once_task_is_not_tried_again_and_not_called_completed(home: Store) -> None:
    await add(home, a_once())
    _, run = await claim(home)
    await finish(home, run, TaskRunState.CANCELLED)

    task = await stored(home)
    assert (task.status, task.next_run) == (TaskStatus.FAILED, None)


@pytest.mark.parametrize("state", [TaskRunState.SUCCESS, TaskRunState.ERROR, TaskRunState.CANCELLED])
async def test_a_pause_during_a_run_is_kept(home: Store, state: TaskRunState) -> None:
    await add(home, a_once())
    _, run = await claim(home)
    task = await stored(home)
    await home.tasks.replace(
        replace(task, status=TaskStatus.PAUSED), EVERYTHING, expected_revision=task.revision
    )

    await finish(home, run, state)

    assert (await stored(home)).status is TaskStatus.PAUSED
    assert await nothing_due(home, T0 + 1000 * MINUTE)


async def test_an_edit_during_a_run_is_kept(home: Store) -> None:
    await add(home, a_once())
    _, run = await claim(home)
    task = await stored(home)
    edited = replace(task, prompt="new", schedule_value="2027-02-01", next_run=T0 + 50 * MINUTE)
    await home.tasks.replace(edited, EVERYTHING, expected_revision=task.revision)

    await finish(home, run)

    task = await stored(home)
    assert (task.status, task.next_run, task.prompt) == (TaskStatus.ACTIVE, T0 + 50 * MINUTE, "new")
    assert (await claim(home, T0 + 50 * MINUTE))[1].slot == str(T0 + 50 * MINUTE)


async def test_a_task_deleted_during_a_run_stays_deleted(home: Store) -> None:
    await add(home, a_task())
    _, run = await claim(home)
    await home.tasks.remove("task-1", EVERYTHING)

    with pytest.raises(LeaseLost):
        await home.tasks.renew_claim(run, LEASE)
    with pytest.raises(LeaseLost):
        await finish(home, run)
    assert await home.tasks.get("task-1", EVERYTHING) is None


# Manual slots


async def test_a_manual_run_leaves_the_schedule_alone(home: Store) -> None:
    await add(home, a_once(next_run=T0 + MINUTE))

    _, run = await home.tasks.claim_manual("task-1", Reach(HOME), host="a", now=T0, lease_ms=LEASE)
    assert run.slot.startswith("manual-")
    await finish(home, run)

    task = await stored(home)
    assert (task.status, task.next_run, task.attempts) == (TaskStatus.ACTIVE, T0 + MINUTE, 0)
    assert (task.last_run, task.last_state) == (T0, TaskRunState.SUCCESS)
    assert (await claim(home, T0 + MINUTE))[1].slot == str(T0 + MINUTE)


async def test_a_paused_task_can_be_run_by_hand_as_often_as_wanted(home: Store) -> None:
    await add(home, a_task(status=TaskStatus.PAUSED))
    slots = set()
    for _ in range(3):
        _, run = await home.tasks.claim_manual("task-1", EVERYTHING, host="a", now=T0, lease_ms=LEASE)
        slots.add(run.slot)
        await finish(home, run)

    assert len(slots) == 3
    assert len(await log(home)) == 3


async def test_a_task_never_overlaps_itself_by_hand_either(home: Store) -> None:
    await add(home, a_task())
    _, manual = await home.tasks.claim_manual("task-1", EVERYTHING, host="a", now=T0, lease_ms=LEASE)

    with pytest.raises(Conflict, match="never overlaps itself") as refused:
        await home.tasks.claim_manual("task-1", EVERYTHING, host="b", now=T0, lease_ms=LEASE)

    assert refused.value.code == "task_running"
    assert await home.tasks.is_beginning("task-1", EVERYTHING)
    assert not await home.tasks.is_beginning("task-1", Reach("other"))
    assert await nothing_due(home)
    await finish(home, manual)
    assert not await home.tasks.is_beginning("task-1", EVERYTHING)
    _, scheduled = await claim(home)
    with pytest.raises(Conflict):
        await home.tasks.claim_manual("task-1", EVERYTHING, host="b", now=T0, lease_ms=LEASE)
    await finish(home, scheduled)
    await home.tasks.claim_manual("task-1", EVERYTHING, host="b", now=T0, lease_ms=LEASE)


async def test_a_manual_run_whose_host_died_frees_its_task(home: Store) -> None:
    await add(home, a_task(next_run=T0 + MINUTE))
    await home.tasks.claim_manual("task-1", EVERYTHING, host="a", now=T0, lease_ms=DEAD)

    assert await nothing_due(home)

    await home.tasks.claim_manual("task-1", EVERYTHING, host="b", now=T0, lease_ms=LEASE)


# Ends


@pytest.mark.parametrize("bounds", [{"ends_at": T0 + 2 * MINUTE}, {"max_runs": 3}])
async def test_a_task_completes_with_its_last_run_and_is_kept(home: Store, bounds: dict[str, Any]) -> None:
    await add(home, a_task(**bounds))
    for number in range(3):
        task, run = await claim(home, T0 + number * MINUTE)
        assert (await stored(home)).status is TaskStatus.ACTIVE
        await finish(home, run, now=T0 + number * MINUTE)

    assert task.next_run is None
    after = await stored(home)
    assert (after.status, after.next_run, after.runs_begun) == (TaskStatus.COMPLETED, None, 3)
    assert await nothing_due(home, T0 + 60 * MINUTE)
    assert len(await log(home)) == 3


async def test_a_claim_given_back_is_no_run(home: Store) -> None:
    await add(home, a_task(max_runs=1))
    _, run = await claim(home)

    await home.tasks.release(run)

    assert await stored(home) == replace(a_task(max_runs=1), revision=2)
    await claim(home)


async def test_missed_slots_behind_the_end_complete_a_task(home: Store) -> None:
    await add(home, a_task(catch_up="skip", ends_at=T0 + 5 * MINUTE))

    assert await nothing_due(home, T0 + 60 * MINUTE)
    assert (await stored(home)).status is TaskStatus.COMPLETED


async def test_a_once_task_is_not_tried_again_behind_its_end(home: Store) -> None:
    await add(home, a_once(ends_at=T0 + SECOND))
    _, run = await claim(home)

    await finish(home, run, TaskRunState.ERROR)

    assert (await stored(home)).status is TaskStatus.FAILED


# What people hear


async def told(store: Store, source: str = HOME) -> list[str]:
    return [said.text for said in await store.outbound.said_by(source, after=0)]


async def ended(
    store: Store,
    number: int = 0,
    state: TaskRunState = TaskRunState.SUCCESS,
    result: str = "The sky is blue.",
) -> list[str]:
    """Run the next slot in its own conversation and return what people were told by its end."""
    now = T0 + number * MINUTE
    _, run = await claim(store, now)
    await store.runs.begin(a_run(f"run-{number}", f"conv-{number}", claim=run))
    error = None if state is TaskRunState.SUCCESS else "The model is away"
    said = await store.tasks.finish(run, state=state, result=result, error=error, now=now)
    assert [message.text for message in said] == await told(store, f"conv-{number}")
    assert {message.conversation_id for message in said} <= {HOME}
    return [message.text for message in said]


async def test_the_answer_of_a_run_is_told_to_the_tasks_conversation(home: Store) -> None:
    await add(home, a_task())

    assert await ended(home, result="  The sky is blue.\n") == ["The sky is blue."]


@pytest.mark.parametrize("quiet", ["", "  ", "HEARTBEAT_OK", "**HEARTBEAT_OK**.", " HEARTBEAT_OK\n"])
async def test_an_answer_that_is_for_nobody_is_not_told(home: Store, quiet: str) -> None:
    await add(home, a_task())

    assert await ended(home, result=quiet) == []


async def test_a_task_that_delivers_none_tells_no_answer(home: Store) -> None:
    await add(home, a_task(deliver="none"))

    assert await ended(home) == []


async def test_what_the_run_said_already_is_not_said_twice(home: Store) -> None:
    await add(home, a_task())
    _, run = await claim(home)
    await home.runs.begin(a_run("run-1", "conv-1", claim=run))
    await home.outbound.add("conv-1", HOME, "Blue. ", "assistant", T0)

    assert await home.tasks.finish(run, state=TaskRunState.SUCCESS, result="Blue.", error=None, now=T0) == []
    assert await ended(home, 2, result="Blue.") == ["Blue."]


async def test_a_failure_is_told_once_and_again_when_it_works(home: Store) -> None:
    await add(home, a_task())

    (failure,) = await ended(home, 0, TaskRunState.ERROR)
    assert failure.startswith("⚠️ The scheduled task “Look around” failed: The model is away.")
    assert await ended(home, 1, TaskRunState.TIMEOUT) == []
    assert await ended(home, 2) == ["The scheduled task “Look around” works again.", "The sky is blue."]
    assert await ended(home, 3) == ["The sky is blue."]


@pytest.mark.parametrize("state", [TaskRunState.CANCELLED, TaskRunState.PAUSED])
async def test_what_people_know_already_is_no_failure_to_tell(home: Store, state: TaskRunState) -> None:
    await add(home, a_task())

    assert await ended(home, 0, state) == []


async def test_the_answer_of_a_run_whose_host_died_behind_it_is_told_once(home: Store) -> None:
    await add(home, a_task(context_mode="group"))
    _, run = await claim(home)
    lease = await home.runs.begin(a_run(claim=run))
    await home.runs.finish(lease, run_end(RunState.SUCCESS, "Blue."), [], [], T0)
    await home.tasks.renew_claim(run, DEAD)

    assert await nothing_due(home)
    assert await nothing_due(home)

    assert await told(home) == ["Blue."]


# What a task's run may add and end


async def in_a_run(store: Store, task_id: str) -> str:
    """Begin a run of the task, and return the conversation that it is in."""
    _, run = await store.tasks.claim_manual(task_id, EVERYTHING, host="a", now=T0, lease_ms=LEASE)
    conversation = f"conv-of-{task_id}"
    await store.runs.begin(a_run(f"run-of-{task_id}", conversation, claim=run))
    return conversation


async def test_a_tasks_runs_grow_no_tree_of_more_than_ten(home: Store) -> None:
    await add(home, a_task("root"))
    by = await in_a_run(home, "root")
    for number in range(9):
        await home.tasks.add(a_task(f"child-{number}"), quota=100, by=by)

    with pytest.raises(Conflict, match="the limit") as refused:
        await home.tasks.add(a_task("child-9"), quota=100, by=by)

    assert refused.value.code == "task_tree"
    assert (await stored(home, "child-0")).tree_id == "root"
    other = await in_a_run(home, "child-0")
    with pytest.raises(Conflict):
        await home.tasks.add(a_task("grandchild"), quota=100, by=other)
    await home.tasks.remove("child-1", Reach(HOME))
    await home.tasks.add(a_task("grandchild"), quota=100, by=other)
    assert (await stored(home, "grandchild")).depth == 2


async def test_a_tasks_runs_grow_no_tree_deeper_than_two(home: Store) -> None:
    await add(home, a_task("0"))
    for depth in (1, 2):
        by = await in_a_run(home, str(depth - 1))
        await home.tasks.add(a_task(str(depth)), quota=100, by=by)

    by = await in_a_run(home, "2")
    with pytest.raises(Conflict, match="may not make more") as refused:
        await home.tasks.add(a_task("3"), quota=100, by=by)

    assert refused.value.code == "task_tree"


async def test_a_group_tasks_run_is_bounded_while_it_runs(home: Store) -> None:
    await add(home, a_task("root", context_mode="group"))
    _, run = await claim(home)
    lease = await home.runs.begin(a_run(claim=run))
    await home.tasks.add(a_task("child"), quota=100, by=HOME)
    await home.runs.finish(lease, run_end(RunState.SUCCESS, "Blue."), [], [], T0)

    await home.tasks.add(a_task("a-persons"), quota=100, by=HOME)

    assert ((await stored(home, "child")).depth, (await stored(home, "a-persons")).depth) == (1, 0)


async def test_a_task_that_is_deleted_has_its_run_cancelled(home: Store) -> None:
    await add(home, a_task(), a_task("other"))
    await in_a_run(home, "task-1")
    await in_a_run(home, "other")

    await home.tasks.remove("task-1", Reach(HOME))

    assert await home.runs.cancels_asked("a") == ["run-of-task-1"]


async def test_a_task_that_its_own_run_cancels_is_completed(home: Store) -> None:
    await add(home, a_task())
    _, run = await claim(home)
    await home.runs.begin(a_run(claim=run))

    assert await home.tasks.remove("task-1", Reach(HOME), by=HOME)

    assert await home.runs.cancels_asked("a") == []
    await finish(home, run)
    after = await stored(home)
    assert (after.status, after.next_run, after.last_state) == (
        TaskStatus.COMPLETED,
        None,
        TaskRunState.SUCCESS,
    )
    assert await told(home) == ["done"]


# Leases, fences, takeovers


async def test_a_claim_can_be_prolonged(home: Store) -> None:
    await add(home, a_task())
    _, run = await claim(home, lease_ms=LEASE)

    await home.tasks.renew_claim(run, LEASE)
    await home.tasks.renew_claim(run, DEAD)

    with pytest.raises(LeaseLost):
        await home.tasks.renew_claim(run, LEASE)


async def test_a_dead_owners_slot_is_run_again_and_the_old_claim_is_worthless(home: Store) -> None:
    await add(home, a_task())
    _, old = await claim(home, host="a", lease_ms=DEAD)

    _, new = await claim(home, host="b")

    assert (new.id, new.slot, new.attempt, new.fence) == (old.id, old.slot, 2, old.fence + 1)
    with pytest.raises(LeaseLost):
        await finish(home, old)
    with pytest.raises(LeaseLost):
        await home.tasks.renew_claim(old, LEASE)
    await home.tasks.release(old)
    await finish(home, new)
    assert [run.state for run in await log(home)] == [TaskRunState.SUCCESS]


async def test_a_host_that_was_stopped_behind_its_claim_begins_no_run_for_a_slot_that_another_one_served(
    home: Store,
) -> None:
    await add(home, a_task())
    _, old = await claim(home, host="a", lease_ms=DEAD)
    _, new = await claim(home, host="b")
    lease = await home.runs.begin(a_run("run-of-b", claim=new))
    await home.runs.finish(lease, run_end(RunState.SUCCESS, "done"), [], [], T0)
    await finish(home, new)

    with pytest.raises(LeaseLost):
        await home.runs.begin(a_run("run-of-a", claim=old))

    assert await home.runs.get(HOME, "run-of-a") is None
    assert (await log(home))[0].run_id == "run-of-b"


async def test_a_fence_protects_even_from_the_same_host(home: Store) -> None:
    await add(home, a_task())
    _, old = await claim(home, lease_ms=DEAD)
    await claim(home)

    with pytest.raises(LeaseLost):
        await finish(home, old)


async def test_a_slot_whose_run_may_have_had_an_effect_is_not_run_again(home: Store) -> None:
    await add(home, a_once())
    _, run = await claim(home, lease_ms=LEASE)
    lease = await home.runs.begin(a_run(claim=run))
    await home.runs.append(lease, [], T0, effect_ahead=True)
    assert await home.runs.renew([lease], DEAD) == set()
    await home.tasks.renew_claim(run, DEAD)

    assert await nothing_due(home)

    (ended,) = await log(home)
    assert ended.state is TaskRunState.ERROR
    assert ended.error is not None
    assert (await stored(home)).status is TaskStatus.FAILED


async def test_a_slot_whose_run_acted_before_its_last_step_is_not_run_again(home: Store) -> None:
    await add(home, a_once())
    _, run = await claim(home, lease_ms=LEASE)
    lease = await home.runs.begin(a_run(claim=run))
    await home.runs.append(lease, [], T0, effect_ahead=True)
    await home.runs.append(lease, [], T0)
    assert await home.runs.renew([lease], DEAD) == set()
    await home.tasks.renew_claim(run, DEAD)

    assert await nothing_due(home)

    (ended,) = await log(home)
    assert ended.state is TaskRunState.ERROR
    assert (await stored(home)).status is TaskStatus.FAILED


async def test_a_slot_whose_run_did_nothing_outward_is_run_again(home: Store) -> None:
    await add(home, a_task())
    _, run = await claim(home)
    await home.runs.begin(a_run(lease_ms=DEAD, claim=run))
    await home.tasks.renew_claim(run, DEAD)

    assert (await claim(home, host="b"))[1].attempt == 2


async def test_a_slot_whose_run_had_ended_gets_that_runs_outcome(home: Store) -> None:
    await add(home, a_once())
    _, run = await claim(home)
    lease = await home.runs.begin(a_run(claim=run))
    await home.runs.finish(lease, run_end(RunState.SUCCESS, "the answer"), [], [], T0)
    await home.tasks.renew_claim(run, DEAD)

    assert await nothing_due(home)

    (ended,) = await log(home)
    assert (ended.state, ended.result) == (TaskRunState.SUCCESS, "the answer")
    assert (await stored(home)).status is TaskStatus.COMPLETED


async def test_a_slot_is_left_alone_while_its_run_is_alive(home: Store) -> None:
    await add(home, a_task())
    _, run = await claim(home)
    await home.runs.begin(a_run(claim=run))
    await home.tasks.renew_claim(run, DEAD)

    assert await nothing_due(home)
    assert (await log(home))[0].state is TaskRunState.RUNNING


async def test_a_slot_that_kills_its_host_every_time_is_given_up(home: Store) -> None:
    await add(home, a_once())
    for _ in range(3):
        await claim(home, lease_ms=DEAD)

    assert await nothing_due(home)
    assert (await stored(home)).status is TaskStatus.FAILED
    assert [run.state for run in await log(home)] == [TaskRunState.ERROR]


async def test_a_dead_owners_slot_is_not_run_again_once_the_task_was_paused(home: Store) -> None:
    await add(home, a_task())
    await claim(home, lease_ms=DEAD)
    task = await stored(home)
    await home.tasks.replace(
        replace(task, status=TaskStatus.PAUSED), EVERYTHING, expected_revision=task.revision
    )

    assert await nothing_due(home)
    assert [run.state for run in await log(home)] == [TaskRunState.ERROR]


async def test_a_dead_owners_slot_of_an_edited_schedule_is_not_run_again(home: Store) -> None:
    await add(home, a_task())
    await claim(home, lease_ms=DEAD)
    task = await stored(home)
    edited = replace(task, schedule_value="5000", next_run=T0 + 5000)
    await home.tasks.replace(edited, EVERYTHING, expected_revision=task.revision)

    assert await nothing_due(home)
    assert [run.state for run in await log(home)] == [TaskRunState.ERROR]
    assert (await claim(home, T0 + 5000))[1].slot == str(T0 + 5000)


async def test_a_dead_owners_manual_slot_ends_as_an_error(home: Store) -> None:
    await add(home, a_task(next_run=T0 + MINUTE))
    await home.tasks.claim_manual("task-1", EVERYTHING, host="a", now=T0, lease_ms=DEAD)

    assert await nothing_due(home)
    assert [run.state for run in await log(home)] == [TaskRunState.ERROR]


async def test_a_starting_host_frees_what_its_forerunner_held(home: Store) -> None:
    await add(home, a_task("mine"), a_task("theirs"))
    await claim(home, host="new")
    _, old = await claim(home, host="old")

    assert await home.tasks.recover(T0, all_but="new") == 1

    _, again = await claim(home, host="new")
    assert (again.id, again.attempt) == (old.id, 2)
    assert await nothing_due(home)


async def test_a_claim_given_back_is_due_again_as_if_it_had_never_been_made(home: Store) -> None:
    await add(home, a_task())
    _, run = await claim(home, T0 + 10 * MINUTE)

    await home.tasks.release(run)

    assert await log(home) == []
    _, again = await claim(home, T0 + 10 * MINUTE)
    assert (again.slot, again.attempt) == (run.slot, 1)


async def test_a_manual_claim_given_back_leaves_no_trace(home: Store) -> None:
    await add(home, a_task())
    before = await stored(home)
    _, run = await home.tasks.claim_manual("task-1", EVERYTHING, host="a", now=T0, lease_ms=LEASE)

    await home.tasks.release(run)

    assert await log(home) == []
    assert await stored(home) == before


async def test_a_taken_over_claim_given_back_can_be_taken_over_again(home: Store) -> None:
    await add(home, a_task())
    await claim(home, lease_ms=DEAD)
    _, second = await claim(home, host="b")

    await home.tasks.release(second)

    _, third = await claim(home, host="c")
    assert (third.slot, third.attempt, third.fence) == (second.slot, 2, second.fence + 1)


# Figures


async def test_due_tasks_are_counted_and_the_next_one_is_known(home: Store) -> None:
    assert await home.tasks.next_due() is None
    await add(home, a_task("a"), a_task("b", next_run=T0 + MINUTE), a_task("c", status=TaskStatus.PAUSED))

    assert await home.tasks.count_due(T0 - 1) == 0
    assert await home.tasks.count_due(T0) == 1
    assert await home.tasks.count_due(T0 + MINUTE) == 2
    assert await home.tasks.next_due() == T0


async def test_metrics_say_what_is_due_running_and_how_late(home: Store) -> None:
    await add(home, a_task("a"), a_task("b"))
    await claim(home)

    metrics = await home.tasks.metrics(T0 + 2500)

    assert (metrics.due, metrics.running, metrics.overdue_seconds) == (1, 1, 2.5)


async def test_the_run_log_is_paged_newest_first(home: Store) -> None:
    await add(home, a_task(catch_up="all"))
    slots = await slots_at(home, T0 + 4 * MINUTE)

    first = await home.tasks.runs("task-1", Reach(HOME), limit=3, cursor=None)
    assert first is not None
    rest = await home.tasks.runs("task-1", Reach(HOME), limit=3, cursor=first.next_cursor)
    assert rest is not None

    assert [int(run.slot) for run in first.items + rest.items] == slots[::-1]
    assert rest.next_cursor is None
