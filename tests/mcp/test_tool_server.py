"""The tool server through the official client, in both protocol eras."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from mcp.client.client import ConnectMode
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult, TextContent, TextResourceContents

from shared import jsons
from shared.ask_contract import ASK_TOOLS
from shared.clock import now_ms
from shared.principals import EVERYTHING
from shared.store.store import Store
from shared.tool_contract import tool_declarations
from tests.json_schema import validator
from tests.mcp.running import RawServer, environment, official_client

# It comes without types, so it is imported as what it is.

ERAS: tuple[ConnectMode, ...] = ("legacy", "auto", "2026-07-28")
MINUTELY = {"prompt": "look at the weather", "schedule_type": "interval", "schedule_value": "60000"}


def sentence(result: CallToolResult) -> str:
    assert result.is_error
    (block,) = result.content
    assert isinstance(block, TextContent)
    return block.text


def value(result: CallToolResult) -> Any:
    assert not result.is_error, result.content
    return result.structured_content


@pytest.mark.parametrize("era", ERAS)
async def test_every_tool_works_in_every_protocol_era(database: Path, era: ConnectMode) -> None:
    async with official_client(database, "conv-a", mode=era) as client:
        # A client that pins a version of the modern era never asks who the server is.
        asked = client.server_info is not None and client.server_info.name == "picoclaw"
        assert asked or era == "2026-07-28"
        names = [tool.name for tool in (await client.list_tools()).tools]
        assert names == [*tool_declarations(is_main=False), *ASK_TOOLS]
        said = value(await client.call_tool("send_message", {"text": "hello", "sender": "Ada"}))
        assert (said["conversation_id"], said["sender"]) == ("conv-a", "Ada")
        task = value(await client.call_tool("schedule_task", MINUTELY))
        name = {"task_id": task["id"]}
        listed = value(await client.call_tool("list_tasks", {}))
        assert [found["id"] for found in listed["tasks"]] == [task["id"]]
        assert value(await client.call_tool("get_task", name)) == task
        assert value(await client.call_tool("list_task_runs", name)) == {"runs": [], "next_cursor": None}
        assert value(await client.call_tool("pause_task", name))["status"] == "paused"
        assert value(await client.call_tool("list_tasks", {"status": "active"}))["tasks"] == []
        assert value(await client.call_tool("resume_task", name))["status"] == "active"
        changed = value(await client.call_tool("update_task", {**name, "prompt": "look again"}))
        assert (changed["prompt"], changed["schedule_value"]) == ("look again", "60000")
        gone = value(await client.call_tool("cancel_task", name))
        assert gone == {"task_id": task["id"], "cancelled": True}
        assert sentence(await client.call_tool("get_task", name)) == "Task not found or access denied."


async def test_results_satisfy_their_declared_schema_and_the_text_is_the_same_json(database: Path) -> None:
    async with official_client(database, "conv-a") as client:
        task = value(await client.call_tool("schedule_task", MINUTELY))
        arguments = {
            "send_message": {"text": "x"},
            "schedule_task": MINUTELY,
            "list_tasks": {},
            "update_task": {"task_id": task["id"], "timezone": "Asia/Shanghai"},
        }
        for tool in (await client.list_tools()).tools:
            if tool.name in ASK_TOOLS:
                continue  # the host's, see test_asks.py
            result = await client.call_tool(tool.name, arguments.get(tool.name, {"task_id": task["id"]}))
            validator(tool.output_schema).validate(value(result))
            (block,) = result.content
            assert isinstance(block, TextContent)
            assert jsons.loads(block.text) == result.structured_content


async def test_hints_say_what_a_tool_may_do(database: Path) -> None:
    async with official_client(database, "conv-a") as client:
        hints = {tool.name: tool.annotations for tool in (await client.list_tools()).tools}
    readers = {"list_tasks", "get_task", "list_task_runs", "get_run"}
    assert {name for name, hint in hints.items() if hint and hint.read_only_hint} == readers
    assert {name for name, hint in hints.items() if hint and hint.destructive_hint} == {
        "ask",
        "cancel_task",
        "update_task",
    }
    assert all(hint and hint.open_world_hint is False for hint in hints.values())


@pytest.mark.parametrize("era", ERAS)
async def test_both_resources_are_listed_and_read(database: Path, era: ConnectMode) -> None:
    async with official_client(database, "conv-a", mode=era) as client:
        task = value(await client.call_tool("schedule_task", MINUTELY))
        listed = [resource.uri for resource in (await client.list_resources()).resources]
        assert listed == ["picoclaw://conversation", "picoclaw://tasks"]
        read = []
        for uri in listed:
            (content,) = (await client.read_resource(uri)).contents
            assert isinstance(content, TextResourceContents)
            read.append(jsons.loads(content.text))
        assert (read[0]["conversation_id"], read[0]["is_main"]) == ("conv-a", False)
        assert [found["id"] for found in read[1]["tasks"]] == [task["id"]]
        with pytest.raises(MCPError, match="Unknown resource"):
            await client.read_resource("picoclaw://other")


async def test_an_unknown_tool_is_a_protocol_error(database: Path) -> None:
    async with official_client(database, "conv-a") as client:
        with pytest.raises(MCPError, match="Unknown tool"):
            await client.call_tool("read_file", {"path": "/etc/passwd"})


BAD_ARGUMENTS: list[tuple[str, dict[str, Any], str]] = [
    ("send_message", {}, "text: is required"),
    ("send_message", {"text": 7}, "text: must be a string"),
    ("send_message", {"text": None}, "text: must be a string"),
    ("send_message", {"text": ""}, "text: must not be empty"),
    ("send_message", {"text": "  \n"}, "text: must not be blank"),
    ("send_message", {"text": "x" * 32_001}, "text: must have at most 32000 characters"),
    ("send_message", {"text": "x", "owner": "main"}, "owner: is not an argument of this tool"),
    ("send_message", {"text": "x", "sender": "scheduIer"}, "the host's own name or looks like it"),
    ("send_message", {"text": "x", "sender": "ѕystem"}, "the host's own name or looks like it"),
    ("send_message", {"text": "x", "sender": ["a"]}, "sender: must be a string"),
    ("list_tasks", {"limit": "5"}, "limit: must be a whole number"),
    ("list_tasks", {"limit": True}, "limit: must be a whole number"),
    ("list_tasks", {"limit": 0}, "limit: must be greater than or equal to 1"),
    ("list_tasks", {"limit": 1001}, "limit: must be less than or equal to 1000"),
    ("list_tasks", {"status": "done"}, "status: must be 'active', 'paused', 'completed' or 'failed'"),
    ("schedule_task", {**MINUTELY, "schedule_type": "hourly"}, "schedule_type: "),
    ("schedule_task", {**MINUTELY, "schedule_value": "1e3"}, "schedule_value"),
    ("schedule_task", {**MINUTELY, "timezone": "Mars/Olympus"}, "timezone"),
    ("schedule_task", {**MINUTELY, "prompt": " "}, "prompt: must not be blank"),
    ("get_task", {}, "task_id: is required"),
    ("update_task", {"task_id": "t"}, "Nothing to change"),
    ("list_tasks", {"cursor": "made up"}, "cursor"),
    ("list_task_runs", {"task_id": "t", "cursor": "made up"}, "cursor"),
]


async def test_bad_arguments_are_a_sentence_that_names_the_field(database: Path, store: Store) -> None:
    async with RawServer(environment(database, "conv-a")) as server:
        await server.hello()
        for tool, arguments, expected in BAD_ARGUMENTS:
            result = await server.tool(tool, **arguments)
            assert result["isError"], (tool, arguments)
            assert expected in result["content"][0]["text"]
            assert "Traceback" not in result["content"][0]["text"]
    assert await store.outbound.said_by("conv-a", after=0) == []
    assert (await store.tasks.page(EVERYTHING, status=None, limit=1, cursor=None)).items == []


async def test_a_failure_inside_says_nothing_of_its_text(database: Path, store: Store) -> None:
    async with RawServer(environment(database, "conv-a")) as server:
        await server.hello()
        # The kind of failure no code expects: the table is gone under the running server.
        with sqlite3.connect(database) as connection:
            connection.execute("ALTER TABLE outbound_messages RENAME TO somewhere_else")
        connection.close()
        result = await server.tool("send_message", text="hello")
        assert result["isError"]
        assert result["content"][0]["text"] == ("The tool failed inside; the reason is in the server's log.")
        assert await server.end() == 0
        assert "outbound_messages" in await server.complaint()


async def test_messages_and_tasks_of_a_temporary_conversation_belong_to_its_owner(
    database: Path, store: Store
) -> None:
    now = now_ms()
    await store.conversations.create("conv-parent", now)
    await store.conversations.create("conv-run", now, owner_id="conv-parent", temporary=True)
    async with official_client(database, "conv-run") as client:
        said = value(await client.call_tool("send_message", {"text": "done"}))
        task = value(await client.call_tool("schedule_task", MINUTELY))
    assert (said["conversation_id"], task["conversation_id"]) == ("conv-parent", "conv-parent")
    (heard,) = await store.outbound.said_by("conv-run", after=0)
    assert (heard.conversation_id, heard.text) == ("conv-parent", "done")


async def test_messages_keep_their_order_when_sent_without_waiting(database: Path, store: Store) -> None:
    async with RawServer(environment(database, "conv-a")) as server:
        await server.hello()
        for number in range(50):
            call = {"name": "send_message", "arguments": {"text": str(number)}}
            await server.say({"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": call})
        answered = {(await server.hear())["id"] for _ in range(50)}
    assert answered == set(range(50))
    said = await store.outbound.said_by("conv-a", after=0)
    assert [message.text for message in said] == [str(number) for number in range(50)]
