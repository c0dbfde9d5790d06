"""The whole tree is killed at random moments under load; whatever clients were told is there afterwards.

After every kill the volume alone is examined, as a new machine would find it, before the host starts
again: on its surviving runtime database, or on none.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import anyio
import pytest

from shared.store import open_host_store
from tests.chaos.clients import Names, load, new_client, post_keyed
from tests.chaos.ledger import Ledger, stuck
from tests.running import HostProcess, new_host, running_model

KILLS, KILLS_SLOW = 8, 200


async def test_nothing_told_is_lost_when_everything_is_killed(tmp_path: Path) -> None:
    await _torment(tmp_path, KILLS, random.Random(7))


@pytest.mark.slow
async def test_nothing_told_is_lost_in_two_hundred_kills(tmp_path: Path) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    await _torment(tmp_path, KILLS_SLOW, random.Random(seed))


async def _torment(root: Path, kills: int, chance: random.Random) -> None:
    ledger, names = Ledger(), Names()
    with running_model() as model:
        host = new_host(root / "host", model.url)
        try:
            for number in range(kills):
                # While it starts, just after its first answers, or deep in its work.
                answers = chance.choice([0, chance.randrange(1, 20), chance.randrange(20, 400)])
                await _live_and_die(host, ledger, names, answers, chance.uniform(0, 0.05))
                assert ledger.compare(await _as_a_new_machine_finds_it(root, number)) == []
                if chance.random() < 0.3:
                    shutil.rmtree(root / "host" / "local", ignore_errors=True)
            await anyio.to_thread.run_sync(host.start)
            await _settle(host, ledger)
            assert host.stop() == 0
        finally:
            if host.process is not None and host.process.poll() is None:
                host.kill()
    print(ledger.counts())
    database = await _as_a_new_machine_finds_it(root, kills)
    assert ledger.compare(database) == []
    assert stuck(database) == []
    assert len(ledger.runs) > kills
    assert ledger.outbound
    assert ledger.triggered


async def _live_and_die(
    host: HostProcess, ledger: Ledger, names: Names, answers: int, seconds: float
) -> None:
    """Start the host under load and kill it some time after it made so many more promises."""
    await anyio.to_thread.run_sync(lambda: host.start(wait=answers > 0))
    goal = ledger.told + answers
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(load, host.url, ledger, names)
        with anyio.fail_after(60):
            while ledger.told < goal:
                await anyio.sleep(0.002)
        await anyio.sleep(seconds if answers else seconds * 10)
        await anyio.to_thread.run_sync(host.kill)
        # Answers that were on their way are read to the end: they count as told.
        await anyio.sleep(0.02)
        tasks.cancel_scope.cancel()


async def _as_a_new_machine_finds_it(root: Path, number: int) -> Path:
    """Return a runtime database made from a copy of the volume alone."""
    place = root / "examined"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(root / "host" / "store", place / "store")
    store = open_host_store(store_dir=place / "store", local_db=place / "pico.db", owner=f"examiner {number}")
    await store.close()
    return place / "pico.db"


async def _settle(host: HostProcess, ledger: Ledger) -> None:
    """Send every keyed request again, and ask the host whether anything still counts as running."""
    async with new_client(host.url) as client:
        for key in ledger.keys:
            with anyio.fail_after(60):
                while not await post_keyed(client, ledger, key):
                    await anyio.sleep(0.05)
        cursor = ""
        while cursor is not None:
            page = (await client.get("/chat", params={"limit": "1000", "cursor": cursor})).json()
            assert {each["status"] for each in page["conversations"]} <= {"idle"}
            cursor = page["next_cursor"]
