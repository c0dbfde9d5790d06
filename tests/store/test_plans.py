"""What a host asks with every turn, and again and again, costs the same on a store of any size."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

import pytest

from shared.store.sqlite.store import SqliteStore
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


@pytest.mark.parametrize("asked", [a_turn, in_the_background])
async def test_no_table_is_read_whole(
    places: Places, asked: Callable[[SqliteStore], Awaitable[None]]
) -> None:
    async with places.host() as store:
        connection, statements = store._db._quick, set[str]()
        connection.set_trace_callback(statements.add)
        await asked(store)
        connection.set_trace_callback(None)
        plans = {
            statement: [row["detail"] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}")]
            for statement in statements
            if statement.startswith(("SELECT", "WITH", "UPDATE", "INSERT", "DELETE"))
        }
        assert plans
        assert {one: plan for one, plan in plans.items() if any(map(WHOLE.match, plan))} == {}


async def test_steps_that_can_go_on_are_found_by_the_runs_that_wait(places: Places) -> None:
    async with places.host() as store:
        statements: list[str] = []
        store._db._quick.set_trace_callback(statements.append)
        await store.approvals.ready(9)
        store._db._quick.set_trace_callback(None)
        plan = store._db._quick.execute(f"EXPLAIN QUERY PLAN {statements[0]}")
        assert any("runs_ready" in row["detail"] for row in plan)


async def test_a_conversation_to_speak_into_is_not_looked_for_among_all_of_its_principal(
    places: Places,
) -> None:
    async with places.host() as store:
        await store.conversations.create("c", T0)
        statements = set[str]()
        store._db._quick.set_trace_callback(statements.add)
        await store.outbound.add("c", "c", "hello", "Pico", T0)
        store._db._quick.set_trace_callback(None)
        (statement,) = (each for each in statements if each.startswith("INSERT INTO outbound_messages"))
        plan = [row["detail"] for row in store._db._quick.execute(f"EXPLAIN QUERY PLAN {statement}")]
        assert [step for step in plan if re.match(r"SEARCH (source|target) .*\(id=\?\)", step)] == plan
