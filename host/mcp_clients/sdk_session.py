"""A session with someone else's MCP server, on the SDK's client. Importing this takes half a second."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

import anyio
import httpx2
import mcp_types as types
from anyio.abc import ByteStream, ObjectReceiveStream, ObjectSendStream
from mcp.client import Client, sse
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import sse_within_origin
from mcp.shared.inbound import find_invalid_x_mcp_header
from mcp.shared.message import SessionMessage
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import TypeAdapter, ValidationError

from host.egress.addresses import AddressPolicy, PinnedTransport
from host.egress.bounded import MESSAGE_LIMIT, TooMuch, messages
from host.mcp_clients.listed_tools import for_the_sdk
from host.mcp_clients.outcomes import Heard, quoted, resource_result, tool_result
from host.mcp_clients.server_config import ServerConfig
from host.ports import ToolResult
from host.sandbox.supervisor import Program
from shared import jsons

if TYPE_CHECKING:
    from mcp.client._transport import ReadStream, TransportStreams
    from mcp.shared.dispatcher import ProgressFnT

    from host.mcp_clients.toolset import Teller

Spawn = Callable[[Sequence[str], Mapping[str, str]], AbstractAsyncContextManager[ByteStream]]
"""Runs a command confined, with this environment and nothing of the host's; yields stdin and stdout.

Leaving the context ends the program with everything it started.
"""


MOST_PAGES: Final = 100
MOST_TOOLS: Final = 1000
CONNECT_SECONDS: Final = 10.0
SHOWN: Final = 1000
"""Bytes of a line that is no message, at most; fewer characters of them are told."""
LINE_END: Final = re.compile(rb"\n")
_BLOCK: Final = TypeAdapter[types.ContentBlock](types.ContentBlock)
REJECTED: Final = -1
"""What the protocol has a person's "no" to sampling be."""

# What the SDK says about a broken server is told to the caller as a problem; its tracebacks are noise.
logging.getLogger("mcp").setLevel(logging.CRITICAL)
logging.getLogger("client").setLevel(logging.CRITICAL)

# The SDK takes this limit for one of its two HTTP transports alone.
sse.sse_within_origin = partial(sse_within_origin, max_event_size=MESSAGE_LIMIT)  # type: ignore[attr-defined] # see above


class TooManyTools(Exception):
    """The server's list of tools doesn't end."""


def connected(
    config: ServerConfig, policy: AddressPolicy, spawn: Spawn | None, heard: Heard, tell: Teller
) -> Client:
    """Return a client, to be entered: its handshake raises what the SDK and the network raise."""
    return Client(
        _mending(_transport(config, policy, spawn, heard), heard),
        client_info=types.Implementation(name="picoclaw", version="1"),
        cache=None,
        log_level="info",
        **_callbacks(heard, tell),
    )


async def listed(client: Client, heard: Heard) -> list[Any]:
    """Return the tools of all pages as the server wrote them; raises TooManyTools."""
    heard.tools, heard.changed = [], False
    cursors: list[str] = []
    while True:
        page = await client.list_tools(cursor=cursors[-1] if cursors else None)
        following = page.next_cursor or ""  # some say the end with an empty one
        endless = following in cursors or (following and len(cursors) + 1 >= MOST_PAGES)
        if endless or len(heard.tools) > MOST_TOOLS:
            raise TooManyTools
        if not following:
            return heard.tools
        cursors.append(following)


def header_fault(raw: Mapping[str, Any]) -> str | None:
    """Return what is wrong with what a listed tool wants repeated in headers (x-mcp-header)."""
    return find_invalid_x_mcp_header(raw.get("inputSchema"))


async def called(
    client: Client, tool: str, arguments: Mapping[str, Any], progressed: ProgressFnT, meta: Mapping[str, Any]
) -> tuple[ToolResult, Any]:
    """Return a tool's result as the model may see it, and its structured content.

    Raises what the SDK and the network raise.
    """
    result = await client.call_tool(
        tool, dict(arguments), progress_callback=progressed, meta=cast(types.RequestParamsMeta, meta)
    )
    return await anyio.to_thread.run_sync(tool_result, result), result.structured_content


