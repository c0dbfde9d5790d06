"""The MCP face of the tools: lists, calls, resources, what may be said when something fails.

An outside agent's asks are passed on to the running host, which serves them for whom the server was born.
"""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import anyio
import mcp_types as types
from mcp.server.caching import CacheHint
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.lowlevel.server import Server
from mcp.shared.exceptions import MCPError
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from mcp_server import session_request
from mcp_server.session_request import Identity
from mcp_server.tools import RESOURCES, Caller, Tools
from shared import jsons
from shared.ask_contract import ASK_TOOLS, TASK_METHODS, TASKS, ask_listing, listed
from shared.errors import PicoError, Suspended
from shared.principals import PrincipalStatus
from shared.store.store import Store
from shared.tool_contract import SERVER_NAME, ToolDeclaration, tool_declarations

logger = logging.getLogger("picoclaw.mcp")

Context = ServerRequestContext[Any, Any]
Paging = types.PaginatedRequestParams | None
INTERNAL = "The tool failed inside; the reason is in the server's log."
LISTS: Final = ("tools/list", "resources/list", "resources/templates/list")
INSTRUCTIONS = (
    "Tools of a PicoClaw conversation: send messages to its people and manage its scheduled tasks. "
    "Times in results are UTC, those of fields that end in _local are in the task's time zone."
)


def build_server(tools: Tools, caller: Caller, *, version: str) -> Server[Any]:
    """Return the protocol server of one session, for both protocol eras."""
    declared = tool_declarations(is_main=caller.is_main, is_operator=caller.is_operator)
    tools_listed = types.ListToolsResult.model_validate({"tools": [*map(listed, declared.values())]})
    pages = types.ListResourcesResult(resources=list(RESOURCES))

    async def list_tools(context: Context, params: Paging) -> types.ListToolsResult:
        return tools_listed

    async def call_tool(context: Context, params: types.CallToolRequestParams) -> types.CallToolResult:
        declaration = declared.get(params.name)
        if declaration is None:
            raise MCPError(code=types.INVALID_PARAMS, message="Unknown tool.")
        return await _call(tools, declaration, params.arguments or {})

    async def list_resources(context: Context, params: Paging) -> types.ListResourcesResult:
        return pages

    async def list_templates(context: Context, params: Paging) -> types.ListResourceTemplatesResult:
        return types.ListResourceTemplatesResult(resource_templates=[])

    async def read_resource(
        context: Context, params: types.ReadResourceRequestParams
    ) -> types.ReadResourceResult:
        return await _read(tools, str(params.uri))

    server = Server[Any](
        SERVER_NAME,
        version=version,
        title="PicoClaw",
        instructions=INSTRUCTIONS,
        cache_hints=dict.fromkeys(LISTS, CacheHint(ttl_ms=3_600_000)),
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        on_list_resources=list_resources,
        on_list_resource_templates=list_templates,
        on_read_resource=read_resource,
    )
    # No exporter is configured in a tool server, so tracing would only cost time.
    server.middleware.clear()
    return server


async def _call(
    tools: Tools, declaration: ToolDeclaration, arguments: Mapping[str, Any]
) -> types.CallToolResult:
    # What was committed has happened: a client that cancels must not leave it between commit and volume.
    with anyio.CancelScope(shield=not declaration.read_only):
        try:
            result = await tools.call(declaration, arguments)
        except PicoError as error:
            return _failed(error.message)
        except Exception:
            # Whatever it is, its text must not reach the client.
            logger.exception("tool %s failed", declaration.name)
            return _failed(INTERNAL)
    text = types.TextContent(type="text", text=jsons.dumps(result))
    return types.CallToolResult(content=[text], structured_content=result)


def _failed(sentence: str) -> types.CallToolResult:
    return types.CallToolResult(content=[types.TextContent(type="text", text=sentence)], is_error=True)


