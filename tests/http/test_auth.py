"""Who may call, in what order things are checked, and what every answer carries."""

from __future__ import annotations

import gzip
import json
import re

import httpx2
import pytest

from tests.http.conftest import MakeHost
from tests.running import TOKEN, HostProcess, until

LIMIT = 1024 * 1024


WRONG = ["", "Bearer", "Bearer wrong", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x", "Bearer \xff"]
PATHS = [
    ("GET", "/chat"),
    ("POST", "/chat"),
    ("GET", "/no/such/path"),
    ("GET", "//health"),
    ("GET", "/health/"),
]


def test_a_missing_or_wrong_token_is_unauthorized_everywhere(make_host: MakeHost) -> None:
    host = make_host().start()
    with host.client(None) as client:
        wrong = [client.get("/chat", headers=[(b"Authorization", it.encode("latin-1"))]) for it in WRONG]
        missing = [client.request(method, path) for method, path in PATHS]
    for answer in [*wrong, *missing]:
        assert answer.status_code == 401, answer.request
        assert answer.json()["error"] == "Unauthorized"
        assert answer.headers["www-authenticate"] == "Bearer"


def test_nothing_is_parsed_for_a_caller_without_a_token(host: HostProcess) -> None:
    with host.client(None) as client:
        answer = client.post("/chat", content=b"{not json", headers={"Content-Type": "text/plain"})
        assert answer.status_code == 401


def test_without_a_configured_token_only_health_and_ready_answer(make_host: MakeHost) -> None:
    host = make_host(settings={"API_TOKEN": "", "ALLOW_NO_TOKEN_500": "1"}).start()
    with host.client() as client:
        assert client.get("/health").status_code == 200
        for path in ("/chat", "/tasks", "/nowhere"):
            answer = client.get(path)
            assert answer.status_code == 500
            assert answer.json()["error"] == "API_TOKEN is not configured"


def test_the_previous_token_still_works_while_it_is_rotated(make_host: MakeHost) -> None:
    host = make_host(settings={"API_TOKEN_PREVIOUS": "the-token-before"}).start()
    with host.client("the-token-before") as client:
        assert client.get("/chat").status_code == 200


def test_after_twenty_failures_in_a_minute_an_address_has_to_wait(make_host: MakeHost) -> None:
    host = make_host().start()
    with host.client("wrong") as client:
        # What a caller says of its address changes nothing.
        answers = [client.get("/chat", headers={"X-Forwarded-For": f"10.0.0.{n}"}) for n in range(22)]
    assert [answer.status_code for answer in answers] == [401] * 20 + [429] * 2
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 60
    # Strangers and a program with an old token don't lock out who has a good one, nor do they get in.
    with host.client() as client:
        bound = client.post("/tokens", json={"conversation_id": "laptop"}).json()["token"]
        assert client.get("/chat").status_code == 200
    hello = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {}}
    for token, status in (("wrong", 429), (bound, 200), ("pico_wrong", 429)):
        with host.client(token) as client:
            assert client.post("/mcp", json=hello).status_code == status


def test_every_answer_carries_an_id_and_the_build_and_no_server(client: httpx2.Client) -> None:
    given = client.get("/chat", headers={"X-Request-ID": "my.id-1_2"})
    assert given.headers["x-request-id"] == "my.id-1_2"
    for bad in ("white space", "x" * 129, "a/b"):
        made = client.get("/chat", headers={"X-Request-ID": bad}).headers["x-request-id"]
        assert re.fullmatch(r"req-[0-9a-f-]{36}", made)
    assert given.headers["x-build-version"]
    assert given.headers["x-build-commit"]
    assert "server" not in given.headers


