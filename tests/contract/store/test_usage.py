"""What every engine promises about spending: counted once, reserved once, kept."""

from __future__ import annotations

import pytest

from shared.errors import Conflict, ConversationBusy, InvalidInput, KeyTaken, LeaseLost, NotFound
from shared.principals import OPERATOR
from shared.store.store import Store
from shared.usage_values import Amount, DayUsage, Spending, Standing, Usage
from shared.values import Event, Lease, RunState
from tests.contract.store.conftest import OpenStore
from tests.contract.store.making import DAY, T0, a_key, a_principal, a_run, an_end, said

STEP = Spending(Usage(10, 20, 30, 40), microdollars=500)


class TooMuch(Exception):
    pass


@pytest.fixture(autouse=True)
async def conversation(store: Store) -> None:
    await store.conversations.create("c", T0)


async def finish(store: Store, lease: Lease, spending: Spending = STEP, now: int = T0) -> None:
    await store.runs.finish(lease, an_end(spending=spending), [], [], now)


async def standing(store: Store, lease: Lease, reserve: Amount | None = None) -> Standing:
    seen: list[Standing] = []

    def decide(now: Standing) -> Amount:
        seen.append(now)
        return reserve or Amount()

    await store.runs.reserve(lease, decide, T0)
    return seen[0]


async def test_steps_and_the_end_of_a_run_are_counted_once_each(store: Store) -> None:
    lease = await store.runs.begin(a_run("1"))
    await store.runs.append(lease, [said("s1", None, "assistant")], T0, spent=STEP)
    await store.runs.append(lease, [said("s2", None)], T0)
    await finish(store, lease)
    (day,) = (await store.usage.by_day(limit=10, cursor=None)).items
    assert (day.conversation_id, day.runs, day.spending) == (None, 1, STEP + STEP)
    assert day.spending.amount == Amount(200, 1000)
    (own,) = (await store.usage.by_conversation(conversation_id=None, limit=10, cursor=None)).items
    assert (own.conversation_id, own.day, own.spending) == ("c", day.day, STEP + STEP)


async def test_the_busiest_principals_of_a_day_come_with_their_runs_and_tokens(store: Store) -> None:
    await store.principals.add(a_principal("a"))
    await store.conversations.create("d", T0, principal_id="prin-a")
    for name, conversation_id, whose in (("1", "d", "prin-a"), ("2", "d", "prin-a"), ("3", "c", OPERATOR)):
        await finish(store, await store.runs.begin(a_run(name, conversation_id, principal_id=whose)))
    assert await store.usage.busiest(T0) == [("prin-a", 2, 200), (OPERATOR, 1, 100)]
    assert await store.usage.busiest(T0 + DAY) == []


async def test_a_temporary_conversation_counts_for_its_owner(store: Store) -> None:
    lease = await store.runs.begin(a_run("1", "t", create=True, parent_id="c", temporary=True))
    await finish(store, lease)
    page = await store.usage.by_conversation(conversation_id="c", limit=10, cursor=None)
    assert [row.spending for row in page.items] == [STEP]
    assert (await store.usage.by_conversation(conversation_id="t", limit=10, cursor=None)).items == []


async def test_usage_comes_newest_day_first_in_pages(store: Store) -> None:
    await store.conversations.create("d", T0)
    for number, (conversation, day) in enumerate([("c", 0), ("d", 0), ("c", 1), ("c", 2)]):
        lease = await store.runs.begin(a_run(str(number), conversation))
        await finish(store, lease, now=T0 + day * DAY)
    rows: list[DayUsage] = []
    cursor: str | None = ""
    while cursor is not None:
        page = await store.usage.by_conversation(conversation_id=None, limit=1, cursor=cursor)
        rows += page.items
        cursor = page.next_cursor
    assert [row.conversation_id for row in rows] == ["c", "c", "d", "c"]
    assert [row.day for row in rows] == sorted((row.day for row in rows), reverse=True)
    first = await store.usage.by_day(limit=2, cursor=None)
    rest = await store.usage.by_day(limit=2, cursor=first.next_cursor)
    assert [row.runs for row in first.items + rest.items] == [1, 1, 2]
    with pytest.raises(InvalidInput, match="cursor"):
        await store.usage.by_day(limit=2, cursor="junk")


