"""What every engine promises about principals."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import replace

import anyio
import pytest

from shared.errors import Conflict, Duplicate, NoConversation, NotFound, StoreError, Suspended
from shared.ids import Token
from shared.principals import (
    EVERYTHING,
    OPERATOR,
    PrincipalStatus,
    Reach,
    Terms,
    said_name,
    stored_name,
)
from shared.store.store import Store
from shared.task_values import TaskStatus
from shared.usage_values import Amount, Spending, Standing, Usage
from shared.values import Lease
from tests.contract.store.making import T0, a_principal, a_run, an_end
from tests.contract.store.test_tasks_contract import a_task

TERMS = Terms(
    scopes=("chat", "usage"),
    budgets={"day": {"tokens": 5}},
    models=("m",),
    grants={"mcp": ["github"], "network": True},
    tasks=3,
)


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


async def test_it_is_known_whether_there_is_anybody_beside_the_operator(store: Store) -> None:
    assert (await store.counts()).others is False
    await store.principals.add(a_principal("a"))
    assert (await store.counts()).others is True


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
    of_child = await store.runs.begin(
        a_run("2", "sub", create=True, parent_id="theirs", temporary=True, principal_id="prin-a")
    )
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


async def test_a_run_begins_in_conversations_of_its_own_principal_alone(store: Store) -> None:
    await store.principals.add(a_principal("a"))
    await store.conversations.create("c", T0)
    await store.conversations.create("theirs", T0, principal_id="prin-a")
    for name, principal_id in (("c", "prin-a"), ("theirs", OPERATOR)):
        with pytest.raises(NoConversation):
            await store.runs.begin(a_run("1", name, principal_id=principal_id))


@pytest.mark.parametrize("status", [PrincipalStatus.SUSPENDED, PrincipalStatus.DELETING])
async def test_who_isnt_active_begins_nothing_and_what_runs_is_asked_to_stop(
    store: Store, status: PrincipalStatus
) -> None:
    made = await store.principals.add(a_principal("a"))
    await store.conversations.create("c", T0, principal_id="prin-a")
    await store.conversations.create("ours", T0)
    await store.runs.begin(a_run("1", principal_id="prin-a"))
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
        await store.runs.begin(a_run("3", "c", principal_id="prin-a"))
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
    assert await store.principals.departing(5) == [deleting]
    again = await store.principals.begin_deletion("prin-a", T0 + 2)
    assert again.deleted_at == deleting.deleted_at == T0 + 1
    with pytest.raises(Conflict):
        await store.principals.change(replace(again, status=PrincipalStatus.ACTIVE))
    with pytest.raises(NotFound):
        await store.principals.begin_deletion("prin-b", T0)


async def two_with_a_task_each(store: Store) -> None:
    for number, principal_id in enumerate((OPERATOR, "prin-a")):
        if principal_id != OPERATOR:
            await store.principals.add(a_principal("a"))
        name = stored_name(principal_id, "c")
        await store.conversations.create(name, T0 + number, principal_id=principal_id)
        task_id = stored_name(principal_id, "watch")
        await store.tasks.add(a_task(id=task_id, conversation_id=name), quota=9)


async def test_pages_and_single_tasks_hold_what_is_within_reach(store: Store) -> None:
    await two_with_a_task_each(store)
    for principal_id in (OPERATOR, "prin-a"):
        reach, name = Reach(principal_id=principal_id), stored_name(principal_id, "watch")
        page = await store.tasks.page(reach, status=None, limit=9, cursor=None)
        assert [task.id for task in page.items] == [name]
        assert await store.tasks.get("watch", reach) == await store.tasks.get(name, EVERYTHING)
        mine = await store.conversations.page(limit=9, cursor=None, principal_id=principal_id)
        assert [one.id for one in mine.items] == [stored_name(principal_id, "c")]
    assert await store.tasks.get("watch", Reach("prin-a+c", OPERATOR)) is None
    assert await store.tasks.get("prin-a+watch", Reach(principal_id=OPERATOR)) is None
    assert len((await store.tasks.page(EVERYTHING, status=None, limit=9, cursor=None)).items) == 2
    assert len((await store.conversations.page(limit=9, cursor=None)).items) == 2


async def test_a_principal_changes_and_ends_its_own_task_by_the_name_it_chose(store: Store) -> None:
    await two_with_a_task_each(store)
    theirs = Reach(principal_id="prin-a")
    task = await store.tasks.get("watch", theirs)
    assert task is not None
    assert await store.tasks.replace(replace(task, prompt="new"), theirs, expected_revision=task.revision)
    claimed, _ = await store.tasks.claim_manual("watch", theirs, host="h", now=T0, lease_ms=1000)
    assert (claimed.id, claimed.prompt) == ("prin-a+watch", "new")
    log = await store.tasks.runs("watch", theirs, limit=5, cursor=None)
    assert log is not None
    assert [each.task_id for each in log.items] == ["prin-a+watch"]
    assert await store.tasks.remove("watch", theirs)
    assert not await store.tasks.remove("watch", theirs)
    assert await store.tasks.get("watch", Reach(principal_id=OPERATOR)) is not None


async def test_nobody_speaks_into_another_principals_conversation(store: Store) -> None:
    await two_with_a_task_each(store)
    await store.conversations.create("theirs", T0, principal_id="prin-a")
    for source, target, lands in [
        ("theirs", "c", "prin-a+c"),
        ("theirs", "prin-a+c", "prin-a+c"),
        ("c", "prin-a+c", None),
        ("prin-a+c", "theirs", "theirs"),
        ("c", "theirs", None),
        ("c", "c", "c"),
    ]:
        if lands is None:
            with pytest.raises(NotFound, match=f"conversation_id not found: {re.escape(target)}"):
                await store.outbound.add(source, target, "hi", "assistant", T0)
        else:
            said = await store.outbound.add(source, target, "hi", "assistant", T0)
            assert said.conversation_id == lands


async def test_the_hosts_day_counts_all_principals_once_and_each_has_its_own(store: Store) -> None:
    await store.principals.add(a_principal("a"))
    await store.conversations.create("c", T0)
    await store.conversations.create("theirs", T0, principal_id="prin-a")
    for number, conversation_id in enumerate(("c", "theirs", "theirs")):
        principal_id = "prin-a" if conversation_id == "theirs" else OPERATOR
        lease = await store.runs.begin(a_run(str(number), conversation_id, principal_id=principal_id))
        await store.runs.finish(lease, an_end(), [], [], T0)

    async def runs_of(principal_id: str | None) -> tuple[int, list[str]]:
        (day,) = (await store.usage.by_day(limit=5, cursor=None, principal_id=principal_id)).items
        book = store.usage.by_conversation
        page = await book(conversation_id=None, limit=5, cursor=None, principal_id=principal_id)
        return day.runs, sorted(str(each.conversation_id) for each in page.items)

    assert await runs_of(None) == (3, ["c", "theirs"])
    assert await runs_of(OPERATOR) == (1, ["c"])
    assert await runs_of("prin-a") == (2, ["theirs"])


async def test_what_stands_against_a_limit_is_the_conversations_the_principals_and_the_hosts(
    store: Store,
) -> None:
    await store.principals.add(a_principal("a"))
    leases = []
    for number, (name, principal_id) in enumerate(
        (("c", OPERATOR), ("theirs", "prin-a"), ("also-theirs", "prin-a"))
    ):
        await store.conversations.create(name, T0, principal_id=principal_id)
        leases.append(await store.runs.begin(a_run(str(number), name, principal_id=principal_id)))
    seen: list[Standing] = []

    async def reserve(lease: Lease, tokens: int) -> None:
        def decide(standing: Standing) -> Amount:
            seen.append(standing)
            return Amount(tokens, 1)

        await store.runs.reserve(lease, decide, T0)

    for lease, tokens in zip(leases, (1, 20, 300), strict=True):
        await reserve(lease, tokens)
    await store.runs.finish(leases[1], an_end(spending=Spending(Usage(7))), [], [], T0)
    await reserve(leases[2], 1)
    assert seen[2] == Standing(Amount(), Amount(20, 1), Amount(21, 2))
    assert seen[3] == Standing(Amount(), Amount(7), Amount(8, 1))


async def test_a_principal_that_cant_move_in_is_named_and_nothing_moves_in_without_it(store: Store) -> None:
    await store.principals.add(a_principal("a", uid=70_000))
    row = {
        "id": "prin-b",
        "name": "b",
        "directory": "d-b",
        "created_at": T0,
        "status": "active",
        "terms": "{}",
        "uid": 70_000,
    }
    theirs = {"id": "c", "session_id": "s", "owner_id": "c", "created_at": T0, "last_activity": T0}
    with pytest.raises(StoreError, match="prin-b can't move in"):
        await store.arrivals.take({"principals": [row], "conversations": [theirs]})
    assert await store.conversations.get("c") is None
    moved = {"principals": [row | {"uid": 70_001}], "conversations": [theirs | {"principal_id": "prin-b"}]}
    assert await store.arrivals.take(moved) == {"principals": 1, "conversations": 1}
    assert await store.arrivals.take(moved) == {}


async def with_limit(store: Store, tasks: int | None) -> None:
    """A principal with two conversations."""
    await store.principals.add(a_principal("a", terms=Terms(tasks=tasks)))
    for name in ("prin-a+c", "prin-a+d"):
        await store.conversations.create(name, T0, principal_id="prin-a")


async def ids_of(store: Store) -> list[str]:
    page = await store.tasks.page(Reach(principal_id="prin-a"), status=None, limit=50, cursor=None)
    return [task.id for task in page.items]


async def test_a_principals_tasks_are_limited_over_all_its_conversations(store: Store) -> None:
    await with_limit(store, 2)
    await store.tasks.add(a_task(id="t-1", conversation_id="prin-a+c"), quota=9)
    await store.tasks.add(a_task(id="t-2", conversation_id="t-home"), quota=9, alone_for="prin-a")
    for home, alone_for in (("prin-a+d", None), ("prin-a+c", None), ("new", "prin-a")):
        with pytest.raises(Conflict, match=r"prin-a has 2 tasks, and its limit \(tasks\) is 2") as refused:
            await store.tasks.add(a_task(id="t-3", conversation_id=home), quota=9, alone_for=alone_for)
        assert refused.value.code == "task_quota"
    assert await store.conversations.get("new") is None
    await store.conversations.create("c", T0)
    for number in range(4):
        await store.tasks.add(a_task(id=f"operators-{number}", conversation_id="c"), quota=9)


async def test_completed_tasks_of_other_conversations_make_room_and_take_hidden_homes_along(
    store: Store,
) -> None:
    await with_limit(store, 2)
    over = a_task(id="t-1", conversation_id="home", status=TaskStatus.COMPLETED, next_run=None)
    await store.tasks.add(over, quota=9, alone_for="prin-a")
    await store.tasks.add(a_task(id="t-2", conversation_id="prin-a+c"), quota=9)
    await store.tasks.add(a_task(id="t-3", conversation_id="prin-a+d"), quota=9)
    assert await ids_of(store) == ["t-2", "t-3"]
    assert await store.conversations.get("home") is None


async def test_what_a_lowered_limit_has_too_much_goes_only_when_there_is_room_then(store: Store) -> None:
    await with_limit(store, None)
    for number in range(5):
        status = TaskStatus.PAUSED if number % 2 else TaskStatus.COMPLETED
        task = a_task(id=f"t-{number}", conversation_id="prin-a+c", status=status, next_run=None)
        await store.tasks.add(task, quota=9)
    for limit, left in ((2, ["t-0", "t-1", "t-2", "t-3", "t-4"]), (3, ["t-1", "t-3", "new"])):
        principal = await store.principals.get("prin-a")
        assert principal is not None
        await store.principals.change(replace(principal, terms=Terms(tasks=limit)))
        with suppress(Conflict):
            await store.tasks.add(a_task(id="new", conversation_id="prin-a+d"), quota=9)
        assert await ids_of(store) == left


async def test_two_tasks_at_once_can_not_both_take_the_last_place(store: Store) -> None:
    await with_limit(store, 3)
    refused = []

    async def add(number: int) -> None:
        home = ("prin-a+c", "prin-a+d")[number % 2]
        try:
            await store.tasks.add(a_task(id=f"t-{number}", conversation_id=home), quota=9)
        except Conflict:
            refused.append(number)

    async with anyio.create_task_group() as group:
        for number in range(8):
            group.start_soon(add, number)
    assert (len(await ids_of(store)), len(refused)) == (3, 5)
