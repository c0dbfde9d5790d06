"""What a server says by itself: progress, logs, requests of its own, another list of tools."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import anyio
import pytest
from mcp.server.mcpserver import Context, MCPServer

from host.agent.own_tools import RationedTools
from host.agent.toolbox import Toolbox
from host.mcp_clients.external import Reach
from host.mcp_clients.server_config import ServerConfig
from host.mcp_clients.toolset import Relay
from host.ports import ToolResult
from shared.redact import Redactor
from tests.mcp.odd_servers import OddServer, tool
from tests.mcp.other_servers import listening
from tests.mcp.test_external_servers import LOCAL, call, opened
from tests.mcp.test_odd_servers import odd

WINDOW = 20_000


def speaking_server() -> MCPServer:
    server = MCPServer("speaking")

    @server.tool()
    async def slow(context: Context) -> str:
        for step in range(6):
            await context.report_progress(step, 6, f"step {step}")
            await anyio.sleep(0.5)
        return "done"

    return server


async def test_progress_is_told_and_keeps_a_call_alive() -> None:
    told: list[tuple[str, Mapping[str, Any]]] = []
    relay = Relay(progressed=lambda name, data: told.append((name, data)))
    reach = Reach(allowed_hosts=LOCAL.allowed_hosts, relay=relay)
    async with listening(speaking_server().streamable_http_app()) as base:
        config = ServerConfig(type="http", url=f"{base}/mcp", timeout_ms=2_000)
        async with opened(reach, s=config) as found:
            assert (await call(found, "mcp__s__slow")).text == "done"
            assert told[0] == ("mcp__s__slow", {"progress": 0.0, "total": 6.0, "message": "step 0"})
            assert 1 < len(told) < 6


async def test_what_a_server_asks_of_a_person_or_the_model_is_declined_and_the_run_says_so() -> None:
    schema = {"type": "object", "properties": {}}
    message = {"role": "user", "content": {"type": "text", "text": "hi"}}
    asked: dict[str, Any] = {
        "elicitation/create": {"message": "Who?", "requestedSchema": schema},
        "sampling/createMessage": {"messages": [message], "maxTokens": 9},
    }
    before = [{"id": method, "method": method, "params": params} for method, params in asked.items()]
    server = OddServer([tool("a")], as_event=True, before=before)
    warnings: list[str] = []
    async with odd(server, Reach(allowed_hosts=LOCAL.allowed_hosts, relay=Relay(warnings.append))) as found:
        await call(found, "mcp__odd__a")
        with anyio.fail_after(60):
            while not server.replies.keys() >= asked.keys():
                await anyio.lowlevel.checkpoint()
    assert server.replies["elicitation/create"]["result"]["action"] == "decline"
    assert server.replies["sampling/createMessage"]["error"]["code"] == -1
    assert {warning.partition(",")[0] for warning in warnings} == {
        "The MCP server odd wanted to ask a person something (elicitation)",
        "The MCP server odd wanted to use the model (sampling)",
    }


async def test_tools_that_come_or_change_during_a_run_are_offered_at_the_next_step() -> None:
    server = OddServer([tool("old")])
    async with odd(server) as found:
        box = Toolbox(found.toolsets, Redactor(()))
        rationed = RationedTools(box, WINDOW, found.renewed)
        rationed.offer(found.toolsets)
        before = box.definitions()
        await rationed.renew()
        assert box.definitions() == before
        server.tools = [tool("new"), tool("other")]
        found._links[0].heard.changed = True
        await rationed.renew()
        assert [each["name"] for each in box.definitions()] == [
            "mcp__odd__new",
            "mcp__odd__other",
            "read_resource",
        ]
        assert not (await box.call("mcp__odd__new", {})).is_error


async def test_tools_beyond_a_tenth_of_the_window_are_named_and_brought_when_wanted() -> None:
    listed = [
        tool(f"t{number}", description=f"Counts kind{number}. {'Long. ' * 500}") for number in range(40)
    ]
    async with odd(OddServer(listed)) as found:
        box = Toolbox((), Redactor(()))
        rationed = RationedTools(box, WINDOW, found.renewed)
        rationed.offer(found.toolsets)
        child = box.subset([spec.name for toolset in found.toolsets for spec in toolset.specs])
        (finder,) = box.definitions()
        assert finder["name"] == "find_tools"
        assert "mcp__odd__t7: Counts kind7.\n" in finder["description"]
        assert len(finder["description"]) < WINDOW
        assert "mcp__odd__t7" in (await box.call("find_tools", {"query": "something of kind7"})).text
        assert (await box.call("find_tools", {"query": "zebra"})).is_error
        await box.call("find_tools", {"query": "mcp__odd__t3, mcp__odd__t4"})
        assert [each["name"] for each in box.definitions()][:3] == [f"mcp__odd__t{n}" for n in (3, 4, 7)]
        assert len(child.definitions()) == 3
        assert (await box.call("mcp__odd__t7", {})).text == "hello"


async def test_a_server_that_hung_is_not_waited_for_and_comes_when_it_answers() -> None:
    server = OddServer([tool("a")], mute=True)
    reach = Reach(allowed_hosts=LOCAL.allowed_hosts, connect_seconds=0.5)
    async with listening(server.app()) as base:
        config = ServerConfig(type="http", url=f"{base}/mcp", trusted=True)
        async with opened(reach, odd=config) as found:
            assert "did not answer within 0.5 s" in found.problems[0]
        server.mute = False
        async with opened(reach, odd=config) as found:
            assert "it is asked again beside the run" in found.problems[0]
            await found._links[0]._settled.wait()
            (toolset,) = [each for each in await found.renewed() if each in found.toolsets]
            assert await toolset.call("mcp__odd__a", {}) == ToolResult("hello")
        async with opened(reach, odd=config) as found:
            assert found.problems == []


async def test_what_a_server_logs_goes_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    note = {"method": "notifications/message", "params": {"level": "error", "data": "disk\nfull"}}
    server = OddServer([tool("a")], as_event=True, before=[note])
    with caplog.at_level(logging.INFO, "picoclaw.mcp"):
        async with odd(server) as found:
            await call(found, "mcp__odd__a")
            with anyio.fail_after(60):
                while "disk" not in caplog.text:
                    await anyio.lowlevel.checkpoint()
    assert 'The MCP server odd logs (error): "\\"disk' in caplog.text.replace('""', '"\\"')
