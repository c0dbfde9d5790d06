"""/mcp: the official client in both eras, sessions, tokens, and who may be whom."""

from __future__ import annotations

import json
from collections.abc import Iterator

import anyio
import httpx2
import pytest
from mcp.client.client import ConnectMode
from mcp_types import TextResourceContents

from shared.ask_contract import ASK_TOOLS
from shared.tool_contract import tool_declarations
from tests.mcp.over_http import HANDSHAKE, HELLO, STATELESS, RawHttp, new_token, official_client, request
from tests.running import TOKEN, HostProcess, running_host, until

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    settings = {"API_TOKEN_PREVIOUS": "the-token-before", "PICOCLAW_GATEWAY_ALLOWED_HOSTS": "pico.example"}
    with running_host(tmp_path_factory.mktemp("host"), None, settings) as host:
        yield host


@pytest.fixture
def laptop(host: HostProcess) -> Iterator[RawHttp]:
    with RawHttp(host, new_token(host, "laptop")["token"]) as client:
        client.hello()
        yield client


@pytest.mark.parametrize("mode", ["legacy", "auto", STATELESS])
async def test_the_official_client_is_served_in_both_eras(host: HostProcess, mode: ConnectMode) -> None:
    token = new_token(host, f"official-{mode}")["token"]
    async with official_client(host, token, mode) as client:
        tools = (await client.list_tools()).tools
        assert [tool.name for tool in tools] == [*tool_declarations(is_main=False), *ASK_TOOLS]
        said = await client.call_tool("send_message", {"text": "over http"})
        assert said.structured_content is not None
        assert said.structured_content["conversation_id"] == f"official-{mode}"
        refused = await client.call_tool("get_task", {"task_id": "foreign"})
        assert refused.is_error
        (content,) = (await client.read_resource("picoclaw://conversation")).contents
        assert isinstance(content, TextResourceContents)
        seen = json.loads(content.text)
        assert (seen["conversation_id"], seen["is_main"]) == (f"official-{mode}", False)


@pytest.mark.parametrize("token", [TOKEN, "the-token-before"])
async def test_the_api_token_is_the_main_conversation(host: HostProcess, token: str) -> None:
    async with official_client(host, token) as client:
        assert "conversation_id" in str((await client.list_tools()).tools[0].input_schema)
        (content,) = (await client.read_resource("picoclaw://conversation")).contents
        assert isinstance(content, TextResourceContents)
        seen = json.loads(content.text)
        assert (seen["conversation_id"], seen["is_main"]) == ("main", True)


async def test_a_main_token_of_a_conversation_is_it_in_the_main_role(host: HostProcess) -> None:
    async with official_client(host, new_token(host, "boss", main=True)["token"]) as client:
        (content,) = (await client.read_resource("picoclaw://conversation")).contents
        assert isinstance(content, TextResourceContents)
        seen = json.loads(content.text)
        assert (seen["conversation_id"], seen["is_main"]) == ("boss", True)


@pytest.mark.parametrize("version", ["2024-11-05", "2025-03-26", "2025-06-18", HANDSHAKE, "1999-01-01", 7])
def test_a_session_speaks_the_version_its_client_asked_for_or_the_newest(
    host: HostProcess, version: object
) -> None:
    with RawHttp(host, new_token(host, "versions")["token"]) as client:
        answer = client.hello(protocolVersion=version)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/json"
        spoken = answer.json()["result"]["protocolVersion"]
        assert spoken == (version if version in ("2024-11-05", "2025-03-26", "2025-06-18") else HANDSHAKE)
        assert answer.json()["result"]["serverInfo"]["name"] == "picoclaw"
        assert client.say({"jsonrpc": "2.0", "method": "notifications/initialized"}).status_code == 202
        assert client.tool("list_tasks")["isError"] is False


