"""Responses of the Responses door: the fork of a conversation, and which is the last."""

from __future__ import annotations

import pytest

from shared.errors import ConversationBusy, NoConversation
from shared.store.sql.conversation_rows import StoredResponse
from shared.store.store import Store
from shared.values import After
from tests.contract.store.making import T0, a_run, an_end, said


async def answered(store: Store, name: str) -> StoredResponse:
    lease = await store.runs.begin(a_run(name))
    await store.runs.append(lease, [said(f"step-{name}", None)], T0)
    await store.runs.finish(lease, an_end(), [said(f"answer-{name}")], [], T0)
    return StoredResponse(f"resp-{name}", "c", "operator", lease.run_id, None, True, False, {"a": 1}, T0)


async def test_a_fork_has_what_was_said_up_to_the_response_and_no_more(store: Store) -> None:
    await store.conversations.create("c", T0, trusted=False)
    first, second = await answered(store, "1"), await answered(store, "2")
    assert not await store.responses.is_last(first)
    assert await store.responses.is_last(second)
    after = After("c", first.run_id)
    with pytest.raises(ConversationBusy):
        await store.runs.begin(a_run("3", after=after))
    lease = await store.runs.begin(a_run("3", "fork", create=True, after=after))
    told = [entry.text for entry in await store.conversations.history("fork")]
    assert told[:3] == [entry.text for entry in await store.conversations.history("c")][:3]
    forked = await store.conversations.get("fork")
    assert forked is not None
    assert (forked.message_count, forked.trusted, forked.running) == (3, False, True)
    assert [entry.seq for entry in await store.conversations.history("fork")] == [1, 2, 3, 4]
    assert lease.conversation_id == "fork"
    with pytest.raises(NoConversation):
        await store.runs.begin(a_run("4", "other", create=True, after=after._replace(conversation_id="gone")))
    assert await store.conversations.get("other") is None


async def test_the_last_response_of_a_conversation_that_responses_made_ends_it(store: Store) -> None:
    await store.conversations.create("c", T0)
    first, second = await answered(store, "1"), await answered(store, "2")
    for each in (first, first, second):
        await store.responses.add(each)
    assert await store.responses.get("resp-1", "operator") == first
    assert await store.responses.remove(first)
    assert not await store.responses.remove(second)
