"""What is packed is unpacked as it comes and cut at a bound, by every client of the host's."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import cache

import anyio.to_thread
import httpx2
import psutil
import pytest

from host.channels.base import ChannelFault
from host.channels.telegram.client import TelegramClient
from host.egress.addresses import AddressPolicy, PinnedTransport
from host.http.signed_tokens import Keys
from host.models.anthropic_model import AnthropicModel, make_client
from host.models.process import ModelConfig
from host.ports import Delta, ModelError
from host.telemetry.otel import LARGEST_ANSWER, bounded_session
from shared.settings.access import Jwt

pytestmark = pytest.mark.filterwarnings("ignore:Please use 'Bot")

MIB = 1024 * 1024
MESSAGE = {"content": [{"type": "text", "text": "whole"}], "stop_reason": "end_turn"}


def nobody(delta: Delta) -> None: ...


async def of_the_model(url: str) -> str:
    model = AnthropicModel(make_client(ModelConfig(api_key="key", base_url=url)))
    try:
        return (await model.reply({"model": "m", "max_tokens": 9, "messages": []}, nobody)).text
    finally:
        await model.aclose()


async def of_telegram(url: str) -> str:
    client = TelegramClient("1:a", url)
    try:
        return str((await client.call("getMe"))["text"])
    finally:
        await client.aclose()


async def of_telegrams_files(url: str) -> str:
    client = TelegramClient("1:a", url)
    try:
        return (await client.download("x")).decode()
    finally:
        await client.aclose()


async def of_mcp_and_sign_in(url: str) -> str:
    async with httpx2.AsyncClient(transport=PinnedTransport(AddressPolicy(any_address=True))) as http:
        return (await http.get(url)).text


KEYS = {
    "keys": [{"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo", "kid": "a"}]
}


async def of_an_identity_provider(url: str) -> str:
    keys = Keys(Jwt(issuer="https://issuer", audience="a", jwks_url=url))
    return "cut" if await keys.find("a", "EdDSA") is None else "whole"


CLIENTS: dict[Callable[[str], Awaitable[str]], str] = {
    of_the_model: json.dumps(MESSAGE),
    of_telegram: json.dumps({"ok": True, "result": {"text": "whole"}}),
    of_telegrams_files: "whole",
    of_mcp_and_sign_in: "whole",
    of_an_identity_provider: json.dumps(KEYS),
}


@asynccontextmanager
async def serving(body: bytes, encoding: str, kind: str = "application/json") -> AsyncIterator[str]:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-encoding: {encoding}\r\n"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        with suppress(ConnectionError):
            await reader.read()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listener:
        yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("Deflate", zlib.compress)])
async def test_a_packed_answer_is_read(
    client: Callable[[str], Awaitable[str]], encoding: str, pack: Callable[[bytes], bytes]
) -> None:
    async with serving(pack(CLIENTS[client].encode()), encoding) as url:
        assert await client(url) == "whole"


@cache
def bomb() -> bytes:
    """Return 0.4 MB that unpack to 400 MiB."""
    packed = zlib.compressobj(wbits=31)
    return b"".join(packed.compress(bytes(MIB)) for _ in range(400)) + packed.flush()


async def refused(client: Callable[[str], Awaitable[str]], url: str) -> bool:
    """Return whether an answer was not taken in, for good."""
    try:
        return await client(url) == "cut"
    except (ModelError, ChannelFault, httpx2.StreamError) as error:
        return not isinstance(error, ModelError) or not error.retryable


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("encoding", ["gzip", "gzip, gzip", "br", "zstd"])
async def test_what_unpacks_to_more_than_the_bound_is_refused_and_the_process_stays_its_size(
    client: Callable[[str], Awaitable[str]], encoding: str
) -> None:
    async with serving(bomb(), encoding) as url:
        before = psutil.Process().memory_info().rss
        assert await refused(client, url)
        assert psutil.Process().memory_info().rss - before < 160 * MIB


@pytest.mark.parametrize(("body", "kept"), [(bomb, LARGEST_ANSWER), (lambda: b"a few words", 11)])
async def test_of_a_collectors_answer_the_beginning_is_read_and_nothing_is_unpacked(
    body: Callable[[], bytes], kept: int
) -> None:
    async with serving(body(), "gzip") as url:
        before = psutil.Process().memory_info().rss
        with bounded_session() as session:
            answer = await anyio.to_thread.run_sync(session.post, url)
        assert len(answer.content) == kept
        assert psutil.Process().memory_info().rss - before < 160 * MIB


async def test_a_stream_of_events_that_is_a_line_without_an_end_is_cut() -> None:
    async with serving(gzip.compress(b"data: " + b"x" * 80 * MIB), "gzip", "text/event-stream") as url:
        with pytest.raises(ModelError, match="says too much"):
            await of_the_model(url)


async def test_what_cannot_be_unpacked_is_said() -> None:
    async with serving(b"no gzip at all", "gzip") as url:
        with pytest.raises(ModelError, match="can't be unpacked"):
            await of_the_model(url)
