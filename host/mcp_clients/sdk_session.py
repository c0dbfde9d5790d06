"""A session with someone else's MCP server, on the SDK's client. Importing this takes half a second."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import anyio
import httpx2
import mcp_types as types
from anyio.abc import ByteStream, ObjectReceiveStream, ObjectSendStream
from mcp.client import Client
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.message import SessionMessage
from pydantic import ValidationError

from host.egress.addresses import AddressPolicy, PinnedTransport
from host.egress.listener import MESSAGE_LIMIT, Listener, TooMuch
from host.mcp_clients.json_rpc import RESULT_LIMIT, cut
from host.mcp_clients.server_config import ServerConfig
from host.ports import Image, ToolResult
from shared import jsons

if TYPE_CHECKING:
    from mcp.client._transport import TransportStreams

Spawn = Callable[[Sequence[str], Mapping[str, str]], AbstractAsyncContextManager[ByteStream]]
"""Runs a command confined, with this environment and nothing of the host's; yields stdin and stdout.

Leaving the context ends the program with everything it started.
"""


MOST_PAGES: Final = 20
MOST_TOOLS: Final = 256
CONNECT_SECONDS: Final = 10.0

# What the SDK says about a broken server is told to the caller as a problem; its tracebacks are noise.
logging.getLogger("mcp").setLevel(logging.CRITICAL)


class TooManyTools(Exception):
    """The server's list of tools doesn't end."""


@asynccontextmanager
async def connected(
    config: ServerConfig, policy: AddressPolicy, spawn: Spawn | None
) -> AsyncIterator[Client]:
    """Yield a client whose handshake is done; raises what the SDK and the network raise."""
    me = types.Implementation(name="picoclaw", version="1")
    seconds = config.timeout_ms / 1000
    transport = _transport(config, policy, spawn)
    async with Client(transport, client_info=me, read_timeout_seconds=seconds, cache=None) as client:
        yield client


async def listed(client: Client) -> list[types.Tool]:
    """Return all tools of all pages; raises TooManyTools."""
    tools: list[types.Tool] = []
    cursor: str | None = None
    for _ in range(MOST_PAGES):
        page = await client.list_tools(cursor=cursor)
        tools += page.tools
        cursor = page.next_cursor
        if len(tools) > MOST_TOOLS:
            raise TooManyTools
        if cursor is None:
            return tools
    raise TooManyTools


async def called(client: Client, tool: str, arguments: Mapping[str, Any], seconds: float) -> ToolResult:
    """Return a tool's result as the model may see it; raises what the SDK and the network raise."""
    return tool_result(await client.call_tool(tool, dict(arguments), seconds))


def tool_result(result: types.CallToolResult) -> ToolResult:
    """Return text up to the limit, images unlooked at, and structured content without a text."""
    texts = [text for block in result.content if (text := _text(block)) is not None]
    if not any(isinstance(block, types.TextContent) for block in result.content):
        texts += [] if result.structured_content is None else [jsons.dumps(result.structured_content)]
    images = tuple(
        Image(block.data, block.mime_type)
        for block in result.content
        if isinstance(block, types.ImageContent)
    )
    return ToolResult(cut("\n".join(texts)), is_error=result.is_error, images=images)


def _text(block: types.ContentBlock) -> str | None:
    match block:
        case types.TextContent():
            return block.text
        case types.ImageContent():
            return None
        case types.AudioContent():
            return f"[audio of type {block.mime_type[:64]} that can't be played]"
        case types.ResourceLink():
            return f"[resource {block.uri[:RESULT_LIMIT]}]"
        case types.EmbeddedResource(resource=types.TextResourceContents() as resource):
            return resource.text
        case types.EmbeddedResource():
            return f"[binary resource {block.resource.uri[:RESULT_LIMIT]}]"


def _transport(
    config: ServerConfig, policy: AddressPolicy, spawn: Spawn | None
) -> AbstractAsyncContextManager[TransportStreams]:
    if config.type == "stdio":
        if spawn is None:
            raise PermissionError("no sandbox to run the program in")
        return _program(spawn, config)
    if config.type == "sse":
        return _sse(config, policy)
    return _streamable(config, policy)


def _http_client(config: ServerConfig, policy: AddressPolicy) -> httpx2.AsyncClient:
    timeout = httpx2.Timeout(CONNECT_SECONDS, read=max(config.timeout_ms / 1000, CONNECT_SECONDS) + 5)
    return httpx2.AsyncClient(
        transport=PinnedTransport(policy),
        # What is compressed can't be bounded before it is unpacked.
        headers={"Accept-Encoding": "identity", **config.headers},
        timeout=timeout,
        trust_env=False,
    )


@asynccontextmanager
async def _streamable(config: ServerConfig, policy: AddressPolicy) -> AsyncIterator[TransportStreams]:
    async with (
        _http_client(config, policy) as http,
        streamable_http_client(config.url, http_client=http) as streams,
    ):
        yield streams


@asynccontextmanager
async def _sse(config: ServerConfig, policy: AddressPolicy) -> AsyncIterator[TransportStreams]:
    def make(
        headers: dict[str, str] | None = None,
        timeout: httpx2.Timeout | None = None,
        auth: httpx2.Auth | None = None,
    ) -> httpx2.AsyncClient:
        return _http_client(config, policy)

    async with sse_client(config.url, httpx_client_factory=make) as streams:
        yield streams


@asynccontextmanager
async def _program(spawn: Spawn, config: ServerConfig) -> AsyncIterator[TransportStreams]:
    """Speak the stdio framing with a confined program."""
    heard, incoming = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    outgoing, said = anyio.create_memory_object_stream[SessionMessage](0)
    async with (
        heard,
        incoming,
        outgoing,
        said,
        spawn((config.command, *config.args), config.env) as pipe,
        anyio.create_task_group() as group,
    ):
        group.start_soon(_until_gone, partial(_hear, pipe, heard))
        group.start_soon(_until_gone, partial(_say, pipe, said))
        yield incoming, outgoing
        group.cancel_scope.cancel()


async def _hear(pipe: ByteStream, heard: ObjectSendStream[SessionMessage | Exception]) -> None:
    async with heard:
        async for message in _messages(pipe):
            await heard.send(message)


async def _say(pipe: ByteStream, said: ObjectReceiveStream[SessionMessage]) -> None:
    async for item in said:
        text = item.message.model_dump_json(by_alias=True, exclude_unset=True)
        await pipe.send(text.encode() + b"\n")


async def _until_gone(work: Callable[[], Awaitable[None]]) -> None:
    try:
        await work()
    except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError, TooMuch):
        return


async def _messages(pipe: ByteStream) -> AsyncIterator[SessionMessage | Exception]:
    """Yield what a program says, line by line; one that says too much is not listened to any more."""
    rest, listener = b"", Listener()
    async for chunk in pipe:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.strip():
                await listener.check(line)
                yield _message(line)
        if len(rest) > MESSAGE_LIMIT:
            return


def _message(line: bytes) -> SessionMessage | Exception:
    try:
        return SessionMessage(types.jsonrpc_message_adapter.validate_json(line, by_name=False))
    except ValidationError as error:
        return error
