"""What webhooks are told, on every engine: written with what happened, claimed by one host, in order."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from shared import jsons
from shared.approval_values import Answer, NewApproval
from shared.clock import now_ms
from shared.errors import Conflict, NotDurable, NotFound
from shared.principals import OPERATOR, PrincipalStatus
from shared.store.sql import webhooks
from shared.store.sql.webhooks import FAN_OUT, IN_ORDER_MS, OF_A_COPY
from shared.store.store import Store
from shared.task_values import TaskRunState
from shared.values import RunState
from shared.webhook_values import EVENTS, EVERYBODY, TRIED_FOR_MS, Tried, Webhook, WebhookDelivery
from tests.contract.store.conftest import OpenStore
from tests.contract.store.making import DAY, T0, a_principal, a_run, an_end
from tests.contract.store.test_tasks_contract import a_task
from tests.store.places import Places


def a_webhook(name: str = "w", **changes: Any) -> Webhook:
    values: dict[str, Any] = {
        "id": f"hook-{name}",
        "principal_id": OPERATOR,
        "subject": OPERATOR,
        "url": "https://example.com/hook",
        "events": EVENTS,
        "content": True,
        "secret": b"c" * 33,
        "created_at": T0,
    }
    return Webhook(**(values | changes))


async def told(store: Store, name: str = "w", status: str | None = None) -> list[WebhookDelivery]:
    page = await store.webhooks.deliveries(f"hook-{name}", status, limit=100, cursor=None)
    return page.items[::-1]


async def types(store: Store, name: str = "w") -> list[str]:
    return [each.type for each in await told(store, name)]


async def claim(
    store: Store, owner: str = "host-1", limit: int = 16, now: int = T0, alone: bool = False, failing: int = 8
) -> list[WebhookDelivery]:
    taken, _ = await store.webhooks.claim(owner, limit, now, alone=alone, failing=failing)
    return [each for each, _ in taken]


async def note(store: Store, tries: list[tuple[WebhookDelivery, Tried]], now: int) -> None:
    await store.webhooks.claim("host-1", 0, now, alone=False, failing=0, tries=tries)


async def end_runs(store: Store, *names: str, conversation: str = "c") -> None:
    for name in names:
        lease = await store.runs.begin(a_run(name, conversation))
        await store.runs.finish(lease, an_end(answer={"run_id": name}), [], [], T0)


@pytest.fixture
async def hooked(store: Store) -> Store:
    await store.conversations.create("c", T0)
    await store.webhooks.add(a_webhook())
    return store


async def test_the_end_of_a_run_is_told_with_its_answer(hooked: Store) -> None:
    lease = await hooked.runs.begin(a_run("a"))
    assert await told(hooked) == []
    await hooked.runs.finish(lease, an_end(), [], [], T0 + 5)
    (delivery,) = await told(hooked)
    assert (delivery.type, delivery.run_id, delivery.conversation_id) == ("run.ended", "run-a", "c")
    assert jsons.loads(delivery.data or "") == an_end().answer
    assert (delivery.status, delivery.created_at, delivery.principal_id) == ("waiting", T0 + 5, OPERATOR)


async def test_numbers_of_deliveries_rise_with_time_and_count_nobody_else_s(hooked: Store) -> None:
    await hooked.principals.add(a_principal("ann"))
    await hooked.webhooks.add(a_webhook("hers", principal_id="prin-ann", subject="prin-ann"))
    since = now_ms() * 1000
    own = [(await hooked.webhooks.test(await hooked.webhooks.get("hook-w", None), T0)).number]
    for name in "abc":
        await hooked.webhooks.test(await hooked.webhooks.get("hook-hers", None), T0)
        await end_runs(hooked, name)
        own.append((await told(hooked))[-1].number)
    assert own == sorted(set(own))
    assert all(since < number < (now_ms() + 1) * 1000 for number in own)


async def test_a_run_that_pauses_is_told_so_and_what_continues_it_ends_once(hooked: Store) -> None:
    lease = await hooked.runs.begin(a_run("a"))
    await hooked.runs.finish(lease, an_end(RunState.PAUSED, code="budget"), [], [], T0)
    lease = await hooked.runs.begin(a_run("b", message=None))
    await hooked.runs.finish(lease, an_end(), [], [], T0)
    assert await types(hooked) == ["run.paused", "run.ended"]


async def test_requests_are_told_when_they_are_made_and_when_they_are_answered(hooked: Store) -> None:
    lease = await hooked.runs.begin(a_run("a"))
    request = NewApproval("appr-1", "approval", "exec", {"command": "ls"}, "call-1", "it may")
    end = an_end(RunState.PAUSED, code="approval", requests=[request])
    await hooked.runs.finish(lease, end, [], [], T0)
    answer = Answer("allow", {}, input_sha256=request.input_sha256)
    await hooked.approvals.decide("appr-1", None, answer, T0 + 1)
    deliveries = await told(hooked)
    assert [each.type for each in deliveries] == ["run.paused", "approval.requested", "approval.resolved"]
    asked = jsons.loads(deliveries[1].data or "")
    assert (asked["root_run_id"], asked["status"]) == ("run-a", "pending")
    assert jsons.loads(asked["request"]["input"]) == {"command": "ls"}
    assert jsons.loads(deliveries[2].data or "")["status"] == "allowed"


async def test_what_agents_say_is_told_whoever_says_it(hooked: Store) -> None:
    said = await hooked.outbound.add("c", "c", "The build is broken.", "assistant", T0)
    (delivery,) = await told(hooked)
    assert delivery.type == "message.created"
    assert jsons.loads(delivery.data or "") == {
        "id": said.id,
        "conversation_id": "c",
        "source_id": "c",
        "created_at": T0,
        "text": "The build is broken.",
        "sender": "assistant",
    }


async def test_the_end_of_a_tasks_run_is_told(hooked: Store) -> None:
    await hooked.tasks.add(a_task("daily", conversation_id="c"), quota=10)
    claimed = await hooked.tasks.claim_due(host="host-1", now=T0 + DAY, lease_ms=60_000)
    assert claimed is not None
    await hooked.tasks.finish(claimed[1], state=TaskRunState.ERROR, result=None, error="no", now=T0 + DAY + 1)
    ended = [each for each in await told(hooked) if each.type == "task.ended"]
    assert [jsons.loads(each.data or "")["task_id"] for each in ended] == ["daily"]
    assert jsons.loads(ended[0].data or "")["status"] == "error"


async def test_what_happened_is_one_row_however_many_hear_of_it(hooked: Store) -> None:
    for name in ("x", "y"):
        await hooked.webhooks.add(a_webhook(name))
    await end_runs(hooked, "a", "b")
    written = """SELECT (SELECT count(*) FROM webhook_events) AS events,
        (SELECT count(*) FROM webhook_deliveries) AS deliveries"""
    row = await hooked._engine.read(lambda tx: tx.fetchrow(written))
    assert row is not None
    assert (row["events"], row["deliveries"]) == (2, 0)
    figures = await hooked.webhooks.figures()
    assert (figures.waiting, figures.oldest) == (2, T0)
    taken = await claim(hooked)
    assert sorted((each.run_id, each.webhook_id) for each in taken) == [
        ("run-a", f"hook-{name}") for name in ("w", "x", "y")
    ]
    assert {each.id[:16] for each in taken} == {f"evt-{T0:012x}"}
    assert [each.run_id for each in await told(hooked, "x")] == ["run-a", "run-b"]


async def test_deliveries_are_listed_while_nothing_can_be_stored(tmp_path: Path) -> None:
    async with Places(tmp_path / "volume", tmp_path / "local").host() as store:
        await store.conversations.create("c", T0)
        for name in ("w", "x"):
            await store.webhooks.add(a_webhook(name))
        await end_runs(store, "a")
        assert [each.run_id for each in await told(store)] == ["run-a"]
        lease = await store.runs.begin(a_run("b"))
        await store.runs.finish(lease, an_end(answer={"result": "long" * 100_000}), [], [], T0)
        database = store._db._quick
        pages = database.execute("PRAGMA page_count").fetchone()[0]
        database.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(NotDurable):
            await store.webhooks.delete("hook-w")
        assert [each.run_id for each in await told(store)] == ["run-a"]
        database.execute(f"PRAGMA max_page_count = {pages * 2}")
        assert [each.run_id for each in await told(store)] == ["run-a", "run-b"]


async def test_a_webhook_hears_of_what_happened_while_it_was_there_and_enabled(hooked: Store) -> None:
    await end_runs(hooked, "a")
    await hooked.webhooks.add(a_webhook("late"))
    await end_runs(hooked, "b")
    await hooked.webhooks.change("hook-late", enabled=False)
    await end_runs(hooked, "c")
    await hooked.webhooks.change("hook-late", enabled=True)
    await end_runs(hooked, "d")
    await hooked.webhooks.delete("hook-w")
    assert [each.run_id for each in await told(hooked, "late")] == ["run-b", "run-d"]
    assert await told(hooked) == []


async def test_what_a_conversation_had_to_tell_goes_with_it_before_anybody_looked(hooked: Store) -> None:
    await end_runs(hooked, "a")
    await hooked.conversations.delete("c")
    (delivery,) = await told(hooked)
    assert (delivery.type, delivery.data, delivery.run_id) == ("conversation.deleted", "{}", "run-a")


async def test_a_run_that_is_begun_again_has_not_ended(hooked: Store) -> None:
    lease = await hooked.runs.begin(a_run("a", again=3, background=True, lease_ms=0))
    await hooked.runs.recover(T0)
    assert await types(hooked) == []
    lease = await hooked.runs.begin(a_run("b", message=None, begun_again=lease.run_id))
    await hooked.runs.finish(lease, an_end(), [], [], T0)
    assert await types(hooked) == ["run.ended"]


async def test_a_run_that_is_not_begun_again_after_all_has_ended(hooked: Store) -> None:
    lease = await hooked.runs.begin(a_run("a", again=3, background=True, lease_ms=0))
    await hooked.runs.recover(T0)
    await hooked.runs.leave(lease.run_id)
    (delivery,) = await told(hooked)
    assert delivery.type == "run.ended"
    assert jsons.loads(delivery.data or "")["code"] == "retryable"


async def test_who_asked_for_other_events_hears_nothing(store: Store) -> None:
    await store.conversations.create("c", T0)
    await store.webhooks.add(a_webhook("other", events=("task.ended", "run.paused")))
    await store.webhooks.add(a_webhook("off", enabled=False, disabled_reason="owner"))
    await end_runs(store, "a")
    assert await told(store, "other") == await told(store, "off") == []


async def test_a_principal_hears_of_its_own_and_the_operator_of_all_where_it_wants_to(store: Store) -> None:
    await store.principals.add(a_principal("ann"))
    await store.conversations.create("c", T0)
    await store.conversations.create("hers", T0, principal_id="prin-ann")
    await store.webhooks.add(a_webhook("all", subject=EVERYBODY))
    await store.webhooks.add(a_webhook("own"))
    await store.webhooks.add(a_webhook("hers", principal_id="prin-ann", subject="prin-ann"))
    await end_runs(store, "a")
    lease = await store.runs.begin(a_run("b", "hers", principal_id="prin-ann"))
    await store.runs.finish(lease, an_end(), [], [], T0)
    heard = {name: [each.run_id for each in await told(store, name)] for name in ("all", "own", "hers")}
    assert heard == {"all": ["run-a", "run-b"], "own": ["run-a"], "hers": ["run-b"]}


async def test_the_webhook_of_a_request_hears_of_its_chain_alone(store: Store) -> None:
    await store.conversations.create("c", T0)
    lease = await store.runs.begin(a_run("a", webhook=a_webhook("one", subject="run-a")))
    await store.runs.finish(lease, an_end(RunState.PAUSED, code="budget"), [], [], T0)
    lease = await store.runs.begin(a_run("b", message=None, webhook=a_webhook("two", subject="run-b")))
    await store.runs.finish(lease, an_end(), [], [], T0)
    await end_runs(store, "c")
    assert [each.run_id for each in await told(store, "one")] == ["run-a", "run-b"]
    with pytest.raises(NotFound):
        await store.webhooks.get("hook-two", None)
    assert (await store.webhooks.page(None, limit=10, cursor=None)).items == []


async def test_a_delivery_is_tried_by_one_host_until_its_lease_ends(hooked: Store) -> None:
    await end_runs(hooked, "a")
    (mine,) = await claim(hooked)
    assert mine.attempts == 1
    assert await claim(hooked, "host-2") == []
    (again,) = await claim(hooked, "host-2", alone=True)
    assert (again.id, again.attempts) == (mine.id, 2)
    await note(hooked, [(mine, Tried())], T0)
    assert (await told(hooked))[0].status == "waiting"
    await note(hooked, [(again, Tried())], T0)
    assert (await told(hooked))[0].status == "delivered"


async def test_events_of_a_conversation_keep_their_order_for_a_minute(hooked: Store) -> None:
    await hooked.conversations.create("d", T0)
    await end_runs(hooked, "a", "b")
    await end_runs(hooked, "x", conversation="d")
    (first,) = await claim(hooked)
    assert first.run_id == "run-a"
    (other,) = await claim(hooked)
    assert other.run_id == "run-x"
    assert await claim(hooked) == []
    for each in (first, other):
        await note(hooked, [(each, Tried("HTTP 500", T0 + DAY))], T0)
    assert await claim(hooked) == []
    (late,) = await claim(hooked, now=T0 + IN_ORDER_MS)
    assert late.run_id == "run-b"


async def test_a_receiver_has_two_tries_at_once(hooked: Store) -> None:
    for name in "defg":
        await hooked.conversations.create(name, T0)
        await end_runs(hooked, f"of-{name}", conversation=name)
    assert [len(await claim(hooked)) for _ in range(3)] == [1, 1, 0]


async def test_slow_receivers_of_one_principal_hold_up_nobody_else_s(hooked: Store) -> None:
    await hooked.principals.add(a_principal("ann"))
    for name in "abcd":
        await hooked.webhooks.add(a_webhook(name, principal_id="prin-ann", subject="prin-ann"))
    for name in ("a", "b", "c", "d", "w"):
        for _ in range(2):
            await hooked.webhooks.test(await hooked.webhooks.get(f"hook-{name}", None), T0)
    assert {each.webhook_id for each in await claim(hooked, limit=2)} == {"hook-a", "hook-b"}
    assert [each.webhook_id for each in await claim(hooked, limit=1)] == ["hook-w"]


async def test_receivers_that_work_come_first(hooked: Store) -> None:
    await hooked.webhooks.add(a_webhook("good"))
    await end_runs(hooked, "a")
    (bad,) = [each for each in await claim(hooked) if each.webhook_id == "hook-w"]
    await note(hooked, [(bad, Tried("HTTP 500", T0))], T0)
    await end_runs(hooked, "b")
    (next_one,) = await claim(hooked, limit=1, now=T0 + IN_ORDER_MS)
    assert next_one.webhook_id == "hook-good"


async def test_receivers_that_fail_take_no_more_than_what_is_for_them(hooked: Store) -> None:
    for name in ("bad", "worse", "good"):
        await hooked.webhooks.add(a_webhook(name))
    await end_runs(hooked, "a")
    outcomes = {f"hook-{name}": Tried("HTTP 500", T0) for name in ("w", "bad", "worse")}
    tries = [(each, outcomes.get(each.webhook_id, Tried())) for each in await claim(hooked)]
    await note(hooked, tries, T0)
    assert len(await claim(hooked, failing=1)) == 1
    assert await claim(hooked, failing=0) == []
    await end_runs(hooked, "b")
    taken = await claim(hooked, failing=1, now=T0 + IN_ORDER_MS)
    assert sorted(each.webhook_id == "hook-good" for each in taken) == [False, True]


async def test_tries_are_noted_together_each_by_itself(hooked: Store) -> None:
    await hooked.webhooks.add(a_webhook("other"))
    await end_runs(hooked, "a")
    one, other = await claim(hooked)
    (taken_over,) = await claim(hooked, "host-2", limit=1, alone=True)
    mine = other if taken_over.id == one.id else one
    await note(hooked, [(one, Tried()), (other, Tried())], T0)
    states = {each.id: each.status for name in ("w", "other") for each in await told(hooked, name)}
    assert states == {mine.id: "delivered", taken_over.id: "waiting"}


async def test_what_goes_wrong_is_kept_with_the_webhook_until_it_works(hooked: Store) -> None:
    await end_runs(hooked, "a")
    (delivery,) = await claim(hooked)
    await note(hooked, [(delivery, Tried("HTTP 410", T0, "gone"))], T0 + 1)
    webhook = await hooked.webhooks.get("hook-w", OPERATOR)
    assert (webhook.enabled, webhook.disabled_reason, webhook.failing_since) == (False, "gone", T0 + 1)
    assert await claim(hooked) == []
    await hooked.webhooks.change("hook-w", enabled=True, disabled_reason=None, failing_since=None)
    (delivery,) = await claim(hooked)
    await note(hooked, [(delivery, Tried())], T0 + 2)
    assert (await hooked.webhooks.get("hook-w", OPERATOR)).enabled


async def test_two_secrets_given_at_once_are_the_new_one_and_the_old_one(hooked: Store) -> None:
    async with anyio.create_task_group() as tasks:
        for secret in (b"1" * 33, b"2" * 33):
            tasks.start_soon(partial(hooked.webhooks.change, "hook-w", secret=secret, old_secret_until=T0))
    webhook = await hooked.webhooks.get("hook-w", OPERATOR)
    assert {webhook.secret, webhook.old_secret} == {b"1" * 33, b"2" * 33}


async def test_a_test_reaches_a_disabled_webhook_and_says_nothing_of_its_health(hooked: Store) -> None:
    await hooked.webhooks.change("hook-w", enabled=False)
    webhook = await hooked.webhooks.get("hook-w", OPERATOR)
    made = await hooked.webhooks.test(webhook, T0)
    (delivery,) = await claim(hooked)
    assert (delivery.id, delivery.type) == (made.id, "webhook.test")
    await note(hooked, [(delivery, Tried("HTTP 500"))], T0)
    assert (await hooked.webhooks.get("hook-w", OPERATOR)).failing_since is None


async def test_what_a_deleted_conversation_had_to_tell_goes_with_it(hooked: Store) -> None:
    await end_runs(hooked, "a", "b")
    (delivery,) = await claim(hooked)
    await note(hooked, [(delivery, Tried())], T0)
    await hooked.conversations.delete("c")
    first, second = await told(hooked)
    assert (first.type, first.data, first.status) == ("run.ended", None, "delivered")
    assert (second.type, second.data, second.run_id) == ("conversation.deleted", "{}", "run-b")
    with pytest.raises(Conflict, match="not kept") as caught:
        await hooked.webhooks.replay("hook-w", first.id, T0)
    assert caught.value.code == "body_gone"


async def test_a_suspended_principals_deliveries_wait_and_a_deleted_ones_are_gone(store: Store) -> None:
    principal = await store.principals.add(a_principal("ann"))
    await store.conversations.create("hers", T0, principal_id="prin-ann")
    for name, whose, subject in (("all", OPERATOR, EVERYBODY), ("hers", "prin-ann", "prin-ann")):
        await store.webhooks.add(a_webhook(name, principal_id=whose, subject=subject))
    lease = await store.runs.begin(a_run("b", "hers", principal_id="prin-ann"))
    await store.runs.finish(lease, an_end(), [], [], T0)
    suspended = await store.principals.change(replace(principal, status=PrincipalStatus.SUSPENDED))
    assert await claim(store) == []
    await store.principals.change(replace(suspended, status=PrincipalStatus.ACTIVE))
    assert len(await claim(store)) == 2
    await store.principals.begin_deletion("prin-ann", T0)
    assert await told(store, "all") == await told(store, "hers") == []
    assert [each.id for each in (await store.webhooks.page(None, limit=9, cursor=None)).items] == ["hook-all"]


async def test_a_replayed_delivery_is_begun_anew_with_its_id(hooked: Store) -> None:
    await end_runs(hooked, "a")
    (delivery,) = await claim(hooked)
    await note(hooked, [(delivery, Tried())], T0)
    again = await hooked.webhooks.replay("hook-w", delivery.id, T0 + DAY)
    assert (again.id, again.status, again.attempts, again.began_at) == (delivery.id, "waiting", 0, T0 + DAY)
    with pytest.raises(NotFound):
        await hooked.webhooks.replay("hook-w", "evt-none", T0)


async def test_what_waited_for_three_days_is_dead(hooked: Store) -> None:
    await end_runs(hooked, "a")
    await hooked.webhooks.sweep(T0 + TRIED_FOR_MS - 1)
    assert (await told(hooked))[0].status == "waiting"
    await hooked.webhooks.sweep(T0 + TRIED_FOR_MS)
    (delivery,) = await told(hooked)
    assert (delivery.status, delivery.error) == ("dead", "not tried for 3 days")


async def test_of_too_many_the_oldest_are_dead_and_that_is_said_once(
    hooked: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    fewer = webhooks.TOO_MANY.replace("10000", "2")
    monkeypatch.setattr(webhooks, "TOO_MANY", fewer)
    await end_runs(hooked, "a", "b", "c")
    assert await hooked.webhooks.sweep(T0) == [OPERATOR]
    await end_runs(hooked, "d")
    assert await hooked.webhooks.sweep(T0) == []
    assert [(each.status, each.error) for each in await told(hooked)] == [
        *[("dead", "overflow")] * 2,
        *[("waiting", None)] * 2,
    ]


async def test_deliveries_of_a_copied_store_wait_until_they_are_released(hooked: Store) -> None:
    await end_runs(hooked, "a")
    await hooked._engine.write(lambda tx: tx.execute(FAN_OUT))
    await hooked._engine.write(lambda tx: tx.execute(OF_A_COPY))
    assert await claim(hooked) == []
    figures = await hooked.webhooks.figures()
    assert (figures.waiting, figures.held) == (0, 1)
    assert await hooked.webhooks.release(T0 + DAY) == 1
    assert len(await claim(hooked, now=T0 + DAY)) == 1


async def test_retention_keeps_what_was_told_for_a_week_and_what_was_not_for_a_month(hooked: Store) -> None:
    await end_runs(hooked, "a", "b")
    for outcome in (Tried(), Tried("HTTP 404")):
        (delivery,) = await claim(hooked)
        await note(hooked, [(delivery, outcome)], T0)
    await hooked.prune(T0 + 7 * DAY, limit=100)
    (dead,) = await told(hooked)
    assert (dead.status, dead.data) == ("dead", None)
    await hooked.prune(T0 + 30 * DAY, limit=100)
    assert await told(hooked) == []
    assert (await hooked.webhooks.get("hook-w", None)).enabled


async def test_the_webhook_of_a_request_goes_when_nothing_is_left_to_tell(store: Store) -> None:
    await store.conversations.create("c", T0)
    lease = await store.runs.begin(a_run("a", webhook=a_webhook("one", subject="run-a")))
    await store.runs.finish(lease, an_end(RunState.PAUSED, code="budget"), [], [], T0)
    for outcome in (Tried(),):
        (delivery,) = await claim(store)
        await note(store, [(delivery, outcome)], T0)
    await store.prune(T0 + 31 * DAY, limit=100)
    assert (await store.webhooks.get("hook-one", None)).subject == "run-a"
    lease = await store.runs.begin(a_run("b", message=None, now=T0 + 31 * DAY))
    await store.runs.finish(lease, an_end(), [], [], T0 + 31 * DAY)
    (delivery,) = await claim(store, now=T0 + 31 * DAY)
    await note(store, [(delivery, Tried())], T0 + 31 * DAY)
    await store.prune(T0 + 62 * DAY, limit=100)
    with pytest.raises(NotFound):
        await store.webhooks.get("hook-one", None)


async def test_a_principal_has_twenty_webhooks(store: Store) -> None:
    for number in range(20):
        await store.webhooks.add(a_webhook(str(number)))
    with pytest.raises(Conflict) as caught:
        await store.webhooks.add(a_webhook("more"))
    assert caught.value.code == "webhook_limit"


async def test_two_hosts_never_take_the_same_delivery(open_store: OpenStore) -> None:
    one, other = open_store(), open_store()
    await one.conversations.create("c", T0)
    for number in range(8):
        await one.webhooks.add(a_webhook(str(number)))
    await end_runs(one, "a")
    taken: list[str] = []

    async def take(store: Store, owner: str) -> None:
        while found := await claim(store, owner, limit=1):
            taken.extend(each.id for each in found)

    async with anyio.create_task_group() as hosts:
        hosts.start_soon(take, one, "host-1")
        hosts.start_soon(take, other, "host-2")
    assert len(taken) == len(set(taken)) == 8
