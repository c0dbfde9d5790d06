"""Messages arrive in order, each until it arrived or never will, and one chat's trouble is its own."""

from __future__ import annotations

from tests.channels.conftest import MakeHost
from tests.channels.test_telegram import history
from tests.fakes.bot_api import BotApi
from tests.running import HostProcess, directive, until


def test_a_pause_that_telegram_asks_for_is_kept_and_holds_up_nobody_else(
    host: HostProcess, api: BotApi, user: int
) -> None:
    other = user + 50_000
    api.fail("sendMessage", 2, status=429, description="Too Many Requests", retry_after=2, chat=str(user))
    for number in range(3):
        api.say(f"number {number}", user=user)
    until(lambda: api.called("failed sendMessage", user))
    api.say("quick", user=other)
    until(lambda: api.texts(other) == ["echo: quick"])
    assert api.texts(user) == []
    until(lambda: len(api.texts(user)) == 3)
    assert api.texts(user) == [f"echo: number {number}" for number in range(3)]
    tried = [call.at for call in api.called("failed sendMessage", user)]
    arrived = api.called("sendMessage", user)[0].at
    assert tried[1] - tried[0] >= 2
    assert arrived - tried[1] >= 2


def test_a_failing_server_and_a_broken_connection_are_tried_again(
    host: HostProcess, api: BotApi, user: int
) -> None:
    api.fail("sendMessage", 1, status=502, description="Bad Gateway", chat=str(user))
    api.fail("sendMessage", 1, drop="before", chat=str(user))
    api.say("hello", user=user)
    until(lambda: api.texts(user) == ["echo: hello"])


def test_a_connection_that_breaks_after_the_deed_can_only_cost_a_repetition(
    host: HostProcess, api: BotApi, user: int
) -> None:
    api.fail("sendMessage", 1, drop="after", chat=str(user))
    api.say("hello", user=user)
    api.say("and then", user=user)
    until(lambda: api.texts(user)[-1:] == ["echo: and then"])
    assert api.texts(user) == ["echo: hello", "echo: hello", "echo: and then"]


def test_an_edit_that_is_repeated_shows_nothing_twice(host: HostProcess, api: BotApi, user: int) -> None:
    api.fail("editMessageText", 3, drop="after", chat=str(user))
    deltas = [f"word{number} " for number in range(50)]
    api.say(directive(deltas=deltas, delta_delay_ms=60), user=user)
    until(lambda: api.texts(user) == ["".join(deltas).strip()])
    (message,) = api.shown(user)
    assert message.edits >= 1
    # The last edit was repeated and is no failure: nothing is told to the conversation.
    assert len(history(host, f"telegram:{user}")) == 2


def test_a_block_is_told_to_the_conversation_and_stalls_nobody(
    host: HostProcess, api: BotApi, user: int
) -> None:
    other = user + 50_000
    api.blocked.add(str(user))
    api.say("hello", user=user)
    api.say("fine", user=other)
    until(lambda: api.texts(other) == ["echo: fine"])
    until(lambda: len(history(host, f"telegram:{user}")) == 3)
    notice = history(host, f"telegram:{user}")[2]
    assert notice["sender"] == "system"
    assert notice["content"] == (
        f"A message to telegram chat {user} could not be delivered: "
        "Telegram refuses: Forbidden: bot was blocked by the user."
    )
    api.blocked.clear()
    api.say("back again", user=user)
    until(lambda: api.texts(user) == ["echo: back again"])


def test_a_chat_that_is_gone_is_told_to_the_conversation(host: HostProcess, api: BotApi, user: int) -> None:
    api.missing.add(str(user))
    api.say("hello", user=user)
    until(lambda: len(history(host, f"telegram:{user}")) == 3)
    assert "Chat not found" in history(host, f"telegram:{user}")[2]["content"]


def test_html_that_telegram_cannot_read_goes_out_as_plain_text(
    host: HostProcess, api: BotApi, user: int
) -> None:
    api.fail("sendMessage", 1, status=400, description="Bad Request: can't parse entities: x", chat=str(user))
    api.say(directive(text="**bold**"), user=user)
    until(lambda: api.texts(user) == ["**bold**"])


def test_growing_stops_while_telegram_wants_a_pause(host: HostProcess, api: BotApi, user: int) -> None:
    api.fail("editMessageText", 1, status=429, description="slow", retry_after=3, chat=str(user))
    deltas = [f"word{number} " for number in range(60)]
    api.say(directive(deltas=deltas, delta_delay_ms=70), user=user)
    until(lambda: api.texts(user) == ["".join(deltas).strip()])
    failed = api.called("failed editMessageText", user)[0].at
    assert [call for call in api.called("editMessageText", user) if 0 <= call.at - failed < 2.9] == []


def test_a_flood_is_cut_off_with_one_notice(make_host: MakeHost, own_api: BotApi) -> None:
    make_host(messages_per_minute=10).start()
    own_api.say("a quiet one", user=8)
    for number in range(200):
        own_api.say(f"flood {number}", user=7)
    until(lambda: own_api.pending() == 0 and len(own_api.texts(7)) == 11)
    answers = [text for text in own_api.texts(7) if text.startswith("echo: ")]
    assert answers == [f"echo: flood {number}" for number in range(10)]
    assert sum("faster than I am allowed" in text for text in own_api.texts(7)) == 1
    until(lambda: own_api.texts(8) == ["echo: a quiet one"])


def test_a_queue_has_an_end(make_host: MakeHost, own_api: BotApi) -> None:
    make_host(messages_per_minute=0).start()
    own_api.say(directive(hang=True), user=7)
    until(lambda: own_api.called("sendChatAction", 7))
    for number in range(120):
        own_api.say(f"waiting {number}", user=7)
    until(lambda: any("are waiting already" in text for text in own_api.texts(7)))
    own_api.say("/stop", user=7)
    until(lambda: own_api.texts(7)[-1:] == ["echo: waiting 98"])