def test_a_session_is_its_tokens_alone_and_ends_by_delete(host: HostProcess, laptop: RawHttp) -> None:
    other = new_token(host, "laptop")["token"]
    for token in (other, TOKEN):
        with RawHttp(host, token) as stranger:
            stranger.session = laptop.session
            assert stranger.say(request(1, "ping", {})).status_code == 404
            assert (
                stranger.http.delete("/mcp", headers={"Mcp-Session-Id": str(laptop.session)}).status_code
                == 404
            )
    assert laptop.ask(1, "ping")["result"] == {}
    gone = {"Mcp-Session-Id": str(laptop.session)}
    assert laptop.http.delete("/mcp", headers=gone).status_code == 204
    assert laptop.http.delete("/mcp", headers=gone).status_code == 404
    assert laptop.say(request(1, "ping", {})).status_code == 404
    assert laptop.http.delete("/mcp").status_code == 400


def test_without_a_session_only_initialize_is_served(host: HostProcess, laptop: RawHttp) -> None:
    opened, laptop.session = laptop.session, None
    for message in (request(1, "tools/list", {}), {"jsonrpc": "2.0", "method": "notifications/initialized"}):
        answer = laptop.say(message)
        assert (answer.status_code, "Mcp-Session-Id" in answer.json()["error"]) == (400, True)
    laptop.session = opened
    assert laptop.say(request(1, "initialize", HELLO)).status_code == 400
    laptop.session = "mcp-00000000-0000-0000-0000-000000000000"
    assert laptop.say(request(1, "tools/list", {})).status_code == 404


def test_a_token_that_is_revoked_or_expired_or_whose_conversation_is_gone_ends_at_once(
    host: HostProcess,
) -> None:
    revoked, orphan = new_token(host, "ends"), new_token(host, "orphan")
    expired = new_token(host, "ends", expires_in_ms=1000)
    clients = [RawHttp(host, token["token"]) for token in (revoked, orphan, expired)]
    for client in clients:
        assert client.hello().status_code == 200
    with host.client() as owner:
        assert owner.delete(f"/tokens/{revoked['id']}").status_code == 204
        assert owner.delete("/chat/orphan").status_code == 204
    answers = [client.say(request(1, "tools/list", {})) for client in clients[:2]]
    until(lambda: clients[2].say(request(1, "tools/list", {})).status_code == 401)
    for answer in [*answers, clients[2].hello()]:
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
    with host.client() as owner:
        assert owner.get("/chat/orphan").status_code == 404
    for client in clients:
        client.http.close()


def test_a_conversations_token_is_forbidden_on_every_other_route(host: HostProcess) -> None:
    with host.client() as owner:
        paths = owner.get("/openapi.json").json()["paths"]
    checked = 0
    with host.client(new_token(host, "narrow")["token"]) as client:
        for path, operations in paths.items():
            for method in operations:
                answer = client.request(method, path.replace("{", "").replace("}", ""))
                if path in ("/health", "/ready", "/me", "/openapi.json"):
                    assert answer.status_code == 200
                elif path != "/mcp":
                    assert answer.status_code == 403, path
                    assert "This token is for a conversation's tools" in answer.text
                    checked += 1
        for path in ("/mcp/", "//mcp", "/nowhere", "/MCP", "/mcp/../chat", "/%6dcp/x"):
            assert client.post(path, json={}).status_code in (403, 404), path
    assert checked > 40


def test_a_token_of_the_main_conversation_is_for_what_its_scopes_are(host: HostProcess) -> None:
    token = new_token(host, "main", main=True, scopes=["usage", "tasks"])
    assert token["scopes"] == ["tasks", "usage"]
    with host.client(token["token"]) as client:
        assert client.get("/usage").status_code == 200
        assert client.get("/tasks").status_code == 200
        refused = client.post("/chat", json={"message": "hello"})
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
        assert 'needs the scope "chat"' in refused.json()["error"]
        assert "is the operator's alone" in client.get("/tokens").json()["error"]
    with host.client() as owner:
        unknown = owner.post("/tokens", json={"conversation_id": "main", "scopes": ["chat", "root"]})
        assert (unknown.status_code, "'root'" in unknown.json()["error"]) == (400, True)


def test_a_caller_without_a_token_learns_nothing(host: HostProcess) -> None:
    bodies = [b"", b"{", json.dumps(request(1, "initialize", HELLO)).encode()]
    with host.client(None) as client:
        for body in bodies:
            answer = client.post("/mcp", content=body, headers={"Host": "evil.example"})
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"


