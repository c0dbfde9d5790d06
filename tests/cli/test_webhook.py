"""``picoclaw webhook``, as its user runs it, against a host and a receiver."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.running import picoclaw
from tests.fakes.receiver import Answer, Receiver, receiving
from tests.http.conftest import configure
from tests.running import TOKEN, HostProcess, new_host

Webhook = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    root = tmp_path_factory.mktemp("host")
    process = configure(new_host(root, None), webhooks={"allowed_hosts": ["127.0.0.1"]})
    process.start()
    yield process
    process.stop()


@pytest.fixture
def webhook(host: HostProcess, tmp_path: Path) -> Webhook:
    return lambda *words: picoclaw(tmp_path, "webhook", *words, PICOCLAW_URL=host.url, API_TOKEN=TOKEN)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as one:
        yield one


def test_a_webhook_is_made_listed_tested_rotated_and_told_again(
    host: HostProcess, webhook: Webhook, receiver: Receiver
) -> None:
    secret = webhook("add", receiver.url, "--event", "run.ended", "--event", "run.paused").stdout.strip()
    (made,) = json.loads(webhook("list", "--json").stdout)
    assert made["id"] in webhook("list").stdout
    assert made["events"] == ["run.ended", "run.paused"]
    tested = webhook("test", made["id"])
    assert tested.returncode == 0
    assert tested.stdout.startswith("delivered")
    assert receiver.wait(1)[0].verified(secret)["type"] == "webhook.test"
    newer = webhook("rotate", made["id"], "--keep-old", "1h").stdout.strip()
    with host.client() as client:
        client.post("/chat", json={"message": "hello"})
    came = receiver.wait(2)[1]
    assert came.verified(secret) == came.verified(newer)
    (told, test) = json.loads(webhook("deliveries", made["id"], "--json").stdout)
    assert (told["id"], test["type"]) == (came.id, "webhook.test")
    assert came.id in webhook("deliveries", made["id"]).stdout
    assert webhook("replay", made["id"], told["id"]).returncode == 0
    assert receiver.wait(3)[2].id == came.id
    assert webhook("release").stdout == "0 deliveries wait no more.\n"


def test_a_test_that_fails_says_why_and_exits_with_1(webhook: Webhook, receiver: Receiver) -> None:
    receiver.answers = [Answer(404)]
    assert webhook("add", receiver.url, "--no-content").returncode == 0
    made = json.loads(webhook("list", "--json").stdout)[-1]
    tested = webhook("test", made["id"])
    assert (tested.returncode, tested.stdout) == (1, "dead HTTP 404\n")
    refused = webhook("add", "http://example.com")
    assert refused.returncode == 1
    assert "webhooks.allowed_hosts" in refused.stderr


def test_the_doctor_says_that_secrets_lie_in_the_clear(
    host: HostProcess, webhook: Webhook, receiver: Receiver
) -> None:
    assert webhook("add", receiver.url).returncode == 0
    home = Path(host.environment["PICOCLAW_HOME"])
    told = picoclaw(home, "doctor", "--json", API_TOKEN=TOKEN, PORT=str(host.port))
    assert {each["check"]: each["verdict"] for each in json.loads(told.stdout)}["webhooks"] == "note"
