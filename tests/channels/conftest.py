"""A Bot API server, a fake model, and hosts whose Telegram channel talks to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.bot_api import TOKEN, BotApi, running_bot_api
from tests.http.conftest import configure
from tests.running import HostProcess, ModelProcess, new_host, running_model


@pytest.fixture(scope="session")
def model() -> Iterator[ModelProcess]:
    with running_model() as process:
        yield process


@pytest.fixture
def api() -> Iterator[BotApi]:
    with running_bot_api() as server:
        yield server


MakeHost = Callable[..., HostProcess]


@pytest.fixture
def make_host(model: ModelProcess, api: BotApi, tmp_path: Path) -> Iterator[MakeHost]:
    """Make a host, not yet started, whose channel is configured by the keyword arguments."""
    made: list[HostProcess] = []

    def make(
        environment: Mapping[str, str] | None = None, name: str = "host", **telegram: Any
    ) -> HostProcess:
        settings = {"PICOCLAW_CHANNELS_TELEGRAM_TOKEN": TOKEN, **(environment or {})}
        host = new_host(tmp_path / name, model.url, settings)
        channel = {"enabled": True, "allow_from": [7], "api_base": api.url, **telegram}
        configure(host, channels={"telegram": channel})
        made.append(host)
        return host

    yield make
    for host in made:
        if host.process is not None and host.process.poll() is None:
            host.kill()


@pytest.fixture
def host(make_host: MakeHost) -> HostProcess:
    """A running host that user 7 may write to."""
    return make_host().start()
