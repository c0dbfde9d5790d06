"""Who may write: every form of allow_from, and what somebody gets who may not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from host.channels.base import Sender
from host.channels.chats import Names, Rules
from shared.settings.access import ChannelRules
from shared.store.sql.chats import Chat
from tests.channels.conftest import MakeHost
from tests.fakes.bot_api import BotApi
from tests.running import HostProcess, directive, until

ANN = Sender("123", "ann", "Ann")
NAMELESS = Sender("123")
OTHER = Sender("9", "bob", "Bob")


@pytest.mark.parametrize(
    "entry",
    [
        123,
        "123",
        " 123 ",
        "@ann",
        "@Ann",
        "telegram:123",
        "telegram:@ann",
        "123|ann",
        "123|@ANN",
        "telegram:123|ann",
    ],
)
def test_each_form_lets_its_sender_in_and_nobody_else(entry: str | int) -> None:
    allowed = Names([entry], "telegram")
    assert allowed.allow(ANN)
    assert not allowed.allow(OTHER)


@pytest.mark.parametrize(
    "entry",
    [
        "",
        " ",
        "@",
        "|",
        "123|",
        "|ann",
        "123|bob",
        "9|ann",
        "ann",
        "12",
        "1234",
        "discord:123",
        "telegram:",
        "-123",
        "@an",
    ],
)
def test_an_entry_that_means_somebody_else_or_nobody_lets_nobody_in(entry: str) -> None:
    allowed = Names([entry], "telegram")
    assert not allowed.allow(ANN)
    assert not allowed.allow(Sender("", ""))


def test_both_halves_must_match_also_for_somebody_without_a_name() -> None:
    assert not Names(["123|ann"], "telegram").allow(NAMELESS)
    assert not Names(["123|ann"], "telegram").allow(Sender("9", "ann"))
    assert not Names(["@"], "telegram").allow(NAMELESS)


def test_an_empty_list_and_a_star_let_everybody_in() -> None:
    lists: list[list[str | int]] = [[], ["*"], [5, "*"]]
    for entries in lists:
        assert Names(entries, "telegram").allow(OTHER)


def test_a_star_makes_nobody_an_owner_and_neither_does_an_empty_list() -> None:
    assert not Names(["*"], "telegram").names(ANN)
    assert not Names([], "telegram").names(ANN)
    assert Names(["*", 123], "telegram").names(ANN)


@pytest.mark.parametrize(
    ("approvers", "some"), [((), False), (("*",), False), (("",), False), ((123,), True)]
)
def test_a_group_has_approvers_where_the_list_means_somebody(
    approvers: tuple[str | int, ...], some: bool
) -> None:
    rules = Rules("telegram", ChannelRules(approvers=approvers), "main")
    group = Chat("telegram", "-100", False, ANN.id, ANN.name, "operator")
    assert rules.has_approvers(group) is some
    assert rules.approves(ANN) is some


def test_who_is_not_allowed_gets_nothing_costs_nothing_and_is_logged_once(
    make_host: MakeHost, own_api: BotApi
) -> None:
    host = make_host(allow_from=["7|ann"]).start()
    for number in range(20):
        own_api.say(f"let me in {number}", user=8, name="mallory")
        own_api.say("/start", user=7, name="mallory")
    own_api.say("hello", user=7, name="ann")
    until(lambda: own_api.texts(7) == ["echo: hello"])
    assert own_api.texts(8) == []
    assert own_api.called("sendChatAction", 8) == []
    assert host.log_text.count("not allowed was turned away") == 1
    with host.client() as client:
        conversations = client.get("/chat").json()["conversations"]
        assert {each["conversation_id"] for each in conversations} == {"main", "telegram:7"}
        (message, _) = client.get("/chat/telegram:7/messages").json()["messages"]
    assert message["content"] == "hello"
    assert "let me in" not in host.log_text


def test_an_empty_list_is_warned_of_at_the_start(make_host: MakeHost) -> None:
    host = make_host(allow_from=[]).start()
    assert "SECURITY: channel telegram allows everyone (allow_from is empty)" in host.log_text


def test_who_is_an_owner_no_more_hears_the_main_conversation_no_more(
    make_host: MakeHost, own_api: BotApi
) -> None:
    host = make_host(owners=[7, 8]).start()
    for user in (7, 8):
        own_api.say("/main", user=user)
    until(lambda: own_api.texts(7) and own_api.texts(8))
    host.stop()
    demote(host, owners=[8])
    host.start()
    say_in_main(host, "for owners only")
    until(lambda: "for owners only" in own_api.texts(8))
    own_api.say("hello?", user=7)
    until(lambda: "echo: hello?" in own_api.texts(7))
    assert "for owners only" not in own_api.texts(7)
    with host.client() as client:
        messages = client.get("/chat/main/messages").json()["messages"]
    assert "hello?" not in [message["content"] for message in messages]


def demote(host: HostProcess, **changes: Any) -> None:
    path = host.root / "home" / "config.json"
    config = json.loads(path.read_text())
    config["channels"]["telegram"].update(changes)
    path.write_text(json.dumps(config))


def say_in_main(host: HostProcess, text: str) -> None:
    call = {"name": "mcp__picoclaw__send_message", "input": {"text": text}}
    with host.client() as client:
        body = {"message": directive(steps=[{"tools": [call]}]), "conversation_id": "main"}
        assert client.post("/chat", json=body).json()["status"] == "success"
