"""What tests make all the time is made once a process, and in those it forks: it takes 30 ms each time."""

from __future__ import annotations

import functools
import os
import sqlite3
from typing import TYPE_CHECKING

import httpcore2

from shared.store.sqlite import store

if TYPE_CHECKING:
    import ssl

_apply = store._apply
_default_ssl_context = httpcore2.default_ssl_context


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


@functools.cache
def _trusting(trust_env: bool, *_named: str | None) -> ssl.SSLContext:
    return _default_ssl_context(_trust_env=trust_env)


def _shared_context(*, _trust_env: bool = True) -> ssl.SSLContext:
    return _trusting(_trust_env, os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))


def make_once() -> None:
    """New databases are copies of one that the migrations made; clients share the machine's certificates."""
    store._apply = _copy_or_apply
    httpcore2.default_ssl_context = _shared_context
