"""What every engine promises about the tokens of outside agents and about pinned tools."""

from __future__ import annotations

from typing import Any

import pytest

from shared.errors import Conflict, NotFound
from shared.ids import Token
from shared.principals import OPERATOR
from shared.store.store import Store
from tests.contract.store.conftest import OpenStore
from tests.contract.store.making import DAY, T0, a_principal


def a_token(name: str, **changes: Any) -> Token:
    values: dict[str, Any] = {
        "id": f"token-{name}",
        "conversation_id": "c",
        "is_main": False,
        "created_at": T0,
        "expires_at": None,
    }
    return Token(**(values | changes))


async def test_a_token_is_found_by_its_digest_and_by_nothing_else(store: Store) -> None:
    await store.conversations.create("c", T0)
    token = a_token("1", is_main=True)
    await store.tokens.add(token, b"digest")
    found = await store.tokens.find(b"digest", T0)
    assert found == (token, await store.principals.get(OPERATOR))
    assert await store.tokens.find(b"digesT", T0) is None
    assert await store.tokens.find(b"", T0) is None


async def test_a_token_needs_its_conversation_and_goes_with_it(store: Store) -> None:
    with pytest.raises(NotFound):
        await store.tokens.add(a_token("1"), b"1")
    for name in ("c", "other"):
        await store.conversations.create(name, T0)
        await store.tokens.add(a_token(name, conversation_id=name), name.encode())
    await store.conversations.delete("c")
    assert await store.tokens.find(b"c", T0) is None
    assert await store.tokens.find(b"other", T0) is not None


async def test_an_expired_token_is_not_found_but_listed(store: Store) -> None:
    await store.conversations.create("c", T0)
    await store.tokens.add(a_token("1", expires_at=T0 + 10), b"1")
    assert await store.tokens.find(b"1", T0 + 9) is not None
    assert await store.tokens.find(b"1", T0 + 10) is None
    assert [token.id for token in (await store.tokens.page(limit=10, cursor=None)).items] == ["token-1"]


async def test_a_revoked_token_is_gone_at_once_for_every_process(open_store: OpenStore) -> None:
    one, another = open_store(), open_store()
    await one.conversations.create("c", T0)
    await one.tokens.add(a_token("1"), b"1")
    assert await another.tokens.find(b"1", T0) is not None
    assert await one.tokens.revoke("token-1")
    assert await another.tokens.find(b"1", T0) is None
    assert not await one.tokens.revoke("token-1")


async def test_tokens_come_in_pages_in_the_order_they_were_made(store: Store) -> None:
    await store.conversations.create("c", T0)
    for number in range(5):
        await store.tokens.add(a_token(str(number)), str(number).encode())
    first = await store.tokens.page(limit=3, cursor=None)
    rest = await store.tokens.page(limit=3, cursor=first.next_cursor)
    assert [token.id for token in first.items + rest.items] == [f"token-{number}" for number in range(5)]
    assert rest.next_cursor is None


async def test_a_token_says_when_it_was_used_by_the_minute_and_whose_it_is(store: Store) -> None:
    await store.conversations.create("c", T0)
    token = Token("t", "c", False, T0, None, name="laptop", scopes=("mcp", "tasks", "chat"))
    await store.tokens.add(token, b"1")
    for seconds in (0, 59, 60):
        await store.tokens.touched([token.id], T0 + seconds * 1000)
        found = await store.tokens.find(b"1", T0)
        assert found is not None
        token = found[0]
        assert token.last_used_at == T0 + (60_000 if seconds == 60 else 0)
    assert (token.name, token.scopes) == ("laptop", ("mcp", "tasks", "chat"))
    assert (await store.tokens.page(limit=9, cursor=None, principal_id="prin-a")).items == []
    assert (await store.tokens.page(limit=9, cursor=None, principal_id=OPERATOR)).items == [token]
    assert not await store.tokens.revoke(token.id, "prin-a")
    assert await store.tokens.revoke(token.id, OPERATOR)


async def test_a_principal_has_a_thousand_tokens_and_the_operator_as_many_as_it_makes(store: Store) -> None:
    await store.conversations.create("c", T0)
    await store.principals.add(a_principal("a"))
    for number in range(1000):
        await store.tokens.add(a_token(f"{number}", principal_id="prin-a"), f"a{number}".encode())
    with pytest.raises(Conflict) as caught:
        await store.tokens.add(a_token("more", principal_id="prin-a"), b"more")
    assert caught.value.code == "token_limit"
    await store.tokens.add(a_token("operators"), b"operators")
    assert await store.tokens.revoke("token-7", "prin-a")
    await store.tokens.add(a_token("more", principal_id="prin-a"), b"more")


async def test_a_place_gives_back_what_was_kept_before(open_store: OpenStore) -> None:
    one, another = open_store(), open_store()
    assert await one.tool_pins.swap(b"place", b"a", T0) is None
    assert await another.tool_pins.swap(b"place", b"a", T0 + 1) == b"a"
    assert await another.tool_pins.swap(b"place", b"b", T0 + 2) == b"a"
    assert await one.tool_pins.swap(b"elsewhere", b"c", T0 + 3) is None
    assert await one.tool_pins.swap(b"place", b"a", T0 + 4) == b"b"


async def test_one_host_at_a_time_renews_a_sign_in(open_store: OpenStore) -> None:
    store, other = open_store(), open_store()
    assert not await store.sign_ins.claim("notes", 60_000), "there is none"
    await store.sign_ins.keep("notes", b"1", T0)
    assert await store.sign_ins.claim("notes", 60_000)
    assert not await other.sign_ins.claim("notes", 60_000)
    await store.sign_ins.keep("notes", b"2", T0)
    await store.sign_ins.release("notes")
    assert await other.sign_ins.find("notes") == b"2"
    assert await other.sign_ins.claim("notes", -1), "a claim that ended by its time"
    assert await store.sign_ins.claim("notes", 60_000)


async def test_a_host_that_died_before_its_machine_started_anew_renews_no_sign_in_for_good(
    open_store: OpenStore,
) -> None:
    store = open_store()
    await store.sign_ins.keep("notes", b"1", T0)
    assert await store.sign_ins.claim("notes", 60_000 + DAY), "by a clock that is a day ahead"
    assert await store.sign_ins.claim("notes", 60_000)
