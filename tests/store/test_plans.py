"""What a host asks with every turn, and again and again, costs the same on a store of any size."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

import pytest

from shared.principals import Reach
from shared.store.sqlite.store import SqliteStore
from shared.task_values import TaskStatus
from shared.values import Event
from tests.contract.store.making import LEASE, T0, a_key, a_run, an_end
from tests.contract.store.test_webhooks import a_webhook
from tests.store.places import Places

pytestmark = pytest.mark.anyio

WHOLE = re.compile(r"SCAN (?!CONSTANT|json_each|counters|webhook_events$|one$|own$)([a-z_]{3,}|[acdnprt])$")
"""A table that is read from its beginning to its end; by an index of few rows, or a subquery, is no such."""


async def a_turn(store: SqliteStore) -> None:
    hook = a_webhook(subject="run-1")
    lease = await store.runs.begin(a_run("1", create=True, idempotency=a_key(), webhook=hook))
    await store.conversations.history("c")
    await store.compactions.latest("c")
    await store.outbound.said_by("c", after=0)
    await store.runs.append(lease, [], T0)
    await store.runs.record([(lease, [Event(1, "start", {})])], T0)
    await store.runs.renew([lease], LEASE)
    await store.runs.finish(lease, an_end(), [], [], T0)
    await store.runs.get("c", "run-1")


async def in_the_background(store: SqliteStore) -> None:
    await store.runs.recover(T0)
    await store.runs.cancels_asked("host-1")
    await store.runs.to_begin_again(9)
    await store.approvals.expire(T0)
    await store.approvals.ready(9)
    await store.tasks.claim_due(host="host-1", now=T0, lease_ms=LEASE)
    await store.tokens.living(["t"], T0)
    await store.counts()
    await store.webhooks.any()
    await store.webhooks.claim("host-1", 16, T0, alone=True, failing=8)


async def plans(store: SqliteStore, asked: Awaitable[object]) -> dict[str, list[str]]:
    """Return how SQLite goes about each statement of what is asked."""
    connection, statements = store._db._quick, set[str]()
    connection.set_trace_callback(statements.add)
    await asked
    connection.set_trace_callback(None)
    return {
        statement: [row["detail"] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}")]
        for statement in statements
        if statement.startswith(("SELECT", "WITH", "UPDATE", "INSERT", "DELETE"))
    }


@pytest.mark.parametrize("asked", [a_turn, in_the_background])
async def test_no_table_is_read_whole(
    places: Places, asked: Callable[[SqliteStore], Awaitable[None]]
) -> None:
    async with places.host() as store:
        found = await plans(store, asked(store))
        assert found
        assert {one: plan for one, plan in found.items() if any(map(WHOLE.match, plan))} == {}


async def test_steps_that_can_go_on_are_found_by_the_runs_that_wait(places: Places) -> None:
    async with places.host() as store:
        found = await plans(store, store.approvals.ready(9))
        assert any("runs_ready" in step for plan in found.values() for step in plan)


async def test_a_conversation_to_speak_into_is_not_looked_for_among_all_of_its_principal(
    places: Places,
) -> None:
    async with places.host() as store:
        await store.conversations.create("c", T0)
        found = await plans(store, store.outbound.add("c", "c", "hello", "Pico", T0))
        (plan,) = (each for one, each in found.items() if one.startswith("INSERT INTO outbound_messages"))
        assert [step for step in plan if re.match(r"SEARCH (source|target) .*\(id=\?\)", step)] == plan


async def test_the_tasks_of_a_conversation_are_not_looked_for_among_all_that_are_active(
    places: Places,
) -> None:
    async with places.host() as store:
        reach = Reach(conversation_id="c")
        asked = store.tasks.page(reach, status=TaskStatus.ACTIVE, limit=9, cursor=None)
        (plan,) = (await plans(store, asked)).values()
        assert plan == ["SEARCH scheduled_tasks USING INDEX tasks_of_conversation (conversation_id=?)"]
