"""What a principal's own limits allow, suspending it, and that the operator asks the store for nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from host.app import Host, open_host
from host.models.process import ModelProcess as SdkProcess
from host.runs.principals import PrincipalCache
from host.runs.spec import ChatShape, RunSpec
from shared.clock import now_ms
from shared.errors import InvalidInput, Suspended, TooManyRequests
from shared.principals import Principal, PrincipalStatus, Terms
from shared.settings import load
from shared.store.sqlite.store import SqliteStore
from tests.running import ModelProcess, directive, new_host, running_model

pytestmark = pytest.mark.processes

HANG = directive(text="a", hang_after_deltas=1)


@pytest.fixture(scope="module")
def model() -> Any:
    with running_model() as process:
        yield process


@asynccontextmanager
async def a_host(root: Path, model: ModelProcess, **settings: str) -> AsyncIterator[Host]:
    environment = new_host(root, model.url, settings).environment
    loaded = load(dict(environment))
    async with SdkProcess() as process, open_host(loaded, lambda _: None, process) as host:
        yield host


async def a_principal(host: Host, name: str = "a", **terms: Any) -> Principal:
    new = Principal(f"prin-{name}", name, f"dir-{name}", now_ms(), terms=Terms(**terms))
    return await host.ledger.store.principals.add(new)


async def say(host: Host, words: str, principal_id: str = "prin-a", **more: Any) -> ChatShape:
    return await (await host.runs.start(RunSpec(words, principal_id=principal_id, **more))).wait()


async def stored(host: Host) -> int:
    return (await host.ledger.store.counts()).conversations


@pytest.mark.parametrize("scope", ["run", "conversation", "day"])
async def test_a_principal_has_budgets_of_its_own(tmp_path: Path, model: ModelProcess, scope: str) -> None:
    async with a_host(tmp_path, model) as host:
        await a_principal(host, budgets={scope: {"tokens": 10}})
        await a_principal(host, "b", budgets={scope: {"tokens": None, "dollars": None}})
        paused = await say(host, directive(text="no"))
        assert paused["status"] == "paused"
        assert f"This principal's limit for one {scope} is 10 tokens" in paused["error"]
        assert (await say(host, "hello", "prin-b"))["status"] == "success"
        assert (await say(host, "hello", "operator"))["status"] == "success"


async def test_a_day_s_budget_counts_what_the_principal_used_and_nobody_else(
    tmp_path: Path, model: ModelProcess
) -> None:
    async with a_host(tmp_path, model) as host:
        made = await a_principal(host)
        answers = [await say(host, "hello", each) for each in ("operator", "operator", made.id)]
        used = sum(answers[-1]["usage"].values())  # type: ignore[arg-type]
        budgets = {"day": {"tokens": used + 100}}
        await host.ledger.store.principals.change(replace(made, terms=Terms(budgets=budgets)))
        host.runs.principals.forget(made.id)
        paused = await say(host, "hello")
        assert f"one day is {used + 100:,} tokens: {used:,} are used" in paused["error"]
        assert (await say(host, "hello", "operator"))["status"] == "success"


async def test_the_strictest_of_the_host_s_and_the_principal_s_budgets_counts(
    tmp_path: Path, model: ModelProcess
) -> None:
    async with a_host(tmp_path, model, PICOCLAW_BUDGETS_RUN_TOKENS="10") as host:
        await a_principal(host, budgets={"run": {"tokens": 1_000_000}})
        paused = await say(host, "hello")
        assert "The limit for one run is 10 tokens" in paused["error"]


async def test_a_rate_reached_is_refused_before_anything_is_stored(
    tmp_path: Path, model: ModelProcess
) -> None:
    async with a_host(tmp_path, model) as host:
        await a_principal(host, rate_limits={"messages_per_minute": 2})
        await a_principal(host, "b")
        for number in range(2):
            await say(host, "hello", sender=f"s{number}")
        before = await stored(host)
        with pytest.raises(TooManyRequests, match="messages_per_minute are 2") as refused:
            await say(host, "hello", sender="another")
        assert 0 < (refused.value.retry_after or 0) <= 60
        assert await stored(host) == before
        await say(host, "hello", "prin-b")


async def test_the_host_s_rate_of_a_sender_is_each_principal_s_own(
    tmp_path: Path, model: ModelProcess
) -> None:
    async with a_host(tmp_path, model, PICOCLAW_RATE_LIMITS_MESSAGES_PER_MINUTE="1") as host:
        await a_principal(host)
        await say(host, "hello")
        await say(host, "hello", "operator")
        with pytest.raises(TooManyRequests):
            await say(host, "hello")


async def test_models_that_are_not_allowed_are_refused_by_name_and_never_fallen_back_to(
    tmp_path: Path, model: ModelProcess
) -> None:
    async with a_host(tmp_path, model, CLAUDE_MODEL="usual", CLAUDE_FALLBACK_MODEL="spare") as host:
        await a_principal(host, models=("cheap", "small"))
        await a_principal(host, "b", models=("usual",))
        with pytest.raises(InvalidInput, match="model: usual is not allowed; allowed: cheap, small"):
            await say(host, "hello", model="usual")
        assert (await say(host, "hello", model="small"))["model"] == "small"
        # What is usual here isn't theirs: the first of theirs answers.
        assert (await say(host, "hello"))["model"] == "cheap"
        assert [each.ids for each in host.models.models(None, allowed=("usual",))] == [("usual",)]
        assert [each.ids for each in host.models.models(None)] == [("usual",), ("spare",)]


async def test_suspending_ends_runs_and_begins_none(tmp_path: Path, model: ModelProcess) -> None:
    async with a_host(tmp_path, model) as host:
        made = await a_principal(host)
        run = await host.runs.start(RunSpec(HANG, principal_id=made.id))
        other = await host.runs.start(RunSpec(HANG))
        await host.ledger.store.principals.change(replace(made, status=PrincipalStatus.SUSPENDED))
        host.runs.principals.forget(made.id)
        with anyio.fail_after(60):
            assert (await run.wait())["code"] == "cancelled"
        assert host.runs.active_count == 1
        with pytest.raises(Suspended):
            await say(host, "hello")
        await host.runs.cancel(other.lease.conversation_id)


async def test_concurrent_runs_of_a_principal_wait_for_each_other_not_for_the_host_s_places(
    tmp_path: Path, model: ModelProcess
) -> None:
    async with a_host(tmp_path, model, QUEUE_MS="30000") as host:
        await a_principal(host, concurrent_runs=1)
        first = await host.runs.start(RunSpec(HANG, principal_id="prin-a"))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(say, host, "hello")
            await anyio.wait_all_tasks_blocked()
            assert (await say(host, "hello", "operator"))["status"] == "success"
            assert host.runs.waiting_count == 1
            await host.runs.cancel(first.lease.conversation_id)


async def test_nothing_is_asked_for_the_operator_and_for_others_once_a_second(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "store.db")
    await store.principals.add(Principal("prin-a", "a", "dir-a", 1))
    principals = PrincipalCache(store)
    assert (await principals.active("prin-a")).name == "a"
    await store.close()
    assert (await principals.active("operator")).is_operator
    assert (await principals.active("prin-a")).name == "a"


async def test_a_host_that_closes_gives_its_runs_their_grace_and_then_the_reason(
    tmp_path: Path, model: ModelProcess
) -> None:
    async with a_host(tmp_path, model, STOP_GRACE_MS="100") as host:
        run = await host.runs.start(RunSpec(HANG))
    assert "The host is stopping" in (await run.wait())["error"]
