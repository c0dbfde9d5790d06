"""What goes on beside the runs of a host outlasts idle rounds and rounds that fail."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import anyio
import pytest

from host.agent.endings import Cancelled
from host.runs.leases import Background, Keeping
from host.runs.run import ActiveRun
from host.runs.spec import RunSpec
from shared.errors import ConversationBusy, Forbidden, Unavailable
from shared.store.sqlite.store import SqliteStore
from tests.contract.store.making import T0, a_run


class IdleAtFirst(dict[str, Any]):
    """Runs of which there are none in the first round."""

    idle = True

    def __bool__(self) -> bool:
        was_idle, self.idle = self.idle, False
        return not was_idle


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    opened = SqliteStore(tmp_path / "store.db")
    yield opened
    await opened.close()


@pytest.mark.parametrize("error", [Unavailable("Try again.", retry_after=1), OSError("broken")])
async def test_a_cancel_is_heard_of_after_an_idle_round_and_one_that_failed(
    store: SqliteStore, error: Exception
) -> None:
    lease = await store.runs.begin(a_run("1", create=True))
    assert await store.runs.ask_cancel("c") == lease.run_id
    stopped = anyio.Event()
    reasons: list[object] = []
    failures = [error]

    def stop(reason: object) -> None:
        reasons.append(reason)
        stopped.set()

    async def asked(owner: str) -> list[str]:
        if failures:
            raise failures.pop()
        return await store.runs.cancels_asked(owner)

    sometimes = cast(Any, SimpleNamespace(runs=SimpleNamespace(cancels_asked=asked)))
    active = IdleAtFirst({lease.run_id: SimpleNamespace(stop=stop)})
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(Keeping(sometimes, active, lease.owner, 60_000).cancels)
            await stopped.wait()
            group.cancel_scope.cancel()
    assert isinstance(reasons[0], Cancelled)
    assert failures == []


async def test_a_cut_off_run_that_has_no_place_yet_holds_up_no_other(store: SqliteStore) -> None:
    refusals = {"busy": ConversationBusy("busy"), "full": Unavailable("Full."), "gone": Forbidden("No.")}
    for name in (*refusals, "free"):
        await store.runs.begin(a_run(name, name, create=True, again=1, background=True, lease_ms=0))
    await store.runs.recover(T0)
    tried: list[str] = []

    async def start(spec: RunSpec) -> ActiveRun:
        name = str(spec.conversation_id)
        tried.append(name)
        if name in refusals:
            raise refusals[name]
        return cast("ActiveRun", None)

    await Background(store, start).begin_again()
    assert tried == ["busy", "full", "gone", "free"]
    left = [run.conversation_id for run in await store.runs.to_begin_again(10)]
    assert left == ["busy", "full", "free"]
