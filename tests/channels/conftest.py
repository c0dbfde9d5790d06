"""A Bot API server, a fake model, and hosts whose Telegram channel talks to them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.bot_api import TOKEN, BotApi, running_bot_api
from tests.http.conftest import configure
from tests.running import HostProcess, ModelProcess, new_host, running_model

OWNER = 1
_users = itertools.count(100)


def telegram_host(
    root: Path,
    model_url: str,
    api: BotApi,
    environment: Mapping[str, str] | None = None,
    config: Mapping[str, Any] | None = None,
    **telegram: Any,
) -> HostProcess:
    """Return a host, not yet started, with a Telegram channel; keyword arguments are its settings.

    ``config``: the other sections of its ``config.json``.
    """
    settings = {"PICOCLAW_CHANNELS_TELEGRAM_TOKEN": TOKEN, **(environment or {})}
    host = new_host(root, model_url, settings)
    channel = {"enabled": True, "allow_from": ["*"], "api_base": api.url, **telegram}
    return configure(host, channels={"telegram": channel}, **(config or {}))


@pytest.fixture(scope="session")
def model() -> Iterator[ModelProcess]:
    with running_model() as process:
        yield process


@pytest.fixture(scope="session")
def api() -> Iterator[BotApi]:
    """A server that all tests share which only talk."""
    with running_bot_api() as server:
        yield server


@pytest.fixture(scope="session")
def host(model: ModelProcess, api: BotApi, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    """A host that everybody may write to, for tests that only talk."""
    process = telegram_host(tmp_path_factory.mktemp("telegram"), model.url, api, owners=[OWNER])
    yield process.start()
    process.stop()


@pytest.fixture
def user() -> int:
    """Somebody who hasn't written yet."""
    return next(_users)


@pytest.fixture
def own_api() -> Iterator[BotApi]:
    """A server for one test, which may break it."""
    with running_bot_api() as server:
        yield server


MakeHost = Callable[..., HostProcess]


@pytest.fixture
def make_host(model: ModelProcess, own_api: BotApi, tmp_path: Path) -> Iterator[MakeHost]:
    """Make a host of the test's own, not yet started."""
    made: list[HostProcess] = []

    def make(
        environment: Mapping[str, str] | None = None,
        config: Mapping[str, Any] | None = None,
        **telegram: Any,
    ) -> HostProcess:
        root = tmp_path / f"host-{len(made)}"
        made.append(telegram_host(root, model.url, own_api, environment, config, **telegram))
        return made[-1]

    yield make
    for host in made:
        if host.process is not None and host.process.poll() is None:
            host.kill()
