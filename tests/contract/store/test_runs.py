"""What every engine promises about runs: one per conversation, fenced, never stuck."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from shared.errors import Conflict, ConversationBusy, KeyTaken, LeaseLost, NotFound
from shared.store.store import Store
from shared.usage_values import Usage
from shared.values import Compaction, Event, Lease, RunFilter, RunState
from tests.contract.store.conftest import OpenStore
from tests.contract.store.making import DAY, T0, a_key, a_run, an_end, said


@pytest.fixture(autouse=True)
async def conversation(store: Store) -> None:
    await store.conversations.create("c", T0)


async def test_a_run_goes_from_its_message_to_its_answer(store: Store) -> None:
    lease = await store.runs.begin(a_run("1"))
    running = await store.runs.active("c")
    assert running is not None
    assert running.state is RunState.RUNNING
    await store.runs.record([(lease, [Event(1, "start", {"a": 1})])], T0)
    await store.runs.finish(lease, an_end(), [said("2", "done")], [Event(2, "done", {})], T0 + 5)
    run = await store.runs.get("c", "run-1")
    assert run is not None
    assert (run.state, run.finished_at, run.model, run.usage) == (
        RunState.SUCCESS,
        T0 + 5,
        "model-1",
        Usage(1, 2, 3, 4),
    )
    assert run.answer == {"status": "success", "result": "done"}
    assert await store.runs.active("c") is None
    assert [event.seq for event in await store.runs.events("run-1", after=0)] == [1, 2]
    assert [event.seq for event in await store.runs.events("run-1", after=1)] == [2]


@pytest.mark.parametrize("temporary", [False, True])
async def test_a_lease_tells_what_a_run_has_to_know_of_its_conversation(
    store: Store, temporary: bool
) -> None:
    lease = await store.runs.begin(a_run("1", "new", create=True, parent_id="c", temporary=temporary))
    made = await store.conversations.get("new")
    assert made is not None
    assert (lease.conversation_id, lease.message_id) == ("new", "msg-1")
    assert (lease.session_id, lease.temporary) == (made.session_id, temporary)


async def test_a_busy_conversation_refuses_and_stores_nothing(store: Store) -> None:
    await store.runs.begin(a_run("1"))
    with pytest.raises(ConversationBusy):
        await store.runs.begin(a_run("2", idempotency=a_key()))
    assert len(await store.conversations.history("c")) == 1
    assert await store.runs.get("c", "run-2") is None
    assert await store.runs.keyed(a_key(), T0) is None


async def test_a_refused_run_in_a_new_conversation_leaves_no_conversation(store: Store) -> None:
    await store.runs.begin(a_run("1", idempotency=a_key()))
    with pytest.raises(KeyTaken):
        await store.runs.begin(a_run("2", "fresh", create=True, idempotency=a_key()))
    assert await store.conversations.get("fresh") is None


async def test_an_unknown_conversation_is_not_found(store: Store) -> None:
    with pytest.raises(NotFound, match="nobody"):
        await store.runs.begin(a_run("1", "nobody"))


async def test_of_many_who_begin_at_once_one_gets_the_lease(open_store: OpenStore, store: Store) -> None:
    stores = [open_store() for _ in range(4)]
    begun, busy = [], 0

    async def begin(number: int) -> None:
        nonlocal busy
        try:
            begun.append(await stores[number % 4].runs.begin(a_run(str(number))))
        except ConversationBusy:
            busy += 1

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(begin, number)
    assert (len(begun), busy) == (1, 19)


async def test_an_overtaken_owner_writes_nothing(store: Store) -> None:
    old = await store.runs.begin(a_run("1", lease_ms=0))
    new = await store.runs.begin(a_run("2", owner="host-2"))
    assert new.fence > old.fence
    before = await store.conversations.history("c")
    for write in (
        store.runs.append(old, [said("late")], T0),
        store.runs.finish(old, an_end(), [said("late2")], [], T0),
    ):
        with pytest.raises(LeaseLost):
            await write
    told = [(new, [Event(1, "chunk", {})]), (old, [Event(9, "chunk", {})])]
    assert await store.runs.record(told, T0) == {old.run_id}
    assert await store.runs.renew([old], 1000) == {old.run_id}
    assert 9 not in [event.seq for event in await store.runs.events(old.run_id, after=0)]
    assert [event.seq for event in await store.runs.events(new.run_id, after=0)] == [1]
    assert await store.conversations.history("c") == before
    run = await store.runs.get("c", "run-1")
    assert run is not None
    assert run.state is RunState.ERROR


async def test_a_lease_that_ran_out_is_lost_even_if_nobody_took_it(store: Store) -> None:
    lease = await store.runs.begin(a_run("1", lease_ms=0))
    with pytest.raises(LeaseLost):
        await store.runs.append(lease, [said("late")], T0)


async def test_a_renewed_lease_lives_on(store: Store) -> None:
    lease = await store.runs.begin(a_run("1", lease_ms=1000))
    assert await store.runs.renew([lease], 60_000) == set()
    assert await store.runs.recover(T0 + 10 * DAY) == []


async def test_many_leases_are_renewed_at_once_and_the_lost_ones_named(store: Store) -> None:
    lost = await store.runs.begin(a_run("1", lease_ms=0))
    leases = [await store.runs.begin(a_run("2", lease_ms=1000)), lost]
    assert await store.runs.renew(leases, 60_000) == {lost.run_id}
    assert await store.runs.renew([], 60_000) == set()
    assert await store.runs.recover(T0 + 10 * DAY) == []


@pytest.mark.parametrize(("effect_ahead", "code"), [(False, "retryable"), (True, "interrupted")])
async def test_a_run_cut_off_says_whether_it_may_be_repeated(
    store: Store, effect_ahead: bool, code: str
) -> None:
    lease = await store.runs.begin(a_run("1"))
    await store.runs.append(lease, [said("step", None, "assistant")], T0, effect_ahead=effect_ahead)
    assert await store.runs.recover(T0 + 1, all_but="host-2") == ["run-1"]
    run = await store.runs.get("c", "run-1")
    assert run is not None
    assert (run.state, run.code) == (RunState.ERROR, code)
    events = await store.runs.events("run-1", after=0)
    assert [event.name for event in events] == ["error", "done"]
    assert await store.runs.active("c") is None
    await store.runs.begin(a_run("2"))


async def test_recovery_spares_the_hosts_own_runs(store: Store) -> None:
    await store.runs.begin(a_run("1"))
    assert await store.runs.recover(T0, all_but="host-1") == []


async def test_an_old_effect_is_forgotten_once_the_step_is_stored(store: Store) -> None:
    lease = await store.runs.begin(a_run("1"))
    await store.runs.append(lease, [said("s1", None)], T0, effect_ahead=True)
    await store.runs.append(lease, [said("s2", None)], T0)
    await store.runs.recover(T0, all_but="host-2")
    run = await store.runs.get("c", "run-1")
    assert run is not None
    assert run.code == "retryable"


async def test_runs_come_newest_first_in_pages(store: Store) -> None:
    for number in range(5):
        lease = await store.runs.begin(a_run(str(number)))
        await store.runs.finish(lease, an_end(), [], [], T0)
    first = await store.runs.page(RunFilter(conversation_id="c"), limit=3, cursor=None)
    rest = await store.runs.page(RunFilter(conversation_id="c"), limit=3, cursor=first.next_cursor)
    assert [run.id for run in first.items + rest.items] == [f"run-{number}" for number in (4, 3, 2, 1, 0)]


async def test_another_conversations_run_is_not_there(store: Store) -> None:
    await store.conversations.create("d", T0)
    await store.runs.begin(a_run("1"))
    assert await store.runs.get("d", "run-1") is None


async def test_a_key_stands_for_its_run(store: Store) -> None:
    await store.runs.begin(a_run("1", idempotency=a_key()))
    with pytest.raises(KeyTaken) as taken:
        await store.runs.begin(a_run("2", idempotency=a_key()))
    assert taken.value.answer.subject == "run-1"
    assert len(await store.conversations.history("c")) == 1


async def test_a_key_with_another_body_is_a_conflict(store: Store) -> None:
    await store.runs.begin(a_run("1", idempotency=a_key()))
    with pytest.raises(Conflict) as conflict:
        await store.runs.begin(a_run("2", idempotency=a_key(digest="other")))
    assert conflict.value.code == "idempotency_mismatch"


async def test_a_retryable_run_is_run_again_on_the_message_that_is_stored(store: Store) -> None:
    await store.runs.begin(a_run("1", idempotency=a_key()))
    await store.runs.recover(T0, all_but="host-2")
    lease = await store.runs.begin(a_run("2", idempotency=a_key()))
    assert (lease.run_id, lease.message_id) == ("run-2", "msg-1")
    assert len(await store.conversations.history("c")) == 1
    again = await store.runs.keyed(a_key(), T0)
    assert again is not None
    assert again.subject == "run-2"


async def test_a_run_is_begun_again_as_often_as_it_may_be(store: Store) -> None:
    await store.runs.begin(a_run("1", again=2, background=True, lease_ms=0))
    for number in ("2", "3"):
        await store.runs.recover(T0)
        (cut_off,) = await store.runs.to_begin_again(10)
        await store.runs.begin(
            a_run(number, message=None, begun_again=cut_off.id, again=2, background=True, lease_ms=0)
        )
    await store.runs.recover(T0)
    assert await store.runs.to_begin_again(10) == []


async def test_a_key_is_free_again_after_a_day(store: Store) -> None:
    await store.runs.keep_answer(a_key(), "task-1", 201, {"id": "task-1"}, T0)
    kept = await store.runs.keyed(a_key(), T0 + DAY - 1)
    assert kept is not None
    assert (kept.status, kept.body) == (201, {"id": "task-1"})
    assert await store.runs.keyed(a_key(), T0 + DAY) is None


async def test_who_wants_a_run_stopped_may_ask_anybody(open_store: OpenStore, store: Store) -> None:
    assert await store.runs.ask_cancel("c") is None
    lease = await store.runs.begin(a_run("1"))
    assert await store.runs.cancels_asked("host-1") == []
    assert await open_store().runs.ask_cancel("c") == "run-1"
    assert await store.runs.cancels_asked("host-1") == ["run-1"]
    assert await store.runs.cancels_asked("host-2") == []
    await store.runs.finish(lease, an_end(RunState.CANCELLED), [], [], T0)
    assert await store.runs.cancels_asked("host-1") == []
    assert await store.runs.ask_cancel("c") is None


async def test_keys_and_events_survive_a_restart(open_store: OpenStore, store: Store) -> None:
    lease = await store.runs.begin(a_run("1", idempotency=a_key()))
    await store.runs.record([(lease, [Event(1, "start", {})])], T0)
    await store.durable()
    again = open_store()
    kept = await again.runs.keyed(a_key(), T0)
    assert kept is not None
    assert kept.subject == "run-1"
    assert [event.seq for event in await again.runs.events("run-1", after=0)] == [1]


async def test_a_turn_that_the_model_refused_is_marked_from_its_message_on(store: Store) -> None:
    first = await store.runs.begin(a_run("1"))
    await store.runs.finish(first, an_end(), [said("a1", role="assistant")], [], T0)
    second = await store.runs.begin(a_run("2"))
    await store.runs.append(second, [said("a2", text=None, role="assistant")], T0)
    end = an_end(state=RunState.ERROR, error="It declined.", code="refused")
    await store.runs.finish(second, end, [said("a3", role="assistant")], [], T0)
    await store.runs.begin(a_run("3"))
    history = await store.conversations.history("c")
    assert [entry.refused for entry in history] == [False, False, True, True, True, False]
    shown = (await store.conversations.messages("c", limit=9, cursor=None)).items
    assert [message.refused for message in shown] == [False, False, True, True, False]


async def test_refusals_in_a_row_take_more_and_more_of_the_turns_before(store: Store) -> None:
    for number in range(5):
        answered = await store.runs.begin(a_run(f"{number}"))
        await store.runs.finish(answered, an_end(), [said(f"a{number}", role="assistant")], [], T0)
    end = an_end(state=RunState.ERROR, error="It declined.", code="refused")
    left = []
    for number in range(5, 8):
        declined = await store.runs.begin(a_run(f"{number}"))
        await store.runs.finish(declined, end, [], [], T0)
        turns = [entry for entry in await store.conversations.history("c") if entry.role == "user"]
        left.append(sum(not entry.refused for entry in turns))
    assert left == [5, 4, 1]
    answered = await store.runs.begin(a_run("8"))
    await store.runs.finish(answered, an_end(), [], [], T0)
    declined = await store.runs.begin(a_run("9"))
    await store.runs.finish(declined, end, [], [], T0)
    turns = [entry for entry in await store.conversations.history("c") if entry.role == "user"]
    assert sum(not entry.refused for entry in turns) == 2


async def _turn(store: Store, name: str, **changes: Any) -> Lease:
    lease = await store.runs.begin(a_run(name, **changes))
    await store.runs.append(lease, [said(f"{name}-step", None, "assistant")], T0)
    await store.runs.finish(lease, an_end(), [said(f"{name}-answer", "so", "assistant")], [], T0)
    return lease


async def test_a_message_takes_the_place_of_the_last_one_and_of_all_that_followed_it(store: Store) -> None:
    before = await _turn(store, "one")
    await _turn(store, "two")
    lease = await _turn(store, "three", replaces="msg-two")
    page = await store.conversations.messages("c", limit=10, cursor=None)
    assert [item.id for item in page.items] == ["msg-one", "msg-one-answer", "msg-three", "msg-three-answer"]
    assert len(await store.conversations.history("c")) == 6
    found = await store.conversations.get("c")
    assert found is not None
    assert found.message_count == 4
    # Whoever has built the conversation for the model builds it again.
    assert found.session_id == lease.session_id != before.session_id
    runs = await store.runs.page(RunFilter(conversation_id="c"), limit=10, cursor=None)
    assert [run.message_id for run in runs.items] == ["msg-three", "msg-two", "msg-one"]


@pytest.mark.parametrize("replaces", ["msg-one", "msg-two-answer", "msg-none", ""])
async def test_only_the_last_message_can_be_replaced(store: Store, replaces: str) -> None:
    await _turn(store, "one")
    await _turn(store, "two")
    with pytest.raises(Conflict) as refused:
        await store.runs.begin(a_run("three", replaces=replaces))
    assert refused.value.code == "not_last_message"
    with pytest.raises(Conflict):
        await store.runs.begin(a_run("four", "new", create=True, replaces="msg-two"))
    assert await store.conversations.get("new") is None
    assert len((await store.conversations.messages("c", limit=10, cursor=None)).items) == 4


async def test_a_message_that_was_summed_up_stays(store: Store) -> None:
    lease = await store.runs.begin(a_run("one"))
    await store.compactions.add(lease, Compaction(kind="summary", through_seq=1, text="a turn"), T0)
    await store.runs.finish(lease, an_end(), [], [], T0)
    with pytest.raises(Conflict, match="summed up"):
        await store.runs.begin(a_run("two", replaces="msg-one"))