def test_errors_are_json_with_a_sentence_a_code_and_the_request_id(client: httpx2.Client) -> None:
    missing = client.get("/no/such/path", headers={"X-Request-ID": "r1"})
    assert missing.status_code == 404
    assert set(missing.json()) == {"error", "code", "request_id"}
    assert missing.json()["request_id"] == "r1"
    wrong = client.patch("/chat")
    assert wrong.status_code == 405
    assert wrong.json()["code"] == "method_not_allowed"


def test_a_body_over_one_mebibyte_is_too_large_and_one_of_exactly_that_is_not(client: httpx2.Client) -> None:
    def body(size: int) -> bytes:
        empty = len(json.dumps({"message": "", "conversation_id": "conv-none"}))
        return json.dumps({"message": "x" * (size - empty), "conversation_id": "conv-none"}).encode()

    headers = {"Content-Type": "application/json"}
    assert len(body(LIMIT)) == LIMIT
    assert client.post("/chat", content=body(LIMIT), headers=headers).status_code == 404
    assert client.post("/chat", content=body(LIMIT + 1), headers=headers).status_code == 413

    def pieces() -> object:
        yield body(LIMIT)
        yield b" "

    chunked = client.post("/chat", content=pieces(), headers=headers)  # type: ignore[arg-type] # any iterable will do
    assert chunked.status_code == 413
    assert chunked.json()["code"] == "body_too_large"


def test_a_body_that_is_declared_as_something_else_is_refused(client: httpx2.Client) -> None:
    answer = client.post("/chat", content=b'{"message": "hi"}', headers={"Content-Type": "text/plain"})
    assert answer.status_code == 415


@pytest.mark.parametrize(
    ("method", "path", "kind"),
    [
        ("POST", "/chat", "application/json"),
        ("POST", "/mcp", "application/json"),
        ("PUT", "/chat/main/files/compressed.txt", "application/octet-stream"),
        ("POST", "/chat/main/files", "multipart/form-data; boundary=b"),
    ],
)
def test_a_body_that_was_compressed_is_refused_and_not_kept_as_it_is(
    client: httpx2.Client, method: str, path: str, kind: str
) -> None:
    headers = {"Content-Type": kind, "Content-Encoding": "gzip"}
    answer = client.request(method, path, content=gzip.compress(b'{"message": "hi"}'), headers=headers)
    assert answer.status_code == 415
    assert "Content-Encoding: send the body without compression" in answer.text
    assert client.get("/chat/main/files/compressed.txt").status_code == 404


def test_health_reveals_no_path_no_token_and_no_value(host: HostProcess) -> None:
    with host.client(None) as client:
        answer = client.get("/health")
    assert answer.status_code == 200
    body = answer.json()
    assert body["status"] == "ok"
    assert set(body) == {
        "status",
        "version",
        "commit",
        "build_time",
        "max_execution_ms",
        "database",
        "store",
        "volumes",
        "scheduler",
        "sandbox",
        "channels",
        "approvals",
    }
    assert set(body["volumes"]) == {"memory", "skills", "sessions", "store"}
    # The host of these tests began with an empty STORE_DIR.
    assert body["store"]["new"] is True
    assert len(body["store"]["id"]) == 32
    assert str(host.root) not in answer.text
    assert TOKEN not in answer.text


def test_the_access_log_has_a_line_a_request_and_no_body_and_no_probes(host: HostProcess) -> None:
    with host.client() as client:
        client.get("/ready")
        client.get("/health")
        client.post(
            "/chat",
            json={"message": "a very private remark", "conversation_id": "conv-none"},
            headers={"X-Request-ID": "log-me"},
        )
    # The answer leaves before its line is written.
    until(lambda: "log-me" in host.log_text)
    lines = [json.loads(line) for line in host.log_text.splitlines() if "log-me" in line]
    assert [(line["method"], line["path"], line["status"]) for line in lines] == [("POST", "/chat", 404)]
    assert "private remark" not in host.log_text
    assert '"/ready"' not in host.log_text
    assert '"/health"' not in host.log_text
    assert TOKEN not in host.log_text
