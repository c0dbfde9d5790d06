"""New databases of tests are copies of one that the migrations made: those take 40 ms of a processor."""

from __future__ import annotations

import functools
import sqlite3

from shared.store.sqlite import store

_apply = store._apply


@functools.cache
def _made(steps: tuple[tuple[str, ...], ...]) -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    _apply(connection)
    return connection


def _copy_or_apply(connection: sqlite3.Connection) -> None:
    if connection.execute("SELECT 1 FROM sqlite_schema").fetchone() is None:
        _made(store.STEPS).backup(connection)
    else:
        _apply(connection)


def copy_new_databases() -> None:
    """Have this process, and what it forks from now on, make the tables of an empty database so."""
    store._apply = _copy_or_apply