def test_a_client_whose_bearer_fails_finds_nowhere_to_register_and_is_not_slowed(host: HostProcess) -> None:
    looks = [
        f"/.well-known/oauth-{kind}{path}"
        for kind in ("protected-resource", "authorization-server")
        for path in ("", "/mcp")
    ]
    with host.client(None) as client:
        for _ in range(10):
            answer = client.post("/mcp", json=request(1, "initialize", HELLO))
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
            for path in [*looks, "/.well-known/openid-configuration"]:
                assert client.get(path).status_code == 404, path
            assert client.post("/register", json={"redirect_uris": []}).status_code == 404


def test_there_is_no_stream_to_get_and_no_redirect(laptop: RawHttp) -> None:
    for method in ("GET", "PUT", "PATCH", "OPTIONS"):
        answer = laptop.http.request(method, "/mcp", headers={"Accept": "text/event-stream"})
        assert answer.status_code == 405
        assert {"POST", "DELETE"} == set(answer.headers["allow"].split(", "))


HOSTS = {
    "127.0.0.1": 200,
    "localhost:9000": 200,
    "LOCALHOST": 200,
    "[::1]:9000": 200,
    "10.1.2.3:80": 200,
    "pico.example": 200,
    "Pico.Example.:443": 200,
    "evil.example": 403,
    "pico.example.evil.example": 403,
    "localhost.evil.example": 403,
    "evil.example@localhost": 403,
    "localhost/evil": 403,
    "localhost:port": 403,
    "[::1": 403,
    "127.0.0.1.nip.io": 403,
    "2130706433": 403,
    "": 403,
}
ORIGINS = {
    "http://localhost:6274": 200,
    "https://pico.example": 200,
    "http://127.0.0.1": 200,
    "http://[::1]:80": 200,
    "https://evil.example": 403,
    "http://10.1.2.3": 403,
    "null": 403,
    "": 403,
    "file://localhost": 403,
    "http://localhost.evil.example": 403,
    "http://localhost@evil.example": 403,
    "http://evil.example#localhost": 403,
}


def test_only_known_names_and_addresses_are_a_host(laptop: RawHttp) -> None:
    for host, status in HOSTS.items():
        assert laptop.say(request(1, "ping", {}), host=host).status_code == status, host
        assert laptop.stateless("server/discover", host=host).status_code == status, host


def test_only_local_and_known_pages_are_an_origin(laptop: RawHttp) -> None:
    for origin, status in ORIGINS.items():
        assert laptop.say(request(1, "ping", {}), origin=origin).status_code == status, origin
    # A page that this very host could have served.
    assert laptop.say(request(1, "ping", {}), host="10.1.2.3", origin="http://10.1.2.3").status_code == 200


async def test_a_request_can_be_cancelled_by_its_session_only(host: HostProcess) -> None:
    token = new_token(host, "cancels")["token"]
    headers = {"Authorization": f"Bearer {token}"}
    cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 5}}
    async with httpx2.AsyncClient(base_url=host.url, headers=headers, trust_env=False, timeout=60) as http:
        opened = await http.post("/mcp", json=request(0, "initialize", HELLO))
        session = {"Mcp-Session-Id": opened.headers["mcp-session-id"]}
        answers: list[dict[str, object]] = []

        async def ask() -> None:
            body = request(5, "tools/call", {"name": "list_tasks", "arguments": {}})
            answers.append((await http.post("/mcp", json=body, headers=session)).json())

        for _ in range(20):
            async with anyio.create_task_group() as group:
                group.start_soon(ask)
                assert (await http.post("/mcp", json=cancel, headers=session)).status_code == 202
        odd_ids: list[object] = [[], {}, True, None, 5.0]
        for odd in odd_ids:
            odd_cancel = {**cancel, "params": {"requestId": odd}}
            assert (await http.post("/mcp", json=odd_cancel, headers=session)).status_code == 202
        assert (await http.post("/mcp", json=request(1, "ping", {}), headers=session)).status_code == 200
    for answer in answers:
        assert answer["id"] == 5
        assert ("result" in answer) or answer["error"] == {"code": -32800, "message": "Request cancelled"}
