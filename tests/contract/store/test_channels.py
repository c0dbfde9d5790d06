"""What every engine promises about channels: nothing is taken twice, nothing to be delivered is lost."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shared.approval_values import NewApproval
from shared.errors import NotFound
from shared.store.sql.chats import Chat, NewUpdate, Saying
from shared.store.store import Store
from shared.values import RunState
from tests.contract.store.conftest import OpenStore
from tests.contract.store.making import DAY, T0, a_run, an_end, said

ANN = Chat("tg", "7", True, "7", "ann")


def update(name: str, chat: str = "7", *, urgent: bool = False) -> NewUpdate:
    return NewUpdate(name, chat, {"text": name}, urgent)


async def test_an_update_is_taken_once_however_often_it_comes(store: Store) -> None:
    assert await store.channels.receive("tg", [update("1"), update("2"), update("1")], T0) == 2
    assert await store.channels.receive("tg", [update("2"), update("3")], T0) == 1
    assert await store.channels.receive("other", [update("1")], T0) == 1
    assert await store.channels.waiting("tg", "7") == 3


async def test_a_settled_update_is_not_taken_again_and_its_words_are_gone(store: Store) -> None:
    await store.channels.receive("tg", [update("1")], T0)
    first = await store.channels.next_update("tg", "7")
    assert first is not None
    assert first.body == {"text": "1"}
    home = await store.channels.enter(ANN, T0)
    await store.channels.settle(first.number, home, None, T0)
    assert await store.channels.receive("tg", [update("1")], T0) == 0
    assert await store.channels.next_update("tg", "7") is None


async def test_a_chats_conversation_is_trusted_as_it_was_begun(store: Store) -> None:
    trust = []
    for trusted in (True, False):
        home = await store.channels.begin_anew(ANN, T0, trusted=trusted)
        assert await store.channels.enter(ANN, T0, trusted=not trusted) == home
        found = await store.conversations.get(home)
        trust.append(found is not None and found.trusted)
    assert trust == [True, False]


async def test_updates_of_a_chat_come_in_order_and_urgent_ones_apart(store: Store) -> None:
    updates = [update("1", "a"), update("2", "b"), update("3", "a"), update("4", "a", urgent=True)]
    await store.channels.receive("tg", updates, T0)
    assert await store.channels.chats_waiting("tg", limit=9) == ["a", "b"]
    assert [each.update_id for each in await store.channels.urgent("tg", limit=9)] == ["4"]
    first = await store.channels.next_update("tg", "a")
    assert first is not None
    assert first.update_id == "1"
    assert await store.channels.waiting("tg", "a") == 2


async def test_what_is_noted_on_an_update_is_found_by_another_process(open_store: OpenStore) -> None:
    store, other = open_store(), open_store()
    await store.channels.receive("tg", [update("1")], T0)
    first = await store.channels.next_update("tg", "7")
    assert first is not None
    await store.channels.attach(first.number, "run-1", "tg:7")
    await store.channels.drafted(first.number, "99")
    found = await other.channels.next_update("tg", "7")
    assert found is not None
    assert (found.run_id, found.conversation_id, found.draft_id) == ("run-1", "tg:7", "99")


async def test_settling_stores_the_answer_in_the_same_step_and_only_once(store: Store) -> None:
    await store.channels.receive("tg", [update("1")], T0)
    first = await store.channels.next_update("tg", "7")
    assert first is not None
    home = await store.channels.enter(ANN, T0)
    with pytest.raises(NotFound):
        await store.channels.settle(first.number, "nowhere", Saying("run:1", "hello"), T0)
    assert await store.channels.next_update("tg", "7") is not None
    for text in ("hello", "again"):
        await store.channels.settle(first.number, home, Saying("run:1", text, "5", "99"), T0)
    due = await store.channels.next_delivery("tg", "7", T0)
    assert due is not None
    assert due.saying == Saying("run:1", "hello", "5", "99")
    await store.channels.sent(due.number, T0)
    assert await store.channels.next_delivery("tg", "7", T0) is None


async def test_a_chat_has_a_conversation_named_after_it_and_new_ones_beside_it(store: Store) -> None:
    assert await store.channels.enter(ANN, T0) == "tg:7"
    assert await store.channels.enter(ANN, T0) == "tg:7"
    assert await store.channels.begin_anew(ANN, T0) == "tg:7.2"
    assert await store.channels.enter(ANN, T0) == "tg:7.2"
    await store.conversations.delete("tg:7.2")
    assert await store.channels.enter(ANN, T0) == "tg:7.2"
    await store.conversations.delete("tg:7.2")
    await store.conversations.delete("tg:7")
    assert await store.channels.enter(ANN, T0) == "tg:7"


async def test_a_chat_does_not_slip_into_a_conversation_that_was_not_its_own(store: Store) -> None:
    await store.conversations.create("tg:7", T0)
    assert await store.channels.enter(ANN, T0) == "tg:7.2"


async def test_a_chat_joins_the_main_conversation_and_goes_back(store: Store) -> None:
    await store.conversations.create("main", T0)
    home = await store.channels.enter(ANN, T0)
    await store.channels.join(ANN, "main")
    assert await store.channels.enter(ANN, T0) == "main"
    assert await store.channels.members("tg", "main") == [ANN]
    await store.channels.leave("tg", "7", "main")
    assert await store.channels.enter(ANN, T0) == home
    assert await store.channels.members("tg", "main") == []
    with pytest.raises(NotFound):
        await store.channels.join(ANN, "nowhere")


async def test_who_spoke_last_in_a_chat_is_remembered(store: Store) -> None:
    home = await store.channels.enter(ANN, T0)
    bob = Chat("tg", "7", False, "8", "bob")
    assert await store.channels.enter(bob, T0) == home
    assert await store.channels.members("tg", home) == [bob]


async def test_what_an_agent_says_goes_to_every_chat_of_the_conversation(store: Store) -> None:
    await store.conversations.create("main", T0)
    bob = Chat("tg", "8", True, "8")
    for chat in (ANN, bob):
        await store.channels.join(chat, "main")
    message = await store.outbound.add("main", "main", "good morning", "Pico", T0)
    assert await store.channels.chats_due("tg", T0, limit=9) == ["7", "8"]
    due = await store.channels.next_delivery("tg", "8", T0)
    assert due is not None
    assert due.saying == Saying(f"said:{message.id}", "good morning")
    assert due.conversation_id == "main"


async def test_what_is_said_in_an_earlier_conversation_still_reaches_the_chat(store: Store) -> None:
    first = await store.channels.enter(ANN, T0)
    await store.channels.begin_anew(ANN, T0)
    await store.outbound.add(first, first, "a reminder", "Pico", T0)
    assert await store.channels.chats_due("tg", T0, limit=9) == ["7"]


async def test_a_conversation_without_a_chat_delivers_nothing(store: Store) -> None:
    await store.conversations.create("c", T0)
    await store.outbound.add("c", "c", "hello", "Pico", T0)
    assert await store.channels.chats_due("tg", T0, limit=9) == []


async def test_a_delivery_that_is_put_off_holds_up_its_chat_alone(store: Store) -> None:
    bob = Chat("tg", "8", True, "8")
    for chat in (ANN, bob):
        home = await store.channels.enter(chat, T0)
        for name in ("one", "two"):
            await store.channels.say("tg", chat.id, home, Saying(name, name), T0)
            await store.channels.say("tg", chat.id, home, Saying(name, "again"), T0)
    first = await store.channels.next_delivery("tg", "7", T0)
    assert first is not None
    await store.channels.put_off(first.number, T0 + 5000, "429")
    assert await store.channels.chats_due("tg", T0, limit=9) == ["8"]
    assert await store.channels.next_delivery("tg", "7", T0) is None
    later = await store.channels.next_delivery("tg", "7", T0 + 5000)
    assert later is not None
    assert (later.saying.text, later.attempts, later.error) == ("one", 1, "429")
    # The clock was set back by a day meanwhile: that must not hold anything up for a day.
    assert await store.channels.chats_due("tg", T0 - DAY, limit=9) == ["7", "8"]


async def test_parts_that_arrived_are_remembered_until_the_delivery_ends(store: Store) -> None:
    home = await store.channels.enter(ANN, T0)
    await store.channels.say("tg", "7", home, Saying("a", "long"), T0)
    await store.channels.say("tg", "7", home, Saying("b", "next"), T0)
    first = await store.channels.next_delivery("tg", "7", T0)
    assert first is not None
    await store.channels.part_sent(first.number, 2)
    again = await store.channels.next_delivery("tg", "7", T0)
    assert again is not None
    assert again.parts_sent == 2
    await store.channels.sent(first.number, T0)
    second = await store.channels.next_delivery("tg", "7", T0)
    assert second is not None
    assert second.saying.source == "b"


async def test_a_failure_is_told_to_the_conversation_once_it_is_idle(store: Store) -> None:
    home = await store.channels.enter(ANN, T0)
    await store.channels.say("tg", "7", home, Saying("a", "text"), T0)
    due = await store.channels.next_delivery("tg", "7", T0)
    assert due is not None
    lease = await store.runs.begin(a_run("1", home))
    await store.channels.failed(due.number, "blocked", T0)
    assert await store.channels.next_delivery("tg", "7", T0) is None
    (failed,) = await store.channels.untold("tg", limit=9)
    assert (failed.error, failed.saying.text) == ("blocked", "")
    assert not await store.channels.tell(due.number, said("n", "not delivered"), T0)
    asked = NewApproval("appr-1", "approval", "exec", {}, "call-1")
    await store.runs.finish(lease, an_end(RunState.PAUSED, requests=[asked]), [], [], T0)
    assert not await store.channels.tell(due.number, said("n", "not delivered"), T0), "its calls wait"
    assert await store.channels.untold("tg", limit=9) == []
    await store.approvals.drop(home, T0)
    assert await store.channels.tell(due.number, said("n", "not delivered"), T0)
    assert not await store.channels.tell(due.number, said("m", "not delivered"), T0)
    assert await store.channels.untold("tg", limit=9) == []
    page = await store.conversations.messages(home, limit=9, cursor=None)
    assert [message.text for message in page.items] == ["hello", "not delivered"]


async def test_deleting_a_conversation_takes_its_deliveries_and_chats_along(store: Store) -> None:
    home = await store.channels.enter(ANN, T0)
    await store.channels.say("tg", "7", home, Saying("a", "text"), T0)
    await store.conversations.delete(home)
    assert await store.channels.chats_due("tg", T0, limit=9) == []
    assert await store.channels.members("tg", home) == []


async def test_ended_work_goes_after_a_week_and_waiting_work_stays(store: Store) -> None:
    home = await store.channels.enter(ANN, T0)
    await store.channels.receive("tg", [update("1"), update("2")], T0)
    first = await store.channels.next_update("tg", "7")
    assert first is not None
    await store.channels.settle(first.number, home, Saying("a", "text"), T0)
    due = await store.channels.next_delivery("tg", "7", T0)
    assert due is not None
    await store.channels.sent(due.number, T0)
    await store.channels.say("tg", "7", home, Saying("b", "text"), T0)
    assert await store.prune(T0 + 6 * DAY, limit=100) == 0
    assert await store.prune(T0 + 8 * DAY, limit=100) == 2
    assert await store.channels.waiting("tg", "7") == 1
    assert await store.channels.chats_due("tg", T0, limit=9) == ["7"]
    assert await store.channels.receive("tg", [update("1")], T0) == 1


async def test_a_chat_with_a_new_id_keeps_conversations_updates_and_deliveries(store: Store) -> None:
    home = await store.channels.enter(ANN, T0)
    again = await store.channels.begin_anew(ANN, T0)
    await store.channels.receive("tg", [NewUpdate("1", "7", {})], T0)
    await store.channels.say("tg", "7", again, Saying("a", "text", "5", "99"), T0)
    # A message in the new chat came first.
    other = await store.channels.enter(replace(ANN, id="8"), T0)
    await store.channels.say("tg", "8", other, Saying("a", "twice"), T0)
    for _ in range(2):
        await store.channels.move("tg", "7", "8")
    assert await store.channels.enter(replace(ANN, id="8"), T0) == again
    assert [chat.id for chat in await store.channels.members("tg", home)] == ["8"]
    assert await store.channels.next_update("tg", "7") is None
    assert await store.channels.next_update("tg", "8") is not None
    delivery = await store.channels.next_delivery("tg", "8", T0)
    assert delivery is not None
    assert delivery.saying == Saying("a", "text")
    assert await store.channels.chats_due("tg", T0, limit=9) == ["8"]
