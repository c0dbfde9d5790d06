"""What every engine leaves of a principal that was deleted, table by table."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from typing import Any, Final

from shared.ids import Token
from shared.principals import OPERATOR, PrincipalStatus, Reach, stored_name
from shared.store.contract import Tx
from shared.store.copying import LEFT_OUT
from shared.store.sql.arrivals import ORDER
from shared.store.sql.chats import Chat
from shared.store.sqlite.content import tables
from shared.store.sqlite.store import STEPS
from shared.store.store import Store
from shared.store.volume.operator import NOT_EXPORTED
from shared.task_values import TaskRunState
from shared.usage_values import Spending, Usage
from shared.values import Compaction, Event, Idempotency
from shared.webhook_values import EVENTS, Webhook
from tests.contract.store.making import DAY, T0, a_principal, a_run, an_end, said
from tests.contract.store.test_tasks_contract import a_task

OF_ENGINE: Final = frozenset({"schema_migrations", "counters", "commit_marks", "tool_key"})
OF_HOST: Final = OF_ENGINE | {"tool_pins", "mcp_sign_ins"}
"""Tables that have nothing of a principal. One that is new stands here, or this test puts rows into it."""

TABLES: Final = {
    "SqliteStore": "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%'",
    "PostgresStore": "SELECT tablename AS name FROM pg_tables WHERE schemaname = 'public'",
}


async def rows_of(store: Store, mark: str) -> Mapping[str, int]:
    """Return how many rows of each table mention the mark, whatever their columns are."""

    async def work(tx: Tx) -> Mapping[str, int]:
        found = {}
        for row in await tx.fetch(TABLES[type(store).__name__]):
            rows: Any = await tx.fetch(f"SELECT * FROM {row['name']}")
            found[row["name"]] = sum(mark in str(tuple(each)) for each in rows)
        return found

    return await store._engine.read(work)


async def live(store: Store, principal_id: str) -> None:
    """Leave something of a principal in every table that may have something of one.

    Each id and text contains the principal's.
    """

    def own(name: str) -> str:
        return stored_name(principal_id, name) if principal_id != OPERATOR else f"operator-{name}"

    await store.conversations.create(own("gone"), T0, principal_id=principal_id)
    await store.conversations.delete(own("gone"))
    conversation = own("c")
    await store.conversations.create(conversation, T0, principal_id=principal_id)
    key = Idempotency(stored_name(principal_id, "/chat"), "k", "d")
    chat_key = Idempotency(stored_name(principal_id, "/task"), "k", principal_id)
    await store.webhooks.add(
        Webhook(own("hook"), principal_id, principal_id, "https://a.example", EVENTS, True, b"", T0)
    )
    whose = {"run_id": own("run"), "message": said(own("m")), "principal_id": principal_id}
    lease = await store.runs.begin(a_run("", conversation, idempotency=key, **whose))
    await store.runs.append(lease, [said(own("step"), None)], T0, spent=Spending(Usage(1)))
    await store.compactions.add(lease, Compaction("cut", text=principal_id), T0)
    await store.runs.finish(
        lease, an_end(), [said(own("done"))], [Event(1, "done", {"of": principal_id})], T0
    )
    await store.runs.keep_answer(chat_key, own("task"), 201, {}, T0)
    # As a channel, or the operator, asks for a run in somebody's conversation.
    others_key = Idempotency("channel:x", own("update"), "")
    whose = {"message": said(own("m2")), "principal_id": principal_id, "idempotency": others_key}
    other = await store.runs.begin(a_run("", conversation, run_id=own("run-2"), **whose))
    await store.runs.finish(other, an_end(), [], [], T0)
    await store.outbound.add(conversation, conversation, principal_id, "assistant", T0)
    await store.tasks.add(a_task(id=own("task"), conversation_id=conversation), quota=9)
    claimed = await store.tasks.claim_manual(own("task"), Reach(), host="h", now=T0, lease_ms=1000)
    await store.tasks.finish(claimed[1], state=TaskRunState.SUCCESS, result=principal_id, error=None, now=T0)
    await store.tokens.add(
        Token(own("token"), conversation, False, T0, None, principal_id), own("t").encode()
    )

    async def chat(tx: Tx) -> None:
        for statement in (
            """INSERT INTO channel_chats (conversation_id, channel, chat_id, current, private, sender_id,
                sender_name) VALUES ($1, 'x', $1, 1, 1, $1, $1)""",
            """INSERT INTO channel_updates (conversation_id, channel, update_id, chat_id, urgent, body,
                received_at) VALUES ($1, 'x', $1, $1, 0, '', 1)""",
            """INSERT INTO channel_deliveries (conversation_id, channel, chat_id, source, text, created_at)
                VALUES ($1, 'x', $1, $1, $1, 1)""",
            """INSERT INTO approvals (id, conversation_id, run_id, kind, call_id, tool, input, input_sha256,
                reason, status, created_at)
                VALUES ($1, $1, $1, 'tool', 'c', 't', '{}', '', '', 'pending', 1)""",
            """INSERT INTO responses (id, conversation_id, principal_id, run_id, made_conversation,
                background, asked, created_at) VALUES ($1, $1, $1, $1, 0, 0, '{}', 1)""",
            "INSERT INTO stopped_subagents (conversation_id, call_id, state) VALUES ($1, 'c', '{}')",
        ):
            await tx.execute(statement, conversation)

    await store._engine.write(chat)


async def deleted(store: Store, principal_id: str) -> None:
    await store.principals.begin_deletion(principal_id, T0)
    for _ in range(100):
        if not await store.principals.delete_some(2):
            return


async def states(store: Store) -> list[tuple[str, str]]:
    return [(each.id, each.status.value) for each in await store.principals.departing(5)]


async def test_nothing_of_a_deleted_principal_is_left_in_any_table_but_its_tombstone(store: Store) -> None:
    for name in ("a", "b"):
        await store.principals.add(a_principal(name, issuer="https://i", subject=name, uid=ord(name)))
        await live(store, f"prin-{name}")
    await live(store, OPERATOR)
    # What nobody was told of yet: a new webhook has it told to those there are.
    for conversation in (stored_name("prin-a", "c"), stored_name("prin-b", "c"), "operator-c"):
        await store.outbound.add(conversation, conversation, "and this", "assistant", T0)
    before = {mark: await rows_of(store, mark) for mark in ("prin-a", "prin-b", "operator-c")}
    everything = frozenset(before["prin-a"])
    assert {table for table, rows in before["prin-a"].items() if not rows} == everything & OF_HOST
    total = await store.usage.by_day(limit=5, cursor=None)
    looked_for = await store.principals.remains("prin-a")
    assert {table for table, rows in looked_for.items() if not rows} == set()
    used = await store.principals.used("prin-a", T0)
    assert (used.conversations, used.tasks) == (looked_for["conversations"], looked_for["scheduled_tasks"])
    assert used.tokens > 0

    await deleted(store, "prin-a")

    assert set((await store.principals.remains("prin-a")).values()) == {0}
    assert await store.principals.by_status() == {"active": 2, "deleted": 1}
    after = await rows_of(store, "prin-a")
    assert {table for table, rows in after.items() if rows} == {"principals", "audit"}
    for mark in ("prin-b", "operator-c"):
        assert await rows_of(store, mark) == before[mark]
    assert await store.usage.by_day(limit=5, cursor=None) == total
    tombstone = await store.principals.get("prin-a")
    assert tombstone is not None
    assert tombstone.status is PrincipalStatus.DELETED
    assert (tombstone.name, tombstone.subject, tombstone.uid) == ("", "a", ord("a"))
    assert tombstone.terms == a_principal("x").terms
    assert await store.principals.departing(5) == [tombstone]
    assert (await store.counts()).tasks == 2
    again = a_principal("anew", issuer="https://i", subject="a")
    assert await store.principals.by_subject("https://i", "a") == tombstone
    assert await store.principals.add(again) == again
    assert await store.principals.by_subject("https://i", "a") == again


def test_each_table_of_a_principal_moves_with_an_export_and_a_copy() -> None:
    made = sqlite3.connect(":memory:")
    for statement in chain(*STEPS):
        made.execute(statement)
    assert set(tables(made)) - NOT_EXPORTED - OF_ENGINE == set(ORDER) - NOT_EXPORTED
    assert {"idempotency_keys", "gone_conversations"} == NOT_EXPORTED - OF_HOST
    assert LEFT_OUT <= OF_ENGINE


async def test_many_small_conversations_go_in_few_transactions(store: Store) -> None:
    await store.principals.add(a_principal("a"))
    for number in range(100):
        await store.conversations.create(f"c{number}", T0, principal_id="prin-a")
    await store.principals.begin_deletion("prin-a", T0)
    steps = 0
    while await store.principals.delete_some(200):
        steps += 1
    assert steps < 10
    assert await states(store) == [("prin-a", "deleted")]


async def test_a_tombstone_goes_after_ninety_days(store: Store) -> None:
    await store.principals.add(a_principal("a"))
    await deleted(store, "prin-a")
    await store.prune(T0 + 90 * DAY - 1, limit=9)
    assert await store.principals.get("prin-a") is not None
    await store.prune(T0 + 90 * DAY, limit=9)
    assert await store.principals.get("prin-a") is None


async def test_a_run_that_is_ending_keeps_its_conversation_and_holds_up_no_other_principal(
    store: Store,
) -> None:
    for name in ("a", "b"):
        await store.principals.add(a_principal(name))
        for number in (1, 2):
            await store.conversations.create(f"{name}{number}", T0, principal_id=f"prin-{name}")
    lease = await store.runs.begin(a_run("1", "a1", principal_id="prin-a"))
    await deleted(store, "prin-a")
    left = await store.conversations.page(limit=9, cursor=None)
    assert [each.id for each in left.items] == ["b2", "b1", "a1"]
    await deleted(store, "prin-b")
    assert await states(store) == [("prin-a", "deleting"), ("prin-b", "deleted")]
    await store.runs.finish(lease, an_end(), [], [], T0)
    await deleted(store, "prin-a")
    assert await states(store) == [("prin-a", "deleted"), ("prin-b", "deleted")]


async def test_a_suspended_principals_tasks_wait_for_it_and_for_nobody_else(store: Store) -> None:
    made = await store.principals.add(a_principal("a"))
    for number, principal_id in enumerate(("prin-a", OPERATOR)):
        await store.conversations.create(f"c{number}", T0, principal_id=principal_id)
        await store.tasks.add(a_task(id=f"t{number}", conversation_id=f"c{number}", next_run=T0), quota=9)

    async def claimed() -> list[str]:
        found = []
        while (claim := await store.tasks.claim_due(host="h", now=T0, lease_ms=1000)) is not None:
            found.append(claim[0].id)
        return found

    suspended = await store.principals.change(replace(made, status=PrincipalStatus.SUSPENDED))
    assert await claimed() == ["t1"]
    assert await store.tasks.count_due(T0) == 0
    await store.principals.change(replace(suspended, status=PrincipalStatus.ACTIVE))
    assert await store.tasks.claim_due(host="h", now=T0, lease_ms=1000, but=("prin-a",)) is None
    assert await claimed() == ["t0"]


async def test_what_a_suspended_principal_has_to_say_to_a_chat_waits(store: Store) -> None:
    made = await store.principals.add(a_principal("a"))
    await store.conversations.create("c", T0, principal_id="prin-a")
    await store.channels.join(Chat("x", "7", True, "7", "Ann"), "c")
    await store.outbound.add("c", "c", "hello", "assistant", T0)

    async def waiting() -> list[str]:
        due = await store.channels.chats_due("x", T0, limit=9)
        delivery = await store.channels.next_delivery("x", "7", T0)
        assert (delivery is None) is (due == [])
        return due

    assert await waiting() == ["7"]
    suspended = await store.principals.change(replace(made, status=PrincipalStatus.SUSPENDED))
    assert await waiting() == []
    await store.principals.change(replace(suspended, status=PrincipalStatus.ACTIVE))
    assert await waiting() == ["7"]


async def test_a_suspended_principals_steps_wait_and_a_deleted_ones_requests_are_dropped(
    store: Store,
) -> None:
    made = await store.principals.add(a_principal("a"))
    await live(store, "prin-a")
    ready = "UPDATE runs SET ready_at = 1 WHERE id = 'prin-a+run-2'"
    await store._engine.write(lambda tx: tx.execute(ready))
    assert [step.principal_id for step in await store.approvals.ready(5)] == ["prin-a"]
    await store.principals.change(replace(made, status=PrincipalStatus.SUSPENDED))
    assert await store.approvals.ready(5) == []
    await store.principals.begin_deletion("prin-a", T0)
    request = await store.approvals.get("prin-a+c", None)
    assert request is not None
    assert request.status == "dropped"
    assert await store.approvals.open_step("prin-a+c") == []


async def test_steps_that_can_go_on_come_by_turns_of_each_principal(store: Store) -> None:
    for whose in ("a", "b"):
        await store.principals.add(a_principal(whose))
    for number, whose in enumerate("aaab"):
        conversation_id = f"conv-{number}"
        await store.conversations.create(conversation_id, T0, principal_id=f"prin-{whose}")
        await store.runs.begin(a_run(conversation_id, conversation_id, principal_id=f"prin-{whose}"))
    await store._engine.write(lambda tx: tx.execute("UPDATE runs SET ready_at = number"))
    ready = [step.conversation_id for step in await store.approvals.ready(3)]
    assert ready == ["conv-0", "conv-3", "conv-1"]
