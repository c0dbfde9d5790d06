"""What a connection may do before and beside its requests: heads, bodies, silence, number."""

from __future__ import annotations

import json
import re
import resource
import socket
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest

from tests.http.conftest import MakeHost
from tests.http.two_principals import SETTINGS, somebody
from tests.only_root import only_root
from tests.running import TOKEN, HostProcess, directive, plain_client, until

PATIENCE_S = 60.0
DESCRIPTORS = 300
KIB = 1024
POST = f"POST /chat HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\n".encode()
GET = b"GET /health HTTP/1.1\r\nHost: a\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"


def connect(host: HostProcess, sent: bytes = b"", *, receive_buffer: int = 0) -> socket.socket:
    peer = socket.socket()
    if receive_buffer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    peer.settimeout(PATIENCE_S)
    peer.connect(("127.0.0.1", host.port))
    # Whoever sends what is refused may see the reset before all of it is sent.
    with suppress(ConnectionResetError, BrokenPipeError):
        peer.sendall(sent)
    return peer


def everything(peer: socket.socket) -> bytes:
    """Return what the host says until it closes."""
    found = b""
    try:
        while piece := peer.recv(65536):
            found += piece
    except ConnectionResetError:
        pass
    peer.close()
    return found


def said(host: HostProcess, raw: bytes) -> bytes:
    return everything(connect(host, raw))


def status(answer: bytes) -> int:
    return int(answer[9:12] or 0)


def sum_of(text: str, name: str) -> float:
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))


def test_a_head_may_have_64_kib_and_100_headers_and_one_more_is_431_and_the_end(host: HostProcess) -> None:
    fits = GET + b"Connection: close\r\nX: " + b"a" * (64 * KIB - len(GET) - 26) + b"\r\n\r\n"
    assert len(fits) == 64 * KIB
    assert status(said(host, fits)) == 200
    many = b"".join(b"X-%d: a\r\n" % number for number in range(98))
    assert status(said(host, GET + b"Connection: close\r\n" + many + b"\r\n")) == 200
    oversized = [
        GET + b"X: " + b"a" * 64 * KIB,
        GET + b"X" * 70 * KIB,
        GET + many + b"Y: a\r\nZ: a\r\n\r\n",
        b"GET /" + b"a" * 70 * KIB,
        b"\r\n" * 40 * KIB,
        POST + b"X: " + b"a" * (3 * KIB * KIB),
    ]
    for raw in oversized:
        answer = said(host, raw)
        # A peer that goes on sending may see the reset before the answer.
        assert status(answer) in (431, 0), raw[:60]
        if answer:
            body = json.loads(answer.partition(b"\r\n\r\n")[2])
            assert set(body) == {"error", "code", "request_id"}
            assert body["code"] == "head_too_large"
    assert status(said(host, oversized[2])) == 431


def test_what_hides_between_the_pieces_of_a_body_is_bounded_and_never_a_header(host: HostProcess) -> None:
    chunk = b"2;%b\r\n{}\r\n"
    trailer = b"Authorization: Bearer wrong\r\n"
    whole = POST + CHUNKED + b"Connection: close\r\n\r\n" + chunk % b"a=b" + b"0\r\n" + trailer + b"\r\n"
    assert b"message: is required" in said(host, whole)
    for raw in (
        POST + CHUNKED + b"\r\n" + chunk % (b"x" * 200 * KIB),
        POST + CHUNKED + b"\r\n0\r\nX: " + b"a" * 200 * KIB,
    ):
        assert status(said(host, raw)) in (400, 0)


SMUGGLED = [
    CHUNKED + b"Content-Length: 2\r\n\r\n0\r\n\r\n",
    b"Content-Length: 2\r\n" + CHUNKED + b"\r\n0\r\n\r\n",
    b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
    b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    b"Content-Length: +2\r\n\r\n{}",
    b"Content-Length: 2, 2\r\n\r\n{}",
    b"Content-Length: 0x2\r\n\r\n{}",
    b"Content-Length: -1\r\n\r\n",
    b"Content-Length: 99999999999999999999999\r\n\r\n{}",
    b"Content-Length: 2\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n{}",
    b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    b"Transfer-Encoding: identity\r\n\r\n{}",
    b"Transfer-Encoding: identity\r\nContent-Length: 2\r\n\r\n{}",
    b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
    CHUNKED + CHUNKED + b"\r\n0\r\n\r\n",
    CHUNKED + b"\r\n0x2\r\n{}\r\n0\r\n\r\n",
    CHUNKED + b"\r\n2 \r\n{}\r\n0\r\n\r\n",
    CHUNKED + b"\r\n-2\r\n{}\r\n0\r\n\r\n",
    CHUNKED + b"\r\nFFFFFFFFFFFFFFFFF\r\n{}\r\n0\r\n\r\n",
    CHUNKED + b"\r\n2\r\n{}}\r\n0\r\n\r\n",
    CHUNKED + b"\r\n2\n{}\n0\n\n",
    CHUNKED + b"\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    b"X: a\r\n b\r\n\r\n",
    b" X: a\r\n\r\n",
    b"X: a\n\r\n",
    b"X: a\rY: b\r\n\r\n",
    b"X: a\x00b\r\n\r\n",
    b"X a: b\r\n\r\n",
    b"Host: b\r\n\r\n",
    b"Authorization: Bearer another\r\n\r\n",
    b"Idempotency-Key: one\r\nIdempotency-Key: two\r\n\r\n",
]


