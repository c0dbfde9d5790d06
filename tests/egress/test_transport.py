"""The transport under the SDK against httpx's own, byte by byte, and what it does with its connections."""

from __future__ import annotations

import asyncio
import gzip
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from host.egress import transport
from host.egress.transport import ApiTransport
from host.models.anthropic_model import AnthropicModel, make_client
from host.models.process import ModelConfig
from host.ports import ModelError
from shared.clock import at, now_ms
from tests.models.test_models import ask, failure, request
from tests.models.test_odd_servers import TEXT, events, stream

SAID = stream(*events(TEXT)).encode()
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
SIZED = HEAD + b"content-length: %d\r\n" % len(SAID)
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n"
HALF = b"%x\r\n%b\r\n" % (len(SAID) // 2, SAID[: len(SAID) // 2])
REST = b"%X;more=1\r\n%b\r\n" % (len(SAID) - len(SAID) // 2, SAID[len(SAID) // 2 :])
REFUSED = b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno"

ANNOUNCED = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n"
SWITCHED = b"HTTP/1.1 101 Switching\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n"
ENDLESS = 60_000_000

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

ANSWERS = {
    "sized": SIZED + b"\r\n" + SAID,
    "in chunks, with extensions": CHUNKED + b"\r\n" + HALF + REST + b"0\r\n\r\n",
    "with spaces behind a chunk's size": CHUNKED + b"\r\n%x  \r\n%b\r\n0\r\n\r\n" % (len(SAID), SAID),
    "with trailers": CHUNKED + b"\r\n" + HALF + REST + b"0\r\nx-digest: abc\r\n\r\n",
    "up to the end of the connection": HEAD + b"\r\n" + SAID,
    "sized and in chunks": CHUNKED + b"content-length: 3\r\n\r\n" + HALF + REST + b"0\r\n\r\n",
    "of HTTP/1.0": SIZED.replace(b"1.1", b"1.0") + b"\r\n" + SAID,
    "without a reason": SIZED.replace(b"200 OK", b"200") + b"\r\n" + SAID,
    "with lines that end in LF": SIZED.replace(b"\r\n", b"\n") + b"\n" + SAID,
    "after others that announce it": ANNOUNCED + SIZED + b"\r\n" + SAID,
    "packed": HEAD + b"content-encoding: gzip\r\n\r\n" + gzip.compress(SAID),
    "packed as nobody asked": HEAD + b"content-encoding: br\r\n\r\n" + SAID,
    "with a long head": SIZED + b"x: %b\r\n\r\n" % (b"a" * 90_000) + SAID,
    "with letters of Latin-1": SIZED + b"x-name: \xe4\xf6\r\n\r\n" + SAID,
    "elsewhere": b"HTTP/1.1 302 Found\r\nlocation: /other\r\ncontent-length: 0\r\n\r\n",
    "a refusal": b"HTTP/1.1 429 No\r\nretry-after: 3\r\ncontent-type: text/plain\r\n\r\nslow down",
    "with no content": b"HTTP/1.1 204 No Content\r\n\r\n",
    "twice": (SIZED + b"\r\n" + SAID) * 2,
    "cut in the head": SIZED,
    "cut in the body": SIZED + b"\r\n" + SAID[:-9],
    "cut in a chunk": CHUNKED + b"\r\n" + HALF + REST[:-20],
    "cut between chunks": CHUNKED + b"\r\n" + HALF,
    "nothing": b"",
    "of another protocol": b"SSH-2.0-OpenSSH_9.6\r\n",
    "with a size that is no number": CHUNKED + b"\r\n" + HALF + b"zz\r\n",
    "with a length that is no number": HEAD + b"content-length: many\r\n\r\n" + SAID,
    "with a head without end": HEAD + b"x: %b" % (b"a" * 900_000),
    "with a trailer without end": CHUNKED + b"\r\n" + HALF + REST + b"0\r\nx: %b" % (b"a" * 900_000),
    "with another protocol from now on": SWITCHED + b"hi",
}


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": True}


@asynccontextmanager
async def server(serve: Serve, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """Serve each connection so; yield the address."""

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        except OSError:
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(one, "127.0.0.1", 0, ssl=tls) as listener:
        yield f"http{'s' if tls else ''}://127.0.0.1:{listener.sockets[0].getsockname()[1]}"


async def read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].split()[0])
    return head + await reader.readexactly(length)


@asynccontextmanager
async def model_at(url: str, **more: Any) -> AsyncIterator[AnthropicModel]:
    config = ModelConfig(api_key=more.pop("key", "key"), base_url=url, **more)
    model = AnthropicModel(make_client(config), silence_s=config.silence_s)
    try:
        yield model
    finally:
        await model.aclose()


async def outcome(url: str, **more: Any) -> Any:
    async with model_at(url, **more) as model:
        try:
            return await ask(model, request())
        except ModelError as error:
            return vars(error)


async def both(url: str, monkeypatch: pytest.MonkeyPatch, **more: Any) -> list[Any]:
    """Return what comes of a request by our transport, and by the SDK's own client, as with a proxy."""
    ours = await outcome(url, **more)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return [ours, await outcome(url, **more)]


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
async def test_an_answer_is_read_as_httpx_reads_it(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(answer)

    async with server(serve) as url:
        ours, theirs = await both(url, monkeypatch)
    assert ours == theirs


@pytest.mark.parametrize("answer", [b"", SIZED, SIZED + b"\r\n" + SAID[:-9], CHUNKED + b"\r\n" + HALF])
async def test_silence_and_a_reset_are_the_failures_that_they_are_with_httpx(
    answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(answer)
        await reader.read()

    async def resetting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(answer)
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    # What has begun may wait for its next piece alone: a busy machine makes no other failure of it.
    waits = {"silence_s": 0.2} if answer.endswith(SAID[9:-9]) or HALF in answer else {"timeout_s": 0.3}
    for serve, within in ((silent, waits), (resetting, {})):
        async with server(serve) as url:
            with monkeypatch.context() as there:
                ours, theirs = await both(url, there, **within)
        assert ours == theirs
        assert ours["retryable"]


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1", "http://nowhere.invalid", "ftp://127.0.0.1", "http://" + "a" * 70]
)
async def test_what_cannot_be_reached_is_the_same_failure(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = await both(url, monkeypatch)
    assert ours == theirs
    assert ours["retryable"]


def certificate(path: Path, name: str = "127.0.0.1") -> ssl.SSLContext:
    """Make a certificate of one's own; return how a server shows it."""
    key = ec.generate_private_key(ec.SECP256R1())
    named = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ours")])
    made = (
        x509.CertificateBuilder(named, named, key.public_key(), x509.random_serial_number())
        .not_valid_before(at(now_ms() - 3_600_000))
        .not_valid_after(at(now_ms() + 3_600_000))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(name))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(made.public_bytes(Encoding.PEM))
    path.with_suffix(".key").write_bytes(secret)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(path, path.with_suffix(".key"))
    return context


async def test_a_server_is_believed_by_the_operators_certificates_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(transport, "KEPT_S", 600.0)
    kept = Kept()
    right, another = certificate(tmp_path / "right"), certificate(tmp_path / "another", "127.0.0.2")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "right"))
    async with server(kept, right) as url, model_at(url) as model:
        for _ in range(2):
            assert (await ask(model, request()))[0].text == "done"
    assert len(kept.writers) == 1
    for trusted, shown in (("another", right), ("another", another)):
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / trusted))
        async with server(kept, shown) as url:
            with monkeypatch.context() as there:
                ours, theirs = await both(url, there)
        assert ours == theirs
        assert ours["message"] == "The model API could not be reached."


