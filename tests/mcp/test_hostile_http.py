"""A hostile or broken client at /mcp: refused with a status and a sentence, and nobody else notices."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import anyio
import httpx2
import psutil
import pytest

from shared.tool_contract import tool_declarations
from tests.mcp.over_http import HELLO, RawHttp, envelope, new_token, request
from tests.mcp.test_hostile_stdio import NOT_MESSAGES
from tests.mcp.test_ownership import DAILY, DENIED, FOREIGN
from tests.only_root import only_root
from tests.running import HostProcess, running_host, until
from tests.warm_host import is_process

MIB = 1024 * 1024
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
HEADER_MISMATCH = -32020
UNSUPPORTED_VERSION = -32022


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    with running_host(tmp_path_factory.mktemp("host"), None) as host:
        yield host
        assert "Traceback" not in host.log_text


@pytest.fixture
def client(host: HostProcess) -> Iterator[RawHttp]:
    with RawHttp(host, new_token(host, "hostile")["token"]) as client:
        client.hello()
        yield client


def stateless_tool(client: RawHttp, name: str, arguments: dict[str, Any]) -> Any:
    return client.stateless("tools/call", {"name": name, "arguments": arguments}).json()["result"]


def in_session_tool(client: RawHttp, name: str, arguments: dict[str, Any]) -> Any:
    return client.tool(name, **arguments)


@pytest.mark.parametrize("call", [stateless_tool, in_session_tool])
def test_no_tool_serves_a_foreign_id(host: HostProcess, client: RawHttp, call: Any) -> None:
    assert set(FOREIGN) | {"list_tasks"} == set(tool_declarations(is_main=False))
    with RawHttp(host, new_token(host, "conv-a")["token"]) as owner:
        owner.hello()
        task = owner.tool("schedule_task", **DAILY)["structuredContent"]["id"]
        before = owner.tool("get_task", task_id=task)
        for tool, (arguments, expected) in FOREIGN.items():
            foreign = call(client, tool, arguments(task))
            assert foreign["isError"], tool
            assert expected in foreign["content"][0]["text"], tool
            assert call(client, tool, arguments("task-that-never-was"))["content"] == foreign["content"], tool
        assert task not in json.dumps(call(client, "list_tasks", {}))
        assert owner.tool("get_task", task_id=task) == before


def test_nothing_in_a_request_changes_who_is_asking(host: HostProcess, client: RawHttp) -> None:
    with RawHttp(host, new_token(host, "conv-a")["token"]) as owner:
        owner.hello()
        task = owner.tool("schedule_task", **DAILY)["structuredContent"]["id"]
    claims = {"conversation_id": "conv-a", "PICOCLAW_CONVERSATION_ID": "conv-a", "is_main": True}
    headers = {"x_conversation_id": "conv-a", "picoclaw_is_main": "1", "x_forwarded_user": "main"}
    params = {"name": "get_task", "arguments": {"task_id": task}}
    plain = client.say(request(1, "tools/call", {**params, "_meta": claims, **claims}), **headers)
    alone = client.stateless("tools/call", {**params, "_meta": {**envelope(), **claims}}, **headers)
    for answer in (plain, alone):
        assert answer.json()["result"]["content"][0]["text"] == DENIED
    client.session = None
    opened = client.hello(clientInfo={"name": "conv-a", "version": "1", **claims}, **claims)
    assert opened.status_code == 200
    assert client.tool("get_task", task_id=task)["content"][0]["text"] == DENIED


def test_a_body_that_is_no_message_is_refused_and_the_next_one_served(client: RawHttp) -> None:
    session = {"mcp_session_id": str(client.session)}
    bodies = [(line.rstrip(b"\n"), code) for line, code in NOT_MESSAGES if len(line) < MIB]
    assert len(bodies) > 10
    for body, code in [*bodies, (b"", -32700), (b"null", INVALID_REQUEST), (b"[]", INVALID_REQUEST)]:
        for headers in (session, {"mcp_protocol_version": "2026-07-28", "mcp_method": "ping"}):
            answer = client.post(body, **headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, code), body[:60]
    assert client.ask(1, "ping")["result"] == {}
    assert client.post(b"{}", **session, content_type="text/plain").status_code == 415


def test_a_message_of_ten_megabytes_is_too_large_and_one_of_four_is_not(client: RawHttp) -> None:
    def ping(size: int) -> bytes:
        empty = json.dumps(request(1, "ping", {"x": ""}), separators=(",", ":")).encode()
        return empty.replace(b'"x":""', b'"x":"' + b"x" * (size - len(empty)) + b'"')

    session = {"mcp_session_id": str(client.session)}
    assert len(ping(4 * MIB)) == 4 * MIB
    assert client.post(ping(10 * MIB), **session).status_code == 413
    assert client.post(ping(4 * MIB + 1), **session).status_code == 413
    assert client.post(ping(4 * MIB - 100), **session).json()["result"] == {}
    # Written anew by the host it is longer than what the tool server reads.
    answer = client.post(ping(4 * MIB), **session)
    assert answer.json()["error"] == {"code": INVALID_REQUEST, "message": "It is larger than 4 MiB."}
    for many in (b"1e9," * (MIB // 2), b"[]," * MIB, b'{"a":{}},' * (MIB // 4)):
        body = b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"x":[%s1]}}' % many
        answer = client.post(body, **session)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, -32700)
        assert "values" in answer.json()["error"]["message"]
    assert client.ask(1, "ping")["result"] == {}


def test_what_is_nested_too_deeply_is_refused(client: RawHttp) -> None:
    for depth in (200, 250, 300, 1000):
        body = json.dumps(request(1, "ping", {})).replace("{}", '{"x":' + "[" * depth + "]" * depth + "}")
        answer = client.post(body.encode(), mcp_session_id=str(client.session))
        assert answer.status_code in (200, 400)
        assert "result" in answer.json() or "error" in answer.json()
    assert client.ask(1, "ping")["result"] == {}


def test_an_unknown_method_is_refused_in_both_eras(client: RawHttp) -> None:
    for method in ("tools/destroy", "prompts/list", "sampling/createMessage", "", "__class__", "initialize2"):
        assert client.ask(1, method)["error"]["code"] == METHOD_NOT_FOUND, method
        answer = client.stateless(method)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, METHOD_NOT_FOUND), method
    assert client.stateless("initialize", HELLO).status_code == 404
    assert client.stateless("ping").status_code == 404


def test_headers_that_say_something_else_than_the_body_are_refused(client: RawHttp) -> None:
    call = {"name": "list_tasks", "arguments": {}}
    wrong: list[dict[str, str]] = [
        {"mcp_method": "tools/list"},
        {"mcp_name": "cancel_task"},
        {"mcp_name": "=?base64?AAAA?="},
        {"mcp_name": "=?base64?%?="},
    ]
    for headers in wrong:
        answer = client.stateless("tools/call", call, **headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, HEADER_MISMATCH), headers
    encoded = client.stateless("tools/call", call, mcp_name="=?base64?bGlzdF90YXNrcw==?=")
    assert encoded.json()["result"]["isError"] is False
    unknown = client.stateless(
        "tools/list", {"_meta": envelope("2030-01-01")}, mcp_protocol_version="2030-01-01"
    )
    assert unknown.json()["error"]["code"] == UNSUPPORTED_VERSION
    assert unknown.json()["error"]["data"]["supported"] == ["2026-07-28"]
    assert client.stateless("tools/list", {"_meta": {}}).status_code == 400
    # The broken ones have not settled anything for those that follow.
    assert client.stateless("tools/list").status_code == 200


async def test_an_id_in_use_is_refused_in_its_session_and_free_in_others(host: HostProcess) -> None:
    headers = {"Authorization": f"Bearer {new_token(host, 'twice')['token']}"}
    async with httpx2.AsyncClient(base_url=host.url, headers=headers, trust_env=False, timeout=60) as http:
        sessions = [
            (await http.post("/mcp", json=request(0, "initialize", HELLO))).headers["mcp-session-id"]
            for _ in range(2)
        ]
        answers: dict[str, list[httpx2.Response]] = {session: [] for session in sessions}

        async def say(session: str, text: str) -> None:
            body = request(7, "tools/call", {"name": "send_message", "arguments": {"text": text}})
            answers[session].append(await http.post("/mcp", json=body, headers={"Mcp-Session-Id": session}))

        async with anyio.create_task_group() as group:
            for number in range(20):
                for session in sessions:
                    group.start_soon(say, session, f"{session} {number}")
    for session in sessions:
        served = [answer.json() for answer in answers[session] if answer.status_code == 200]
        refused = [answer.json() for answer in answers[session] if answer.status_code == 400]
        assert len(served) >= 1
        assert len(served) + len(refused) == 20
        assert {answer["id"] for answer in served} == {7}
        assert {answer["error"]["message"] for answer in refused} <= {"The request id is in use."}


@only_root
def test_a_client_that_sends_half_and_goes_away_leaves_nothing(host: HostProcess, client: RawHttp) -> None:
    token = client.http.headers["authorization"]
    head = f"POST /mcp HTTP/1.1\r\nHost: localhost\r\nAuthorization: {token}\r\n"
    body = json.dumps(request(1, "tools/call", {"name": "send_message", "arguments": {"text": "half"}}))
    session = f"Mcp-Session-Id: {client.session}\r\nContent-Type: application/json\r\n"
    halves = [
        head,
        head + session + f"Content-Length: {len(body)}\r\n\r\n{body[:-5]}",
        head + session + f"Transfer-Encoding: chunked\r\n\r\n{len(body):x}\r\n{body[:-5]}",
        head + session + "Content-Length: 99999999999999999999\r\n\r\n",
        head + session + "Content-Length: -1\r\n\r\n",
        "POST /mcp HTTP/1.1\r\nHost: a\r\nHost: b\r\n"
        + f"Authorization: {token}\r\nContent-Length: 0\r\n\r\n",
    ]
    assert host.process is not None
    process = psutil.Process(host.process.pid)
    before = process.num_fds()
    for half in halves * 5:
        with socket.create_connection(("127.0.0.1", host.port), timeout=60) as peer:
            peer.sendall(half.encode())
    until(lambda: process.num_fds() <= before)
    with host.client() as owner:
        assert "half" not in owner.get("/chat/hostile/messages").text
    assert client.ask(1, "ping")["result"] == {}


def test_a_tool_server_that_is_killed_costs_one_answer_at_most(host: HostProcess, client: RawHttp) -> None:
    assert client.tool("list_tasks")["isError"] is False
    for process in host.tree():
        if is_process(process, "mcp_server.zygote") and process.children() == []:
            process.kill()
    until(lambda: "result" in client.ask(1, "tools/list"))
    assert client.tool("list_tasks")["isError"] is False


@only_root
async def test_a_thousand_sessions_leave_no_process_no_descriptor_and_no_memory(host: HostProcess) -> None:
    assert host.process is not None
    process = psutil.Process(host.process.pid)
    tokens = [new_token(host, f"many-{number}")["token"] for number in range(4)]

    async def open_and_use(http: httpx2.AsyncClient, token: str, times: int) -> list[str]:
        headers = {"Authorization": f"Bearer {token}"}
        opened = []
        for _ in range(times):
            hello = await http.post("/mcp", json=request(0, "initialize", HELLO), headers=headers)
            opened.append(hello.headers["mcp-session-id"])
            session = {**headers, "Mcp-Session-Id": opened[-1]}
            assert (await http.post("/mcp", json=request(1, "ping", {}), headers=session)).status_code == 200
        return opened

    async def round_of(times: int) -> dict[str, list[str]]:
        opened: dict[str, list[str]] = {}
        async with httpx2.AsyncClient(base_url=host.url, trust_env=False, timeout=60) as http:

            async def one(token: str) -> None:
                opened[token] = await open_and_use(http, token, times)

            async with anyio.create_task_group() as group:
                for token in tokens:
                    group.start_soon(one, token)
        return opened

    await round_of(64)
    descriptors, children = process.num_fds(), len(process.children(recursive=True))
    memory = process.memory_full_info().uss
    opened = await round_of(250)
    assert len({session for sessions in opened.values() for session in sessions}) == 1000
    until(lambda: process.num_fds() <= descriptors)
    assert len(process.children(recursive=True)) <= children
    assert process.memory_full_info().uss - memory < 4 * MIB
    with RawHttp(host, tokens[0]) as one:

        def status(session: str) -> int:
            one.session = session
            return one.say(request(1, "ping", {})).status_code

        # The newest of a token are there; its older ones and those of other tokens are not.
        assert [status(session) for session in opened[tokens[0]][-70:]] == [404] * 6 + [200] * 64
        assert {status(session) for session in opened[tokens[1]][-10:]} == {404}
