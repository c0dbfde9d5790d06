"""Conversations kept between turns: only what is new is read, and never another conversation's past."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from host.agent.history import Histories, to_messages
from shared.store import open_store
from shared.store.store import Store
from shared.values import Compaction, Lease
from tests.contract.store.making import T0, a_run, an_end, said


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = open_store(tmp_path / "local" / "store.db", tmp_path / "volume")
    yield opened
    await opened.close()


async def a_conversation(store: Store, name: str = "c") -> Lease:
    await store.conversations.create(name, T0)
    return await store.runs.begin(a_run(f"{name}-1", name))


async def test_a_kept_conversation_goes_on_with_what_is_new(store: Store) -> None:
    lease, histories = await a_conversation(store), Histories(store)
    first = await histories.load(lease)
    await store.runs.append(lease, [said("2", "answer", "assistant"), said("3", "more")], T0)
    second = await histories.load(lease)
    assert (first.fresh, second.fresh) == (True, False)
    assert (len(first.messages), len(second.messages)) == (1, 3)
    assert second.messages == to_messages(await store.conversations.history("c"))
    assert second.tokens == (await Histories(store).load(lease)).tokens


async def test_what_a_caller_adds_to_its_messages_is_not_kept(store: Store) -> None:
    lease = await a_conversation(store)
    histories = Histories(store)
    (await histories.load(lease)).messages.append({"role": "assistant", "content": []})
    assert len((await histories.load(lease)).messages) == 1


async def test_a_compaction_puts_an_end_to_what_was_kept(store: Store) -> None:
    lease, histories = await a_conversation(store), Histories(store)
    await store.runs.append(lease, [said("2", "answer", "assistant"), said("3", "more")], T0)
    await histories.load(lease)
    made = await store.compactions.add(lease, Compaction("summary", 2, 1, "They met."), T0)
    loaded = await histories.load(replace(lease, compaction=made.number))
    assert loaded.fresh
    assert len(loaded.messages) == 2
    assert "They met." in str(loaded.messages[0])


async def test_a_conversation_deleted_and_made_again_has_no_past(store: Store) -> None:
    lease, histories = await a_conversation(store), Histories(store)
    await histories.load(lease)
    await store.runs.finish(lease, an_end(), [], [], T0)
    await store.conversations.delete("c")
    again = await a_conversation(store)
    assert len((await histories.load(again)).messages) == 1


async def test_the_longest_unused_are_forgotten_when_there_are_too_many(store: Store) -> None:
    histories = Histories(store, most_conversations=2)
    leases = [await a_conversation(store, name) for name in "abc"]
    for lease in leases:
        await histories.load(lease)
    assert [(await histories.load(lease)).fresh for lease in reversed(leases)] == [False, False, True]


async def test_what_is_larger_than_the_bound_is_not_kept(store: Store) -> None:
    lease = await a_conversation(store)
    histories = Histories(store, most_tokens=5)
    assert [(await histories.load(lease)).fresh for _ in range(2)] == [True, True]
