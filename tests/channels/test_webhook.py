"""Telegram calls the host: known by its secret, confirmed once stored, and nobody else gets in."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from tests.channels.conftest import MakeHost
from tests.channels.test_telegram import history
from tests.fakes.bot_api import BotApi
from tests.running import HostProcess, free_port, until

PATH = "/channels/telegram/webhook"
HEADER = "X-Telegram-Bot-Api-Secret-Token"
SECRET = "the-secret-of-the-webhook-0123"


@pytest.fixture
def called(make_host: MakeHost) -> HostProcess:
    """A host that Telegram calls."""
    port = free_port()
    host = make_host(
        allow_from=[7], webhook_url=f"http://127.0.0.1:{port}", webhook_secret=SECRET, messages_per_minute=0
    )
    host.port = port
    return host.start()


def test_messages_come_by_webhook_in_order_and_through_a_kill(called: HostProcess, own_api: BotApi) -> None:
    until(lambda: own_api.webhook)
    assert own_api.webhook["url"].endswith(PATH)
    assert own_api.webhook["max_connections"] == "1"
    for number in range(10):
        own_api.say(f"m{number}")
    until(lambda: own_api.pending() < 8)
    called.kill()
    called.start()
    until(lambda: own_api.texts()[-1:] == ["echo: m9"])
    contents = [message["content"] for message in history(called, "telegram:7")][::2]
    assert contents == [f"m{number}" for number in range(10)]
    assert own_api.called("getUpdates") == []


def test_a_wrong_secret_is_refused_and_after_many_the_address_is(
    called: HostProcess, own_api: BotApi
) -> None:
    until(lambda: own_api.webhook)
    update = {"update_id": 1, "message": {"text": "let me in"}}
    with called.client(token=None) as client:
        for headers in ({}, {HEADER: ""}, {HEADER: "wrong"}, {"Authorization": f"Bearer {SECRET}"}):
            answer = client.post(PATH, json=update, headers=headers)
            assert answer.status_code == 401, headers
        # What a stranger sends is not even read.
        assert client.post(PATH, content=b"{" * 500_000).status_code == 401
        statuses = [client.post(PATH, json=update).status_code for _ in range(30)]
        assert statuses[-1] == 429
        assert "Retry-After" in client.post(PATH, json=update).headers
    own_api.say("still here")
    until(lambda: own_api.texts() == ["echo: still here"])


def test_what_makes_no_sense_is_refused_or_passed_over(called: HostProcess, own_api: BotApi) -> None:
    until(lambda: own_api.webhook)
    bodies: list[Any] = [[], 5, None, {"update_id": 5}, {"message": {}}, {"update_id": "x", "message": []}]
    with called.client(token=None) as client:
        client.headers[HEADER] = SECRET
        assert client.post(PATH, content=b"not json").status_code == 400
        assert client.post(PATH, content=b"x" * 1_100_000).status_code == 413
        for body in bodies:
            assert client.post(PATH, json=body).status_code in (200, 400), body
        assert client.get(PATH).status_code == 405
    assert SECRET not in called.log_text


def test_the_secret_is_made_of_the_token_when_none_is_given(make_host: MakeHost, own_api: BotApi) -> None:
    port = free_port()
    host = make_host(webhook_url=f"http://127.0.0.1:{port}/")
    host.port = port
    host.start()
    own_api.say("hello")
    until(lambda: own_api.texts() == ["echo: hello"])
    assert len(own_api.webhook["secret_token"]) == 64
    assert own_api.webhook["secret_token"] not in host.log_text


def test_a_channel_that_polls_has_no_webhook(host: HostProcess) -> None:
    assert httpx2.post(f"{host.url}{PATH}", headers={HEADER: SECRET}, trust_env=False).status_code == 401
    with host.client() as client:
        assert client.post(PATH, json={}).status_code == 404
        assert client.post("/channels/other/webhook", json={}).status_code == 404
