"""What every engine promises about messages to people."""

from __future__ import annotations

import pytest

from shared.errors import NotFound
from shared.store.store import Store
from tests.contract.store.making import T0, a_run


@pytest.fixture(autouse=True)
async def conversations(store: Store) -> None:
    await store.conversations.create("c", T0)
    await store.conversations.create("child", T0, owner_id="c", temporary=True)


async def test_messages_are_found_by_who_said_them_in_order(store: Store) -> None:
    first = await store.outbound.add("child", "c", "one", "Pico", T0)
    await store.outbound.add("c", "c", "from the parent", "Pico", T0)
    second = await store.outbound.add("child", "c", "two", "Pico", T0)
    assert await store.outbound.said_by("child", after=0) == [first, second]
    assert await store.outbound.said_by("child", after=first.seq) == [second]
    assert (await store.runs.begin(a_run("1", "child"))).said_seq == second.seq
    assert second.conversation_id == "c"


async def test_who_said_nothing_has_no_last_message(store: Store) -> None:
    assert (await store.runs.begin(a_run("1"))).said_seq == 0


async def test_a_message_for_nobody_is_refused(store: Store) -> None:
    with pytest.raises(NotFound):
        await store.outbound.add("c", "nobody", "hi", "Pico", T0)


async def test_a_number_is_never_used_twice(store: Store) -> None:
    said = await store.outbound.add("c", "c", "one", "Pico", T0)
    await store.conversations.delete("c")
    await store.conversations.create("c", T0)
    assert (await store.outbound.add("c", "c", "two", "Pico", T0)).seq > said.seq
