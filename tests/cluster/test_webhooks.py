"""Two hosts that tell the same webhooks: each event once, whichever of them its run ended on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.cluster.conftest import Join
from tests.fakes.receiver import Receiver, receiving
from tests.running import HostProcess, until

SETTINGS = {"SEAL_KEY": "k" * 43, "PICOCLAW_WEBHOOKS_ALLOWED_HOSTS": json.dumps(["127.0.0.1"])}
TURNS = 20


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as one:
        yield one


@pytest.fixture
def hosts(join: Join) -> list[HostProcess]:
    made = [join(SETTINGS, wait=False) for _ in range(2)]
    for host in made:
        host.wait_ready()
    return made


def test_two_hosts_tell_each_event_once(hosts: list[HostProcess], receiver: Receiver) -> None:
    one, other = hosts
    with one.client() as client, other.client() as second:
        hooks = [
            client.post("/webhooks", json={"url": f"{receiver.url}/{name}", "events": ["run.ended"]}).json()
            for name in ("a", "b")
        ]

        def turn(number: int) -> str:
            host = (client, second)[number % 2]
            return str(host.post("/chat", json={"message": f"hello {number}"}).json()["run_id"])

        with ThreadPoolExecutor(4) as pool:
            runs = list(pool.map(turn, range(TURNS)))

        def delivered() -> bool:
            lists = [second.get(f"/webhooks/{hook['id']}/deliveries").json()["deliveries"] for hook in hooks]
            return all([each["status"] for each in told] == ["delivered"] * TURNS for told in lists)

        until(delivered)
    secrets = {f"/{name}": hook["secret"] for name, hook in zip("ab", hooks, strict=True)}
    came = [(each.path, each.verified(secrets[each.path])["data"]["run_id"]) for each in receiver.received]
    assert Counter(came) == Counter((path, run_id) for path in secrets for run_id in runs)
    assert len({each.id for each in receiver.received}) == len(came)
