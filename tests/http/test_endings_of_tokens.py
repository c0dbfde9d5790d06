"""A token that ends takes its requests with it within a second; the runs that they began go on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from threading import Thread
from typing import Any

import httpx2
import pytest

from tests.http.two_principals import SETTINGS, Somebody, somebody
from tests.running import HostProcess, ModelProcess, directive, new_host, until

LONG = directive(text="a", hang_after_deltas=1)
"""A second, and what a machine at work takes besides."""


@pytest.fixture(scope="module")
def host(model: ModelProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    process = new_host(tmp_path_factory.mktemp("endings"), model.url, SETTINGS)
    yield process.start()
    process.kill()


def revoked(operator: httpx2.Client, who: Somebody) -> None:
    assert operator.delete(f"/principals/{who.id}/tokens/{who.token['id']}").status_code == 204


def suspended(operator: httpx2.Client, who: Somebody) -> None:
    assert operator.patch(f"/principals/{who.id}", json={"status": "suspended"}).status_code == 200


def deleted(operator: httpx2.Client, who: Somebody) -> None:
    assert operator.delete(f"/principals/{who.id}").status_code == 202


def narrowed(operator: httpx2.Client, who: Somebody) -> None:
    assert operator.patch(f"/principals/{who.id}", json={"scopes": ["usage"]}).status_code == 200


ENDS = [revoked, suspended, deleted, narrowed]


@pytest.mark.parametrize("end", ENDS)
def test_a_stream_ends_with_the_reason(
    host: HostProcess, end: Callable[[httpx2.Client, Somebody], None]
) -> None:
    with somebody(host, "Ann") as ann, host.client() as operator:
        with ann.client.stream("POST", "/chat", json={"message": LONG, "stream": True}) as answer:
            lines = answer.iter_lines()
            assert any(line == "event: chunk" for line in lines)
            end(operator, ann)
            rest = list(lines)
    event, data = (line for line in rest[-3:] if line)
    assert (event, json.loads(data.removeprefix("data: "))["code"]) == ("event: error", "token_ended")


def test_a_long_call_ends_as_unauthorized_and_its_run_goes_on(host: HostProcess) -> None:
    with somebody(host, "Ann") as ann, host.client() as operator:
        answers: list[httpx2.Response] = []
        body = {"message": LONG, "conversation_id": "main"}
        call = Thread(target=lambda: answers.append(ann.client.post("/chat", json=body)))
        call.start()
        main = f"/chat/{ann.id}+main"
        until(lambda: operator.get(main).json()["status"] == "running")
        revoked(operator, ann)
        call.join()
        assert (answers[0].status_code, answers[0].json()["code"]) == (401, "token_ended")
        assert operator.get(main).json()["status"] == "running"
        fresh = operator.post(f"/principals/{ann.id}/tokens", json={}).json()["token"]
        with host.client(fresh) as client:
            run_id = client.get("/chat/main/runs").json()["runs"][0]["run_id"]
            assert client.post("/chat/main/cancel").json()["run_id"] == run_id
            events = client.get(f"/chat/main/runs/{run_id}/events").text
            assert '"code":"cancelled"' in events.replace(" ", "")


def test_a_stream_ends_when_its_token_expires(host: HostProcess) -> None:
    with somebody(host, "Ann") as ann, host.client() as operator:
        url, wanted = f"/principals/{ann.id}/tokens", {"expires_in_ms": 1500}
        with host.client(operator.post(url, json=wanted).json()["token"]) as client:
            body = {"message": LONG, "stream": True}
            with client.stream("POST", "/chat", json=body) as answer:
                text = answer.read().decode()
        assert "token_ended" in text


def test_at_openai_s_door_a_stream_ends_in_its_own_words(host: HostProcess) -> None:
    asked: dict[str, Any] = {
        "model": "picoclaw",
        "messages": [{"role": "user", "content": LONG}],
        "stream": True,
    }
    with somebody(host, "Ann") as ann, host.client() as operator:
        with ann.client.stream("POST", "/v1/chat/completions", json=asked) as answer:
            lines = answer.iter_lines()
            assert any(line.startswith("data: ") for line in lines)
            revoked(operator, ann)
            *_, last = (line for line in lines if line)
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "invalid_api_key"
        [run] = operator.get(f"/chat/{answer.headers['x-conversation-id']}/runs").json()["runs"]
        assert run["status"] == "running"


def test_streams_of_others_and_of_the_operator_go_on(host: HostProcess) -> None:
    with somebody(host, "Ann") as ann, somebody(host, "Bob") as bob, host.client() as operator:
        body = {"message": directive(text="a b c", delta_delay_ms=400), "stream": True}
        with (
            bob.client.stream("POST", "/chat", json=body) as theirs,
            operator.stream("POST", "/chat", json=body) as own,
        ):
            with host.client() as other:
                revoked(other, ann)
            for answer in (theirs, own):
                assert "event: done" in answer.read().decode()
