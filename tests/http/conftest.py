"""One host and one fake model for the tests that only talk; hosts of their own for those that kill."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.in_process import in_process
from tests.running import TOKEN, HostProcess, ModelProcess, new_host, running_host, running_model

SEALING = {"SEAL_KEY": "k" * 43}
"""What `init` and `dev` make: the hosts of people have it."""


@pytest.fixture(scope="session")
def model() -> Iterator[ModelProcess]:
    with running_model() as process:
        yield process


@pytest.fixture(scope="session")
def host(model: ModelProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    with running_host(tmp_path_factory.mktemp("host"), model.url, SEALING) as process:
        yield process


@pytest.fixture(scope="session")
def app_in_process(
    model: ModelProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx2.BaseTransport]:
    with in_process(new_host(tmp_path_factory.mktemp("host"), model.url).environment) as transport:
        yield transport


@pytest.fixture
def client(request: pytest.FixtureRequest) -> Iterator[httpx2.Client]:
    """A client of the host that all tests share which only talk; of the application itself in a quick run."""
    if request.config.getoption("quick"):
        headers = {"Authorization": f"Bearer {TOKEN}"}
        transport: httpx2.BaseTransport = request.getfixturevalue("app_in_process")
        # Not closed: it is everybody's.
        yield httpx2.Client(base_url="http://127.0.0.1", headers=headers, transport=transport)
        return
    host: HostProcess = request.getfixturevalue("host")
    with host.client() as client:
        yield client


alone_on_the_store = pytest.mark.skipif(
    os.environ.get("PICOCLAW_TEST_ENGINE") == "postgres",
    reason="needs to be alone on the store, to know that other hosts are dead; see tests/cluster",
)

MakeHost = Callable[..., HostProcess]


@pytest.fixture
def make_host(model: ModelProcess, tmp_path: Path) -> Iterator[MakeHost]:
    """Make hosts of one's own: they share ``tmp_path``'s directories unless told otherwise."""
    made: list[HostProcess] = []

    def make(
        name: str = "own", settings: Mapping[str, str] | None = None, *, offline: bool = False
    ) -> HostProcess:
        process = new_host(tmp_path / name, None if offline else model.url, settings)
        made.append(process)
        return process

    yield make
    for process in made:
        if process.process is not None and process.process.poll() is None:
            process.kill()


def configure(host: HostProcess, **config: Any) -> HostProcess:
    """Write the host's config.json."""
    home = host.root / "home"
    home.mkdir(exist_ok=True)
    (home / "config.json").write_text(json.dumps({"version": 3, **config}))
    return host
