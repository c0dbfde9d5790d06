"""The way in while the store is away: what is brought again and again is taken once it is back."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from anyio.lowlevel import checkpoint

from host.channels.base import Incoming, Sender
from host.channels.chats import Rules
from host.channels.intake import ChannelDoor
from host.runs.principals import PrincipalCache
from shared.settings.access import ChannelRules
from shared.store import open_host_store
from shared.store.store import Store

AWAY = "CREATE TRIGGER away BEFORE INSERT ON channel_updates BEGIN SELECT RAISE(ABORT, 'away'); END"
MOST = 3


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "local" / "picoclaw.db"


@pytest.fixture
async def store(tmp_path: Path, database: Path) -> AsyncIterator[Store]:
    (tmp_path / "volume").mkdir()
    database.parent.mkdir()
    opened = open_host_store(store_dir=tmp_path / "volume", local_db=database, owner="host-1")
    yield opened
    await opened.close()


def door(store: Store) -> ChannelDoor:
    rules = Rules("telegram", ChannelRules(allow_from=("*",), messages_per_minute=MOST), "main")
    return ChannelDoor(
        store, rules, PrincipalCache(store), lambda _: checkpoint(), wake=lambda: None, connected=lambda: None
    )


def message(number: int) -> Incoming:
    return Incoming(f"1.{number}", "7", Sender("7", "ann"), f"m{number}", sent_at=1_700_000_000_000)


async def test_a_message_is_taken_however_often_the_store_refused_it_before(
    store: Store, database: Path
) -> None:
    into = door(store)
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("PRAGMA wal_autocheckpoint = 0")
        other.execute(AWAY)
        for _ in range(MOST + 2):
            with pytest.raises(sqlite3.IntegrityError):
                await into.take(message(1))
        other.execute("DROP TRIGGER away")
    await into.take(message(1))
    assert await store.channels.waiting("telegram", "7") == 1
    assert await store.channels.chats_due("telegram", 1_700_000_000_000, limit=9) == []


async def test_a_message_that_is_brought_again_counts_once(store: Store) -> None:
    into = door(store)
    for _ in range(MOST + 2):
        await into.take(message(1))
    for number in range(2, MOST + 2):
        await into.take(message(number))
    assert await store.channels.waiting("telegram", "7") == MOST
