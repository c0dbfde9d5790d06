"""What every engine promises about principals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from shared.errors import Conflict, Duplicate, NotFound, Suspended
from shared.ids import Token
from shared.principals import OPERATOR, Principal, PrincipalStatus, Terms, said_name, stored_name
from shared.store.store import Store
from tests.contract.store.making import T0, a_run, an_end

TERMS = Terms(
    scopes=("chat", "usage"),
    budgets={"day": {"tokens": 5}},
    models=("m",),
    grants={"mcp": ["github"], "network": True},
    tasks=3,
)


def a_principal(name: str, **changes: Any) -> Principal:
    values: dict[str, Any] = {"id": f"prin-{name}", "name": name, "directory": f"d-{name}", "created_at": T0}
    return Principal(**(values | changes))


async def test_the_operator_is_there_from_the_start_and_stays(store: Store) -> None:
    operator = await store.principals.get(OPERATOR)
    assert operator is not None
    assert operator.is_operator
    assert operator.status is PrincipalStatus.ACTIVE
    assert (await store.principals.page(limit=5, cursor=None)).items == [operator]
    with pytest.raises(Conflict, match="operator"):
        await store.principals.begin_deletion(OPERATOR, T0)


async def test_a_principal_is_found_as_it_was_stored_by_id_by_subject_and_in_pages(store: Store) -> None:
    made = [
        await store.principals.add(a_principal("a", terms=TERMS, issuer="https://i", subject="ann")),
        await store.principals.add(a_principal("b")),
    ]
    assert await store.principals.get("prin-a") == made[0]
    assert made[0].terms == TERMS
    assert await store.principals.by_subject("https://i", "ann") == made[0]
    assert await store.principals.by_subject("https://i", "bob") is None
    assert await store.principals.get("prin-c") is None
    first = await store.principals.page(limit=2, cursor=None)
    rest = await store.principals.page(limit=2, cursor=first.next_cursor)
    assert [each.id for each in first.items + rest.items] == [OPERATOR, "prin-a", "prin-b"]


async def test_a_subject_names_one_principal_until_that_is_deleted(store: Store) -> None:
    await store.principals.add(a_principal("a", issuer="https://i", subject="ann"))
    with pytest.raises(Duplicate, match="subject"):
        await store.principals.add(a_principal("b", issuer="https://i", subject="ann"))
    other = await store.principals.add(a_principal("c"))
    with pytest.raises(Duplicate, match="subject"):
        await store.principals.change(replace(other, issuer="https://i", subject="ann"))


async def test_each_gets_the_first_uid_that_is_free(store: Store) -> None:
    uids = range(70_000, 70_002)
    assert (await store.principals.add(a_principal("a"), uids)).uid == 70_000
    assert (await store.principals.add(a_principal("b"), uids)).uid == 70_001
    with pytest.raises(Conflict) as refused:
        await store.principals.add(a_principal("c"), uids)
    assert refused.value.code == "no_uid"
    assert await store.principals.get("prin-c") is None


async def test_a_change_of_what_was_read_before_another_change_is_refused(store: Store) -> None:
    made = await store.principals.add(a_principal("a"))
    changed = await store.principals.change(replace(made, name="new", terms=TERMS))
    assert await store.principals.get("prin-a") == changed
    with pytest.raises(Conflict, match="changed meanwhile"):
        await store.principals.change(replace(made, name="old"))
    assert await store.principals.get("prin-a") == changed


async def test_conversations_belong_to_their_principal_and_children_to_their_owners(store: Store) -> None:
    await store.principals.add(a_principal("a"))
    await store.conversations.create("ours", T0)
    made = await store.conversations.ensure("theirs", T0, principal_id="prin-a")
    assert made.principal_id == "prin-a"
    child = await store.conversations.create("child", T0, owner_id="theirs", temporary=True)
    assert child.principal_id == "prin-a"
    begun = await store.runs.begin(a_run("1", "own", create=True, principal_id="prin-a"))
    of_child = await store.runs.begin(a_run("2", "sub", create=True, parent_id="theirs", temporary=True))
    of_operator = await store.runs.begin(a_run("3", "ours"))
    whose = [lease.principal_id for lease in (begun, of_child, of_operator)]
    assert whose == ["prin-a", "prin-a", OPERATOR]


async def test_a_name_reaches_the_callers_own_conversation_and_no_other(store: Store) -> None:
    for name in "ab":
        await store.principals.add(a_principal(name))
        await store.conversations.create(stored_name(f"prin-{name}", "main"), T0, principal_id=f"prin-{name}")
    await store.conversations.create("main", T0)
    await store.conversations.create("conv-1", T0, principal_id="prin-a")

    async def reached(principal_id: str | None, said: str) -> str | None:
        found = await store.conversations.reach(principal_id, said)
        return None if found is None else found.id

    assert await reached("prin-a", "main") == "prin-a+main"
    assert await reached("prin-a", "prin-a+main") == "prin-a+main"
    assert await reached("prin-a", "conv-1") == "conv-1"
    assert await reached("prin-b", "conv-1") is None
    assert await reached("prin-b", "prin-a+main") is None
    assert await reached(OPERATOR, "main") == "main"
    assert await reached(OPERATOR, "prin-a+main") is None
    assert await reached(None, "prin-a+main") == "prin-a+main"
    assert said_name("prin-a", "prin-a+main") == "main"
    assert said_name("prin-a", "conv-1") == "conv-1"
    assert said_name(OPERATOR, "prin-a+main") == "prin-a+main"


@pytest.mark.parametrize("status", [PrincipalStatus.SUSPENDED, PrincipalStatus.DELETING])
async def test_who_isnt_active_begins_nothing_and_what_runs_is_asked_to_stop(
    store: Store, status: PrincipalStatus
) -> None:
    made = await store.principals.add(a_principal("a"))
    await store.conversations.create("c", T0, principal_id="prin-a")
    await store.conversations.create("ours", T0)
    await store.runs.begin(a_run("1"))
    await store.runs.begin(a_run("2", "ours"))
    if status is PrincipalStatus.SUSPENDED:
        await store.principals.change(replace(made, status=status))
    else:
        assert (await store.principals.begin_deletion("prin-a", T0)).status is status
    assert await store.runs.cancels_asked("host-1") == ["run-1"]
    with pytest.raises(Suspended):
        await store.conversations.create("new", T0, principal_id="prin-a")
    with pytest.raises(Suspended):
        await store.conversations.create("child", T0, owner_id="c", temporary=True)
    with pytest.raises(Suspended):
        await store.runs.begin(a_run("3", "c"))
    with pytest.raises(Suspended):
        await store.runs.begin(a_run("4", "new", create=True, principal_id="prin-a"))
    with pytest.raises(Suspended):
        await store.tokens.add(Token("t", "c", False, T0, None, "prin-a"), b"t")


async def test_a_token_tells_that_its_principal_is_suspended_and_ends_when_that_is_deleted(
    store: Store,
) -> None:
    made = await store.principals.add(a_principal("a"))
    await store.conversations.create("c", T0, principal_id="prin-a")
    token = Token("t", "c", True, T0, None, "prin-a")
    await store.tokens.add(token, b"t")
    assert await store.tokens.find(b"t", T0) == (token, made)
    suspended = await store.principals.change(replace(made, status=PrincipalStatus.SUSPENDED))
    assert await store.tokens.find(b"t", T0) == (token, suspended)
    deleting = await store.principals.begin_deletion("prin-a", T0 + 1)
    assert await store.tokens.find(b"t", T0) is None
    assert await store.principals.deleting(5) == [deleting]
    again = await store.principals.begin_deletion("prin-a", T0 + 2)
    assert again.deleted_at == deleting.deleted_at == T0 + 1
    with pytest.raises(Conflict):
        await store.principals.change(replace(again, status=PrincipalStatus.ACTIVE))
    with pytest.raises(NotFound):
        await store.principals.begin_deletion("prin-b", T0)


async def test_the_hosts_day_counts_all_principals_once(store: Store) -> None:
    await store.principals.add(a_principal("a"))
    await store.conversations.create("c", T0)
    await store.conversations.create("theirs", T0, principal_id="prin-a")
    for number, conversation_id in enumerate(("c", "theirs")):
        lease = await store.runs.begin(a_run(str(number), conversation_id))
        await store.runs.finish(lease, an_end(), [], [], T0)
    (day,) = (await store.usage.by_day(limit=5, cursor=None)).items
    assert day.runs == 2
