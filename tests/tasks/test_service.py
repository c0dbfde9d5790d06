"""The service behind HTTP, MCP and the command line."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import anyio
import pytest

from shared.clock import now_ms
from shared.errors import Conflict, Duplicate, InvalidInput, NotFound
from shared.principals import EVERYTHING, Reach
from shared.schedules import parse, upcoming
from shared.shapes import task_run_view, task_view
from shared.store.sqlite.store import SqliteStore
from shared.task_values import Task, TaskRun, TaskRunState, TaskStatus
from shared.tasks import TaskService
from tests.tasks.conftest import HOME, LEASE_MS, NOW

MINUTE = 60_000
HOUR = 60 * MINUTE


async def schedule(service: TaskService, **changes: Any) -> Task:
    fields: dict[str, Any] = {
        "reach": EVERYTHING,
        "conversation_id": HOME,
        "prompt": "Look around",
        "schedule_type": "interval",
        "schedule_value": str(HOUR),
        "id": "task-1",
        "now": NOW,
    }
    return await service.schedule(**fields | changes)


async def once(service: TaskService, **changes: Any) -> Task:
    return await schedule(
        service, **{"schedule_type": "once", "schedule_value": "2027-01-15T10:00", **changes}
    )


async def claim(store: SqliteStore, now: int) -> TaskRun:
    claimed = await store.tasks.claim_due(host="a", now=now, lease_ms=LEASE_MS)
    assert claimed is not None
    return claimed[1]


async def run(store: SqliteStore, now: int, state: TaskRunState = TaskRunState.SUCCESS) -> None:
    await store.tasks.finish(await claim(store, now), state=state, result="ok", error=None, now=now)


# Making


async def test_a_task_is_made_with_the_contracts_defaults(service: TaskService) -> None:
    task = await schedule(service, id=None)

    assert task.id.startswith("task-")
    assert (task.context_mode, task.catch_up, task.timezone) == ("isolated", "once", "Europe/Berlin")
    assert (task.status, task.next_run) == (TaskStatus.ACTIVE, NOW + HOUR)
    assert await service.get(task.id, EVERYTHING) == task


async def test_a_past_once_time_is_due_at_once_where_that_is_wanted(
    service: TaskService, store: SqliteStore
) -> None:
    task = await once(service, schedule_value="2020-01-01", run_if_past=True)

    assert task.next_run is not None
    assert task.next_run < NOW
    assert await store.tasks.count_due(NOW) == 1


async def test_a_time_that_a_once_task_had_before_runs_again_where_that_is_wanted_and_else_is_refused(
    service: TaskService, store: SqliteStore
) -> None:
    past = {"schedule_value": "2020-01-01", "run_if_past": True}
    task = await once(service, **past)
    await run(store, NOW)
    with pytest.raises(Conflict, match="Give it a new schedule_value") as refused:
        await service.update(task.id, EVERYTHING, past, now=NOW + HOUR)
    assert refused.value.code == "task_completed"
    await service.update(task.id, EVERYTHING, {"schedule_value": "2028-01-01"}, now=NOW + HOUR)
    await service.update(task.id, EVERYTHING, past, now=NOW + HOUR)
    await run(store, NOW + HOUR)


@pytest.mark.parametrize("value", ["2027-01-15T08:59:59", "2027-01-15", "2020-01-01 00:00"])
async def test_a_past_once_time_is_refused_with_the_present_time(service: TaskService, value: str) -> None:
    with pytest.raises(
        InvalidInput, match=r"now it is Fri 2027-01-15T09:00:00\+01:00 Europe/Berlin"
    ) as refused:
        await once(service, schedule_value=value)

    assert refused.value.message.startswith(f"schedule_value: '{value}' is past")
    assert "run_if_past" in refused.value.message
    await once(service)
    with pytest.raises(InvalidInput, match="is past"):
        await service.update("task-1", EVERYTHING, {"schedule_value": value}, now=NOW)
    await service.update("task-1", EVERYTHING, {"schedule_value": value, "run_if_past": True}, now=NOW)


async def test_the_present_second_is_no_past(service: TaskService) -> None:
    assert (await once(service, schedule_value="2027-01-15T09:00:00")).next_run == NOW


@pytest.mark.parametrize(
    ("given", "end"),
    [
        ("2027-01-16", "2027-01-16T22:59:59.999Z"),
        ("2027-01-16T10:00", "2027-01-16T09:00:00.000Z"),
        ("2027-01-16 10:00:30", "2027-01-16T09:00:30.000Z"),
        ("2027-01-16T10:00:00Z", "2027-01-16T10:00:00.000Z"),
        ("2027-01-16T10:00:00+08:00", "2027-01-16T02:00:00.000Z"),
    ],
)
async def test_an_end_is_taken_in_the_tasks_zone_or_with_an_offset(
    service: TaskService, given: str, end: str
) -> None:
    assert task_view(await schedule(service, ends_at=given))["ends_at"] == end


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"ends_at": "2027-01-15T08:59"}, "ends_at: is past"),
        ({"ends_at": "2027-01-15T09:30"}, "ends_at: lies before the first run"),
        ({"ends_at": "soon"}, "ends_at: takes a local time"),
        ({"ends_at": "2027-02-30"}, "ends_at: takes a local time"),
        # In UTC it is the year 10000, which no list could show.
        ({"ends_at": "9999-12-31T23:59:59-12:00"}, "ends_at: takes a local time"),
        ({"max_runs": 0}, "max_runs: must be a whole number"),
        ({"max_runs": True}, "max_runs: must be a whole number"),
        ({"deliver": "maybe"}, "deliver: must be one of answer, none"),
    ],
)
async def test_a_wrong_bound_is_refused(service: TaskService, fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        await schedule(service, **fields)


async def test_a_task_that_ended_goes_on_with_more_runs_and_says_so_without(
    service: TaskService, store: SqliteStore
) -> None:
    await schedule(service, max_runs=1)
    await run(store, NOW + HOUR)
    assert (await service.get("task-1", EVERYTHING)).status is TaskStatus.COMPLETED

    with pytest.raises(Conflict, match="has ended"):
        await service.resume("task-1", EVERYTHING, now=NOW + HOUR)

    again = await service.update("task-1", EVERYTHING, {"max_runs": 2}, now=NOW + HOUR)
    assert (again.status, again.next_run) == (TaskStatus.ACTIVE, NOW + 2 * HOUR)
    await run(store, NOW + 2 * HOUR)
    endless = await service.update("task-1", EVERYTHING, {"max_runs": None}, now=NOW + 3 * HOUR)
    assert (endless.status, endless.max_runs) == (TaskStatus.ACTIVE, None)


async def test_an_end_set_before_the_next_run_completes_a_task(service: TaskService) -> None:
    await schedule(service)

    after = await service.update("task-1", EVERYTHING, {"ends_at": "2027-01-15T09:30"}, now=NOW)

    assert (after.status, after.next_run) == (TaskStatus.COMPLETED, None)


async def test_a_task_is_overdue_when_it_is_late_by_two_ticks(service: TaskService) -> None:
    late = await schedule(service, now=now_ms() - HOUR - 3 * MINUTE, id="late")
    near = await schedule(service, now=now_ms() - HOUR, id="near")

    assert (task_view(late)["overdue"], task_view(near)["overdue"]) == (True, False)


async def test_a_task_without_conversation_gets_a_hidden_one_of_its_own(
    service: TaskService, store: SqliteStore
) -> None:
    task = await schedule(service, conversation_id=None)

    own = await store.conversations.get(task.conversation_id)
    assert own is not None
    assert own.temporary
    assert [each.id for each in (await store.conversations.page(limit=10, cursor=None)).items] == [HOME]
    with pytest.raises(InvalidInput, match="context_mode: group needs"):
        await service.update(task.id, EVERYTHING, {"context_mode": "group"})


async def test_a_task_of_a_temporary_conversation_never_becomes_one_of_the_group(
    service: TaskService, store: SqliteStore
) -> None:
    await store.conversations.create("hidden", NOW, owner_id=HOME, temporary=True)
    await store.tasks.add(replace(await schedule(service), id="its-own", conversation_id="hidden"), quota=5)

    with pytest.raises(InvalidInput, match="context_mode: group needs a conversation that is not temporary"):
        await service.update("its-own", EVERYTHING, {"context_mode": "group"})
    assert (await service.get("its-own", EVERYTHING)).context_mode == "isolated"


async def test_an_owners_task_belongs_to_the_owner(service: TaskService) -> None:
    assert (await schedule(service, reach=Reach(HOME), conversation_id=None)).conversation_id == HOME


async def test_an_owner_cannot_schedule_for_others_nor_learn_whether_they_exist(
    service: TaskService, store: SqliteStore
) -> None:
    await store.conversations.create("conv-b", NOW)
    sentences = []
    for target in ("conv-b", "conv-nowhere"):
        with pytest.raises(NotFound) as refused:
            await schedule(service, reach=Reach(HOME), conversation_id=target)
        sentences.append(refused.value.message.replace(target, "X"))

    assert sentences == ["conversation_id not found: X"] * 2
    assert (await store.counts()).tasks == 0


async def test_what_an_isolated_run_schedules_belongs_to_whom_it_works_for(
    service: TaskService, store: SqliteStore
) -> None:
    await store.conversations.create("conv-temp", NOW, owner_id=HOME, temporary=True)

    assert (await schedule(service, reach=Reach("conv-temp"), conversation_id=None)).conversation_id == HOME


async def test_an_unknown_conversation_is_refused(service: TaskService) -> None:
    with pytest.raises(NotFound, match="conversation_id not found: conv-x"):
        await schedule(service, conversation_id="conv-x")


async def test_an_id_is_taken_once(service: TaskService) -> None:
    await schedule(service)

    with pytest.raises(Duplicate):
        await schedule(service)


async def test_the_quota_holds(service: TaskService) -> None:
    for number in range(5):
        await schedule(service, id=f"task-{number}")

    with pytest.raises(Conflict) as refused:
        await schedule(service, id="task-5")
    assert refused.value.code == "task_quota"


async def test_a_host_with_a_wrong_time_zone_does_not_start(store: SqliteStore) -> None:
    with pytest.raises(InvalidInput, match=r"^timezone: "):
        TaskService(store, default_timezone=":/etc/localtime")


# Reaching


async def test_absent_and_foreign_tasks_get_the_same_answer_everywhere(service: TaskService) -> None:
    await schedule(service)
    for task_id, reach in (("task-1", Reach("conv-other")), ("task-x", EVERYTHING), ("task-x", Reach(HOME))):
        calls = [
            service.get(task_id, reach),
            service.update(task_id, reach, {"prompt": "mine"}),
            service.pause(task_id, reach),
            service.resume(task_id, reach),
            service.runs(task_id, reach),
            service.cancel(task_id, reach),
        ]
        for call in calls:
            with pytest.raises(NotFound) as refused:
                await call
            assert refused.value.message == "Task not found or access denied."

    assert (await service.get("task-1", Reach(HOME))).prompt == "Look around"


async def test_lists_show_the_owners_tasks(service: TaskService) -> None:
    await schedule(service)
    await schedule(service, id="task-2")
    await service.pause("task-2", Reach(HOME))

    assert [task.id for task in (await service.list(Reach(HOME))).items] == ["task-1", "task-2"]
    assert [task.id for task in (await service.list(EVERYTHING, status="paused")).items] == ["task-2"]
    assert (await service.list(Reach("conv-other"))).items == []
    with pytest.raises(InvalidInput, match=r"^status: must be one of active, paused, completed, failed"):
        await service.list(EVERYTHING, status="idle")
    for limit in (1, 1000):
        assert (await service.list(EVERYTHING, limit=limit)).items[0].id == "task-1"
        assert (await service.runs("task-1", EVERYTHING, limit=limit)).items == []
    for limit in (0, 1001):
        with pytest.raises(InvalidInput, match=r"^limit: "):
            await service.list(EVERYTHING, limit=limit)
        with pytest.raises(InvalidInput, match=r"^limit: "):
            await service.runs("task-1", EVERYTHING, limit=limit)


async def test_a_cancelled_task_is_gone_with_its_log(service: TaskService, store: SqliteStore) -> None:
    await schedule(service)
    await run(store, NOW + HOUR)

    await service.cancel("task-1", Reach(HOME))

    with pytest.raises(NotFound):
        await service.runs("task-1", Reach(HOME))
    assert (await store.counts()).tasks == 0


# Editing


async def test_an_edit_of_the_prompt_leaves_the_next_slot_alone(service: TaskService) -> None:
    before = await schedule(service)

    after = await service.update("task-1", Reach(HOME), {"prompt": "Look again"}, now=NOW + MINUTE)

    assert (after.prompt, after.next_run, after.updated_at) == ("Look again", before.next_run, NOW + MINUTE)


async def test_giving_the_same_schedule_again_leaves_the_next_slot_alone(service: TaskService) -> None:
    before = await schedule(service)
    same = {"schedule_type": "interval", "schedule_value": str(HOUR), "timezone": "Europe/Berlin"}

    assert await service.update("task-1", Reach(HOME), same, now=NOW + MINUTE) == before


async def test_a_new_schedule_starts_from_now(service: TaskService) -> None:
    await schedule(service)

    after = await service.update("task-1", Reach(HOME), {"schedule_value": "5000"}, now=NOW + MINUTE)

    assert after.next_run == NOW + MINUTE + 5000


async def test_a_new_zone_moves_the_slots(service: TaskService) -> None:
    await schedule(service, schedule_type="cron", schedule_value="0 12 * * *")

    after = await service.update("task-1", Reach(HOME), {"timezone": "Asia/Shanghai"}, now=NOW)

    assert after.next_run == NOW + 20 * HOUR


async def test_a_completed_task_with_a_new_time_is_active_again(
    service: TaskService, store: SqliteStore
) -> None:
    await once(service)
    await run(store, NOW + 2 * HOUR)
    assert (await service.get("task-1", EVERYTHING)).status is TaskStatus.COMPLETED

    after = await service.update("task-1", EVERYTHING, {"schedule_value": "2027-01-16"}, now=NOW + 3 * HOUR)

    assert after.status is TaskStatus.ACTIVE
    await run(store, NOW + 48 * HOUR)
    assert (await service.get("task-1", EVERYTHING)).status is TaskStatus.COMPLETED


async def test_a_paused_task_with_a_new_schedule_stays_paused(service: TaskService) -> None:
    await schedule(service)
    await service.pause("task-1", EVERYTHING)

    after = await service.update("task-1", EVERYTHING, {"schedule_value": "5000"})

    assert after.status is TaskStatus.PAUSED


async def test_edits_at_the_same_time_all_land(service: TaskService) -> None:
    await schedule(service)
    fields: list[dict[str, Any]] = [
        {"prompt": "new"},
        {"catch_up": "all"},
        {"status": "paused"},
        {"timezone": "UTC"},
        {"context_mode": "group"},
    ]

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            for each in fields:
                tasks.start_soon(service.update, "task-1", Reach(HOME), each)

    task = await service.get("task-1", Reach(HOME))
    assert (task.prompt, task.catch_up, task.timezone, task.context_mode) == ("new", "all", "UTC", "group")
    assert task.status is TaskStatus.PAUSED


# Pausing and resuming


async def test_pause_and_resume_can_be_said_twice(service: TaskService) -> None:
    task = await schedule(service)

    assert (await service.pause("task-1", EVERYTHING)).status is TaskStatus.PAUSED
    assert (await service.pause("task-1", EVERYTHING)).status is TaskStatus.PAUSED
    resumed = await service.resume("task-1", EVERYTHING, now=NOW + MINUTE)
    again = await service.resume("task-1", EVERYTHING, now=NOW + 5 * MINUTE)

    assert task.next_run == NOW + HOUR
    assert resumed.next_run == NOW + MINUTE + HOUR
    assert again == resumed


async def test_a_once_task_that_was_missed_while_paused_is_due_when_resumed(
    service: TaskService, store: SqliteStore
) -> None:
    await once(service)
    await service.pause("task-1", EVERYTHING)

    resumed = await service.resume("task-1", EVERYTHING, now=NOW + 9 * HOUR)

    assert resumed.next_run == NOW + 9 * HOUR
    await run(store, NOW + 9 * HOUR)
    assert (await service.get("task-1", EVERYTHING)).status is TaskStatus.COMPLETED


async def test_a_once_task_whose_time_is_ahead_keeps_it_when_resumed(service: TaskService) -> None:
    task = await once(service)
    await service.pause("task-1", EVERYTHING)

    assert (await service.resume("task-1", EVERYTHING, now=NOW + MINUTE)).next_run == task.next_run


async def test_a_once_task_that_ran_stays_completed_and_says_so(
    service: TaskService, store: SqliteStore
) -> None:
    await once(service)
    await run(store, NOW + 2 * HOUR)

    with pytest.raises(Conflict, match=r"it ran at 2027-01-15T10:00:00\.000Z") as refused:
        await service.resume("task-1", EVERYTHING)

    assert refused.value.code == "task_completed"
    assert (await service.get("task-1", EVERYTHING)).status is TaskStatus.COMPLETED


async def test_a_once_task_paused_while_it_ran_is_not_run_again(
    service: TaskService, store: SqliteStore
) -> None:
    await once(service)
    claimed = await claim(store, NOW + 2 * HOUR)
    await service.pause("task-1", EVERYTHING)
    await store.tasks.finish(claimed, state=TaskRunState.SUCCESS, result="ok", error=None, now=NOW + 2 * HOUR)

    with pytest.raises(Conflict):
        await service.resume("task-1", EVERYTHING)


async def test_a_once_task_paused_and_resumed_while_it_ran_ends_by_its_outcome(
    service: TaskService, store: SqliteStore
) -> None:
    await once(service)
    claimed = await claim(store, NOW + 2 * HOUR)
    await service.pause("task-1", EVERYTHING)
    assert (await service.resume("task-1", EVERYTHING, now=NOW + 3 * HOUR)).next_run is None
    assert await store.tasks.claim_due(host="b", now=NOW + 9 * HOUR, lease_ms=LEASE_MS) is None

    await store.tasks.finish(claimed, state=TaskRunState.SUCCESS, result="ok", error=None, now=NOW + 3 * HOUR)

    assert (await service.get("task-1", EVERYTHING)).status is TaskStatus.COMPLETED


async def test_a_failed_once_task_can_be_resumed(service: TaskService, store: SqliteStore) -> None:
    await once(service)
    now = NOW + 2 * HOUR
    for _ in range(3):
        await run(store, now, TaskRunState.ERROR)
        now += HOUR
    assert (await service.get("task-1", EVERYTHING)).status is TaskStatus.FAILED

    resumed = await service.resume("task-1", EVERYTHING, now=now)

    assert (resumed.status, resumed.next_run, resumed.attempts) == (TaskStatus.ACTIVE, now, 0)
    await run(store, now)
    assert (await service.get("task-1", EVERYTHING)).status is TaskStatus.COMPLETED


async def test_only_an_active_task_can_be_paused(service: TaskService, store: SqliteStore) -> None:
    await once(service)
    await run(store, NOW + 2 * HOUR)

    with pytest.raises(Conflict, match="is completed; only an active task"):
        await service.pause("task-1", EVERYTHING)


async def test_failed_cannot_be_set_by_hand(service: TaskService) -> None:
    await schedule(service)

    with pytest.raises(InvalidInput, match=r"^status: can be set to active, paused or completed"):
        await service.update("task-1", EVERYTHING, {"status": "failed"})


async def test_a_task_completed_by_hand_runs_no_more_until_it_is_active_again(
    service: TaskService, store: SqliteStore
) -> None:
    await schedule(service)
    completed = await service.update("task-1", EVERYTHING, {"status": "completed"})
    assert (completed.status, completed.next_run) == (TaskStatus.COMPLETED, None)
    assert await store.tasks.claim_due(host="a", now=NOW + 100 * HOUR, lease_ms=LEASE_MS) is None
    again = await service.update("task-1", EVERYTHING, {"status": "active"})
    assert again.status is TaskStatus.ACTIVE
    assert again.next_run is not None


async def test_a_task_that_is_completed_before_it_ran_says_no_time(service: TaskService) -> None:
    await once(service)
    await service.update("task-1", EVERYTHING, {"status": "completed"})
    with pytest.raises(Conflict, match=r"is completed\. Give it a new schedule_value"):
        await service.update("task-1", EVERYTHING, {"status": "active"})


# Showing


def test_the_next_slots_of_a_schedule_are_known_before_anything_is_made() -> None:
    assert upcoming(parse("interval", "60000", "UTC"), NOW, 3) == [
        NOW + MINUTE, NOW + 2 * MINUTE, NOW + 3 * MINUTE,
    ]  # fmt: skip
    assert len(upcoming(parse("cron", "* * * * *", "UTC"), NOW, 5)) == 5
    assert upcoming(parse("once", "2027-01-15T10:00", "Europe/Berlin"), NOW, 5) == [NOW + HOUR]


async def test_a_task_is_shown_with_iso_times(service: TaskService) -> None:
    assert task_view(await schedule(service)) == {
        "id": "task-1",
        "conversation_id": HOME,
        "prompt": "Look around",
        "schedule_type": "interval",
        "schedule_value": "3600000",
        "timezone": "Europe/Berlin",
        "context_mode": "isolated",
        "catch_up": "once",
        "deliver": "answer",
        "ends_at": None,
        "max_runs": None,
        "runs_begun": 0,
        "status": "active",
        "next_run": "2027-01-15T09:00:00.000Z",
        "next_run_local": "Fri 2027-01-15T10:00:00+01:00 Europe/Berlin",
        "overdue": False,
        "created_at": "2027-01-15T08:00:00.000Z",
        "updated_at": "2027-01-15T08:00:00.000Z",
        "last_run": None,
        "last_status": None,
        "attempts": 0,
    }


async def test_a_paused_task_shows_no_next_run(service: TaskService) -> None:
    await schedule(service)

    assert task_view(await service.pause("task-1", EVERYTHING))["next_run"] is None


async def test_the_run_log_tells_scheduled_from_manual_runs(service: TaskService, store: SqliteStore) -> None:
    await schedule(service)
    await run(store, NOW + HOUR + 7)
    await store.tasks.claim_manual("task-1", EVERYTHING, host="a", now=NOW + 2 * HOUR, lease_ms=LEASE_MS)

    manual, scheduled = [task_run_view(each) for each in (await service.runs("task-1", Reach(HOME))).items]

    assert (manual["trigger"], manual["due_at"], manual["status"]) == ("manual", None, "running")
    assert (manual["finished_at"], manual["duration_ms"]) == (None, None)
    assert (scheduled["trigger"], scheduled["due_at"]) == ("schedule", "2027-01-15T09:00:00.000Z")
    assert (scheduled["status"], scheduled["result"], scheduled["duration_ms"]) == ("success", "ok", 0)