async def _read(tools: Tools, uri: str) -> types.ReadResourceResult:
    try:
        text = await tools.read(uri)
    except PicoError as error:
        raise MCPError(code=types.INVALID_PARAMS, message=error.message) from None
    except Exception:
        logger.exception("a resource could not be read")
        raise MCPError(code=types.INTERNAL_ERROR, message=INTERNAL) from None
    if text is None:
        raise MCPError(code=types.INVALID_PARAMS, message="Unknown resource.", data={"uri": uri})
    contents = types.TextResourceContents(uri=uri, mime_type="application/json", text=text)
    return types.ReadResourceResult(contents=[contents])


LONGEST: Final = 16 * 1024 * 1024
"""Longest answer that is read, in bytes."""
NO_HOST: Final = "No host is running: start one on the same store, then ask again."
LOST: Final = "The host ended before it answered; the run may go on when it is back."
STARTING_S: Final = (0.0, 0.3, 0.9)
"""Pauses before the tries to reach the host."""
CANCEL: Final = b"cancel\n"

Report = Callable[[float, float | None, str], Awaitable[None]]
"""Tells the client how far its request is, if it asked to hear that."""


class Asking:
    """A middleware of an outside agent's server: adds what the host serves, while its principal may act."""

    def __init__(self, identity: Identity, store: Store) -> None:
        self._identity = identity
        self._store = store

    async def __call__(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        """Serve a request."""
        method, params = ctx.method, ctx.params or {}
        await self._check_active()
        if method in TASK_METHODS or (method == "tools/call" and params.get("name") in ASK_TOOLS):
            result = await self._ask(method, params, ctx.session.report_progress)
            modern = ctx.protocol_version in MODERN_PROTOCOL_VERSIONS
            return {"resultType": "complete", **result} if modern else result
        served: Any = await call_next(ctx)
        if method == "tools/list":
            served["tools"] = [*served["tools"], *ask_listing()]
        elif method == "server/discover":
            served["capabilities"]["extensions"] = {TASKS: {}}
        return served  # type: ignore[no-any-return]  # what the runner serialized: a dict

    async def _check_active(self) -> None:
        whose = self._identity.principal_id
        principal = await self._store.principals.get(whose)
        if principal is None or principal.status is not PrincipalStatus.ACTIVE:
            raise MCPError(code=types.INVALID_REQUEST, message=Suspended(whose).message)

    async def _ask(self, method: str, params: Mapping[str, Any], report: Report) -> dict[str, Any]:
        peer = await self._line()
        if peer is None:
            return _no_answer(method, NO_HOST)
        answer = await _answer(peer, jsons.dump_bytes({"method": method, "params": params}), report)
        if answer is None:
            return _no_answer(method, LOST)
        if "error" in answer:
            raise MCPError.from_error_data(types.ErrorData.model_validate(answer["error"]))
        result: dict[str, Any] = answer["result"]
        return result

    async def _line(self) -> socket.socket | None:
        """Return a line to the host, None if there is no host; one that starts has its process soon."""
        for pause in STARTING_S:
            await anyio.sleep(pause)
            ours, theirs = socket.socketpair()
            with theirs:
                try:
                    session_request.hand_over(self._identity, [theirs.fileno()] * 3, to_host=True).close()
                except OSError:
                    ours.close()
                else:
                    return ours
        return None


async def _answer(peer: socket.socket, request: bytes, report: Report) -> dict[str, Any] | None:
    """Return what the host says to a line, None if it goes away first; report how far it is until then."""
    reader, writer = await asyncio.open_connection(sock=peer, limit=LONGEST)
    try:
        writer.write(request + b"\n")
        while line := await reader.readline():
            said: dict[str, Any] = jsons.loads(line)
            if "progress" not in said:
                return said
            await report(said["progress"], None, said["message"])
    except ConnectionError:
        pass
    except anyio.get_cancelled_exc_class():
        writer.write(CANCEL)
        raise
    finally:
        writer.close()
    return None


def _no_answer(method: str, sentence: str) -> dict[str, Any]:
    """Return an error result, or raise a protocol error where a method has no such result."""
    if method != "tools/call":
        raise MCPError(code=types.INTERNAL_ERROR, message=sentence)
    return {"content": [{"type": "text", "text": sentence}], "isError": True}
