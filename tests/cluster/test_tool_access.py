"""What somebody can reach who has all that a tool server has: one conversation."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from asyncpg import InsufficientPrivilegeError  # type: ignore[import-untyped]  # it ships no types

from shared.errors import Conflict, StoreError, Suspended, Unauthorized
from shared.ids import Token
from shared.principals import EVERYTHING, OPERATOR, PrincipalStatus, Reach, Terms
from shared.store.postgres.database import Database, Place
from shared.store.postgres.opening import PostgresStore, open_shared_store, open_tool_store, place_of
from shared.task_values import Task, TaskStatus
from tests.contract.store.making import T0, a_principal, a_run


@pytest.fixture
async def store(database: str) -> AsyncIterator[PostgresStore]:
    """A host's store with two people's conversations; an isolated run works for mine."""
    opened = await open_shared_store(Place(database))
    for name in ("mine", "theirs", "main"):
        await opened.conversations.create(name, T0)
        await opened.tasks.add(a_task(f"task-{name}", name), quota=10)
        await opened.runs.begin(a_run(name, name))
        await opened.outbound.add(name, name, f"secret of {name}", "Pico", T0)
    await opened.conversations.create("isolated", T0, owner_id="mine", temporary=True)
    yield opened
    await opened.close()


def a_task(task_id: str, conversation_id: str) -> Task:
    return Task(
        task_id, conversation_id, "Look", "interval", "60000", "UTC", "isolated", "once",
        TaskStatus.ACTIVE, T0, 0, 0, T0, T0,
    )  # fmt: skip


def access(
    store: PostgresStore, conversation_id: str, *, is_main: bool = False, principal_id: str = OPERATOR
) -> Place:
    text = store.tool_access(conversation_id, is_main=is_main, principal_id=principal_id)
    assert text is not None
    return place_of(text)


async def fetch(access: Place, statement: str, *values: Any) -> list[Any]:
    database = Database(access)
    try:
        rows = await database.write(lambda connection: connection.fetch(statement, *values))
        return [row[0] for row in rows]
    finally:
        await database.close()


async def test_a_session_sees_its_own_conversation_alone(store: PostgresStore) -> None:
    mine = access(store, "mine")
    assert await fetch(mine, "SELECT id FROM conversations") == ["mine"]
    assert await fetch(mine, "SELECT id FROM scheduled_tasks") == ["task-mine"]
    assert await fetch(mine, "SELECT text FROM outbound_messages") == ["secret of mine"]
    assert await fetch(mine, "SELECT conversation_id FROM runs") == ["mine"]


async def test_an_isolated_run_acts_for_its_owner_and_speaks_for_itself(store: PostgresStore) -> None:
    isolated = access(store, "isolated")
    assert await fetch(isolated, "SELECT id FROM scheduled_tasks") == ["task-mine"]
    assert await fetch(isolated, "SELECT text FROM outbound_messages") == []


async def test_the_main_conversation_sees_all_tasks(store: PostgresStore) -> None:
    main = access(store, "main", is_main=True)
    seen = await fetch(main, "SELECT id FROM scheduled_tasks ORDER BY id")
    assert seen == ["task-main", "task-mine", "task-theirs"]


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT text FROM messages",
        "SELECT * FROM tool_key",
        "SELECT * FROM tokens",
        "SELECT answer FROM runs",
        "SELECT lease_owner FROM runs",
        "UPDATE conversations SET owner_id = 'theirs'",
        "UPDATE runs SET state = 'error'",
        "INSERT INTO counters VALUES ('tasks', 1, 1)",
        "INSERT INTO task_runs (id) VALUES ('x')",
        "INSERT INTO messages (conversation_id, seq) VALUES ('mine', 99)",
        "INSERT INTO outbound_messages (id, conversation_id, source_id, text, sender, created_at) "
        "VALUES ('x', 'theirs', 'mine', 'x', 'x', 1)",
        "INSERT INTO outbound_messages (id, conversation_id, source_id, text, sender, created_at) "
        "VALUES ('x', 'mine', 'theirs', 'x', 'x', 1)",
        "INSERT INTO conversations (id, session_id, owner_id, created_at, last_activity) "
        "VALUES ('new', 's', 'mine', 1, 1)",
        "UPDATE scheduled_tasks SET conversation_id = 'theirs'",
        "ALTER TABLE conversations DISABLE ROW LEVEL SECURITY",
        "DROP POLICY tool_sees ON conversations",
        "CREATE TABLE anything (x int)",
        "SET ROLE picoclaw",
        "ALTER FUNCTION tool_token() RESET ALL",
    ],
)
async def test_everything_else_is_denied(store: PostgresStore, statement: str) -> None:
    with pytest.raises(InsufficientPrivilegeError):
        await fetch(access(store, "mine"), statement)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE scheduled_tasks SET prompt = 'x' WHERE conversation_id = 'theirs' RETURNING id",
        "DELETE FROM scheduled_tasks WHERE conversation_id = 'theirs' RETURNING id",
        "DELETE FROM conversations WHERE id IN ('mine', 'theirs', 'isolated') RETURNING id",
    ],
)
async def test_other_peoples_rows_are_not_there(store: PostgresStore, statement: str) -> None:
    assert await fetch(access(store, "mine"), statement) == []


async def test_a_token_that_was_changed_shows_nothing(store: PostgresStore) -> None:
    mine, theirs = access(store, "mine"), access(store, "theirs")
    assert mine.token is not None
    assert theirs.token is not None
    signature = mine.token[2:66]
    for token in (
        "",
        "m",
        "mine",
        f"o.{'0' * 64}.theirs",
        f"m.{signature}.mine",
        f"o.{signature}.theirs",
        f"o.{theirs.token[2:66]}.mine",
        mine.token + "x",
        mine.token[:-1],
    ):
        assert await fetch(replace(mine, token=token), "SELECT id FROM conversations") == [], token


async def test_a_session_cannot_show_its_statements_another_token(store: PostgresStore) -> None:
    mine = access(store, "mine")
    statement = f"""WITH forged AS (SELECT set_config('picoclaw.token', 'm.{"0" * 64}.main', true))
        SELECT id FROM conversations, forged"""
    assert set(await fetch(mine, statement)) <= {"mine"}


async def test_a_temporary_table_cannot_stand_in_for_a_real_one(store: PostgresStore) -> None:
    mine = access(store, "mine")
    database = Database(Place(mine.url, connections=1, token=mine.token))

    async def work(connection: Any) -> list[Any]:
        await connection.execute("CREATE TEMP TABLE conversations (id text, owner_id text)")
        await connection.execute("INSERT INTO conversations VALUES ('mine', 'theirs')")
        await connection.execute("CREATE TEMP TABLE tool_key (inner_pad bytea, outer_pad bytea)")
        return list(await connection.fetch("SELECT id FROM scheduled_tasks"))

    found = await database.write(work)
    await database.close()
    assert [row["id"] for row in found] == ["task-mine"]


async def test_a_tool_servers_store_does_its_work_and_no_more(store: PostgresStore) -> None:
    text = store.tool_access("mine", is_main=False, principal_id=OPERATOR)
    assert text is not None
    tools = open_tool_store(text)
    try:
        assert (await tools.conversations.ensure("mine", T0)).id == "mine"
        assert (await tools.outbound.add("mine", "mine", "hello\0there", "Pico", T0)).text == "hello\0there"
        await tools.tasks.add(a_task("new", "mine"), quota=10)
        assert await tools.tasks.remove("new", Reach("mine"))
        # Even a statement that forgot the owner.
        assert await tools.tasks.get("task-theirs", EVERYTHING) is None
        assert not await tools.tasks.remove("task-theirs", EVERYTHING)
    finally:
        await tools.close()
    assert await store.tasks.get("task-theirs", EVERYTHING) is not None


async def test_a_tool_servers_store_does_nothing_more_after_its_tokens_end(store: PostgresStore) -> None:
    await store.conversations.create("laptop", T0)
    text = store.tool_access("laptop", is_main=True, principal_id=OPERATOR)
    assert text is not None
    await store.tokens.add(Token("token-1", "laptop", True, T0, None), b"t" * 32)
    await store.tokens.add(Token("token-2", "laptop", True, 0, 1), b"u" * 32)
    tools = open_tool_store(text, "token-1")
    expired = open_tool_store(text, "token-2")
    try:
        await tools.outbound.add("laptop", "laptop", "hello", "Pico", T0)
        with pytest.raises(Unauthorized):
            await expired.outbound.add("laptop", "laptop", "hello", "Pico", T0)
        await store.conversations.delete("laptop")
        with pytest.raises(Unauthorized):
            await tools.conversations.ensure("laptop", T0)
    finally:
        await tools.close()
        await expired.close()
    assert await store.conversations.get("laptop") is None


async def test_a_role_that_would_bypass_the_policies_is_refused(database: str) -> None:
    with pytest.raises(StoreError, match="row-level security"):
        await open_shared_store(Place(database), tools_url=database)


A, B = "prin-a", "prin-b"


@pytest.fixture
async def shared_by_two(store: PostgresStore) -> PostgresStore:
    """The same store with two principals beside the operator, a main and another conversation each."""
    for whose in (A, B):
        await store.principals.add(a_principal(whose.removeprefix("prin-")))
        for name in (f"{whose}+main", f"chat-of-{whose}"):
            await store.conversations.create(name, T0, principal_id=whose)
            await store.tasks.add(a_task(f"task-{name}", name), quota=10)
            await store.runs.begin(a_run(name, name, principal_id=whose))
            await store.outbound.add(name, name, f"secret of {name}", "Pico", T0)
        await store.conversations.create(f"hidden-{whose}", T0, owner_id=f"{whose}+main", temporary=True)
    return store


async def test_a_principals_main_conversation_sees_all_of_its_principal_and_nothing_else(
    shared_by_two: PostgresStore,
) -> None:
    main = access(shared_by_two, "prin-a+main", is_main=True, principal_id=A)
    own = ["chat-of-prin-a", "hidden-prin-a", "prin-a+main"]
    assert sorted(await fetch(main, "SELECT id FROM conversations")) == own
    assert sorted(await fetch(main, "SELECT DISTINCT principal_id FROM conversations")) == [A]
    tasks = ["task-chat-of-prin-a", "task-prin-a+main"]
    assert sorted(await fetch(main, "SELECT id FROM scheduled_tasks")) == tasks
    assert len(await fetch(main, "SELECT id FROM runs")) == 2
    assert await fetch(main, "SELECT text FROM outbound_messages") == ["secret of prin-a+main"]


async def test_another_conversation_of_a_principal_sees_itself_alone(shared_by_two: PostgresStore) -> None:
    other = access(shared_by_two, "chat-of-prin-a", principal_id=A)
    assert await fetch(other, "SELECT id FROM conversations") == ["chat-of-prin-a"]
    assert await fetch(other, "SELECT id FROM scheduled_tasks") == ["task-chat-of-prin-a"]


SAY = "INSERT INTO outbound_messages (id, conversation_id, source_id, text, sender, created_at) VALUES "
MAKE = """INSERT INTO conversations (id, session_id, owner_id, created_at, last_activity, trusted,
    principal_id) VALUES """


@pytest.mark.parametrize(
    "statement",
    [
        f"{SAY} ('x', 'prin-b+main', 'prin-a+main', 'x', 'x', 1)",
        f"{SAY} ('x', 'main', 'prin-a+main', 'x', 'x', 1)",
        f"{SAY} ('x', 'prin-a+main', 'prin-b+main', 'x', 'x', 1)",
        f"{MAKE} ('prin-a+main', 's', 'prin-a+main', 1, 1, 0, 'prin-b')",
        f"{MAKE} ('prin-a+main', 's', 'prin-a+main', 1, 1, 0, 'operator')",
        f"{MAKE} ('new', 's', 'new', 1, 1, 0, 'prin-a')",
        "UPDATE conversations SET principal_id = 'prin-a'",
        "UPDATE scheduled_tasks SET conversation_id = 'prin-b+main'",
        "UPDATE scheduled_tasks SET conversation_id = 'main'",
        "SELECT * FROM principals",
        "UPDATE principals SET status = 'active'",
        "SELECT * FROM usage_by_day",
        "SELECT * FROM idempotency_keys",
    ],
)
async def test_a_principals_main_conversation_reaches_into_no_other(
    shared_by_two: PostgresStore, statement: str
) -> None:
    main = access(shared_by_two, "prin-a+main", is_main=True, principal_id=A)
    with pytest.raises(InsufficientPrivilegeError):
        await fetch(main, statement)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE scheduled_tasks SET prompt = 'x' WHERE conversation_id NOT LIKE '%prin-a%' RETURNING id",
        "DELETE FROM scheduled_tasks WHERE conversation_id NOT LIKE '%prin-a%' RETURNING id",
        "DELETE FROM conversations WHERE id NOT LIKE '%prin-a%' RETURNING id",
        "SELECT task_id FROM task_runs WHERE task_id NOT LIKE '%prin-a%'",
    ],
)
async def test_others_rows_are_not_there_for_a_principals_main_conversation(
    shared_by_two: PostgresStore, statement: str
) -> None:
    await shared_by_two.tasks.claim_due(host="h", now=T0, lease_ms=1000)
    main = access(shared_by_two, "prin-a+main", is_main=True, principal_id=A)
    assert await fetch(main, statement) == []


@pytest.mark.parametrize(
    ("kind", "whom"),
    [
        ("m", "prin-a/prin-a+main"),
        ("p", "prin-b/prin-a+main"),
        ("p", "prin-a/prin-b+main"),
        ("q", "prin-a/prin-a+main"),
        ("p", "operator/main"),
    ],
)
async def test_a_token_that_says_anything_else_counts_for_nothing(
    shared_by_two: PostgresStore, kind: str, whom: str
) -> None:
    main = access(shared_by_two, "prin-a+main", is_main=True, principal_id=A)
    assert main.token is not None
    signature = main.token.split(".")[1]
    forged = replace(main, token=f"{kind}.{signature}.{whom}")
    assert await fetch(forged, "SELECT id FROM conversations") == []
    assert await fetch(forged, "SELECT id FROM scheduled_tasks") == []


async def test_a_principals_session_makes_its_own_conversation_and_a_suspended_ones_none(
    shared_by_two: PostgresStore,
) -> None:
    for whose, made in ((A, True), (B, False)):
        text = shared_by_two.tool_access(f"{whose}+laptop", is_main=False, principal_id=whose)
        assert text is not None
        principal = await shared_by_two.principals.get(whose)
        assert principal is not None
        if not made:
            await shared_by_two.principals.change(replace(principal, status=PrincipalStatus.SUSPENDED))
        tools = open_tool_store(text)
        try:
            ensured = tools.conversations.ensure(f"{whose}+laptop", T0, trusted=False, principal_id=whose)
            if made:
                assert (await ensured).principal_id == whose
            else:
                with pytest.raises(Suspended):
                    await ensured
        finally:
            await tools.close()


async def test_a_suspended_principals_session_writes_nothing(shared_by_two: PostgresStore) -> None:
    store = shared_by_two
    await store.tokens.add(Token("token-a", "prin-a+main", True, T0, None, A), b"t" * 32)
    text = store.tool_access("prin-a+main", is_main=True, principal_id=A)
    assert text is not None
    tools = open_tool_store(text, "token-a")
    try:
        await tools.outbound.add("prin-a+main", "main", "to myself", "Pico", T0)
        principal = await store.principals.get(A)
        assert principal is not None
        await store.principals.change(replace(principal, status=PrincipalStatus.SUSPENDED))
        with pytest.raises(Unauthorized):
            await tools.outbound.add("prin-a+main", "main", "again", "Pico", T0)
        with pytest.raises(Unauthorized):
            await tools.tasks.add(a_task("new", "prin-a+main"), quota=10)
    finally:
        await tools.close()


async def limit(store: PostgresStore, whose: str, tasks: int) -> None:
    principal = await store.principals.get(whose)
    assert principal is not None
    await store.principals.change(replace(principal, terms=Terms(tasks=tasks)))


@pytest.mark.parametrize(("name", "is_main"), [("prin-a+main", True), ("chat-of-prin-a", False)])
async def test_a_session_adds_tasks_up_to_its_principals_limit_and_completed_ones_make_room(
    shared_by_two: PostgresStore, name: str, is_main: bool
) -> None:
    store = shared_by_two
    over = replace(a_task("over", "home"), status=TaskStatus.COMPLETED, next_run=None)
    await store.tasks.add(over, quota=10, alone_for=A)
    await limit(store, A, 3)
    text = store.tool_access(name, is_main=is_main, principal_id=A)
    assert text is not None
    tools = open_tool_store(text)
    try:
        await tools.tasks.add(a_task("new", name), quota=10)
        assert await store.conversations.get("home") is None
        with pytest.raises(Conflict) as refused:
            await tools.tasks.add(a_task("newer", name), quota=10)
        assert refused.value.code == "task_quota"
    finally:
        await tools.close()
    held = await store.tasks.page(Reach(principal_id=A), status=None, limit=9, cursor=None)
    assert [task.id for task in held.items] == ["task-prin-a+main", "task-chat-of-prin-a", "new"]


async def test_no_session_removes_the_tasks_of_another_principal(shared_by_two: PostgresStore) -> None:
    store = shared_by_two
    for whose in (B, OPERATOR):
        over = replace(a_task(f"over-{whose}", f"home-{whose}"), status=TaskStatus.COMPLETED, next_run=None)
        await store.tasks.add(over, quota=10, alone_for=whose)
        await limit(store, whose, 1)
    main = access(store, "prin-a+main", is_main=True, principal_id=A)
    forged = replace(main, token="p.none.prin-b/prin-b+main")
    for place in (main, access(store, "chat-of-prin-a", principal_id=A), forged):
        for whose in (B, OPERATOR):
            assert await fetch(place, "SELECT trim_tasks($1)", whose) == []
    assert await fetch(access(store, "theirs"), "SELECT trim_tasks($1)", B) == []
