"""What every engine promises about compactions: fenced, in order, counted, gone with their conversation."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shared.errors import LeaseLost
from shared.store.store import Store
from shared.usage_values import Amount, Spending, Standing, Usage
from shared.values import Compaction, Lease
from tests.contract.store.making import T0, a_run, an_end, said

SUMMARY = Compaction(
    kind="summary",
    first_seq=1,
    through_seq=4,
    text="They agreed on é and 🦀.",
    cut_through_seq=6,
    cut_chars=600,
    thinking_through_seq=7,
    model="model-1",
    usage=Usage(10, 20, 30, 40),
    message_seq=3,
    message_chars=900,
)


@pytest.fixture
async def lease(store: Store) -> Lease:
    await store.conversations.create("c", T0)
    return await store.runs.begin(a_run("1"))


async def test_without_a_compaction_there_is_none(store: Store, lease: Lease) -> None:
    assert await store.compactions.latest("c") is None
    assert await store.compactions.latest("nobody") is None
    assert await store.compactions.unarchived("c") == []


async def test_the_newest_compaction_is_in_force(store: Store, lease: Lease) -> None:
    first = await store.compactions.add(lease, SUMMARY, T0 + 1)
    assert first == replace(SUMMARY, number=1, created_at=T0 + 1)
    second = await store.compactions.add(lease, replace(SUMMARY, kind="cut", through_seq=9), T0)
    assert second.number == 2
    assert await store.compactions.latest("c") == second
    assert lease.compaction == 0
    await store.runs.finish(lease, an_end(), [], [], T0)
    assert (await store.runs.begin(a_run("2"))).compaction == 2


async def test_each_conversation_has_its_own(store: Store, lease: Lease) -> None:
    await store.conversations.create("d", T0)
    other = await store.runs.begin(a_run("2", "d"))
    await store.compactions.add(lease, SUMMARY, T0)
    made = await store.compactions.add(other, replace(SUMMARY, text="other"), T0)
    assert made.number == 1
    found = await store.compactions.latest("c")
    assert found is not None
    assert found.text == SUMMARY.text


async def test_who_lost_the_lease_compacts_nothing(store: Store, lease: Lease) -> None:
    for wrong in (replace(lease, fence=lease.fence + 1), replace(lease, owner="host-2")):
        with pytest.raises(LeaseLost):
            await store.compactions.add(wrong, SUMMARY, T0, spent=Spending(Usage(1)))
    await store.runs.finish(lease, an_end(), [], [], T0)
    with pytest.raises(LeaseLost):
        await store.compactions.add(lease, SUMMARY, T0)
    assert await store.compactions.latest("c") is None
    (day,) = (await store.usage.by_day(limit=9, cursor=None)).items
    assert day.spending == Spending()


async def test_what_a_compaction_cost_is_counted_and_its_reservation_given_back(
    store: Store, lease: Lease
) -> None:
    await store.runs.reserve(lease, lambda standing: Amount(5_000, 70), T0)
    spent = Spending(Usage(10, 20, 30, 40), 7)
    await store.compactions.add(lease, SUMMARY, T0, spent=spent)
    (day,) = (await store.usage.by_day(limit=9, cursor=None)).items
    assert day.spending == spent
    other = await store.runs.begin(a_run("2", "d", create=True))
    seen: list[Standing] = []

    def look(standing: Standing) -> Amount:
        seen.append(standing)
        return Amount()

    await store.runs.reserve(other, look, T0)
    assert seen[0].day == spent.amount


async def test_what_replaced_messages_waits_for_the_archive(store: Store, lease: Lease) -> None:
    await store.compactions.add(lease, SUMMARY, T0)
    await store.compactions.add(lease, replace(SUMMARY, kind="cut"), T0)
    await store.compactions.add(lease, replace(SUMMARY, kind="dropped"), T0)
    assert [each.number for each in await store.compactions.unarchived("c")] == [1, 3]
    await store.compactions.mark_archived("c", 1)
    assert [each.number for each in await store.compactions.unarchived("c")] == [3]
    await store.compactions.mark_archived("c", 3)
    found = await store.compactions.latest("c")
    assert found is not None
    assert found.archived


async def test_history_is_read_from_where_a_compaction_ends(store: Store, lease: Lease) -> None:
    await store.runs.append(lease, [said(f"{number}") for number in range(2, 6)], T0)
    whole = await store.conversations.history("c")
    assert [entry.seq for entry in whole] == [1, 2, 3, 4, 5]
    assert await store.conversations.history("c", after=3) == whole[3:]
    assert await store.conversations.history("c", after=1, through=3) == whole[1:3]
    assert (whole[0].text, whole[0].sender_name, whole[0].created_at) == ("hello", "Ann", T0)


async def test_a_deleted_conversation_takes_its_compactions_with_it(store: Store, lease: Lease) -> None:
    await store.compactions.add(lease, SUMMARY, T0)
    await store.runs.finish(lease, an_end(), [], [], T0)
    await store.conversations.delete("c")
    assert await store.compactions.latest("c") is None
    await store.conversations.create("c", T0)
    assert await store.compactions.latest("c") is None
