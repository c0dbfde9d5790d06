"""Hosts that share one PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest

from tests.http.conftest import model as model
from tests.postgres import URL, WHY_NOT, fresh_database
from tests.running import HostProcess, ModelProcess, new_host

LEASE_MS: Final = 4000

Join = Callable[..., HostProcess]


@pytest.fixture(autouse=True)
def _server() -> None:
    if not URL:
        pytest.skip(WHY_NOT)


@pytest.fixture
def database() -> Iterator[str]:
    with fresh_database() as url:
        yield url


@pytest.fixture
def join(model: ModelProcess, database: str, tmp_path: Path) -> Iterator[Join]:
    """Start one more host on the same database, with files of its own."""
    made: list[HostProcess] = []

    def start(settings: Mapping[str, str] | None = None, *, wait: bool = True) -> HostProcess:
        given = {"DATABASE_URL": database, "LEASE_MS": str(LEASE_MS), **(settings or {})}
        host = new_host(tmp_path / f"host-{len(made)}", model.url, given)
        made.append(host)
        return host.start(wait=wait)

    yield start
    for host in made:
        if host.process is not None and host.process.poll() is None:
            host.kill()
