"""The client of the SDK's first generation, or fastmcp's, against a tool server: prints what it saw as JSON.

Run by an interpreter that has only that package. Arguments: ``mcp1`` or ``fastmcp``; TOOL_SERVER in the
environment is ``{"url", "headers"}`` or ``{"command", "args", "env"}``.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
from contextlib import AsyncExitStack
from typing import Any


async def mcp1(server: dict[str, Any]) -> dict[str, Any]:
    mcp = importlib.import_module("mcp")
    http = importlib.import_module("mcp.client.streamable_http")
    async with AsyncExitStack() as stack:
        if "url" in server:
            client = http.create_mcp_http_client(headers=server["headers"])
            opened = http.streamable_http_client(server["url"], http_client=client)
        else:
            opened = mcp.stdio_client(mcp.StdioServerParameters(**server))
        read, write, *_ = await stack.enter_async_context(opened)
        session = await stack.enter_async_context(mcp.ClientSession(read, write))
        hello = await session.initialize()
        tools = (await session.list_tools()).tools
        said = await session.call_tool("send_message", {"text": "from the past"})
        refused = await session.call_tool("get_task", {"task_id": "foreign"})
        read_back = await session.read_resource("picoclaw://conversation")
        return {
            "version": hello.protocolVersion,
            "tools": [tool.name for tool in tools],
            "said": said.structuredContent,
            "refused": [refused.isError, refused.content[0].text],
            "conversation": json.loads(read_back.contents[0].text),
        }


async def fastmcp(server: dict[str, Any]) -> dict[str, Any]:
    package = importlib.import_module("fastmcp")
    transports = importlib.import_module("fastmcp.client.transports")
    if "url" in server:
        transport = transports.StreamableHttpTransport(**server)
    else:
        transport = transports.StdioTransport(**server)
    async with package.Client(transport) as client:
        tools = await client.list_tools()
        said = await client.call_tool("send_message", {"text": "from the side"})
        refused = await client.call_tool("get_task", {"task_id": "foreign"}, raise_on_error=False)
        (content,) = await client.read_resource("picoclaw://conversation")
        return {
            "version": None,
            "tools": [tool.name for tool in tools],
            "said": said.structured_content,
            "refused": [refused.is_error, refused.content[0].text],
            "conversation": json.loads(content.text),
        }


if __name__ == "__main__":
    look = {"mcp1": mcp1, "fastmcp": fastmcp}[sys.argv[1]]
    print(json.dumps(asyncio.run(look(json.loads(os.environ["TOOL_SERVER"])))))