async def read(client: Client, uri: str) -> ToolResult:
    """Return a resource as the model may see it; raises what the SDK and the network raise."""
    return resource_result(await client.read_resource(uri))


async def follow(client: Client, heard: Heard) -> None:
    """Hear of changes of the list of tools, where the protocol's version wants a subscription for that."""
    offered = client.server_capabilities.tools
    if client.protocol_version in MODERN_PROTOCOL_VERSIONS and offered and offered.list_changed:
        with suppress(Exception):  # then changes are seen by the next run
            async with client.listen(tools_list_changed=True) as events:
                async for _ in events:
                    heard.changed = True


def _callbacks(heard: Heard, tell: Teller) -> dict[str, Any]:
    """Return what hears the server when it speaks first; what it asks for is declined."""

    async def elicited(context: object, params: types.ElicitRequestParams) -> types.ElicitResult:
        form, url = {}, ""
        if isinstance(params, types.ElicitRequestURLParams):
            url = params.url
        else:
            form = params.requested_schema
        given = await tell.ask(params.message, form, url)
        if given is None:
            return types.ElicitResult(action="decline")
        return types.ElicitResult(action="accept", content=None if url else dict(given))

    async def sampled(context: object, params: object) -> types.ErrorData:
        tell.warn("wanted to use the model (sampling), which is not possible here: it was declined")
        return types.ErrorData(code=REJECTED, message="The user rejected the sampling request")

    async def logged(params: types.LoggingMessageNotificationParams) -> None:
        tell.log(params.level, params.data)

    async def heard_of(message: object) -> None:
        heard.changed |= isinstance(message, types.ToolListChangedNotification)

    return {
        "elicitation_callback": elicited,
        "sampling_callback": sampled,
        "logging_callback": logged,
        "message_handler": heard_of,
    }


@asynccontextmanager
async def _mending(
    transport: AbstractAsyncContextManager[TransportStreams], heard: Heard
) -> AsyncIterator[TransportStreams]:
    async with transport as (incoming, outgoing):
        yield _Mending(incoming, heard), outgoing


class _Mending(ObjectReceiveStream[SessionMessage | Exception]):
    """What a server says, on its way to the SDK: lists of tools are kept aside and made sound, what a result
    holds that the SDK doesn't know costs that alone, and an answer that is none ends its request.
    """

    def __init__(self, incoming: ReadStream[SessionMessage | Exception], heard: Heard) -> None:
        self._incoming = incoming
        self._heard = heard

    @property
    def last_context(self) -> object:
        return getattr(self._incoming, "last_context", None)

    async def receive(self) -> SessionMessage | Exception:
        try:
            item = await self._incoming.receive()
        except anyio.EndOfStream:
            if self._heard.fault:
                self._heard.end = f"{self._heard.fault}: nothing more of it is read in this run"
            raise
        if isinstance(item, ValidationError):
            return _refused(item)
        if isinstance(item, SessionMessage) and isinstance(item.message, types.JSONRPCResponse):
            result = item.message.result
            if isinstance(result.get("tools"), list):
                self._heard.tools += result["tools"]
                result["tools"] = [made for raw in result["tools"] if (made := for_the_sdk(raw))]
            if isinstance(result.get("content"), list):
                result["content"] = [_known(raw) for raw in result["content"]]
            elif "content" not in result and isinstance(result.get("structuredContent"), dict):
                result["content"] = []
        return item

    async def aclose(self) -> None:
        await self._incoming.aclose()


def _known(raw: Any) -> Any:
    """Return a block of a result as it is, or a line in place of one that the SDK doesn't know."""
    try:
        _BLOCK.validate_python(raw, by_name=False)
    except ValidationError:
        said = f"[content that the protocol does not know was left out: {quoted(_plain(raw))}]"
        return {"type": "text", "text": said}
    return raw


def _refused(error: ValidationError) -> SessionMessage | Exception:
    """Return what is no message as an error of the request that it answers, if it answers one."""
    said = error.errors()[0]["input"]
    if not isinstance(said, dict) or "method" in said or not isinstance(said.get("id"), int | str):
        return error
    fault = types.ErrorData(code=types.PARSE_ERROR, message=_plain(said))
    return SessionMessage(types.JSONRPCError(jsonrpc="2.0", id=said["id"], error=fault))