@pytest.mark.parametrize("rest", SMUGGLED)
def test_what_proxies_may_read_in_another_way_is_400_and_the_end(host: HostProcess, rest: bytes) -> None:
    answer = said(host, POST + rest + GET + b"\r\n")
    assert status(answer) == 400
    assert len(re.findall(rb"HTTP/1.1 \d", answer)) == 1


@pytest.mark.parametrize(
    "raw",
    [
        b"GET /health HTTP/1.1\r\n\r\n",
        b"GET /health\r\n\r\n",
        b"GET /health HTTP/2.0\r\nHost: a\r\n\r\n",
        b"GET /health HTTP/1.1\nHost: a\n\n",
        b"POST /chat HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_what_is_no_request_of_http_1_is_400_in_json_and_the_end(host: HostProcess, raw: bytes) -> None:
    answer = said(host, raw)
    assert status(answer) == 400
    assert b"\r\ncontent-type: application/json\r\n" in answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "invalid_request"


def test_requests_may_be_sent_ahead_but_not_without_end(host: HostProcess) -> None:
    last = GET + b"Connection: close\r\n\r\n"
    assert said(host, (GET + b"\r\n") * 20 + last).count(b"HTTP/1.1 200") == 21
    flood = said(host, (GET + b"\r\n") * 5000)
    assert flood.count(b"HTTP/1.1 200") <= 40


def test_a_request_that_was_sent_ahead_keeps_its_body(host: HostProcess) -> None:
    body = b'{"message": "hello"}'
    ahead = POST + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    answer = said(host, GET + b"\r\n" + ahead)
    assert b"echo: hello" in answer, answer


def test_a_garbled_request_does_not_stand_in_the_answer_to_an_earlier_one(host: HostProcess) -> None:
    body = json.dumps({"message": directive(text="fine", delay_ms=300)}).encode()
    answer = said(host, POST + b"Content-Length: %d\r\n\r\n" % len(body) + body + b"\x00\x01\r\n\r\n")
    assert status(answer) == 0


def test_silence_ends_in_bounded_time_at_every_place_and_what_moves_goes_on(host: HostProcess) -> None:
    """One wait for all: they take up to 30 s side by side."""
    reading_nothing = _reading_nothing(host)
    idle = connect(host)
    begun_head = connect(host, GET)
    second_head = connect(host, GET + b"\r\n" + GET[:10])
    trickle = connect(host, GET)
    held = connect(host, POST + b"Content-Length: 100\r\n\r\n{")
    unchunked = connect(host, POST + CHUNKED + b"\r\n2\r\n{")
    moving = connect(host, POST + b"Connection: close\r\nContent-Length: 44\r\n\r\n{")
    stranger = connect(host, b"POST /chat HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{")
    v1 = connect(host, POST.replace(b"/chat", b"/v1/chat/completions") + b"Content-Length: 100\r\n\r\n{")
    expects = connect(
        host, b"POST /chat HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 100\r\n\r\n"
    )
    for _ in range(4):
        time.sleep(8)
        moving.sendall(b" ")
        try:
            trickle.sendall(b"X: a\r\n")
        except OSError:
            break
    assert everything(idle) == b""
    for late in (begun_head, trickle):
        answer = everything(late)
        assert status(answer) in (408, 0)
    assert re.findall(rb"HTTP/1.1 (\d+)", everything(second_head)) == [b"200", b"408"]
    for late in (held, unchunked, v1):
        answer = everything(late)
        assert status(answer) == 408
        assert b"connection: close" in answer.lower()
        assert b"did not go on for 30 s" in answer
    for late in (stranger, expects):
        assert status(everything(late)) == 401
    moving.sendall(b' "message": "hello", "stream": false}    ')
    assert status(everything(moving)) == 200
    until(lambda: _metric(host, 'picoclaw_connections_cut_total{reason="slow_reader"}') > 0)
    reading_nothing.close()


def test_the_number_of_connections_is_bounded_and_the_oldest_idle_one_makes_room(make_host: MakeHost) -> None:
    host = make_host()
    host.command = ("bash", "-c", f"ulimit -n {DESCRIPTORS}; exec {' '.join(host.command)}")
    host.start()
    talking = host.client()
    hanging = {"message": directive(text="a", hang_after_deltas=1), "stream": True}
    with ExitStack() as stack:
        stream = stack.enter_context(talking.stream("POST", "/chat", json=hanging))
        pieces = stream.iter_lines()
        assert next(pieces)
        peers = [connect(host) for _ in range(3 * DESCRIPTORS)]
        with host.client() as client:
            text = client.get("/metrics").text
            assert client.get("/health").status_code == 200
            # Another process can still be made: a conversation's first tool, and the model's answer.
            assert client.post("/chat", json={"message": "hello"}).json()["status"] == "success"
        assert sum_of(text, "picoclaw_connections ") <= DESCRIPTORS / 2
        assert sum_of(text, 'picoclaw_connections_cut_total{reason="full"}') >= 2 * DESCRIPTORS
        assert host.log_text.count("there are too many") == 1
        assert peers[0].recv(1) == b""
        # What is being answered stays.
        assert next(pieces) is not None
    for peer in peers:
        peer.close()
    until(lambda: _metric(host, "picoclaw_connections ") < 20)
    talking.close()
    assert host.stop() == 0


def test_a_user_leaves_connections_for_others(make_host: MakeHost) -> None:
    host = make_host(settings=SETTINGS)
    host.command = ("bash", "-c", f"ulimit -n {DESCRIPTORS}; exec {' '.join(host.command)}")
    host.start()
    with somebody(host, "Ann") as ann, somebody(host, "Bob") as bob:
        told = ann.client.post("/chat", json={"message": directive(hang=True), "background": True}).json()
        path = f"/chat/{told['conversation_id']}/runs/{told['run_id']}/events"
        bearer = ann.client.headers["Authorization"]
        head = f"GET {path} HTTP/1.1\r\nHost: a\r\nAuthorization: {bearer}\r\n\r\n".encode()
        peers = [connect(host, head) for _ in range(DESCRIPTORS // 2)]
        answers = [status(peer.recv(12)) for peer in peers]
        assert (answers.count(200), answers.count(503)) == (DESCRIPTORS // 4, DESCRIPTORS // 4)
        refused = ann.client.get("/me")
        assert (refused.status_code, refused.json()["code"], refused.headers["retry-after"]) == (
            503,
            "busy",
            "1",
        )
        assert bob.client.get("/me").status_code == 200
        for peer in peers:
            peer.close()
        until(lambda: ann.client.get("/me").status_code == 200)
        assert ann.client.post(f"/chat/{told['conversation_id']}/cancel").status_code == 202


@only_root
def test_running_out_of_descriptors_does_not_end_the_host(make_host: MakeHost) -> None:
    host = make_host().start()
    assert host.process is not None
    used = len(list(Path(f"/proc/{host.process.pid}/fd").iterdir()))
    hard = resource.prlimit(host.process.pid, resource.RLIMIT_NOFILE)[1]
    resource.prlimit(host.process.pid, resource.RLIMIT_NOFILE, (used + 2, hard))
    peers = [connect(host) for _ in range(50)]
    for child in host.tree()[1:]:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    until(lambda: "could not be started" in host.log_text)
    for peer in peers:
        peer.close()
    resource.prlimit(host.process.pid, resource.RLIMIT_NOFILE, (hard, hard))

    def answers() -> bool:
        with host.client() as client:
            return bool(client.post("/chat", json={"message": "hello"}).json().get("status") == "success")

    until(answers)


def test_the_soft_limit_of_descriptors_is_raised_to_the_hard_one(make_host: MakeHost) -> None:
    host = make_host()
    host.command = ("bash", "-c", f"ulimit -Sn 256; exec {' '.join(host.command)}")
    host.start()
    assert host.process is not None
    soft, hard = resource.prlimit(host.process.pid, resource.RLIMIT_NOFILE)
    assert soft == min(hard, 1 << 20)


def _reading_nothing(host: HostProcess) -> socket.socket:
    """Ask for megabytes and take none; the first ones wait in the kernel."""
    answered = 'picoclaw_http_requests_total{method="GET",status="200"}'
    before = _metric(host, answered)
    document = GET.replace(b"/health", b"/openapi.json") + f"Authorization: Bearer {TOKEN}\r\n\r\n".encode()
    peer = connect(host, document * 32, receive_buffer=4096)
    for asked in (32, 64):
        until(lambda: _metric(host, answered) >= before + asked)  # noqa: B023
        peer.sendall(document * 32)
    return peer


def _metric(host: HostProcess, name: str) -> float:
    with host.client() as client:
        return sum_of(client.get("/metrics").text, name)


def test_a_peer_that_ends_its_side_is_gone(host: HostProcess) -> None:
    with plain_client() as client:
        before = client.get(f"{host.url}/health").status_code
    peer = connect(host, POST + b"Content-Length: 100\r\n\r\n{")
    peer.shutdown(socket.SHUT_WR)
    assert status(everything(peer)) == 0
    assert before == 200