async def test_others_reservations_stand_beside_what_is_spent(store: Store) -> None:
    await store.conversations.create("d", T0)
    mine = await store.runs.begin(a_run("1"))
    other = await store.runs.begin(a_run("2", "d"))
    task = await store.runs.begin(a_run("3", "t", create=True, parent_id="c", temporary=True))
    await standing(store, mine, Amount(1000, 1))
    await standing(store, other, Amount(200, 2))
    await standing(store, task, Amount(30, 3))
    assert await standing(store, mine, Amount(1000, 1)) == Standing(
        Amount(30, 3), principal=Amount(230, 5), day=Amount(230, 5)
    )
    await finish(store, other)
    await store.runs.append(task, [said("s1", None)], T0, spent=STEP)
    assert await standing(store, mine) == Standing(
        Amount(100, 500), principal=Amount(200, 1000), day=Amount(200, 1000)
    )


async def test_a_refused_reservation_leaves_the_earlier_one(store: Store) -> None:
    await store.conversations.create("d", T0)
    mine = await store.runs.begin(a_run("1"))
    other = await store.runs.begin(a_run("2", "d"))
    await standing(store, other, Amount(7, 7))

    def refuse(_: Standing) -> Amount:
        raise TooMuch

    with pytest.raises(TooMuch):
        await store.runs.reserve(other, refuse, T0)
    assert (await standing(store, mine)).day == Amount(7, 7)


async def test_an_overtaken_run_reserves_nothing(store: Store) -> None:
    old = await store.runs.begin(a_run("1", lease_ms=0))
    new = await store.runs.begin(a_run("2", owner="host-2"))
    with pytest.raises(LeaseLost):
        await standing(store, old, Amount(5, 5))
    assert (await standing(store, new)).day == Amount()


async def test_what_a_cut_off_run_had_reserved_counts_as_spent(store: Store) -> None:
    lease = await store.runs.begin(a_run("1"))
    await standing(store, lease, Amount(900, 80))
    await store.runs.recover(T0, all_but="host-2")
    (day,) = (await store.usage.by_day(limit=1, cursor=None)).items
    assert (day.runs, day.spending) == (1, Spending(microdollars=80, unsettled_tokens=900))


async def test_deleting_a_conversation_keeps_the_days_total(store: Store) -> None:
    lease = await store.runs.begin(a_run("1"))
    await finish(store, lease)
    await store.conversations.delete("c")
    assert (await store.usage.by_conversation(conversation_id=None, limit=10, cursor=None)).items == []
    assert [row.spending for row in (await store.usage.by_day(limit=10, cursor=None)).items] == [STEP]


async def test_spending_survives_a_restart(open_store: OpenStore, store: Store) -> None:
    lease = await store.runs.begin(a_run("1"))
    await finish(store, lease)
    await store.durable()
    again = open_store()
    assert [row.spending for row in (await again.usage.by_day(limit=10, cursor=None)).items] == [STEP]


async def test_a_paused_run_goes_on_without_a_new_message(store: Store) -> None:
    first = await store.runs.begin(a_run("1"))
    await store.runs.finish(first, an_end(RunState.PAUSED, code="budget"), [], [Event(1, "done", {})], T0)
    lease = await store.runs.begin(a_run("2", message=None, idempotency=a_key()))
    assert (lease.run_id, lease.message_id) == ("run-2", "msg-1")
    assert len(await store.conversations.history("c")) == 1
    with pytest.raises(ConversationBusy):
        await store.runs.begin(a_run("3", message=None))
    await finish(store, lease)
    with pytest.raises(Conflict) as ended:
        await store.runs.begin(a_run("3", message=None))
    assert ended.value.code == "not_paused"