def _plain(said: Any) -> str:
    return jsons.dumps(said) if jsons.fits(said) else "what is nested too deeply"


def _transport(
    config: ServerConfig, policy: AddressPolicy, spawn: Spawn | None, heard: Heard
) -> AbstractAsyncContextManager[TransportStreams]:
    if config.type == "stdio":
        if spawn is None:
            raise PermissionError("no sandbox to run the program in")
        return _program(spawn, config, heard)
    if config.type == "sse":
        return _sse(config, policy, heard)
    return _streamable(config, policy, heard)


def _http_client(config: ServerConfig, policy: AddressPolicy, heard: Heard) -> httpx2.AsyncClient:
    timeout = httpx2.Timeout(CONNECT_SECONDS, read=max(config.timeout_ms / 1000, CONNECT_SECONDS) + 5)
    return httpx2.AsyncClient(
        transport=PinnedTransport(policy, heard.refuse),
        # What is compressed can't be bounded before it is unpacked.
        headers={"Accept-Encoding": "identity", **config.headers},
        auth=None if config.sign_in is None else config.sign_in.auth(),
        timeout=timeout,
        trust_env=False,
        event_hooks={"response": [heard.note]},
    )


@asynccontextmanager
async def _streamable(
    config: ServerConfig, policy: AddressPolicy, heard: Heard
) -> AsyncIterator[TransportStreams]:
    async with (
        _http_client(config, policy, heard) as http,
        streamable_http_client(config.url, http_client=http, max_sse_event_size=MESSAGE_LIMIT) as streams,
    ):
        yield streams


@asynccontextmanager
async def _sse(config: ServerConfig, policy: AddressPolicy, heard: Heard) -> AsyncIterator[TransportStreams]:
    def make(*_: object, **__: object) -> httpx2.AsyncClient:
        return _http_client(config, policy, heard)

    async with sse.sse_client(config.url, httpx_client_factory=make) as streams:
        yield streams


@asynccontextmanager
async def _program(spawn: Spawn, config: ServerConfig, heard: Heard) -> AsyncIterator[TransportStreams]:
    """Speak the stdio framing with a confined program."""
    said_by_it, incoming = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    outgoing, said = anyio.create_memory_object_stream[SessionMessage](0)
    async with (
        said_by_it,
        incoming,
        outgoing,
        said,
        spawn((config.command, *config.args), config.env) as pipe,
        anyio.create_task_group() as group,
    ):
        group.start_soon(_until_gone, partial(_hear, pipe, said_by_it, heard))
        group.start_soon(_until_gone, partial(_say, pipe, said))
        yield incoming, outgoing
        group.cancel_scope.cancel()


async def _hear(pipe: ByteStream, to_sdk: ObjectSendStream[SessionMessage | Exception], heard: Heard) -> None:
    async with to_sdk:
        try:
            async for line in messages(pipe, LINE_END):
                if line.endswith(b"\n") and line.strip():
                    await to_sdk.send(_message(line, heard))
        except TooMuch as error:
            heard.refuse(str(error))
            return
        heard.last_words = await pipe.extra(Program.last_words, _nothing)()  # noqa: S610 - no Django


async def _nothing() -> str:
    return ""


async def _say(pipe: ByteStream, said: ObjectReceiveStream[SessionMessage]) -> None:
    async for item in said:
        text = item.message.model_dump_json(by_alias=True, exclude_unset=True)
        await pipe.send(text.encode() + b"\n")


async def _until_gone(work: Callable[[], Awaitable[None]]) -> None:
    try:
        await work()
    except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError, TooMuch):
        return


def _message(line: bytes, heard: Heard) -> SessionMessage | Exception:
    try:
        return SessionMessage(types.jsonrpc_message_adapter.validate_json(line, by_name=False))
    except ValidationError as error:
        said = quoted(line[:SHOWN].decode("utf-8", "replace"))
        heard.noise = f"; it said what is no message of the protocol: {said}"
        return error
