"""The MCP face of the tools: lists, calls, resources, and what may be said when something fails."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

import anyio
import mcp_types as types
from mcp.server.caching import CacheHint
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel.server import Server
from mcp.shared.exceptions import MCPError

from mcp_server.tools import RESOURCES, Caller, Tools
from shared import jsons
from shared.ask_contract import listed
from shared.errors import PicoError
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
