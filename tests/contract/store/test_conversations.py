"""What every engine promises about conversations and messages."""

from __future__ import annotations

import pytest

from shared.errors import ConversationBusy, Duplicate, InvalidInput, NotFound
from shared.principals import OPERATOR
from shared.store.contract import MOST_OF_PAGE
from shared.store.store import Store
from shared.values import Event
from tests.contract.store.making import T0, a_key, a_run, an_end, said


async def test_a_new_conversation_is_idle_and_its_own_owner(store: Store) -> None:
    made = await store.conversations.create("c", T0)
    assert made == await store.conversations.get("c")
    assert (made.owner_id, made.temporary, made.message_count, made.running) == ("c", False, 0, False)
    assert made.created_at == made.last_activity == T0


async def test_a_taken_id_is_refused(store: Store) -> None:
    await store.conversations.create("c", T0)
    with pytest.raises(Duplicate):
        await store.conversations.create("c", T0)


async def test_ensure_makes_it_once(store: Store) -> None:
    first = await store.conversations.ensure("main", T0)
    assert await store.conversations.ensure("main", T0 + 5) == first


async def test_a_page_ends_once_it_has_much_text_and_the_next_goes_on(store: Store) -> None:
    await store.conversations.create("c", T0)
    lease = await store.runs.begin(a_run("r"))
    texts = ["x" * (1 << 20)] * 6 + ["y" * (MOST_OF_PAGE + 1)] * 2
    await store.runs.append(lease, [said(f"m{number}", text) for number, text in enumerate(texts)], T0)
    pages: list[list[str]] = []
    cursor = None
    while cursor is not None or not pages:
        page = await store.conversations.messages("c", limit=5, cursor=cursor)
        pages.append([message.id for message in page.items])
        cursor = page.next_cursor
    assert pages == [
        ["msg-r", "msg-m0", "msg-m1", "msg-m2", "msg-m3"],
        ["msg-m4", "msg-m5", "msg-m6"],
        ["msg-m7"],
    ]


async def test_trust_is_fixed_at_birth_and_a_child_has_its_owners(store: Store) -> None:
    await store.conversations.create("ours", T0)
    await store.conversations.create("theirs", T0, trusted=False)
    await store.conversations.ensure("theirs", T0, trusted=True)
    children = {}
    for owner in ("ours", "theirs"):
        children[owner] = await store.conversations.create(
            f"{owner}-task", T0, owner_id=owner, temporary=True
        )
        run = await store.runs.begin(
            a_run(f"begun-{owner}", f"{owner}-run", parent_id=owner, temporary=True, create=True)
        )
        assert run.trusted is (owner == "ours")
    assert {name: child.trusted for name, child in children.items()} == {"ours": True, "theirs": False}
    found = await store.conversations.get("theirs")
    assert found is not None
    assert not found.trusted


async def test_an_absent_conversation_is_none(store: Store) -> None:
    assert await store.conversations.get("nobody") is None


