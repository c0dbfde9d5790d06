"""One conversation can't see or touch another one's; the main conversation can."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from mcp.client import Client
from mcp_types import CallToolResult, RequestParamsMeta, TextContent, TextResourceContents

from shared.clock import now_ms
from shared.principals import Reach
from shared.store.store import Store
from shared.tool_contract import tool_declarations
from tests.mcp.running import official_client

DENIED = "Task not found or access denied."
DAILY = {"prompt": "water the plants", "schedule_type": "cron", "schedule_value": "0 9 * * *"}

# What each tool answers when it is given ids of another conversation. A new tool must be listed here.
FOREIGN: dict[str, tuple[Callable[[str], dict[str, Any]], str]] = {
    "send_message": (
        lambda _: {"text": "x", "conversation_id": "conv-a"},
        "conversation_id: is not an argument",
    ),
    "schedule_task": (
        lambda _: {**DAILY, "target_conversation_id": "conv-a"},
        "target_conversation_id: only the main conversation",
    ),
    "get_task": (lambda task: {"task_id": task}, DENIED),
    "list_task_runs": (lambda task: {"task_id": task}, DENIED),
    "pause_task": (lambda task: {"task_id": task}, DENIED),
    "resume_task": (lambda task: {"task_id": task}, DENIED),
    "update_task": (lambda task: {"task_id": task, "prompt": "mine now"}, DENIED),
    "cancel_task": (lambda task: {"task_id": task}, DENIED),
}


def text(result: CallToolResult) -> str:
    (block,) = result.content
    assert isinstance(block, TextContent)
    return block.text


async def scheduled(client: Client) -> str:
    result = await client.call_tool("schedule_task", DAILY)
    assert isinstance(result.structured_content, dict)
    return str(result.structured_content["id"])


async def test_no_tool_serves_a_foreign_id(database: Path, store: Store) -> None:
    assert set(FOREIGN) | {"list_tasks"} == set(tool_declarations(is_main=False))
    async with official_client(database, "conv-a") as mine, official_client(database, "conv-b") as theirs:
        task = await scheduled(mine)
        before = await store.tasks.get(task, Reach("conv-a"))
        for tool, (arguments, expected) in FOREIGN.items():
            foreign = await theirs.call_tool(tool, arguments(task))
            assert foreign.is_error, tool
            assert expected in text(foreign), tool
            absent = await theirs.call_tool(tool, arguments("task-that-never-was"))
            assert text(absent) == text(foreign), tool
        assert '"tasks":[]' in text(await theirs.call_tool("list_tasks", {}))
        (content,) = (await theirs.read_resource("picoclaw://tasks")).contents
        assert isinstance(content, TextResourceContents)
        assert task not in content.text
        assert await store.tasks.get(task, Reach("conv-a")) == before
        assert await store.outbound.said_by("conv-b", after=0) == []


@pytest.mark.parametrize("claim", ["arguments", "meta"])
async def test_nothing_in_a_request_changes_who_is_asking(database: Path, claim: str) -> None:
    identity = {
        "conversation_id": "conv-a",
        "PICOCLAW_CONVERSATION_ID": "conv-a",
        "is_main": True,
        "owner": "conv-a",
    }
    async with official_client(database, "conv-a") as mine, official_client(database, "conv-b") as theirs:
        task = await scheduled(mine)
        if claim == "meta":
            found = await theirs.session.call_tool(
                "get_task", {"task_id": task}, meta=cast(RequestParamsMeta, identity)
            )
        else:
            found = await theirs.call_tool("get_task", {"task_id": task, **identity})
        assert isinstance(found, CallToolResult)
        assert found.is_error
        assert "water the plants" not in text(found)


async def test_the_main_conversation_sees_and_changes_all(database: Path, store: Store) -> None:
    async with (
        official_client(database, "conv-a") as mine,
        official_client(database, "main", is_main=True) as main,
    ):
        task = await scheduled(mine)
        assert task in text(await main.call_tool("list_tasks", {}))
        assert not (await main.call_tool("pause_task", {"task_id": task})).is_error
        there = {**DAILY, "target_conversation_id": "conv-a"}
        theirs = await main.call_tool("schedule_task", there)
        assert isinstance(theirs.structured_content, dict)
        assert theirs.structured_content["conversation_id"] == "conv-a"
        assert theirs.structured_content["id"] in text(await mine.call_tool("list_tasks", {}))
        said = await main.call_tool("send_message", {"text": "psst", "conversation_id": "conv-a"})
        assert not said.is_error
        nowhere = await main.call_tool("send_message", {"text": "psst", "conversation_id": "conv-none"})
        assert text(nowhere) == "conversation_id not found: conv-none"
        nobody = await main.call_tool("schedule_task", {**DAILY, "target_conversation_id": "conv-none"})
        assert text(nobody) == "conversation_id not found: conv-none"
    (heard,) = await store.outbound.said_by("main", after=0)
    assert (heard.conversation_id, heard.text) == ("conv-a", "psst")


async def test_a_deleted_conversation_is_not_brought_back_by_its_tool_server(
    database: Path, store: Store
) -> None:
    async with official_client(database, "conv-a") as client:
        assert not (await client.call_tool("send_message", {"text": "one"})).is_error
        await store.conversations.delete("conv-a")
        late = await client.call_tool("send_message", {"text": "two"})
        assert text(late) == "conversation_id not found: conv-a"
        assert (await client.call_tool("schedule_task", DAILY)).is_error
    assert await store.conversations.get("conv-a") is None
    assert (await store.conversations.create("conv-a", now_ms())).message_count == 0