async def test_a_key_with_the_end_of_a_line_in_it_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    came: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.append(await reader.read())

    async with server(serve) as url:
        ours, theirs = await both(url, monkeypatch, key="key\r\nx-more: yes")
    assert b"".join(came) == b""
    assert ours == theirs


async def test_a_refusal_that_comes_before_the_request_was_read_is_heard() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(REFUSED)
        await writer.drain()
        await reader.read()

    async with server(serve) as url, model_at(url) as model:
        error = await failure(model, request("x" * 20_000_000))
    assert error.status == 413


async def test_a_server_that_does_not_read_is_waited_for_only_so_long() -> None:
    over = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await over.wait()

    async with server(serve) as url, model_at(url, timeout_s=0.3) as model:
        error = await failure(model, request("x" * 20_000_000))
        over.set()
    assert str(error) == "The model API did not answer in time."


class Kept:
    """Answers requests on connections that stay; counts them. ``more``: what comes behind each answer."""

    def __init__(self, more: bytes = b"", head: bytes = SIZED) -> None:
        self.answer = head + b"\r\n" + SAID + more
        self.heads: list[bytes] = []
        self.writers: list[asyncio.StreamWriter] = []
        self.ended = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        try:
            while not reader.at_eof():
                self.heads.append(await read_request(reader))
                writer.write(self.answer)
        except asyncio.IncompleteReadError:
            self.ended.set()


async def test_a_connection_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "KEPT_S", 600.0)
    kept = Kept()
    async with server(kept) as url, model_at(url) as model:
        for _ in range(3):
            await ask(model, request())
    assert (len(kept.writers), len(kept.heads)) == (1, 3)


async def test_a_connection_that_its_server_ended_meanwhile_is_not_used_again() -> None:
    kept = Kept()
    async with server(kept) as url, model_at(url) as model:
        await ask(model, request())
        kept.writers[0].close()
        await kept.writers[0].wait_closed()
        await ask(model, request())
    assert len(kept.writers) == 2


@pytest.mark.parametrize(
    "kept", [Kept(more=b"HTTP/1.1 408 Late\r\n\r\n"), Kept(head=SIZED + b"connection: close\r\n")]
)
async def test_a_connection_is_closed_when_more_came_or_its_server_will_close_it(kept: Kept) -> None:
    async with server(kept) as url, model_at(url) as model:
        for _ in range(2):
            assert (await ask(model, request()))[0].text == "done"
    assert len(kept.writers) == 2


async def test_a_connection_that_nobody_uses_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "KEPT_S", 0.1)
    kept = Kept()
    async with server(kept) as url, model_at(url) as model:
        await ask(model, request())
        with anyio.fail_after(60):
            await kept.ended.wait()


async def test_a_silent_connection_is_kept_alive_by_tcp() -> None:
    async with server(Kept()) as url:
        _, _, port = url.rpartition(":")
        with await transport.dialled("localhost", int(port)) as dialled:
            asked = (
                dialled.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
                dialled.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
            )
    assert asked == (1, 60)


async def test_an_answer_that_nobody_reads_is_held_up_by_the_network() -> None:
    sent = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await read_request(reader)
        writer.write(HEAD + b"\r\n")
        while sent < ENDLESS:
            writer.write(b"x" * 65_000)
            await writer.drain()
            sent += 65_000

    async with server(serve) as url, httpx2.AsyncClient(transport=ApiTransport()) as client:
        async with client.stream("POST", url, content=b"{}") as response:
            before = -1
            while before != sent:  # until the server can send no more
                before = sent
                await anyio.sleep(0.3)
            taken = sum([len(piece) async for piece in response.aiter_bytes()])
    assert before < ENDLESS <= taken
