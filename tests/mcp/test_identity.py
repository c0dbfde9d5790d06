"""Whom a tool server acts for is said at its birth, or it doesn't start."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcp_server.session_request import identity_of
from shared import jsons
from shared.store import open_host_store, open_store
from shared.store.store import Store
from tests.mcp.running import RawServer, environment


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"PICOCLAW_CONVERSATION_ID": ""}, "PICOCLAW_CONVERSATION_ID is not set"),
        ({"PICOCLAW_CONVERSATION_ID": "../main"}, "PICOCLAW_CONVERSATION_ID must be"),
        ({"PICOCLAW_CONVERSATION_ID": "a\nb"}, "PICOCLAW_CONVERSATION_ID must be"),
        ({"PICOCLAW_PRINCIPAL_ID": "ann"}, "PICOCLAW_PRINCIPAL_ID must be"),
        ({"PICOCLAW_DB_PATH": ""}, "PICOCLAW_DB_PATH is not set"),
        ({"MAX_TASKS_PER_CONVERSATION": "many"}, "MAX_TASKS_PER_CONVERSATION must be"),
    ],
)
async def test_without_an_identity_the_server_refuses_to_start(
    database: Path, changes: dict[str, str], expected: str
) -> None:
    async with RawServer(environment(database, "conv-a") | changes) as server:
        complaint = await server.complaint()
        assert await server.process.wait() == 2
    assert expected in complaint
    assert "Traceback" not in complaint


@pytest.mark.parametrize("there", ["nothing", "an empty file", "an empty volume"])
async def test_where_no_host_made_a_store_the_server_refuses_with_the_path_it_looked_at(
    database: Path, there: str
) -> None:
    env = environment(database, "conv-a")
    for file in database.parent.iterdir():
        file.unlink()
    if there == "an empty file":
        database.touch()
    if there == "an empty volume":
        (database.parent / "volume").mkdir()
        env["PICOCLAW_STORE_DIR"] = str(database.parent / "volume")
    before = sorted(database.parent.rglob("*"))
    async with RawServer(env) as server:
        complaint = await server.complaint()
        assert await server.process.wait() == 1
    assert f"there is no store at {database}" in complaint
    assert "Traceback" not in complaint
    assert sorted(database.parent.rglob("*")) == before
    assert not database.exists() or database.stat().st_size == 0


async def test_a_database_that_is_lost_is_made_again_from_the_volume(tmp_path: Path) -> None:
    volume, database = tmp_path / "volume", tmp_path / "picoclaw.db"
    host = open_host_store(store_dir=volume, local_db=database, owner="host")
    await host.conversations.ensure("kept", 1, trusted=True)
    await host.close()
    for file in tmp_path.glob("picoclaw.db*"):
        file.unlink()
    env = {"PICOCLAW_CONVERSATION_ID": "laptop", "PICOCLAW_DB_PATH": str(database)}
    async with RawServer(env | {"PICOCLAW_STORE_DIR": str(volume)}) as server:
        await server.hello()
        assert await server.end() == 0
    store = open_store(database)
    assert await store.conversations.get("kept") is not None
    await store.close()


async def test_a_database_that_cannot_be_opened_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    async with RawServer(environment(tmp_path / "file" / "picoclaw.db", "conv-a")) as server:
        complaint = await server.complaint()
        assert await server.process.wait() == 1
    assert complaint.startswith("picoclaw tool server: ")
    assert "Traceback" not in complaint


async def test_an_unknown_conversation_is_created_once_for_an_outside_agent(
    database: Path, store: Store
) -> None:
    created = []
    for _ in range(2):
        async with RawServer(environment(database, "laptop")) as server:
            await server.hello()
            assert await server.end() == 0
        found = await store.conversations.get("laptop")
        assert found is not None
        created.append((found.session_id, found.created_at))
    assert created[0] == created[1]


async def test_the_older_variable_names_count_where_the_own_ones_are_unset(
    database: Path, store: Store
) -> None:
    older = {
        "NANOCLAW_CONVERSATION_ID": "conv-old",
        "NANOCLAW_DB_PATH": str(database),
        "NANOCLAW_IS_MAIN": "1",
    }
    async with RawServer(older) as server:
        await server.hello()
        answer = await server.ask(1, "resources/read", {"uri": "picoclaw://conversation"})
    seen = jsons.loads(answer["result"]["contents"][0]["text"])
    assert (seen["conversation_id"], seen["is_main"]) == ("conv-old", True)


@pytest.mark.parametrize("value", ["", "0", "true", "yes", "2"])
async def test_only_a_one_makes_it_the_main_conversation(database: Path, value: str) -> None:
    async with RawServer(environment(database, "conv-a") | {"PICOCLAW_IS_MAIN": value}) as server:
        await server.hello()
        refused = await server.tool("send_message", text="x", conversation_id="main")
        assert refused["content"][0]["text"] == "conversation_id: is not an argument of this tool"


async def test_schedules_are_in_the_time_zone_of_the_environment(database: Path) -> None:
    once = {"prompt": "wake up", "schedule_type": "once", "schedule_value": "2030-07-01T09:00:00"}
    async with RawServer(environment(database, "conv-a")) as server:
        await server.hello()
        task = (await server.tool("schedule_task", **once))["structuredContent"]
    assert (task["timezone"], task["next_run"]) == ("Europe/Berlin", "2030-07-01T07:00:00.000Z")


async def test_a_conversation_keeps_to_its_quota_of_tasks(database: Path) -> None:
    hourly = {"prompt": "x", "schedule_type": "interval", "schedule_value": "3600000"}
    async with RawServer(environment(database, "conv-a") | {"MAX_TASKS_PER_CONVERSATION": "2"}) as server:
        await server.hello()
        outcomes = [(await server.tool("schedule_task", **hourly))["isError"] for _ in range(3)]
    assert outcomes == [False, False, True]


@pytest.mark.parametrize(
    ("zones", "zone"),
    [({"TZ": "Asia/Tokyo"}, "Asia/Tokyo"), ({"TIMEZONE": "Asia/Tokyo"}, "Asia/Tokyo"), ({}, "")],
)
def test_either_name_of_the_time_zone_counts(zones: dict[str, str], zone: str) -> None:
    named = {"PICOCLAW_CONVERSATION_ID": "conv-a", "PICOCLAW_DB_PATH": "/pico.db"}
    assert identity_of({**named, **zones}).timezone == zone
