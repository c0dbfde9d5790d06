"""Reading the write-ahead log: only what is committed, and only if it continues what was shipped."""

from __future__ import annotations

import io
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.store.sqlite.engine import connect
from shared.store.volume import layout, wal
from shared.store.volume.wal import NotContinuous
from tests.examples import examples
from tests.store.places import Places, add, names


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    opened = connect(tmp_path / "a.db", busy_ms=100)
    opened.execute("CREATE TABLE t (x)")
    yield opened
    opened.close()


def test_an_open_transaction_is_not_read(connection: sqlite3.Connection, tmp_path: Path) -> None:
    log = tmp_path / "a.db-wal"
    tail = wal.read_tail(log, wal.begin(log))
    assert tail is not None
    connection.execute("PRAGMA cache_size=1")
    connection.execute("BEGIN")
    connection.executemany("INSERT INTO t VALUES (zeroblob(4000))", [()] * 500)
    assert log.stat().st_size > tail.mark.shipped
    assert wal.read_tail(log, tail.mark) is None
    connection.execute("COMMIT")
    assert wal.read_tail(log, tail.mark) is not None


def test_frames_of_a_transaction_that_was_rolled_back_are_not_read(
    connection: sqlite3.Connection, tmp_path: Path
) -> None:
    log = tmp_path / "a.db-wal"
    connection.execute("PRAGMA cache_size=1")
    connection.execute("BEGIN")
    connection.executemany("INSERT INTO t VALUES (zeroblob(4000))", [()] * 500)
    connection.execute("ROLLBACK")
    connection.execute("INSERT INTO t VALUES ('kept')")
    tail = wal.read_tail(log, wal.begin(log))
    assert tail is not None
    assert b"kept" in tail.data
    assert tail.mark.shipped < log.stat().st_size
    assert wal.read_tail(log, tail.mark) is None


def test_a_long_log_is_read_in_parts_that_join_and_a_large_transaction_in_one(
    connection: sqlite3.Connection, tmp_path: Path
) -> None:
    log = tmp_path / "a.db-wal"
    for _ in range(30):
        connection.execute("INSERT INTO t VALUES (zeroblob(400000))")
    connection.execute("INSERT INTO t VALUES (zeroblob(?))", (3 * wal.PART,))
    mark, parts = wal.begin(log), list[bytes]()
    while (tail := wal.read_tail(log, mark)) is not None:
        parts.append(tail.data)
        mark = tail.mark
    assert b"".join(parts) == log.read_bytes()
    assert len(parts) > 3
    assert all(len(part) <= wal.PART for part in parts[:-1])
    assert len(parts[-1]) > 3 * wal.PART


def test_a_new_epoch_is_not_taken_for_the_old_one(connection: sqlite3.Connection, tmp_path: Path) -> None:
    log = tmp_path / "a.db-wal"
    mark = wal.begin(log)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with pytest.raises(NotContinuous):
        wal.read_tail(log, mark)
    connection.execute("INSERT INTO t VALUES (1)")
    with pytest.raises(NotContinuous):
        wal.read_tail(log, mark)


async def test_frames_that_a_dead_writer_left_and_the_next_one_overwrote_are_noticed(places: Places) -> None:
    """A writer killed between its commit frame and the shared index leaves a commit only the file knows."""
    async with places.host() as store:
        await add(store, "a")
        log = places.database.with_name("pico.db-wal")
        length = log.stat().st_size
        forged = _commit_after(places, length)
        with log.open("r+b") as file:
            file.seek(length)
            file.write(forged)
        await store.durable()
        await add(store, "b")
    places.lose_local_disk()
    async with places.host() as again:
        assert await names(again) == {"a", "b"}


def _commit_after(places: Places, length: int) -> bytes:
    """Return three frames with the log's salts, the last of them a commit."""
    log = places.database.with_name("pico.db-wal").read_bytes()
    frame = log[length - 4120 : length]
    plain = frame[:4] + bytes(4) + frame[8:]
    return plain + plain + frame


@given(
    fields=st.dictionaries(
        st.text(max_size=8), st.one_of(st.integers(-(2**60), 2**60), st.text(max_size=20)), max_size=8
    ),
    cut=st.integers(0, 2047),
)
@settings(max_examples=examples(200))
def test_a_record_is_read_back_whole_or_not_at_all(fields: dict[str, object], cut: int) -> None:
    sealed = layout.seal(fields, 2048)
    assert len(sealed) == 2048
    assert layout.unseal(sealed) == fields
    torn = sealed[:cut]
    assert layout.unseal(torn) in (None, fields)
    assert layout.unseal(torn.ljust(2048, b"\0")) in (None, fields)


@given(junk=st.binary(max_size=200))
def test_junk_is_no_record(junk: bytes) -> None:
    assert layout.unseal(junk) is None


def test_a_log_whose_header_is_damaged_still_shows_a_whole_frame(
    connection: sqlite3.Connection, tmp_path: Path
) -> None:
    log = tmp_path / "a.db-wal"
    for _ in range(3):
        connection.execute("INSERT INTO t VALUES ('kept')")
    content = bytearray(log.read_bytes())
    assert all(frame.sound for frame in wal.frames(io.BytesIO(content)))
    content[16] ^= 1  # of the salts
    header, first, *_ = wal.frames(io.BytesIO(content))
    assert (header.page, header.sound, first.sound) == (0, False, True)
    stale = bytearray(log.read_bytes())
    stale[wal.HEADER.size + 8] ^= 1  # of the first frame's salts: it stood in the log of another epoch
    assert not next(wal.frames(io.BytesIO(stale))).sound
