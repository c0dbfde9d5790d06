"""Chats that are mapped to principals: whose conversations they have, and who is turned away."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID

import httpx2
import pytest
from pydantic import ValidationError

from host.channels.base import Sender
from host.channels.chats import Rules
from shared.settings.access import ChannelRules
from tests.channels.conftest import MakeHost
from tests.fakes.bot_api import BotApi
from tests.http.conftest import configure
from tests.running import HostProcess, directive, until

WEAK = {"PICOCLAW_PRINCIPALS_ISOLATION": "weak"}
ANN, BOB, NOBODY = (f"prin-{UUID(int=number)}" for number in range(3))


def mapped(host: HostProcess, api: BotApi, principals: dict[str, str]) -> HostProcess:
    """Start a host whose chats are mapped so."""
    channel = {"enabled": True, "allow_from": ["*"], "owners": [7], "api_base": api.url}
    return configure(host, channels={"telegram": {**channel, "principals": principals}}).start()


def made(client: httpx2.Client, name: str) -> str:
    answer = client.post("/principals", json={"name": name})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def ids(client: httpx2.Client, whose: str) -> list[str]:
    listed = client.get("/chat", params={"principal_id": whose}).json()["conversations"]
    return sorted(each["conversation_id"] for each in listed)


def test_a_chat_s_conversations_are_those_of_the_principal_it_is_mapped_to(
    make_host: MakeHost, own_api: BotApi
) -> None:
    host = make_host(WEAK).start()
    with host.client() as client:
        ann, bob = made(client, "ann"), made(client, "bob")
        host.stop()
        mapped(host, own_api, {"7": ann, "-9": bob})
        for user, chat in ((7, 7), (7, -9), (8, 8)):
            own_api.say(directive(text=f"hello {chat}"), user=user, chat=None if chat > 0 else chat)
            until(lambda chat=chat: own_api.texts(chat) == [f"hello {chat}"])  # type: ignore[misc]
        # In a group the sender doesn't count, and nobody's conversation is another's.
        assert any(name.endswith("telegram:7") for name in ids(client, ann))
        assert any(name.endswith("telegram:-9") for name in ids(client, bob))
        assert [name for name in ids(client, "operator") if "telegram" in name] == ["telegram:8"]


def test_main_is_the_main_conversation_of_the_chat_s_principal(
    make_host: MakeHost, own_api: BotApi, tmp_path: Path
) -> None:
    host = make_host(WEAK).start()
    with host.client() as client:
        ann = made(client, "ann")
        host.stop()
        mapped(host, own_api, {"telegram:7": ann})
        own_api.say("/main", user=7)
        until(lambda: len(own_api.texts()) == 1)
        own_api.say(directive(text="in main"), user=7)
        until(lambda: own_api.texts()[-1] == "in main")
        counts = {
            whose: next(
                each["message_count"]
                for each in client.get("/chat", params={"principal_id": whose}).json()["conversations"]
                if each["conversation_id"].endswith("main")
            )
            for whose in (ann, "operator")
        }
        assert counts == {ann: 2, "operator": 0}


def test_who_is_suspended_is_turned_away_and_what_was_to_be_said_waits(
    make_host: MakeHost, own_api: BotApi
) -> None:
    host = make_host(WEAK).start()
    with host.client() as client:
        ann = made(client, "ann")
        host.stop()
        mapped(host, own_api, {"7": ann, "9": NOBODY})
        own_api.say(directive(text="first"), user=7)
        until(lambda: own_api.texts() == ["first"])
        client.patch(f"/principals/{ann}", json={"status": "suspended"})
        for user in (7, 9):
            own_api.say(directive(text="unheard"), user=user)
        until(lambda: own_api.pending() == 0)
        own_api.say(directive(text="the operator's"), user=8)
        until(lambda: own_api.texts(8) == ["the operator's"])
        client.patch(f"/principals/{ann}", json={"status": "active"})
        own_api.say(directive(text="again"), user=7)
        until(lambda: own_api.texts() == ["first", "again"])
        assert own_api.texts(9) == []
        assert not [name for name in ids(client, "*") if name.endswith("telegram:9")]


def test_a_changed_mapping_begins_a_new_conversation_that_hears_nothing_of_the_old(
    make_host: MakeHost, own_api: BotApi
) -> None:
    host = make_host(WEAK).start()
    with host.client() as client:
        ann, bob = made(client, "ann"), made(client, "bob")
        own_api.say(directive(text="ours"), user=7)
        until(lambda: own_api.texts() == ["ours"])
        for whose in (ann, bob):
            host.stop()
            mapped(host, own_api, {"7": whose})
            own_api.say(directive(text=whose), user=7)
            until(lambda whose=whose: own_api.texts()[-1] == whose)  # type: ignore[misc]
        task = {"prompt": directive(text="of the operator"), "schedule_type": "once"}
        task |= {"schedule_value": "2030-01-01T00:00:00", "conversation_id": "telegram:7"}
        answer = client.post("/task", json=task)
        assert answer.status_code == 201, answer.text
        client.post("/task/trigger", json={"task_id": answer.json()["id"]})
        own_api.say(directive(text="last"), user=7)
        until(lambda: own_api.texts()[-1] == "last")
        assert own_api.texts() == ["ours", ann, bob, "last"]
        assert len([name for name in ids(client, "*") if name.endswith("telegram:7")]) == 3


@pytest.mark.parametrize(
    ("chat", "sender", "private", "whose"),
    [
        ("7", "7", True, ANN),
        ("70", "7", True, ANN),
        ("-9", "7", False, BOB),
        ("-9_4", "7", False, BOB),
        ("-8", "7", False, "operator"),
        ("8", "8", True, "operator"),
    ],
)
def test_groups_count_by_their_chat_alone_and_topics_by_their_group(
    chat: str, sender: str, private: bool, whose: str
) -> None:
    rules = Rules("telegram", ChannelRules(principals={"telegram:7": ANN, "-9": BOB}), "main")
    assert rules.chat(chat, Sender(sender), private=private).principal_id == whose


@pytest.mark.parametrize("wrong", ["ann", "prin-1", ""])
def test_what_isn_t_a_principal_s_id_is_refused_in_the_settings(wrong: str) -> None:
    values: dict[str, Any] = {"principals": {"7": wrong}}
    with pytest.raises(ValidationError, match="principals"):
        ChannelRules.model_validate(values)
