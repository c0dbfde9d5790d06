"""People talk to the agent through Telegram, or rather a Bot API server of the test's own."""

from __future__ import annotations

from tests.fakes.bot_api import TOKEN, BotApi
from tests.running import HostProcess, directive, until


def test_a_message_is_answered_in_its_own_conversation(host: HostProcess, api: BotApi) -> None:
    api.say("hello")
    until(lambda: api.texts() == ["echo: hello"])
    with host.client() as client:
        messages = client.get("/chat/telegram:7/messages").json()["messages"]
    assert [message["content"] for message in messages] == ["hello", "echo: hello"]
    assert messages[0]["sender"] == "telegram:7"
    assert messages[0]["sender_name"] == "Ann"
    assert TOKEN not in host.log_text


def test_messages_that_come_while_it_works_are_answered_in_order(host: HostProcess, api: BotApi) -> None:
    api.say(directive("first", text="one", delay_ms=300))
    for number in range(5):
        api.say(f"number {number}")
    until(lambda: len(api.texts()) == 6)
    assert api.texts() == ["one", *(f"echo: number {number}" for number in range(5))]
