"""Principals over HTTP: made, changed, suspended and deleted by the operator; tokens, and who oneself is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.http.conftest import configure
from tests.http.identity_provider import AUDIENCE, ISSUER, Provider
from tests.mcp.over_http import RawHttp, request
from tests.running import HostProcess, ModelProcess, new_host

SETTINGS = {"PICOCLAW_PRINCIPALS_ISOLATION": "weak"}


@pytest.fixture(scope="module")
def host(model: ModelProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    process = new_host(tmp_path_factory.mktemp("principals"), model.url, SETTINGS)
    (process.root / "keys.json").write_bytes(Provider().jwks())
    yield configure(
        process,
        auth={"jwt": {"issuer": ISSUER, "audience": AUDIENCE, "jwks_file": str(process.root / "keys.json")}},
        budgets={"prices": {"claude-haiku-4-5": {"input": 1, "output": 5}}},
        model_list=[
            {"model_name": "usual", "model": "claude-sonnet-5-5", "api_base": model.url},
            {"model_name": "small", "model": "claude-haiku-4-5", "api_base": model.url},
        ],
        tools={
            "mcp": {"servers": {"github": {"url": "http://127.0.0.1:9/mcp"}}},
            "allow_read_paths": ["/srv"],
        },
    ).start()
    process.kill()


@pytest.fixture
def operator(host: HostProcess) -> Iterator[httpx2.Client]:
    with host.client() as client:
        yield client


def made(operator: httpx2.Client, name: str = "Ann", **terms: Any) -> dict[str, Any]:
    answer = operator.post("/principals", json={"name": name, **terms})
    assert answer.status_code == 201, answer.text
    principal: dict[str, Any] = answer.json()
    return principal


def token_of(operator: httpx2.Client, principal_id: str, **wanted: Any) -> dict[str, Any]:
    answer = operator.post(f"/principals/{principal_id}/tokens", json=wanted)
    assert answer.status_code == 201, answer.text
    token: dict[str, Any] = answer.json()
    return token


def test_a_principal_is_made_with_its_terms_and_read_again(operator: httpx2.Client) -> None:
    terms: dict[str, Any] = {
        "scopes": ["usage", "chat"],
        "budgets": {"day": {"dollars": 2.5}},
        "rate_limits": {"messages_per_minute": 9},
        "models": ["small"],
        "workspace_mb": 64,
        "grants": {"mcp": ["github"], "network": True},
        "timezone": "Europe/Berlin",
        "concurrent_runs": 2,
        "tasks": 5,
        "permissions": [
            {"tool": "exec", "match": "git push *", "do": "ask"},
            {"tool": "web_*", "do": "allow"},
        ],
    }
    ann = made(operator, subject="ann@example", **terms)
    assert ann["id"].startswith("prin-")
    assert ann == {
        **ann,
        **terms,
        "scopes": ["chat", "usage"],
        "budgets": {"day": {"dollars": 2.5}},
        "name": "Ann",
        "status": "active",
        "subject": "ann@example",
    }
    one = operator.get(f"/principals/{ann['id']}").json()
    used = one.pop("used")
    assert (used["conversations"], used["workspace_bytes"]) == (1, 0)
    assert one == ann
    listed = operator.get("/principals").json()["principals"]
    assert listed[0]["id"] == "operator"
    assert ann in listed


def test_what_a_patch_does_not_name_stays_and_null_takes_a_limit_away(operator: httpx2.Client) -> None:
    ann = made(operator, workspace_mb=64, budgets={"run": {"tokens": 9}})
    changed = operator.patch(f"/principals/{ann['id']}", json={"budgets": None, "scopes": ["mcp"]})
    assert changed.json() == {**ann, "budgets": None, "scopes": ["mcp"]}
    assert operator.patch(f"/principals/{ann['id']}", json={"name": "Anna"}).json()["name"] == "Anna"
    priced = {"budgets": {"day": {"dollars": 1}}, "models": ["small"]}
    assert operator.patch(f"/principals/{ann['id']}", json=priced).status_code == 200
    unpriced = operator.patch(f"/principals/{ann['id']}", json={"models": None})
    assert unpriced.json()["error"].startswith("budgets.day.dollars: needs the price of claude-sonnet-5-5")


WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, "name"),
    ({"name": " "}, "name"),
    ({"name": "A", "scopes": ["chat", "root"]}, "'root'"),
    ({"name": "A", "scopes": "chat"}, "scopes"),
    ({"name": "A", "budgets": {"week": {}}}, "budgets.week"),
    ({"name": "A", "budgets": {"day": {"dollars": -1}}}, "budgets.day.dollars"),
    ({"name": "A", "rate_limits": {"messages_per_minute": -1}}, "rate_limits.messages_per_minute"),
    ({"name": "A", "workspace_mb": 0}, "workspace_mb"),
    ({"name": "A", "grants": {"root": True}}, "grants.root"),
    ({"name": "A", "timezone": "Mars/Olympus"}, "timezone"),
    ({"name": "A", "subject": ""}, "subject"),
    ({"name": "A", "grants": {"mcp": ["github", "gitlab"]}}, "grants.mcp.1: there is no MCP server gitlab"),
    ({"name": "A", "grants": {"read_paths": ["/srv/a"]}}, "grants.read_paths.0"),
    ({"name": "A", "grants": {"write_paths": ["/srv"]}}, "grants.write_paths.0"),
    ({"name": "A", "models": ["huge"]}, "models.0: must be one of the names in model_list: usual, small"),
    ({"name": "A", "models": []}, "models"),
    (
        {"name": "A", "budgets": {"day": {"dollars": 1}}},
        "budgets.day.dollars: needs the price of claude-sonnet",
    ),
    ({"name": "A", "permissions": [{"tool": "exec", "match": "", "do": "deny"}]}, "permissions.0.match"),
    ({"name": "A", "permissions": [{"tool": "exce", "do": "ask"}]}, "permissions.0.tool"),
    ({"name": "A", "permissions": [{"tool": "exec", "do": "perhaps"}]}, "permissions.0.do"),
    ({"name": "A", "permissions": [{"tool": "exec", "do": "ask"}] * 101}, "permissions"),
]


@pytest.mark.parametrize(("body", "named"), WRONG, ids=[named for _, named in WRONG])
def test_wrong_terms_are_refused_by_name(operator: httpx2.Client, body: dict[str, Any], named: str) -> None:
    refused = operator.post("/principals", json=body)
    assert refused.status_code == 400
    assert named in refused.json()["error"]


def test_a_subject_is_one_principal_s(operator: httpx2.Client) -> None:
    ann, bob = made(operator, subject="one"), made(operator)
    assert operator.post("/principals", json={"name": "B", "subject": "one"}).status_code == 409
    assert operator.patch(f"/principals/{bob['id']}", json={"subject": "one"}).status_code == 409
    assert operator.patch(f"/principals/{ann['id']}", json={"subject": None}).json()["issuer"] is None
    assert operator.patch(f"/principals/{bob['id']}", json={"subject": "one"}).json()["subject"] == "one"


def test_the_operator_is_neither_changed_nor_deleted(operator: httpx2.Client) -> None:
    for refused in (
        operator.patch("/principals/operator", json={"status": "suspended"}),
        operator.delete("/principals/operator"),
    ):
        assert (refused.status_code, refused.json()["code"]) == (409, "operator")
    assert operator.get("/principals/operator").json()["status"] == "active"


def test_who_one_is(host: HostProcess, operator: httpx2.Client) -> None:
    ann = made(operator, scopes=["chat", "tasks"], workspace_mb=7)
    token = token_of(operator, ann["id"], scopes=["chat"], name="phone", expires_in_ms=60_000)
    with host.client(token["token"]) as client:
        me = client.get("/me").json()
    assert (me["principal_id"], me["name"], me["scopes"]) == (ann["id"], "Ann", ["chat"])
    assert (me["workspace_mb"], me["expires_at"]) == (7, token["expires_at"])
    assert (me["used"]["conversations"], me["used"]["tasks"]) == (1, 0)
    assert me["conversation_id"] == "main"
    mine = operator.get("/me").json()
    assert (mine["principal_id"], mine["conversation_id"]) == ("operator", "main")


def test_a_token_has_a_part_of_its_principal_s_scopes_and_loses_what_that_loses(
    host: HostProcess, operator: httpx2.Client
) -> None:
    ann = made(operator, scopes=["chat", "usage", "mcp"])
    beyond = operator.post(f"/principals/{ann['id']}/tokens", json={"scopes": ["chat", "tasks"]})
    assert (beyond.status_code, "tasks" in beyond.json()["error"]) == (400, True)
    token = token_of(operator, ann["id"])
    assert token["scopes"] == ["chat", "usage", "mcp"]
    asked = request(1, "tools/call", {"name": "get_run", "arguments": {"run_id": "run-none"}})
    with host.client(token["token"]) as client, RawHttp(host, token["token"]) as at_mcp:
        at_mcp.hello()
        assert client.get("/chat").status_code == 200
        assert "Run not found" in at_mcp.say(asked).text
        operator.patch(f"/principals/{ann['id']}", json={"scopes": ["usage", "mcp"]})
        assert client.get("/chat").status_code == 403
        assert at_mcp.say(asked).status_code == 403
        assert client.get("/usage").status_code == 200


def test_a_token_tells_its_last_use_and_its_text_once(host: HostProcess, operator: httpx2.Client) -> None:
    ann = made(operator)
    made_by = {"Idempotency-Key": "the-phone"}
    url = f"/principals/{ann['id']}/tokens"
    token = operator.post(url, json={"name": "phone"}, headers=made_by).json()
    again = operator.post(url, json={"name": "phone"}, headers=made_by)
    assert (again.status_code, again.json()["code"]) == (409, "already_made")
    assert token["id"] in again.json()["error"]
    other = operator.post(url, json={"name": "laptop"}, headers=made_by)
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_mismatch")
    [listed] = operator.get(url).json()["tokens"]
    assert listed == {name: value for name, value in token.items() if name != "token"}
    assert listed["last_used_at"] is None
    with host.client(token["token"]) as client:
        assert client.get("/me").status_code == 200
    [used] = operator.get(url).json()["tokens"]
    assert used["last_used_at"] is not None
    assert operator.delete(f"/principals/operator/tokens/{token['id']}").status_code == 404
    assert operator.delete(f"{url}/{token['id']}").status_code == 204
    with host.client(token["token"]) as client:
        assert client.get("/me").status_code == 401


def test_a_principal_rotates_its_tokens_within_its_own(host: HostProcess, operator: httpx2.Client) -> None:
    ann, bob = made(operator), made(operator)
    theirs = token_of(operator, bob["id"])
    token = token_of(operator, ann["id"], scopes=["chat"], expires_in_ms=3_600_000)
    with host.client(token["token"]) as client:
        new = client.post("/me/tokens", json={"name": "next", "expires_in_ms": 36_000_000}).json()
        assert (new["scopes"], new["expires_at"]) == (["chat"], token["expires_at"])
        wider = client.post("/me/tokens", json={"scopes": ["chat", "usage"]})
        assert (wider.status_code, 'scope "usage"' in wider.json()["error"]) == (403, True)
        assert {each["id"] for each in client.get("/me/tokens").json()["tokens"]} == {token["id"], new["id"]}
        assert client.delete(f"/me/tokens/{theirs['id']}").status_code == 404
        assert client.delete(f"/me/tokens/{token['id']}").status_code == 204
        assert client.get("/me").status_code == 401
    with host.client(new["token"]) as client:
        assert client.get("/me").json()["scopes"] == ["chat"]


def test_the_operator_has_narrower_tokens_of_its_own(host: HostProcess, operator: httpx2.Client) -> None:
    token = token_of(operator, "operator", scopes=["tasks"])
    with host.client(token["token"]) as client:
        assert client.get("/tasks").status_code == 200
        assert client.get("/chat").status_code == 403
        assert client.get("/principals").status_code == 403
    made = operator.post("/me/tokens", json={})
    assert (made.status_code, made.json()["scopes"]) == (201, operator.get("/me").json()["scopes"])
    bound = operator.post("/tokens", json={"conversation_id": "narrow"}).json()
    with host.client(bound["token"]) as client:
        assert client.post("/me/tokens", json={}).status_code == 403


def test_a_suspended_principal_is_refused_until_it_is_active_again(
    host: HostProcess, operator: httpx2.Client
) -> None:
    ann = made(operator)
    with host.client(token_of(operator, ann["id"])["token"]) as client:
        assert operator.patch(f"/principals/{ann['id']}", json={"status": "suspended"}).status_code == 200
        refused = client.get("/me")
        assert (refused.status_code, refused.json()["code"]) == (403, "suspended")
        operator.patch(f"/principals/{ann['id']}", json={"status": "active"})
        assert client.get("/me").status_code == 200


def test_a_deleted_principal_s_tokens_end_at_once(host: HostProcess, operator: httpx2.Client) -> None:
    ann = made(operator, subject="gone")
    with host.client(token_of(operator, ann["id"])["token"]) as client:
        answer = operator.delete(f"/principals/{ann['id']}")
        assert (answer.status_code, answer.json()["status"]) == (202, "deleting")
        assert client.get("/me").status_code == 401
    assert operator.get("/principals/prin-unknown").status_code == 404
    assert operator.delete("/principals/prin-unknown").status_code == 404


def test_a_principal_s_requests_are_counted_with_all_its_tokens(
    host: HostProcess, operator: httpx2.Client
) -> None:
    ann = made(operator, rate_limits={"requests_per_minute": 3})
    tokens = [token_of(operator, ann["id"])["token"] for _ in range(2)]
    answers = []
    for token in (*tokens, *tokens):
        with host.client(token) as client:
            answers.append(client.get("/me"))
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert answers[-1].json()["code"] == "rate_limited"
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 60
    assert operator.get("/me").status_code == 200


@pytest.mark.processes
def test_where_the_sandbox_is_too_weak_there_are_no_principals(model: ModelProcess, tmp_path: Any) -> None:
    settings = {"SANDBOX_MIN_LEVEL": "1", "SANDBOX_MAX_LEVEL": "2"}
    process = new_host(tmp_path, model.url, settings).start()
    try:
        with process.client() as client:
            refused = client.post("/principals", json={"name": "Ann"})
            if refused.status_code != 201:
                assert (refused.status_code, refused.json()["code"]) == (409, "sandbox_too_weak")
                assert "principals.isolation" in refused.json()["error"]
    finally:
        process.kill()


def test_new_tasks_have_their_principals_limit_and_time_zone_over_http_and_at_mcp(
    host: HostProcess, operator: httpx2.Client
) -> None:
    daily = {"prompt": "say it", "schedule_type": "cron", "schedule_value": "0 9 * * *"}
    call = request(1, "tools/call", {"name": "schedule_task", "arguments": daily})
    ann = made(operator, timezone="Europe/Berlin", tasks=2)
    token = token_of(operator, ann["id"])["token"]
    with host.client(token) as client, RawHttp(host, token) as at_mcp:
        at_mcp.hello()
        assert client.post("/task", json=daily).json()["timezone"] == "Europe/Berlin"
        assert "Europe/Berlin" in at_mcp.say(call).text
        refused = client.post("/task", json=daily)
        assert (refused.status_code, refused.json()["code"]) == (409, "task_quota")
        assert "has 2 tasks, and its limit (tasks) is 2" in refused.json()["error"]
        assert "has 2 tasks, and its limit (tasks) is 2" in at_mcp.say(call).text
        operator.patch(f"/principals/{ann['id']}", json={"timezone": "Asia/Tokyo", "tasks": 4})
        with RawHttp(host, token) as next_session:
            next_session.hello()
            assert "Asia/Tokyo" in next_session.say(call).text
        named = client.post("/task", json={**daily, "timezone": "UTC"})
        assert (named.status_code, named.json()["timezone"]) == (201, "UTC")
    assert operator.post("/task", json=daily).json()["timezone"] not in ("Europe/Berlin", "Asia/Tokyo")


def test_a_principal_s_token_at_health_is_no_failed_authentication(
    host: HostProcess, operator: httpx2.Client
) -> None:
    made_one = made(operator, "Watcher")
    token = token_of(operator, made_one["id"])["token"]
    for status in ("active", "suspended"):
        operator.patch(f"/principals/{made_one['id']}", json={"status": status})
        with host.client(token) as client:
            assert {client.get("/health").status_code for _ in range(15)} == {200}
    with host.client("pico_guessed") as client:
        assert client.get("/me").status_code == 401
    assert operator.get("/health").json()["database"]["conversations"] > 0
