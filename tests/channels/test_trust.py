"""Whose chats may change what agents obey: by where a conversation came from, fixed at its birth."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.channels.conftest import MakeHost
from tests.fakes.bot_api import BotApi
from tests.running import HostProcess, directive, until

REMEMBER = (
    {"name": "append_file", "input": {"path": "MEMORY.md", "content": "by tool\n"}},
    {
        "name": "exec",
        "input": {"command": "echo by command >> MEMORY.md; echo > HEARTBEAT.md; echo > free.md"},
    },
)
REFUSED = "is read-only in this conversation"
WHY = "channels.telegram.owners is empty"


def wish(word: str) -> str:
    return directive(word, steps=[{"tools": list(REMEMBER)}, {"text": f"{word} $results"}])


def memory(host: HostProcess) -> Path:
    return Path(host.environment["MEMORY_DIR"]) / "MEMORY.md"


def noted(host: HostProcess) -> list[str]:
    """The lines of the memory; the two calls of one step have no order."""
    return sorted(memory(host).read_text().splitlines())


def asked(api: BotApi, word: str, **chat: Any) -> str:
    """Have somebody ask for a note, and return what the tools said."""
    api.say(wish(word), **chat)
    where = chat.get("chat", chat["user"])
    until(lambda: any(text.startswith(word) for text in api.texts(where)))
    return next(text for text in api.texts(where) if text.startswith(word))


def test_private_chats_of_owners_change_memory_and_all_others_read_it(
    make_host: MakeHost, own_api: BotApi
) -> None:
    host = make_host({"PICOCLAW_HEARTBEAT_ENABLED": "true"}, owners=[7]).start()
    memory(host).write_text("kept\n")
    assert REFUSED in asked(own_api, "other", user=8)
    assert REFUSED in asked(own_api, "group", user=7, chat=-9)
    assert memory(host).read_text() == "kept\n"
    assert (memory(host).parent / "free.md").exists()
    asked(own_api, "owner", user=7)
    assert noted(host) == ["by command", "by tool", "kept"]
    with host.client() as client:
        task = {"prompt": wish("task"), "schedule_type": "cron", "schedule_value": "0 9 * * *"}
        task |= {"conversation_id": "telegram:8", "context_mode": "isolated"}
        made = client.post("/task", json=task).json()
        client.post("/task/trigger", json={"task_id": made["id"]})
        until(lambda: any(REFUSED in text and text.startswith("task") for text in own_api.texts(8)))
        assert not (memory(host).parent / "HEARTBEAT.md").exists()
        done = client.post("/chat", json={"message": wish("operator")}).json()
        assert done["status"] == "success"
        assert noted(host) == [*2 * ["by command"], *2 * ["by tool"], "kept"]
        assert not (memory(host).parent / "HEARTBEAT.md").exists()
        client.post("/chat", json={"message": wish("main"), "conversation_id": "main"})
    assert (memory(host).parent / "HEARTBEAT.md").exists()


def test_a_channel_that_is_trusted_changes_memory(make_host: MakeHost, own_api: BotApi) -> None:
    host = make_host(trusted=True).start()
    asked(own_api, "anybody", user=8)
    assert noted(host) == ["by command", "by tool"]
    assert WHY not in host.log_text


def test_without_owners_the_start_and_the_refusal_say_which_setting_decides(
    make_host: MakeHost, own_api: BotApi
) -> None:
    host = make_host(allow_from=[8]).start()
    assert WHY in host.log_text
    doctor = [sys.executable, "-m", "host.cli", "doctor", "--json"]
    found = subprocess.run(doctor, env=host.environment, capture_output=True, text=True, check=False)
    assert WHY in found.stdout
    said = asked(own_api, "why", user=8)
    assert f"{WHY}, so persona, memory and skills are read-only from its chats" in said
    assert "set channels.telegram.trusted to true" in said
    assert not memory(host).exists()


def test_conversations_of_before_are_decided_about_when_their_channel_starts(
    make_host: MakeHost, own_api: BotApi
) -> None:
    host = make_host(owners=[7]).start()
    for user in (7, 8):
        own_api.say("hello", user=user)
    until(lambda: own_api.texts(7) and own_api.texts(8))
    if "DATABASE_URL" in host.environment:
        return
    host.stop()
    with sqlite3.connect(host.environment["LOCAL_DB_PATH"]) as database:
        database.execute("UPDATE conversations SET trusted = NULL WHERE id LIKE 'telegram:%'")
    database.close()
    host.start()
    assert REFUSED in asked(own_api, "other", user=8)
    asked(own_api, "owner", user=7)
    assert noted(host) == ["by command", "by tool"]
