"""Signed tokens at a host: whose they are, what they may, and how they make principals."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import httpx2
import pytest

from tests.http.conftest import configure
from tests.http.identity_provider import AUDIENCE, ISSUER, Provider
from tests.http.two_principals import SETTINGS
from tests.mcp.over_http import RawHttp, request
from tests.running import HostProcess, ModelProcess, new_host, until

PROVIDER = Provider()
DEFAULTS = {"scopes": ["chat", "mcp", "tasks"], "budgets": {"day": {"tokens": 100_000}}, "workspace_mb": 32}


def started(model: ModelProcess, root: Any, **jwt: Any) -> HostProcess:
    host = new_host(root, model.url, SETTINGS)
    keys = host.root / "keys.json"
    keys.parent.mkdir(parents=True, exist_ok=True)
    keys.write_bytes(PROVIDER.jwks())
    said = {"issuer": ISSUER, "audience": AUDIENCE, "jwks_file": str(keys), **jwt}
    return configure(host, auth={"jwt": said}).start()


@pytest.fixture(scope="module")
def host(model: ModelProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    process = started(model, tmp_path_factory.mktemp("signed"))
    yield process
    process.kill()


@pytest.fixture(scope="module")
def open_host(model: ModelProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    process = started(model, tmp_path_factory.mktemp("open"), create=True, defaults=DEFAULTS)
    yield process
    process.kill()


def ask(host: HostProcess, path: str = "/me", **claims: Any) -> httpx2.Response:
    with host.client(PROVIDER.token(**claims)) as client:
        return client.get(path)


def test_a_signed_token_is_its_subject_s(host: HostProcess) -> None:
    assert ask(host, sub="ann").status_code == 401
    with host.client() as operator:
        ann = operator.post("/principals", json={"name": "Ann", "subject": "ann"}).json()
        assert ann["issuer"] == ISSUER
        me = ask(host, sub="ann").json()
        assert (me["principal_id"], me["conversation_id"]) == (ann["id"], "main")
        assert me["scopes"] == ann["scopes"]
        assert ask(host, sub="ann", scope="openid usage chat").json()["scopes"] == ["chat", "usage"]
        assert ask(host, "/chat", sub="ann", scope="openid").status_code == 403
        operator.patch(f"/principals/{ann['id']}", json={"scopes": ["usage"]})
        assert ask(host, sub="ann", scope=["chat", "usage"]).json()["scopes"] == ["usage"]
        operator.patch(f"/principals/{ann['id']}", json={"status": "suspended"})
        refused = ask(host, sub="ann")
        assert (refused.status_code, refused.json()["code"]) == (403, "suspended")
        operator.patch(f"/principals/{ann['id']}", json={"status": "active", "subject": "anna"})
        assert ask(host, sub="ann").status_code == 401
        assert ask(host, sub="anna").json()["principal_id"] == ann["id"]


@pytest.mark.parametrize("exp", [253402300799, 10**18, 10**300])
def test_a_token_may_end_later_than_a_year_can_be_said(open_host: HostProcess, exp: int) -> None:
    last = "9999-12-31T23:59:59.000Z"
    with open_host.client(PROVIDER.token(sub="eve", exp=exp)) as client:
        assert client.get("/me").json()["expires_at"] == last
        assert client.post("/me/tokens", json={}).json()["expires_at"] == last


def test_the_first_requests_of_a_principal_may_come_at_once(open_host: HostProcess) -> None:
    together = Barrier(8)

    def first(subject: str) -> httpx2.Response:
        with open_host.client(PROVIDER.token(sub=subject)) as client:
            client.get("/health")
            together.wait()
            return client.get("/me")

    with ThreadPoolExecutor(8) as threads:
        for number in range(8):
            answers = list(threads.map(first, [f"new-{number}"] * 8))
            assert [each.status_code for each in answers] == [200] * 8
            assert len({each.json()["principal_id"] for each in answers}) == 1


def test_its_sessions_at_mcp_go_on_with_a_renewed_token(host: HostProcess) -> None:
    with host.client() as operator:
        operator.post("/principals", json={"name": "Mia", "subject": "mia"})
        operator.post("/principals", json={"name": "Max", "subject": "max"})
    with RawHttp(host, PROVIDER.token(sub="mia")) as client:
        client.hello()
        with (
            RawHttp(host, PROVIDER.token(sub="mia", jti="another")) as renewed,
            RawHttp(host, PROVIDER.token(sub="max")) as other,
        ):
            renewed.session = other.session = client.session
            call = request(1, "tools/call", {"name": "list_tasks", "arguments": {}})
            assert renewed.say(call).status_code == 200
            assert other.say(call).status_code == 404


def test_a_token_made_by_a_signed_one_lasts_no_longer(host: HostProcess) -> None:
    with host.client() as operator:
        operator.post("/principals", json={"name": "Eve", "subject": "eve"})
    with host.client(PROVIDER.token(sub="eve")) as client:
        made = client.post("/me/tokens", json={"name": "script"}).json()
        assert made["expires_at"] == client.get("/me").json()["expires_at"] is not None


def test_the_first_token_makes_the_principal_where_the_settings_say_so(open_host: HostProcess) -> None:
    me = ask(open_host, sub="new@example").json()
    assert me["name"] == "new@example"
    assert (me["scopes"], me["workspace_mb"]) == (["chat", "tasks", "mcp"], 32)
    assert me["budgets"]["day"] == {"tokens": 100_000}
    assert ask(open_host, sub="new@example").json()["principal_id"] == me["principal_id"]


def test_a_deleted_subject_is_not_revived_by_its_token_but_by_the_operator(open_host: HostProcess) -> None:
    gone = ask(open_host, sub="gone").json()["principal_id"]
    with open_host.client() as operator:
        assert operator.delete(f"/principals/{gone}").status_code == 202
        assert ask(open_host, sub="gone").status_code == 401
        until(lambda: operator.get(f"/principals/{gone}").status_code == 404)
        assert ask(open_host, sub="gone").status_code == 401
        again = operator.post("/principals", json={"name": "Gone", "subject": "gone"}).json()
        assert ask(open_host, sub="gone").json()["principal_id"] == again["id"] != gone