async def test_pages_run_from_the_newest_activity_and_leave_temporary_ones_out(store: Store) -> None:
    for number in range(7):
        await store.conversations.create(f"c{number}", T0 + number // 2)
    await store.conversations.create("hidden", T0 + 9, owner_id="c0", temporary=True)
    seen, cursor = [], None
    while True:
        page = await store.conversations.page(limit=3, cursor=cursor)
        seen += [item.id for item in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == ["c6", "c5", "c4", "c3", "c2", "c1", "c0"]
    everything = await store.conversations.page(limit=100, cursor=None, include_temporary=True)
    assert everything.items[0].id == "hidden"


async def test_a_page_that_ends_exactly_has_no_cursor(store: Store) -> None:
    for number in range(3):
        await store.conversations.create(f"c{number}", T0)
    assert (await store.conversations.page(limit=3, cursor=None)).next_cursor is None


@pytest.mark.parametrize("cursor", ["x", "5b5d", "5b312c325d", "5b22612c2262225d", "é", "5b" * 500])
async def test_a_cursor_that_was_not_given_out_is_refused(store: Store, cursor: str) -> None:
    with pytest.raises(InvalidInput, match="cursor"):
        await store.conversations.page(limit=3, cursor=cursor)


async def test_people_see_texts_and_the_model_sees_everything_in_stored_order(store: Store) -> None:
    await store.conversations.create("c", T0)
    lease = await store.runs.begin(a_run("1"))
    await store.runs.append(lease, [said("step", None, "assistant"), said("more", None)], T0 + 1)
    # The clock went back: the order is the stored one all the same.
    await store.runs.finish(lease, an_end(), [said("answer", "done", "assistant")], [], T0 - 9999)
    page = await store.conversations.messages("c", limit=10, cursor=None)
    assert [message.text for message in page.items] == ["hello", "done"]
    history = await store.conversations.history("c")
    assert [entry.seq for entry in history] == [1, 2, 3, 4]
    assert [entry.role for entry in history] == ["user", "assistant", "user", "assistant"]
    found = await store.conversations.get("c")
    assert found is not None
    assert (found.message_count, found.last_activity) == (2, T0 + 1)


async def test_messages_come_in_pages(store: Store) -> None:
    await store.conversations.create("c", T0)
    lease = await store.runs.begin(a_run("1"))
    await store.runs.append(lease, [said(f"m{number}", str(number)) for number in range(6)], T0)
    first = await store.conversations.messages("c", limit=4, cursor=None)
    rest = await store.conversations.messages("c", limit=4, cursor=first.next_cursor)
    assert [each.text for each in first.items + rest.items] == ["hello", "0", "1", "2", "3", "4", "5"]
    assert rest.next_cursor is None


async def test_a_running_conversation_cannot_be_deleted(store: Store) -> None:
    await store.conversations.create("c", T0)
    lease = await store.runs.begin(a_run("1"))
    with pytest.raises(ConversationBusy):
        await store.conversations.delete("c")
    await store.runs.finish(lease, an_end(), [], [], T0)
    await store.conversations.delete("c")
    assert await store.conversations.get("c") is None


async def test_what_has_much_in_it_goes_in_pieces_and_whoever_comes_next_ends_that(store: Store) -> None:
    await store.conversations.create("c", T0)
    await store.conversations.create("other", T0)
    for name in ("a", "b"):
        lease = await store.runs.begin(a_run(name))
        texts = ["x" * (MOST_OF_PAGE // 2)] * 5
        await store.runs.append(lease, [said(f"{name}{each}", text) for each, text in enumerate(texts)], T0)
        await store.runs.finish(lease, an_end(), [], [], T0)
    assert await store.conversations._delete_some("c") == (OPERATOR, True)
    # The host died here.
    with pytest.raises(NotFound):
        await store.runs.begin(a_run("late"))
    left = await store.conversations.messages("c", limit=100, cursor=None)
    assert left.items
    assert await store.conversations.unkept(T0, 100) == ["c"]
    assert await store.conversations.delete("c") == OPERATOR
    assert await store.conversations.get("c") is None
    assert await store.conversations.gone(10) == [("c", OPERATOR)]
    assert await store.conversations.unkept(T0, 100) == []
    assert await store.conversations.get("other") is not None
    await store.conversations.create("c", T0)
    await store.runs.begin(a_run("anew"))


async def test_deleting_takes_everything_of_it_and_nothing_of_others(store: Store) -> None:
    for name in ("c", "other"):
        await store.conversations.create(name, T0)
        lease = await store.runs.begin(a_run(name, name, idempotency=a_key(name)))
        await store.runs.finish(lease, an_end(), [], [Event(1, "done", {})], T0)
        await store.outbound.add(name, name, "hi", "Pico", T0)
        await store.conversations.create(f"{name}-child", T0, owner_id=name, temporary=True)
    await store.conversations.delete("c")
    assert await store.conversations.get("c-child") is None
    assert await store.runs.events("run-c", after=0) == []
    assert await store.outbound.said_by("c", after=0) == []
    assert await store.runs.keyed(a_key("c"), T0) is None
    assert await store.conversations.get("other-child") is not None
    assert len(await store.runs.events("run-other", after=0)) == 1
    assert len(await store.outbound.said_by("other", after=0)) == 1
    assert await store.runs.keyed(a_key("other"), T0) is not None


async def test_deleting_what_is_absent_says_so(store: Store) -> None:
    with pytest.raises(NotFound):
        await store.conversations.delete("nobody")


async def test_counts_leave_temporary_conversations_out(store: Store) -> None:
    await store.conversations.create("c", T0)
    await store.conversations.create("d", T0)
    await store.conversations.create("t", T0, owner_id="c", temporary=True)
    assert (await store.counts()).conversations == 2
    await store.conversations.delete("c")
    assert (await store.counts()).conversations == 1


async def test_a_page_has_a_cursor_where_something_follows(store: Store) -> None:
    for name in ("c", "d"):
        await store.conversations.create(name, T0)
    assert (await store.conversations.page(limit=2, cursor=None)).next_cursor is None
    first = await store.conversations.page(limit=1, cursor=None)
    assert first.next_cursor is not None
    assert (await store.conversations.page(limit=1, cursor=first.next_cursor)).next_cursor is None


async def test_a_conversation_has_the_title_that_people_gave_it_last(store: Store) -> None:
    made = await store.conversations.create("c", T0)
    assert made.title is None
    for title in ("Trip to Oslo", "Ünïcode ✓", None):
        await store.conversations.rename("c", title)
        found = await store.conversations.get("c")
        assert found is not None
        assert (found.title, found.last_activity) == (title, T0)
    with pytest.raises(NotFound):
        await store.conversations.rename("nobody", "x")


async def test_what_a_deleted_conversation_had_is_remembered_until_it_is_gone_too(store: Store) -> None:
    for name in ("c", "d"):
        await store.conversations.create(name, T0)
    await store.conversations.create("of c", T0, owner_id="c", temporary=True)
    await store.conversations.delete("c")
    assert await store.conversations.gone(9) == [("c", "operator")]
    await store.conversations.create("c", T0)
    assert await store.conversations.gone(9) == [], "it has a new one's files, too"
    await store.conversations.delete("c")
    await store.conversations.delete("d")
    assert await store.conversations.gone(1) == [("c", "operator")]
    await store.conversations.forget("c")
    assert await store.conversations.gone(9) == [("d", "operator")]


async def _found(store: Store, search: str) -> list[str]:
    seen, cursor = [], None
    while True:
        page = await store.conversations.page(limit=1, cursor=cursor, search=search)
        seen += [item.id for item in page.items]
        cursor = page.next_cursor
        if cursor is None:
            return sorted(seen)


async def test_a_search_looks_into_titles_ids_and_what_people_see(store: Store) -> None:
    for name, text in (("one", "Die Müllabfuhr kommt"), ("two", "100% of_it"), ("three", None)):
        await store.conversations.create(name, T0)
        lease = await store.runs.begin(a_run(name, name, message=said(name)))
        await store.runs.append(lease, [said(f"{name}-more", text, "assistant")], T0)
    await store.conversations.create("other", T0)
    await store.conversations.rename("other", "ÜBER alles")
    assert await _found(store, "müll") == ["one"]
    assert await _found(store, "MÜLL") == ["one"]
    assert await _found(store, "über") == ["other"]
    assert await _found(store, "u\u0308ber") == ["other"]
    assert await _found(store, "thre") == ["three"]
    assert await _found(store, "% of_") == ["two"]
    assert await _found(store, "a step") == []
    assert await _found(store, "hello") == ["one", "three", "two"]
    assert await _found(store, "'") == []


@pytest.mark.parametrize(
    ("said", "sought"),
    [
        ("Straße", "STRASSE"),
        ("GROSSE", "große"),
        ("ΟΔΥΣΣΕΥΣ", "οδυσσεύς".replace("ύ", "υ")),
        ("Cafe\u0301", "CAFÉ"),
        ("Việt Nam", "vie\u0323\u0302t"),
        ("ИЮЛЬ", "июль"),
    ],
)
async def test_a_search_knows_capitals_and_accents_of_all_languages(
    store: Store, said: str, sought: str
) -> None:
    await store.conversations.create("c", T0)
    await store.conversations.rename("c", f"in {said}")
    assert await _found(store, said) == await _found(store, sought) == ["c"]