@pytest.mark.parametrize("state", [RunState.ERROR, RunState.TIMEOUT, RunState.CANCELLED])
async def test_a_run_that_failed_can_be_gone_on_with_until_it_is_answered(
    store: Store, state: RunState
) -> None:
    first = await store.runs.begin(a_run("1"))
    await store.runs.finish(first, an_end(state), [], [], T0)
    second = await store.runs.begin(a_run("2", message=None))
    assert second.message_id == "msg-1"
    await store.runs.finish(second, an_end(state), [], [], T0)
    third = await store.runs.begin(a_run("3"))
    await store.runs.finish(third, an_end(state), [], [], T0)
    fourth = await store.runs.begin(a_run("4", message=None))
    assert fourth.message_id == "msg-3"
    await finish(store, fourth)
    with pytest.raises(Conflict, match="is answered"):
        await store.runs.begin(a_run("5", message=None))


async def test_runs_that_continue_each_other_are_a_chain_and_add_up(store: Store) -> None:
    spent = Amount(70, 7)
    leases = [await store.runs.begin(a_run("1"))]
    await store.runs.finish(leases[0], an_end(RunState.TIMEOUT, spent=spent), [], [], T0)
    leases.append(await store.runs.begin(a_run("2", message=None)))
    await standing(store, leases[1], Amount(5, 1))
    await store.runs.recover(T0, all_but="host-2")
    leases.append(await store.runs.begin(a_run("3", message=None)))
    assert [each.chain.root_run_id for each in leases] == ["run-1"] * 3
    assert [each.chain.previous_run_id for each in leases] == [None, "run-1", "run-2"]
    assert [each.chain.spent for each in leases] == [Amount(), spent, spent + Amount(5, 1)]
    runs = [await store.runs.get("c", each.run_id) for each in leases]
    assert [run and run.next_run_id for run in runs] == ["run-2", "run-3", None]
    assert [run and run.previous_run_id for run in runs] == [None, "run-1", "run-2"]


async def test_a_key_whose_run_was_continued_does_not_begin_it_again(store: Store) -> None:
    await store.runs.begin(a_run("1", idempotency=a_key()))
    await store.runs.recover(T0, all_but="host-2")
    await finish(store, await store.runs.begin(a_run("2", message=None)))
    with pytest.raises(KeyTaken):
        await store.runs.begin(a_run("3", idempotency=a_key()))


@pytest.mark.parametrize("code", ["refused", "prompt_too_long"])
async def test_what_would_end_in_the_same_way_again_is_not_gone_on_with(store: Store, code: str) -> None:
    lease = await store.runs.begin(a_run("1"))
    await store.runs.finish(lease, an_end(RunState.ERROR, code=code), [], [], T0)
    with pytest.raises(Conflict) as ended:
        await store.runs.begin(a_run("2", message=None))
    assert ended.value.code == "not_paused"


async def test_a_conversation_that_was_moved_in_goes_on_at_its_last_message(store: Store) -> None:
    asked = {"id": "msg-old", "conversation_id": "c", "role": "user", "sender": "user", "sender_name": "user"}
    await store.arrivals.take(
        {"messages": [{**asked, "text": "?", "blocks": "[]", "created_at": T0, "seq": 1}]}
    )
    lease = await store.runs.begin(a_run("1", message=None))
    assert lease.message_id == "msg-old"


async def test_a_conversation_in_which_nothing_was_said_does_not_go_on(store: Store) -> None:
    with pytest.raises(Conflict) as fresh:
        await store.runs.begin(a_run("1", message=None))
    assert fresh.value.code == "not_paused"
    with pytest.raises(NotFound):
        await store.runs.begin(a_run("1", "nobody", message=None))
