"""What a receiver of webhooks may do to whoever tells it something: a real one, byte by byte."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from host.egress import receivers
from host.egress.receivers import Answer, Receivers

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
BODY = b'{"type":"run.ended"}'


@asynccontextmanager
async def telling(serve: Serve) -> AsyncIterator[Callable[[], Awaitable[Answer]]]:
    """Yield what tells a receiver something, which serves each connection so."""
    client = Receivers(frozenset({"127.0.0.1"}), "1")
    ended = asyncio.Semaphore(0)
    began = 0

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal began
        began += 1
        with suppress(asyncio.IncompleteReadError, OSError):
            await serve(reader, writer)
            await writer.drain()
        with suppress(OSError):
            writer.close()
            await writer.wait_closed()
        ended.release()

    async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook?a=b"
        yield lambda: client.post(url, BODY, {"webhook-id": "evt-1"})
        await client.aclose()
        for _ in range(began):
            await ended.acquire()


async def request_of(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    return head + await reader.readexactly(len(BODY))


async def test_one_connection_serves_one_delivery_after_the_other() -> None:
    heard: list[list[bytes]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append([])
        while True:
            heard[-1].append(await request_of(reader))
            writer.write(OK)

    async with telling(serve) as tell:
        assert [(await tell()).status for _ in range(3)] == [200, 200, 200]
    ((first, *others),) = heard
    assert first.startswith(b"POST /hook?a=b HTTP/1.1\r\nHost: 127.0.0.1:")
    assert (first.endswith(b"\r\n\r\n" + BODY), b"webhook-id: evt-1\r\n" in first) == (True, True)
    assert others == [first, first]


@pytest.mark.parametrize("goodbye", [b"Connection: close\r\n", b""])
async def test_a_connection_that_the_receiver_ended_is_made_anew(goodbye: bytes) -> None:
    closed = asyncio.Semaphore(0)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(OK.replace(b"Content", goodbye + b"Content"))
        writer.close()
        closed.release()

    async with telling(serve) as tell:
        for _ in range(3):
            assert (await tell()).status == 200
            await closed.acquire()


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n" + OK, 200),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204),
        (b"HTTP/1.0 200 OK\r\n\r\nuntil the end", 200),
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/\r\nContent-Length: 0\r\n\r\n", 302),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", 200),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n" + b"x" * 200_000, 200),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\ncut", 200),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", None),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000 + b"\r\n\r\n", None),
        (b"220 mail.example.com ESMTP\r\n", None),
        (b"\x15\x03\x01\x00\x02\x02\x16", None),
        (b"", None),
    ],
)
async def test_whatever_a_receiver_says_is_a_status_or_a_short_sentence(
    said: bytes, status: int | None
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(said)

    async with telling(serve) as tell:
        for _ in range(2):
            answer = await tell()
            assert answer.status == status
            assert answer.error == (
                "its answer is not HTTP, or ended early" if status is None else f"HTTP {status}"
            )


async def test_a_receiver_that_stops_in_the_middle_of_its_answer_has_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(receivers, "WITHIN_S", 0.2)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(b"HTTP/1.1 503 Busy\r\nRetry-After: 7\r\nContent-Length: 9\r\n\r\n")
        await reader.read()

    async with telling(serve) as tell:
        assert await tell() == Answer(503, "HTTP 503", 7000)


async def test_nobody_there_is_a_sentence() -> None:

    client = Receivers(frozenset({"127.0.0.1"}), "1")
    answer = await client.post("http://127.0.0.1:1/", BODY, {})
    assert (answer.status, "127.0.0.1" in answer.error) == (None, True)
    closed = await client.post("https://10.0.0.1/", BODY, {})
    assert closed == Answer(None, "the address is not public")
