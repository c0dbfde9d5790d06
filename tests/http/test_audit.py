"""GET /audit: what is done to principals and tokens, and what the operator reaches of others': by whom."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.http.two_principals import HOOK, SETTINGS, TASK, Somebody, settle, somebody
from tests.running import HostProcess, ModelProcess, new_host


@pytest.fixture(scope="module")
def host(model: ModelProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    process = new_host(tmp_path_factory.mktemp("audit"), model.url, SETTINGS)
    yield process.start()
    process.kill()


@pytest.fixture
def operator(host: HostProcess) -> Iterator[httpx2.Client]:
    with host.client() as client:
        yield client


@pytest.fixture
def ann(host: HostProcess) -> Iterator[Somebody]:
    with somebody(host, "Ann") as who:
        yield settle(who, "apples")


def acts(operator: httpx2.Client, **asked: Any) -> list[dict[str, Any]]:
    answer = operator.get("/audit", params=asked)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["audit"]
    return found


def kinds(found: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(each["action"], each["subject"]) for each in found]


def test_what_is_done_to_principals_and_tokens_is_there_newest_first(
    operator: httpx2.Client, ann: Somebody
) -> None:
    rotated = ann.client.post("/me/tokens", json={"name": "phone"}).json()
    assert ann.client.delete(f"/me/tokens/{rotated['id']}").status_code == 204
    for body in ({"name": "Anne"}, {"status": "suspended"}, {"name": "Anna"}):
        assert operator.patch(f"/principals/{ann.id}", json=body).status_code == 200
    assert operator.delete(f"/principals/{ann.id}").status_code == 202
    found = acts(operator, principal_id=ann.id)
    assert kinds(found) == [
        ("principal.deleted", ann.id),
        ("principal.changed", ann.id),
        ("principal.suspended", ann.id),
        ("principal.changed", ann.id),
        ("token.revoked", rotated["id"]),
        ("token.created", rotated["id"]),
        ("token.created", ann.token["id"]),
        ("principal.created", ann.id),
    ]
    here = {"door": "http", "address": "127.0.0.1"}
    assert found[0]["by"] == {"principal_id": "operator", "token_id": None, **here}
    assert found[4]["by"] == {"principal_id": ann.id, "token_id": ann.token["id"], **here}
    assert "Ann" not in str(found)
    first = operator.get("/audit", params={"principal_id": ann.id, "limit": 3}).json()
    rest = acts(operator, principal_id=ann.id, cursor=first["next_cursor"])
    assert first["audit"] + rest == found
    assert kinds(acts(operator, principal_id=ann.id, action="token.revoked")) == [kinds(found)[4]]
    assert acts(operator, since="9999-01-01T00:00:00Z") == []
    assert operator.get("/audit", params={"since": "yesterday"}).status_code == 400


def test_what_the_operator_reaches_of_another_s_is_noted_and_what_one_reaches_of_one_s_own_is_not(
    operator: httpx2.Client, ann: Somebody
) -> None:
    conversation = ann.ids["conversation"]
    hook = ann.client.post("/webhooks", json=HOOK).json()["id"]
    response = ann.client.post("/v1/responses", json={"model": "picoclaw", "input": "hi"}).json()["id"]
    reached: list[tuple[str, str, dict[str, str] | None]] = [
        ("GET", f"/chat/{conversation}", None),
        ("GET", f"/chat/{conversation}/messages", None),
        ("GET", f"/runs/{ann.ids['run']}", None),
        ("PUT", f"/task/{ann.ids['task']}", {"prompt": "mine"}),
        ("GET", f"/webhooks/{hook}", None),
        ("GET", f"/v1/responses/{response}", None),
        ("GET", f"/tasks?principal_id={ann.id}", None),
        ("POST", "/chat", {"message": "hi", "conversation_id": conversation}),
        ("POST", "/task", {**TASK, "conversation_id": conversation, "id": f"theirs-{ann.id}"}),
    ]
    for method, path, body in reached:
        for who in (ann.client, operator):
            assert who.request(method, path, json=body).status_code in (200, 201, 409), path
    operator.get(f"/chat/{conversation}")  # twice within a minute is once
    operator.get("/chat/main")
    subjects = [subject for action, subject in kinds(acts(operator, action="reached", principal_id=ann.id))]
    assert subjects[:2][::-1] == [conversation, f"theirs-{ann.id}"]
    assert subjects[2:][::-1] == [
        f"GET /chat/{conversation}",
        f"GET /chat/{conversation}/messages",
        f"GET /runs/{ann.ids['run']}",
        f"PUT /task/{ann.ids['task']}",
        f"GET /webhooks/{hook}",
        f"GET /v1/responses/{response}",
        "GET /tasks",
    ]
    assert {each["by"]["token_id"] for each in acts(operator, action="reached")} == {None}
    assert ann.client.get("/audit").status_code == 403
